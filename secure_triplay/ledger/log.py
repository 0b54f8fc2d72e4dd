"""A party's audit log, and what the logs of several parties say of one another.

A site's log is its ledger, with the charges in it. Every other party, such as the server's operator, keeps an
`AuditLog` of the same chained, signed entries. One log shows edits, insertions and gaps by anyone without the
party's key. What its owner rewrote shows against the heads that others hold, which is `cross_check`.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from secure_triplay.crypto.identity import Identity, SigningIdentity
from secure_triplay.errors import CryptoError, RunError
from secure_triplay.ledger.anchor import verify_countersigned
from secure_triplay.ledger.entries import (
    Anchored,
    Body,
    Countersigned,
    Entry,
    KeyEpoch,
    Opened,
    PolicyAdopted,
    Reserved,
    RoundClosed,
    Settled,
    StudyApproved,
    verify_chain,
)
from secure_triplay.ledger.store import Chain, Clock, utc_now

NAME = "log.sqlite"


class AuditLog:
    """The chain of a party that has no budget of its own."""

    def __init__(self, chain: Chain) -> None:
        self.chain = chain

    @classmethod
    def create(
        cls, folder: Path, identity: SigningIdentity, *, party: str, started_by: str, clock: Clock = utc_now
    ) -> Self:
        """Start a party's log. Raises RunError where one is there."""
        opened = Opened(
            party=party,
            public_key=identity.identity.public_bytes.hex(),
            nonce=secrets.token_hex(32),
            started_by=started_by,
        )
        return cls(Chain.create(folder / NAME, identity, opened, clock=clock))

    @classmethod
    def ensure(cls, folder: Path, identity: SigningIdentity, *, party: str, started_by: str) -> None:
        """Start the log in `folder` unless one is there."""
        if not (folder / NAME).exists():
            cls.create(folder, identity, party=party, started_by=started_by).close()

    @classmethod
    def open(cls, folder: Path, identity: SigningIdentity | None, *, clock: Clock = utc_now) -> Self:
        """A party's log, every entry verified. Raises RunError or CryptoError."""
        if not (folder / NAME).exists():
            raise RunError(
                "there is no audit log here", where=str(folder / NAME), fix="restore it from a backup"
            )
        return cls(Chain.open(folder / NAME, identity, clock=clock))

    def record(self, body: Body) -> Entry:
        """One more entry, on disk when this returns. Raises RunError."""
        return self.chain.append(body)

    def close(self) -> None:
        """Give the file back."""
        self.chain.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


@dataclass(frozen=True)
class Disagreement:
    """What two logs, or a log and a head that somebody else holds, say differently."""

    parties: tuple[str, ...]
    what: str


def cross_check(
    logs: Mapping[str, tuple[Entry, ...]], keys: Mapping[str, Identity]
) -> tuple[Disagreement, ...]:
    """Where the logs of several parties, by name, contradict one another; empty if nowhere.

    `keys` are the parties' identities as the roster has them, not as the logs claim. Checked: each chain;
    heads that one party countersigned against the chain of the other; who took part in each round, its sum,
    and each key epoch, between all that recorded it; a site that took part in a round without a settled
    charge in its own log; a round that a site opened and the log of whoever forms sums does not have.
    Raises CryptoError where a log does not verify by itself.
    """
    if set(logs) != set(keys) or not logs:
        raise CryptoError(
            "a log has no known key, or a key no log",
            where="cross-check",
            fix="give one log for every member of the roster that is to be checked",
        )
    for name, entries in logs.items():
        try:
            verify_chain(entries, keys[name])
        except CryptoError as error:
            raise CryptoError(
                f"the log of {name} does not verify: {error.what}", where=error.where, fix=error.fix
            ) from error
    return (*_heads(logs, keys), *_statements(logs), *_unpaid(logs), *_left_out(logs))


def _heads(logs: Mapping[str, tuple[Entry, ...]], keys: Mapping[str, Identity]) -> list[Disagreement]:
    """Countersigned heads that the countersigned party's own log does not have."""
    names = {key.public_bytes.hex(): name for name, key in keys.items()}
    found = []
    for holder, entries in logs.items():
        for entry in entries:
            body = entry.body
            if not isinstance(body, Countersigned) or body.party_key not in names:
                continue
            party = names[body.party_key]
            log = logs[party]
            try:
                verify_countersigned(body)
            except CryptoError:
                found.append(
                    Disagreement(
                        (holder, party),
                        f"{holder} claims entry {body.counter} of {party} without the "
                        f"signature of {party}: a false accusation",
                    )
                )
                continue
            if body.counter > len(log):
                found.append(
                    Disagreement(
                        (holder, party),
                        f"{holder} countersigned entry {body.counter} of {party}, whose "
                        f"log ends at {len(log)}: its end was cut off, or it is an older copy",
                    )
                )
            elif log[body.counter - 1].head.hex() != body.head:
                found.append(
                    Disagreement(
                        (holder, party),
                        f"{holder} countersigned another entry {body.counter} of {party} "
                        "than its log has: it was rewritten or forked",
                    )
                )
    held = {
        (holder, body.party_key, body.counter, body.head)
        for holder, entries in logs.items()
        for body in (entry.body for entry in entries)
        if isinstance(body, Countersigned)
    }
    for party, entries in logs.items():
        own = keys[party].public_bytes.hex()
        for body in (entry.body for entry in entries):
            if not isinstance(body, Anchored):
                continue
            for peer in body.receipts:
                if peer in names and (names[peer], own, body.counter, body.head) not in held:
                    found.append(
                        Disagreement(
                            (names[peer], party),
                            f"{party} has a receipt of {names[peer]} for entry "
                            f"{body.counter}, and the log of {names[peer]} does not",
                        )
                    )
    return found


def _statements(logs: Mapping[str, tuple[Entry, ...]]) -> list[Disagreement]:
    """Rounds and key epochs that two parties recorded differently."""
    said: dict[tuple[object, ...], dict[str, set[str]]] = {}
    for name, entries in logs.items():
        for entry in entries:
            body = entry.body
            if isinstance(body, RoundClosed):
                about: tuple[object, ...] = (
                    f"round {body.round} of study {body.study[:12]}",
                    body.study,
                    body.epoch,
                )
                what = f"{', '.join(sorted(body.took_part))} with sum {body.sum_sha256[:12]}"
            elif isinstance(body, KeyEpoch):
                about = (f"key epoch {body.epoch} of study {body.study[:12]}", body.study)
                what = f"key {body.key_id} among {', '.join(sorted(body.members))}"
            else:
                continue
            said.setdefault(about, {}).setdefault(what, set()).add(name)
    return [
        Disagreement(
            tuple(sorted(set().union(*versions.values()))),
            f"{about[0]}: "
            + "; but ".join(
                f"{' and '.join(sorted(who))} recorded {what}" for what, who in sorted(versions.items())
            ),
        )
        for about, versions in said.items()
        if len(versions) > 1
    ]


def _rounds_before(entries: tuple[Entry, ...]) -> dict[tuple[str, str], int]:
    """A study's rounds are its planned releases one after the other: how many come before each kind."""
    found = {}
    for body in (entry.body for entry in entries):
        if isinstance(body, StudyApproved):
            count = 0
            for release in body.releases:
                found[body.study, release.what] = count
                count += release.times
    return found


def _unpaid(logs: Mapping[str, tuple[Entry, ...]]) -> list[Disagreement]:
    """Rounds in which a site took part, by anybody's log, and for which its own log settled no charge."""
    paid: dict[str, set[tuple[str, int]]] = {}
    keeps_budget = set()
    for name, entries in logs.items():
        settled = {
            body.reservation for body in (entry.body for entry in entries) if isinstance(body, Settled)
        }
        reserved = [(entry.counter, entry.body) for entry in entries if isinstance(entry.body, Reserved)]
        before = _rounds_before(entries)
        paid[name] = {
            (body.study, body.round + before.get((body.study, body.what), 0))
            for counter, body in reserved
            if counter in settled
        }
        if keeps_budget_of_its_own(entries):
            keeps_budget.add(name)
    found = {}
    for holder, entries in logs.items():
        for entry in entries:
            body = entry.body
            if isinstance(body, RoundClosed):
                for site in body.took_part:
                    if site in keeps_budget and (body.study, body.round) not in paid[site]:
                        found[site, body.study, body.round] = Disagreement(
                            (holder, site),
                            f"{holder} recorded {site} in round {body.round} of study {body.study[:12]}, and "
                            f"the log of {site} has no settled charge for it",
                        )
    return list(found.values())


def keeps_budget_of_its_own(entries: tuple[Entry, ...]) -> bool:
    """Whether a chain is a site's ledger, and not the log of a party without a budget."""
    return any(isinstance(entry.body, PolicyAdopted) for entry in entries)


def numbers(rounds: Iterable[int]) -> str:
    """Rounds in words: `round 3`, or `rounds 1-4, 6`."""
    runs: list[list[int]] = []
    for number in sorted(set(rounds)):
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    text = ", ".join("-".join(map(str, run)) for run in runs)
    return f"round {text}" if text.isdecimal() else f"rounds {text}"


def _left_out(logs: Mapping[str, tuple[Entry, ...]]) -> list[Disagreement]:
    """Rounds that sites opened and that the log of a party without a budget, which keeps that study, does not have.

    Such a party forms the sums, and logs each one before any site can open it.
    """
    opened: dict[tuple[str, int, int], set[str]] = {}
    for name, entries in logs.items():
        if keeps_budget_of_its_own(entries):
            for body in (entry.body for entry in entries):
                if isinstance(body, RoundClosed):
                    opened.setdefault((body.study, body.epoch, body.round), set()).add(name)
    found = []
    for name, entries in logs.items():
        if keeps_budget_of_its_own(entries):
            continue
        bodies = [entry.body for entry in entries]
        studies = {body.study for body in bodies if isinstance(body, (KeyEpoch, RoundClosed))}
        own = {(body.study, body.epoch, body.round) for body in bodies if isinstance(body, RoundClosed)}
        for study in sorted(studies):
            left_out = {about: who for about, who in opened.items() if about[0] == study and about not in own}
            if left_out:
                sites = sorted(set().union(*left_out.values()))
                found.append(
                    Disagreement(
                        (name, *sites),
                        f"{name} has no {numbers(round for _, _, round in left_out)} of study {study[:12]}, which "
                        f"{' and '.join(sites)} opened: its log was cut off or rewritten, or is an older copy",
                    )
                )
    return found
