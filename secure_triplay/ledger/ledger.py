"""A site's privacy ledger: reserve, then train, then settle, then send.

approve    a person fixes, before a study's first release, what it will release and what each release costs
reserve    the charge is on disk before the first gradient; refused before it if a limit would be exceeded
settle     the hash of what is about to leave is on disk before it leaves; one reservation, one release

Before training, others countersign the ledger's head (`client.witness`), so that no older copy can pass for it.
A crash leaves what was reserved charged. A retry of the same round gets the same reservation for as long as
nothing was settled under it; from then on, nothing else can be released under it. Two processes take turns.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Self

from secure_triplay import durable
from secure_triplay.crypto.identity import Identity, SigningIdentity
from secure_triplay.errors import PrivacyError, RunError
from secure_triplay.ledger.books import Books, Release, Reservation, replay
from secure_triplay.ledger.budget import AnyCharge, Limits, Spend, charge_to_fields
from secure_triplay.ledger.decide import over_budget, planned, shortfall
from secure_triplay.ledger.entries import (
    Anchored,
    Body,
    Entry,
    Opened,
    PlannedRelease,
    PolicyAdopted,
    Refused,
    Reserved,
    Settled,
    StudyApproved,
    in_words,
)
from secure_triplay.ledger.reading import placed
from secure_triplay.ledger.store import LOCK_TIMEOUT_S, Chain, Clock, utc_now

NAME = "ledger.sqlite"
TRACE = "ledger.started"
"""Says that there was a ledger, so that its absence is a loss and no beginning: in its folder, and beside a site's key,
where it outlives that folder.
"""
TRAINING = "training round"


class Ledger:
    """An open ledger of one site."""

    def __init__(self, chain: Chain) -> None:
        self.chain = chain

    @classmethod
    def create(
        cls,
        folder: Path,
        identity: SigningIdentity,
        *,
        site: str,
        limits: Limits,
        approved_by: str,
        policy: str = "unnamed",
        policy_sha256: str | None = None,
        replaces: str = "",
        clock: Clock = utc_now,
    ) -> Self:
        """Start a site's ledger: a person's act, done once, under that person's name.

        Where a ledger was lost, `replaces` says why a new one starts; it stands in every export.
        Raises RunError where a ledger is there, or was there and `replaces` is empty.
        """
        if _was_started(folder) and not (folder / NAME).exists() and not replaces.strip():
            raise _lost(folder)
        with in_words():
            opened = Opened(
                party=site,
                public_key=identity.identity.public_bytes.hex(),
                nonce=secrets.token_hex(32),
                started_by=approved_by,
                replaces=replaces,
            )
        adopted = _policy(limits, approved_by, policy, policy_sha256)
        chain = Chain.create(folder / NAME, identity, opened, adopted, clock=clock)
        leave_trace(folder)
        return cls(chain)

    @classmethod
    def open(
        cls,
        folder: Path,
        identity: SigningIdentity | None,
        *,
        clock: Clock = utc_now,
        lock_timeout_s: float = LOCK_TIMEOUT_S,
    ) -> Self:
        """The site's ledger, every entry verified; without `identity` for reading only.

        A missing ledger is refused until a person acts: it is never made on the way.
        Raises RunError (missing, locked, damaged), CryptoError (edited, another key), PrivacyError (rules broken).
        """
        if not (folder / NAME).exists():
            raise _lost(folder) if _was_started(folder) else _never(folder)
        ledger = cls(Chain.open(folder / NAME, identity, clock=clock, lock_timeout_s=lock_timeout_s))
        with placed(folder / NAME):
            replay(ledger.chain.entries)
        return ledger

    @property
    def identity(self) -> Identity:
        """Whose ledger this is."""
        return self.chain.identity

    @property
    def books(self) -> Books:
        """What the entries known so far amount to; `refresh` first to see other processes' entries."""
        return replay(self.chain.entries)

    def refresh(self) -> Books:
        """The books with everything that other processes wrote."""
        self.chain.refresh()
        return self.books

    def adopt(
        self, limits: Limits, *, approved_by: str, policy: str = "unnamed", policy_sha256: str | None = None
    ) -> None:
        """Put other limits in force, under a person's name; the same ones again write nothing.

        Raises PrivacyError for another unit: what was charged per record bounds nothing per patient.
        """
        adopted = _policy(limits, approved_by, policy, policy_sha256)
        with self.chain.writing() as append:
            current = self.books.policies[-1][1]
            if current.unit != limits.unit:
                raise PrivacyError(
                    f"this ledger counts per {current.unit}, and the new policy per {limits.unit}",
                    where=str(self.chain.path),
                    fix="keep the unit; another one needs a ledger of its own, for other data",
                )
            if current != adopted:
                append(adopted)

    def approve(self, study: str, name: str, releases: Iterable[Release], *, approved_by: str) -> None:
        """Fix what a study (by its SHA-256) will release, before its first release; the same plan again writes nothing.

        Raises PrivacyError where it was approved with another plan (parameters do not change under a study), and
        where the plan does not fit into the budget as a whole, with the number of rounds that do.
        """
        asked = tuple(releases)
        if len({release.what for release in asked}) != len(asked):
            raise PrivacyError(
                "two releases of a study have one name", where=name, fix="name each kind of release"
            )
        with in_words():
            body = StudyApproved(
                study=study,
                name=name,
                approved_by=approved_by,
                releases=tuple(
                    PlannedRelease(
                        what=release.what, charge=charge_to_fields(release.charge), times=release.times
                    )
                    for release in asked
                ),
            )
        with self.chain.writing() as append:
            books = self.books
            before = books.approvals.get(study)
            if before is None:
                missing = shortfall(books, study, asked, self.chain.year)
                append(
                    body
                    if missing is None
                    else Refused(study=study, round=0, what="whole study", reason=missing)
                )
            elif before[1].releases != body.releases:
                raise PrivacyError(
                    f"study {name} was approved here with other releases or other noise",
                    where=str(self.chain.path),
                    fix="change the study's file, which gives it another hash, and have that approved",
                )
            else:
                missing = None
        if missing is not None:
            raise PrivacyError(
                f"study {name} was not approved: {missing}",
                where=str(self.chain.path),
                fix="ask for fewer rounds, more noise, or a larger budget",
            )

    def reserve(
        self, charge: AnyCharge, *, study: str, round: int, what: str = TRAINING, attempt: int = 1
    ) -> Reservation:
        """Charge one release; it is on disk when this returns, and never given back.

        The same study, round, kind and attempt again gives the same reservation, unless something was
        settled under it. The check and the charge are one transaction: two processes cannot both take the
        last of a budget.

        Raises:
            PrivacyError: the study is not approved or did not plan this, something was released already, or a limit
                would be exceeded (recorded, and says how many such releases still fit).
            RunError: the disk or another process is in the way; then nothing was charged and nothing may be released.
        """
        key = (study, round, what, attempt)
        with self.chain.writing() as append:
            books = self.books
            before = books.reservation(key)
            if before is not None:
                return _resumed(before, charge, self.chain.path)
            plan = planned(books, study, what, charge, round, self.chain.path)
            with in_words():
                body = Reserved(
                    study=study, round=round, what=what, attempt=attempt, charge=charge_to_fields(charge)
                )
            reason = over_budget(books, plan, Spend(study, self.chain.year, charge))
            if reason is None:
                entry = append(body)
            else:
                refused = Refused(study=study, round=round, what=what, reason=reason)
                if (
                    not books.refusals or books.refusals[-1][1] != refused
                ):  # a client that asks on and on fills no disk
                    append(refused)
        if reason is not None:
            raise PrivacyError(
                f"{what} {round} was refused: {reason}",
                where=str(self.chain.path),
                fix="stop the study here, or have a larger budget approved; a restart changes nothing",
            )
        return Reservation(entry.counter, entry.head, entry.time, study, round, what, attempt, charge)

    def settle(self, reservation: Reservation, released: bytes) -> None:
        """Record the hash of what is about to leave under a reservation; send only after this has returned.

        The same bytes again are fine (a message sent twice). Raises PrivacyError for other bytes: they
        would be a second release for one charge.
        """
        digest = hashlib.sha256(released).hexdigest()
        with self.chain.writing() as append:
            before = self.books.reservations.get(reservation.counter)
            if before is None or before.head != reservation.head:
                raise PrivacyError(
                    "this reservation is not in the ledger",
                    where=str(self.chain.path),
                    fix="reserve before training; the ledger was replaced under the running study",
                )
            if before.released_sha256 is None:
                append(Settled(reservation=reservation.counter, released_sha256=digest))
            elif before.released_sha256 != digest:
                raise _released(before, self.chain.path)

    def record(self, body: Body) -> Entry:
        """One more entry of the audit log: a key epoch, a round, a decision. Charges have verbs of their own."""
        if isinstance(body, (Opened, PolicyAdopted, StudyApproved, Reserved, Settled, Anchored)):
            raise PrivacyError(
                f"an entry '{body.kind}' is not written by hand",
                where="ledger",
                fix="use create, adopt, approve, reserve or settle; a receipt is written where it is taken in",
            )
        return self.chain.append(body)

    def close(self) -> None:
        """Give the file back."""
        self.chain.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _policy(limits: Limits, approved_by: str, name: str, sha256: str | None) -> PolicyAdopted:
    with in_words():
        return PolicyAdopted(
            name=name,
            source_sha256=sha256,
            approved_by=approved_by,
            unit=limits.unit,
            delta=limits.delta,
            max_units=limits.max_units,
            epsilon_per_study=float(limits.epsilon_per_study),
            epsilon_per_year=float(limits.epsilon_per_year),
            epsilon_overall=None if limits.epsilon_overall is None else float(limits.epsilon_overall),
            unsafe_unlimited=limits.unsafe_unlimited,
        )


def _resumed(before: Reservation, charge: AnyCharge, path: Path) -> Reservation:
    if before.charge != charge:
        raise PrivacyError(
            f"{before.what} {before.round} was reserved with another charge",
            where=str(path),
            fix="parameters are fixed before a study's first release",
        )
    if before.released_sha256 is not None:
        raise _released(before, path)
    return before


def _released(before: Reservation, path: Path) -> PrivacyError:
    return PrivacyError(
        f"{before.what} {before.round} was released already; training it again would be a second release "
        "for one charge",
        where=str(path),
        fix="restore the site's folder as a whole, and what was released is sent again as it was; where that is lost, "
        "go on without it, or have another study approved, which is charged anew",
    )


def leave_trace(folder: Path) -> None:
    """Note in a folder that a ledger was started, in it or in its folder `ledger`. Raises RunError."""
    try:
        durable.replace(
            folder / TRACE, b"A privacy ledger was started here. If ledger.sqlite is missing, it was lost.\n"
        )
    except OSError as error:
        raise RunError(
            f"the ledger's folder cannot be written: {error.strerror}",
            where=str(folder / TRACE),
            fix="make it writable for this user",
        ) from error


def _was_started(folder: Path) -> bool:
    """Whether a ledger was here, by the trace in its folder or the one beside it, in the site's."""
    return (folder / TRACE).exists() or (folder.parent / TRACE).exists()


def _lost(folder: Path) -> RunError:
    return RunError(
        "this site's privacy ledger is missing, and with it what was spent",
        where=str(folder / NAME),
        fix="restore it from a backup. If it is lost for good, a person starts a new one and says why: "
        "secure-triplay budget start --site DIR --policy POLICY --approved-by NAME --replaces REASON",
    )


def _never(folder: Path) -> RunError:
    return RunError(
        "this site has no privacy ledger yet, so nothing can be charged and nothing released",
        where=str(folder / NAME),
        fix="a person starts it, once: "
        "secure-triplay budget start --site DIR --policy POLICY --approved-by NAME",
    )
