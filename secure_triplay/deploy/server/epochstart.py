"""The server's side of the beginning of a key epoch, over Flower's grid: who is not there yet, and who is asked again.

    offers     from every site; one that misses rounds of the epoch before gets them first
    envelopes  from the maker
    keys       to every site its own
    state      to sites that are new, with the signatures of those that have it

`Relay` says what is asked and verifies what comes; this module brings it there, notices who comes late, asks again
what got lost or was declined, and says for whom it waits.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from flwr.serverapp import Grid

from secure_triplay.errors import CryptoError, ProtocolError, RunError
from secure_triplay.eventlog import EventLog
from secure_triplay.federation.files import write_public
from secure_triplay.federation.handover import Confirmed, StateGiven, StateOffered, StateWanted, needed
from secure_triplay.federation.relay import Relay
from secure_triplay.server.archive import Archive
from secure_triplay.server.carrier import Carrier
from secure_triplay.wire import Behind, SessionPlan

EVENTS, NODES = "ceremony.jsonl", "nodes.json"
DECLINED_S = 5.0
"""After so long a site that declined is asked again: a person there may have confirmed meanwhile."""
_TICK_S, _NODES_S, _WAITING_S, _MOST_REFUSALS = 0.2, 1.0, 30.0, 3


class PausedError(RunError):
    """The coordinator stopped the study before the epoch had a key."""


class EpochStart:
    """Drives a `Relay` over Flower's grid; `before` is the epoch before: its number, archive, last round, members."""

    def __init__(
        self,
        grid: Grid,
        relay: Relay,
        own: Path,
        *,
        before: int,
        archive: Archive | None,
        members: frozenset[str],
        retry_s: float,
        pause: Callable[[], bool] = lambda: False,
    ) -> None:
        self._grid, self._relay, self._own, self._pause = grid, relay, own, pause
        self._log = EventLog(own / EVENTS)
        self._before, self._archive, self._members = before, archive, members
        self._carrier = Carrier(
            grid, ttl_s=24 * 3600.0, retry_s=retry_s, again=lambda size: self._note("again", bytes=size)
        )
        self._stage = 0
        self._node_of: dict[str, int] = {}
        self._fresh: set[int] = set()
        self._confirmed: dict[str, Confirmed] = {}
        self._sealed_state = b""
        self._deadline = self._say_at = self._nodes_at = 0.0

    def run(self, deadline_s: float) -> SessionPlan:
        """Until every site holds the key. Raises RunError at the deadline, PausedError where that is asked."""
        now = time.monotonic()
        self._deadline, self._say_at = now + deadline_s, now + _WAITING_S
        self._until(lambda: self._relay.missing_offers, {}, self._offered, self._newly_connected)
        make = {self._node_of[self._relay.maker]: self._relay.make}
        self._until(lambda: [] if self._relay.sealed else [self._relay.maker], make, self._sealed)
        deliver = {node: self._relay.deliver(site) for site, node in self._node_of.items()}
        self._until(lambda: self._not_opened(), deliver, self._opened)
        self._hand_over()
        nodes = {site: str(node) for site, node in self._node_of.items()}
        write_public(self._own / NODES, json.dumps(nodes).encode())
        return self._relay.plan

    def _until(
        self,
        missing: Callable[[], list[str]],
        asked: dict[int, bytes],
        take: Callable[[int, bytes], bytes | None],
        more: Callable[[], dict[int, bytes]] = dict,
    ) -> None:
        """Ask until nobody is missing; `take` gives what to ask the node next, and raises what it does not accept."""
        self._stage += 1
        self._carrier.begin()
        for node, content in asked.items():
            self._carrier.ask(node, self._stage, content)
        while waiting := missing():
            self._look_up(waiting)
            for node, content in more().items():
                asked[node] = content
                self._carrier.ask(node, self._stage, content)
            for node, stage, content in self._carrier.answers():
                if stage != self._stage:
                    continue
                try:
                    then = take(node, content)
                except (ProtocolError, CryptoError) as error:
                    self._note("declined", bytes=len(content), reason=error.what)
                    self._carrier.ask(node, self._stage, asked[node], after_s=DECLINED_S)
                    continue
                if then is not None:
                    self._carrier.ask(node, self._stage, then)
            time.sleep(_TICK_S)

    def _look_up(self, waiting: list[str]) -> None:
        """Raise where the time is over or the study was stopped; now and then say who is waited for."""
        now = time.monotonic()
        if self._pause():
            raise PausedError(
                "stopped before the epoch had a key", where="key ceremony", fix="`study run` goes on"
            )
        if now >= self._deadline:
            raise RunError(
                f"the key ceremony is not complete: {', '.join(waiting)} did not answer",
                where=f"epoch {self._relay.bundle.epoch}",
                fix="start these sites and run again, or `secure-triplay study remove` them",
            )
        if now >= self._say_at:
            self._say_at = now + _WAITING_S
            self._note("missing", sites=waiting)

    def _newly_connected(self) -> dict[int, bytes]:
        """Nodes that were not asked yet, each with the summons."""
        now = time.monotonic()
        if now < self._nodes_at:
            return {}
        self._nodes_at = now + _NODES_S
        return {
            node: self._relay.summon
            for node in self._grid.get_node_ids()
            if not self._carrier.has_asked(node)
        }

    def _offered(self, node: int, content: bytes) -> bytes | None:
        behind = _behind(content)
        if behind is not None:
            return self._catch_up(node, behind)
        self._relay, site = self._relay.take_offer(content)
        self._node_of[site] = node
        if self._relay.bundle.epoch > 1 and site not in self._members:
            self._fresh.add(node)
        self._note("offer", site=site)
        return None

    def _catch_up(self, node: int, behind: Behind) -> bytes:
        """The closed rounds of the epoch before that a site still has to apply, or the summons once it has all."""
        base = self._relay.base
        if behind.epoch != self._before or self._archive is None:
            self._fresh.add(node)
            return self._relay.summon_fresh
        if behind.round >= base:
            return self._relay.summon
        missing = self._archive.catch_up(behind.round, base).to_bytes()
        self._note("catching up", bytes=len(missing))
        return missing

    def _sealed(self, node: int, content: bytes) -> None:
        self._relay = self._relay.take_sealed(content)
        self._note("sealed", site=self._relay.maker)

    def _not_opened(self) -> list[str]:
        return sorted(set(self._relay.bundle.identities) - self._relay.opened)

    def _opened(self, node: int, content: bytes) -> None:
        self._relay, site = self._relay.take_opened(content)
        self._note("opened", site=site)

    def _hand_over(self) -> None:
        """Bring the state to sites that are new, with the signatures of those that have it."""
        if not self._fresh or self._relay.base == 0:
            return
        bundle, base = self._relay.bundle, self._relay.base
        old = {site: node for site, node in self._node_of.items() if node not in self._fresh}
        new = {site: node for site, node in self._node_of.items() if node in self._fresh}
        if not old:
            raise RunError(
                "no site has the state that the study goes on from",
                where="state hand-over",
                fix="bring a site back that took part in the epoch before: secure-triplay study add",
            )
        giver = min(old.values())
        wanted = {
            node: StateWanted(bundle.study_sha256, bundle.epoch, base, node == giver).to_bytes()
            for node in old.values()
        }
        quorum = min(needed(len(self._node_of) - 1), len(old))

        def unconfirmed() -> list[str]:
            if len(self._confirmed) >= quorum and self._sealed_state:
                return []
            return sorted(site for site, node in old.items() if site not in self._confirmed or node == giver)

        self._until(unconfirmed, wanted, self._state_offered)
        listed = tuple(self._confirmed[site] for site in sorted(self._confirmed))
        given = StateGiven(bundle.study_sha256, bundle.epoch, base, listed, self._sealed_state).to_bytes()
        self._give(given, new)

    def _give(self, given: bytes, new: dict[str, int]) -> None:
        """Bring the state to the new sites; the study goes on without one that refuses it."""
        refused: Counter[int] = Counter()
        taken: set[int] = set()

        def take(node: int, content: bytes) -> None:
            try:
                self._relay, site = self._relay.take_opened(content)
            except (ProtocolError, CryptoError):
                refused[node] += 1
                raise
            taken.add(node)
            self._note("state", site=site)

        def waiting() -> list[str]:
            return [
                site for site, node in new.items() if node not in taken and refused[node] < _MOST_REFUSALS
            ]

        self._until(waiting, dict.fromkeys(new.values(), given), take)

    def _state_offered(self, node: int, content: bytes) -> None:
        offered = StateOffered.from_bytes(content)
        own = offered.confirmed
        bundle, base = self._relay.bundle, self._relay.base
        if (offered.study, offered.epoch, offered.round) != (bundle.study_sha256, bundle.epoch, base):
            raise ProtocolError("a state of another epoch", where="state hand-over", fix="look into the site")
        if self._node_of.get(own.site) != node:
            raise ProtocolError(
                "a state under another name", where="state hand-over", fix="look into the site"
            )
        own.verify(bundle.identities[own.site], study=bundle.study_sha256, epoch=bundle.epoch, round=base)
        self._confirmed[own.site] = own
        self._sealed_state = offered.sealed or self._sealed_state
        self._note("confirmed", site=own.site)

    def _note(self, event: str, **fields: object) -> None:
        self._log.write(event, **fields)


def _behind(content: bytes) -> Behind | None:
    try:
        return Behind.from_bytes(content, max_bytes=1024)
    except ProtocolError:
        return None
