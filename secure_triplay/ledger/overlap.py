"""What the records of several parties have in common, so that nobody claims agreement where nothing met.

Two records agree also where neither says anything of what the other says. So what was really held against each other
is counted, what one party recorded and another did not is named, and so is a party whose record met no other at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from secure_triplay.ledger.entries import Anchored, Countersigned, Entry, KeyEpoch, Opened, RoundClosed
from secure_triplay.ledger.log import keeps_budget_of_its_own, numbers

Round = tuple[str, int, int]  # study, key epoch, number


class Record(Protocol):
    """A party's verified chain, under its name."""

    @property
    def site(self) -> str: ...
    @property
    def chain(self) -> tuple[Entry, ...]: ...


@dataclass(frozen=True)
class Overlap:
    """How much of the records was held against each other, and what was not.

    `rounds` and `key_epochs` were recorded by two parties or more; `heads` were countersigned by one party, of
    another one that is here; `charges` are a site's, for rounds that another party recorded it in; `entries` are those
    of a party's earlier bundles, found again in its latest. `absent` says what one record has and another one may lack
    with good reason, `apart` names the parties of whose records nothing met another one.
    """

    rounds: int
    key_epochs: int
    heads: int
    charges: int
    entries: int
    absent: tuple[str, ...]
    apart: tuple[str, ...]

    def words(self) -> str:
        """What was held against each other, as one phrase."""
        always = (
            _counted(self.rounds, "round", "rounds"),
            _counted(self.key_epochs, "key epoch", "key epochs"),
            _counted(self.heads, "countersigned head", "countersigned heads"),
        )
        charges = (_counted(self.charges, "charge", "charges"),) if self.charges else ()
        entries = (
            (f"{_counted(self.entries, 'entry', 'entries')} of earlier bundles",) if self.entries else ()
        )
        return ", ".join((*always, *charges, *entries))


def overlap(records: Iterable[Record]) -> Overlap:
    """What verified records have in common, the longest of each party standing for it."""
    given = sorted(records, key=lambda each: len(each.chain))
    logs = {each.site: each.chain for each in given}
    earlier = [each for each in given if each.chain is not logs[each.site]]
    rounds, epochs = _rounds(logs), _key_epochs(logs)
    heads, charges = _heads(logs), _charges(logs)
    common = [who for who in (*rounds.values(), *epochs.values()) if len(who) > 1]
    pairs = [{one, other} for one, other, *_ in (*heads, *charges)]
    met = {each.site for each in earlier}.union(*common, *pairs)
    return Overlap(
        rounds=sum(len(who) > 1 for who in rounds.values()),
        key_epochs=sum(len(who) > 1 for who in epochs.values()),
        heads=len(heads),
        charges=len({each[1:] for each in charges}),
        entries=sum(len(each.chain) for each in earlier),
        absent=(*_absent_sites(logs, rounds), *_silent_logs(logs, rounds)),
        apart=tuple(sorted(set(logs) - met)),
    )


def _rounds(logs: Mapping[str, tuple[Entry, ...]]) -> dict[Round, set[str]]:
    """Every round, and who recorded it."""
    found: dict[Round, set[str]] = {}
    for name, entries in logs.items():
        for body in (entry.body for entry in entries):
            if isinstance(body, RoundClosed):
                found.setdefault((body.study, body.epoch, body.round), set()).add(name)
    return found


def _key_epochs(logs: Mapping[str, tuple[Entry, ...]]) -> dict[tuple[str, int], set[str]]:
    """Every key epoch, and who recorded it."""
    found: dict[tuple[str, int], set[str]] = {}
    for name, entries in logs.items():
        for body in (entry.body for entry in entries):
            if isinstance(body, KeyEpoch):
                found.setdefault((body.study, body.epoch), set()).add(name)
    return found


def _heads(logs: Mapping[str, tuple[Entry, ...]]) -> set[tuple[str, str, int]]:
    """Who countersigned whose entry, by the log of either of the two."""
    names = {
        entries[0].body.public_key: name
        for name, entries in logs.items()
        if isinstance(entries[0].body, Opened)
    }
    found = set()
    for name, entries in logs.items():
        for body in (entry.body for entry in entries):
            if isinstance(body, Countersigned) and body.party_key in names:
                found.add((name, names[body.party_key], body.counter))
            elif isinstance(body, Anchored):
                found |= {(names[peer], name, body.counter) for peer in body.receipts if peer in names}
    return {(holder, party, counter) for holder, party, counter in found if holder != party}


def _charges(logs: Mapping[str, tuple[Entry, ...]]) -> set[tuple[str, str, str, int]]:
    """Who recorded which site in a round of which study, where that site's own ledger is here."""
    sites = {name for name, entries in logs.items() if keeps_budget_of_its_own(entries)}
    return {
        (name, site, body.study, body.round)
        for name, entries in logs.items()
        for body in (entry.body for entry in entries)
        if isinstance(body, RoundClosed)
        for site in body.took_part
        if site in sites and site != name
    }


def _absent_sites(logs: Mapping[str, tuple[Entry, ...]], rounds: Mapping[Round, set[str]]) -> list[str]:
    """Rounds of a site's key epochs that others recorded and its own ledger does not.

    A site that joined in a later epoch has none of the rounds before, and nothing is said of those.
    """
    members: dict[tuple[str, int], set[str]] = {}
    took_part: dict[Round, set[str]] = {}
    for body in (entry.body for entries in logs.values() for entry in entries):
        if isinstance(body, KeyEpoch):
            members.setdefault((body.study, body.epoch), set()).update(body.members)
        elif isinstance(body, RoundClosed):
            took_part.setdefault((body.study, body.epoch, body.round), set()).update(body.took_part)
    found: dict[tuple[str, str, bool], dict[int, set[str]]] = {}
    for site, entries in logs.items():
        if not keeps_budget_of_its_own(entries):
            continue
        for about, who in rounds.items():
            study, epoch, number = about
            took = site in took_part[about]
            if site not in who and (took or site in members.get((study, epoch), ())):
                found.setdefault((site, study, took), {})[number] = who
    return [
        f"{site} did not record {numbers(missing)} of study {study[:12]}, as "
        f"{' and '.join(sorted(set().union(*missing.values())))} did: "
        + (
            "it took part, and did not open the sum, or its evidence is of before"
            if took
            else "it was a member, and by no record did it take part"
        )
        for (site, study, took), missing in found.items()
    ]


def _silent_logs(logs: Mapping[str, tuple[Entry, ...]], rounds: Mapping[Round, set[str]]) -> list[str]:
    """Studies of which a log without a budget says nothing: it may be another coordinator's, or cut to its start."""
    found = []
    for name, entries in logs.items():
        if keeps_budget_of_its_own(entries):
            continue
        own = {entry.body.study for entry in entries if isinstance(entry.body, (KeyEpoch, RoundClosed))}
        for study in sorted({study for study, _, _ in rounds} - own):
            missing = {number: who for (of, _, number), who in rounds.items() if of == study}
            who = " and ".join(sorted(set().union(*missing.values())))
            found.append(
                f"{name} says nothing of study {study[:12]}, of which {who} recorded {numbers(missing)}"
            )
    return found


def _counted(count: int, one: str, more: str) -> str:
    return f"{count} {one if count == 1 else more}"
