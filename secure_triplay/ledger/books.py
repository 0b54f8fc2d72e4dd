"""What a chain of entries amounts to: policies, approved studies, charges and what was released for each.

`replay` makes the books from the entries, at the site before each decision and at the auditor alike. It keeps
no state of its own, so there is nothing that could disagree with the signed entries.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from secure_triplay.errors import PrivacyError
from secure_triplay.ledger.budget import AnyCharge, Limits, Spend, Unprotected, charge_from_fields
from secure_triplay.ledger.entries import (
    Entry,
    Opened,
    PolicyAdopted,
    Refused,
    Reserved,
    Settled,
    StudyApproved,
)

Key = tuple[str, int, str, int]  # study, round, what, attempt


@dataclass(frozen=True)
class Release:
    """One kind of release that a study plans: its name, what it costs each time, how often it happens."""

    what: str
    charge: AnyCharge
    times: int


@dataclass(frozen=True)
class Reservation:
    """A charge on disk. `counter` and `head` name its entry; `released_sha256` is set once it was settled."""

    counter: int
    head: bytes
    time: str
    study: str
    round: int
    what: str
    attempt: int
    charge: AnyCharge
    released_sha256: str | None = None

    @property
    def key(self) -> Key:
        """What it is for; one reservation each."""
        return (self.study, self.round, self.what, self.attempt)

    @property
    def spend(self) -> Spend:
        """It as a part of the history."""
        return Spend(self.study, int(self.time[:4]), self.charge, self.released_sha256 is not None)


@dataclass(frozen=True)
class Books:
    """What a chain of entries amounts to: `replay` makes it, at the site and at the auditor alike."""

    opened: Opened
    policies: tuple[tuple[Entry, PolicyAdopted], ...] = ()
    approvals: dict[str, tuple[Entry, StudyApproved]] = field(default_factory=dict)
    reservations: dict[int, Reservation] = field(default_factory=dict)
    refusals: tuple[tuple[Entry, Refused], ...] = ()

    @property
    def limits(self) -> Limits:
        """The limits in force."""
        return Limits.of(self.policies[-1][1])

    @property
    def spends(self) -> tuple[Spend, ...]:
        """Every charge, whether released or only reserved."""
        return tuple(reservation.spend for reservation in self.reservations.values())

    def reservation(self, key: Key) -> Reservation | None:
        """The reservation for exactly this, if there is one."""
        return next((found for found in self.reservations.values() if found.key == key), None)


def replay(entries: Iterable[Entry]) -> Books:
    """What the entries of a verified chain amount to.

    Raises PrivacyError where they break a rule of the ledger: a charge that no approved study planned, two
    for the same release, something released twice, a unit that changed or is not the policy's.
    """
    policies: list[tuple[Entry, PolicyAdopted]] = []
    approvals: dict[str, tuple[Entry, StudyApproved]] = {}
    reservations: dict[int, Reservation] = {}
    keys: set[Key] = set()
    refusals: list[tuple[Entry, Refused]] = []
    opened: Opened | None = None
    for entry in entries:
        match entry.body:
            case Opened() as body:
                opened = body
            case PolicyAdopted() as body:
                _rule(not policies or policies[-1][1].unit == body.unit, entry, "changes the privacy unit")
                Limits.of(body)
                policies.append((entry, body))
            case StudyApproved() as body:
                _rule(body.study not in approvals, entry, "approves a study for the second time")
                approvals[body.study] = (entry, body)
            case Reserved() as body:
                made = Reservation(
                    entry.counter,
                    entry.head,
                    entry.time,
                    body.study,
                    body.round,
                    body.what,
                    body.attempt,
                    charge_from_fields(body.charge),
                )
                _rule(
                    body.study in approvals and _planned(approvals[body.study][1], body),
                    entry,
                    "charges what no approved study planned",
                )
                unit = policies[-1][1].unit if policies else None
                _rule(
                    made.charge.unit == unit or isinstance(made.charge, Unprotected),
                    entry,
                    f"charges per {made.charge.unit} where the policy protects each {unit}",
                )
                _rule(made.key not in keys, entry, "reserves for the second time what was reserved")
                keys.add(made.key)
                reservations[entry.counter] = made
            case Settled() as body:
                before = reservations.get(body.reservation)
                _rule(
                    before is not None and before.released_sha256 is None,
                    entry,
                    "releases something without a reservation of its own",
                )
                if before is not None:
                    reservations[body.reservation] = _settled(before, body.released_sha256)
            case Refused() as body:
                refusals.append((entry, body))
            case _:
                pass
    if opened is None or not policies:
        raise PrivacyError("the ledger names no policy", where="ledger", fix="it is no site's privacy ledger")
    return Books(opened, tuple(policies), approvals, reservations, tuple(refusals))


def _planned(approved: StudyApproved, body: Reserved) -> bool:
    return any(
        release.what == body.what and release.charge == body.charge and 1 <= body.round <= release.times
        for release in approved.releases
    )


def _settled(before: Reservation, digest: str) -> Reservation:
    return Reservation(before.counter, before.head, before.time, *before.key, before.charge, digest)


def _rule(kept: bool, entry: Entry, how: str) -> None:
    if not kept:
        raise PrivacyError(
            f"entry {entry.counter} {how}",
            where="ledger",
            fix="nothing of this program writes that; treat the ledger's figures as untrue",
        )
