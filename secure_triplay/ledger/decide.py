"""May this be charged? The ledger's decisions, as functions of the books: a sentence refuses, None lets through."""

from __future__ import annotations

from pathlib import Path

from secure_triplay.errors import PrivacyError
from secure_triplay.ledger import budget
from secure_triplay.ledger.books import Books, Release
from secure_triplay.ledger.budget import AnyCharge, Spend, charge_to_fields
from secure_triplay.ledger.entries import PlannedRelease


def planned(books: Books, study: str, what: str, charge: AnyCharge, round: int, path: Path) -> PlannedRelease:
    """The planned release that this is one of. Raises PrivacyError where no approved plan has it."""
    if study not in books.approvals:
        raise PrivacyError(
            f"study {study[:12]} was not approved at this site",
            where=str(path),
            fix="a person here reads the study and approves it; nothing is released before",
        )
    approved = books.approvals[study][1]
    plan = next((release for release in approved.releases if release.what == what), None)
    if plan is None or plan.charge != charge_to_fields(charge):
        raise PrivacyError(
            f"study {approved.name} was not approved with this {what}, or with other noise for it",
            where=str(path),
            fix="parameters are fixed before a study's first release; approve another study",
        )
    if not 1 <= round <= plan.times:
        raise PrivacyError(
            f"{what} {round} is not one of the {plan.times} that study {approved.name} was approved with",
            where=str(path),
            fix=f"ask for 1 to {plan.times}",
        )
    return plan


def over_budget(books: Books, plan: PlannedRelease, new: Spend) -> str | None:
    """None if the charge fits, otherwise the sentence that refuses it."""
    limits, spends = books.limits, books.spends
    already = already_charged(books, new.study, plan.what)
    left = max(1, plan.times - already)
    # The whole rest of the plan is one history that stays the same from round to round, so its figure is
    # known after the first. Where it fits, so does a part of it: figures only grow with charges.
    if budget.check(limits, spends, new, left) is None:
        return None
    exceeded = budget.check(limits, spends, new)
    if exceeded is None:
        return None
    return f"{exceeded.words()}; {already} of {plan.times} were charged, and 0 more fit"


def shortfall(books: Books, study: str, releases: tuple[Release, ...], year: int) -> str | None:
    """None if all that a study plans fits, otherwise the sentence that refuses it."""
    limits, spends = books.limits, books.spends
    for index, release in enumerate(releases):
        new = Spend(study, year, release.charge)
        exceeded = budget.check(limits, spends, new, release.times)
        if exceeded is not None:
            fit = budget.rounds_that_fit(limits, spends, new, release.times)
            before = f" after its {releases[index - 1].what}" if index else ""
            return f"{exceeded.words()}; {fit} of its {release.times} x {release.what}{before} fit"
        spends += (new,) * release.times
    return None


def already_charged(books: Books, study: str, what: str) -> int:
    return sum(made.study == study and made.what == what for made in books.reservations.values())
