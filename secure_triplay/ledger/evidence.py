"""Evidence about one site's budget: what an export says and what a verifier recomputes.

Everything in a bundle follows from the signed entries. `statement` derives it, for the exporter and for the
auditor alike, so that a figure in a bundle is either what its charges give or an error.
"""

from __future__ import annotations

import csv
import io
import math
from dataclasses import asdict
from typing import Any

from secure_triplay.crypto.identity import Identity
from secure_triplay.errors import PrivacyError
from secure_triplay.ledger import budget
from secure_triplay.ledger.anchor import verify_anchored
from secure_triplay.ledger.books import Books, Reservation, replay
from secure_triplay.ledger.budget import Scope, Unprotected
from secure_triplay.ledger.entries import Entry, Reserved
from secure_triplay.privacy import accounting
from secure_triplay.privacy.mechanisms import SharedNoiseCharge
from secure_triplay.privacy.region import hit_rate_in_region
from secure_triplay.privacy.shares import holds_against

FORMAT = "secure_triplay evidence 1"
CSV_COLUMNS = (
    "entry",
    "time",
    "study",
    "study_name",
    "release",
    "number",
    "attempt",
    "mechanism",
    "noise_multiplier",
    "sampling_rate",
    "steps_or_releases",
    "unit",
    "neighbouring",
    "released_sha256",
    "head",
)


def status(books: Books) -> tuple[dict[str, Any], ...]:
    """Spent, reserved, charged and left for each study, each year and the whole history, as plain values.

    `spent` is of what was released, `charged` of that and everything reserved, which nothing gives back. An
    infinite epsilon is None with `bounded` false; `left` is None where no limit binds.
    """
    return tuple(_row(books, scope) for scope in all_scopes(books))


def all_scopes(books: Books) -> tuple[Scope, ...]:
    """Every study, every year and the whole history, each with its limit in force."""
    limits, spends = books.limits, books.spends
    studies = [
        Scope(
            "study",
            study,
            approved.name,
            limits.epsilon_per_study,
            tuple(spend for spend in spends if spend.study == study),
        )
        for study, (_, approved) in books.approvals.items()
    ]
    years = [
        Scope(
            "year",
            str(year),
            str(year),
            limits.epsilon_per_year,
            tuple(spend for spend in spends if spend.year == year),
        )
        for year in sorted({spend.year for spend in spends})
    ]
    return (*studies, *years, Scope("overall", "", "all years", limits.epsilon_overall, spends))


def statement(entries: tuple[Entry, ...], identity: Identity, *, second_accountant: bool) -> dict[str, Any]:
    """All that a bundle claims, derived from the entries of a verified chain; plain values for JSON.

    With `second_accountant`, Opacus' PRV figure stands beside the PLD one, and the two have to agree.
    Raises PrivacyError where entries break the ledger's rules or accountants disagree, CryptoError for
    receipts.
    """
    books = replay(entries)
    anchored = verify_anchored(entries)
    limits = books.limits
    figures = []
    for row, scope in zip(status(books), all_scopes(books), strict=True):
        figures.append({**row, "epsilon_prv": _prv(scope, limits.delta) if second_accountant else None})
    last = max(anchored, default=0)
    unanchored = sum(counter > last for counter in books.reservations)
    return {
        "format": FORMAT,
        "site": books.opened.party,
        "public_key": identity.public_bytes.hex(),
        "fingerprint": identity.fingerprint,
        "started": entries[0].time,
        "started_by": books.opened.started_by,
        "replaces": books.opened.replaces,
        "made": entries[-1].time,
        "unit": limits.unit,
        "neighbouring": "add/remove",
        "delta": limits.delta,
        "policies": [
            {"time": entry.time, "entry": entry.counter, **body.model_dump(mode="json")}
            for entry, body in books.policies
        ],
        "studies": [
            {"time": entry.time, "entry": entry.counter, **body.model_dump(mode="json")}
            for entry, body in books.approvals.values()
        ],
        "figures": figures,
        "membership_ceiling": _membership_ceiling(figures[-1]["epsilon_charged"], limits.delta),
        "second_accountant": second_accountant,
        "charges": [charge_row(books, reservation) for reservation in books.reservations.values()],
        "refusals": [
            {"time": entry.time, "entry": entry.counter, **body.model_dump(mode="json")}
            for entry, body in books.refusals
        ],
        "anchors": {
            "last_counter": last,
            "peers": sorted(anchored.get(last, ())),
            "charges_after": unanchored,
            "countersigned": len(anchored),
        },
        "not_covered": not_covered(books, last, len(anchored.get(last, ())), unanchored),
    }


def charge_row(books: Books, made: Reservation) -> dict[str, Any]:
    """One charge, every column of the table filled or empty."""
    charge = asdict(made.charge)
    return dict(
        zip(
            CSV_COLUMNS,
            (
                made.counter,
                made.time,
                made.study,
                books.approvals[made.study][1].name,
                made.what,
                made.round,
                made.attempt,
                made.charge.mechanism,
                charge.get("noise_multiplier", ""),
                charge.get("sampling_rate", ""),
                charge.get("steps", charge.get("releases", "")),
                made.charge.unit,
                charge.get("neighbouring", ""),
                made.released_sha256 or "",
                made.head.hex(),
            ),
            strict=True,
        )
    )


def charges_csv(evidence: dict[str, Any]) -> str:
    """The charges as a spreadsheet; a text that it would run as a formula gets a quote in front."""
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    table.writerow(CSV_COLUMNS)
    for row in evidence["charges"]:
        table.writerow([_inert(row[name]) for name in CSV_COLUMNS])
    return out.getvalue()


def charged_beyond_pld(evidence: dict[str, Any]) -> bool:
    """Whether Renyi's figure stands in place of PLD's anywhere in a bundle (`budget.beyond_pld`)."""
    bodies = (entry["body"] for entry in evidence["entries"] if entry["kind"] == Reserved.kind)
    return budget.beyond_pld(budget.charge_from_fields(body["charge"]) for body in bodies)


def not_covered(books: Books, last: int, peers: int, unanchored: int) -> list[dict[str, str]]:
    """What the guarantee does not say, most serious first: a title and a sentence or two."""
    unit = books.limits.unit
    found = []
    if any(isinstance(spend.charge, Unprotected) for spend in books.spends):
        found.append(
            (
                "Releases without differential privacy",
                "At least one study ran without protection on these records. "
                "Nothing bounds what it revealed, and no figure here does.",
            )
        )
    counted = sorted(
        {
            (spend.charge.colluders, spend.charge.honest_shares)
            for spend in books.spends
            if isinstance(spend.charge, SharedNoiseCharge)
        }
    )
    found += [(f"More than {c} sites that collude", holds_against(m, c)) for c, m in counted]
    if not last:
        found.append(
            (
                "Rollback is not excluded",
                "Nobody outside the site countersigned this ledger. An older copy of it, a "
                "second copy used elsewhere, or a ledger that its owner wrote anew would look the same.",
            )
        )
    elif unanchored:
        found.append(
            (
                "Rollback is not excluded for the latest charges",
                f"{peers} others countersigned the ledger up to entry "
                f"{last}. {unanchored} charges came after it, and an owner could have left out others.",
            )
        )
    else:
        found.append(
            (
                "A rollback that all witnesses helped to hide",
                f"{peers} others countersigned the ledger up to entry "
                f"{last}. Rollback is excluded as far as their keys are theirs, and the last head that "
                "they hold is "
                "this one: ask them.",
            )
        )
    if books.opened.replaces:
        found.append(
            (
                "An earlier ledger",
                f"This ledger replaced one that was lost ({books.opened.replaces}). What that one "
                "had charged is not counted here, and adds to every figure.",
            )
        )
    found += [
        (
            f"The same {'patient' if unit == 'patient' else 'person'} at other sites",
            f"Epsilon is per {unit} and per site. Somebody known to k sites composes k budgets: "
            "the figures add up, roughly.",
        ),
        (
            "Groups",
            f"A group of k {unit}s, such as {'a family' if unit == 'patient' else 'all images of one person'}, is "
            "protected by about k times the epsilon, and a "
            "delta that grows "
            "faster than k.",
        ),
        (
            "Withdrawn consent",
            "Taking somebody's rows out of the manifest, and starting the site again, stops what they would "
            "cost from then on; until then a running site goes on with what it read. It cannot recall what was "
            "released before: adapters, the site's personal one included, keep what they learned, within the "
            "epsilon charged until then.",
        ),
        (
            "What is true of everybody like them",
            f"Differential privacy limits what a release says about one {unit} because their "
            "data were used. It does not hide what the study shows about people in general.",
        ),
        (
            "Use outside this ledger",
            "Only releases that went through this ledger are counted: not other systems, papers, or "
            "results told by people who saw the data (the exact figures in this site's journal among them), "
            "nor the choice of settings by hand on the same records.",
        ),
        (
            "What clocks tell",
            "Whoever sees when this site's messages come can tell roughly how long training took, and how many "
            "images it measures. No budget is charged for that.",
        ),
        (
            "A mistake in the software",
            "The figures follow from the settings that each charge names. That training really "
            "clipped, sampled and added noise so is shown by the program's tests, not by this ledger.",
        ),
    ]
    return [{"title": title, "text": text} for title, text in found]


def _membership_ceiling(epsilon: float | None, delta: float) -> float | None:
    """The largest share of insiders that any attacker recognises who takes 1 in 100 outsiders for insiders."""
    return None if epsilon is None else hit_rate_in_region(0.01, epsilon, delta)


def _row(books: Books, scope: Scope) -> dict[str, Any]:
    limits = books.limits
    every = budget.figures(scope.spends, limits.delta)
    spent = budget.figures([spend for spend in scope.spends if spend.settled], limits.delta)
    deciding = every.deciding
    left = None if scope.limit is None or limits.unsafe_unlimited else max(0.0, scope.limit - deciding)
    return {
        "kind": scope.kind,
        "key": scope.key,
        "name": scope.name,
        "unit": limits.unit,
        "delta": limits.delta,
        "limit": scope.limit,
        "charges": len(scope.spends),
        "studies": len(scope.studies),
        "bounded": not math.isinf(deciding),
        "adaptive": every.adaptive,
        "epsilon_charged": _finite(deciding),
        "epsilon_spent": _finite(spent.deciding),
        "epsilon_reserved": _finite(deciding - spent.deciding) if math.isfinite(spent.deciding) else None,
        "epsilon_left": left,
        "epsilon_pld": _finite(every.pld),
        "epsilon_filter": _finite(every.filtered),
    }


def _prv(scope: Scope, delta: float) -> float | None:
    charges = [spend.charge for spend in scope.spends]
    kept = [charge for charge in charges if not isinstance(charge, Unprotected)]
    if len(kept) < len(charges) or accounting.shares_noise(tuple(kept)) or budget.beyond_pld(kept):
        return None
    return _finite(accounting.epsilon_prv_check(kept, delta))


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _inert(value: object) -> object:
    return "'" + value if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value


def require_bounded(evidence: dict[str, Any]) -> None:
    """Raises PrivacyError where a figure of the bundle exceeds its limit and no unsafe policy was ever in
    force.
    """
    if any(policy["unsafe_unlimited"] for policy in evidence["policies"]):
        return
    most = {
        "study": max(policy["epsilon_per_study"] for policy in evidence["policies"]),
        "year": max(policy["epsilon_per_year"] for policy in evidence["policies"]),
        "overall": max((policy["epsilon_overall"] or math.inf) for policy in evidence["policies"]),
    }
    for row in evidence["figures"]:
        if row["epsilon_charged"] is None or row["epsilon_charged"] > most[row["kind"]]:
            raise PrivacyError(
                f"{row['kind']} {row['name']} was charged more than any policy allowed",
                where="evidence",
                fix="the program refuses that; ask the site how these entries came about",
            )
