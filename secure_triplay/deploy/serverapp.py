"""The ServerApp of a real federation: the key ceremony where the epoch has no key yet, then its rounds.

Everything that it goes on from lies in the coordinator's folder and is public: the plan once every site holds the
key, and each closed round. Killed at any point and started again, it goes on from there. It imports nothing that
trains or decrypts.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from flwr.app import ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.serverapp import Grid, ServerApp

from secure_triplay.errors import CryptoError, ProtocolError, RunError
from secure_triplay.federation.files import read_public, write_public
from secure_triplay.federation.handover import Confirmed, StateGiven, StateOffered, StateWanted
from secure_triplay.federation.relay import Relay
from secure_triplay.federation.serverfolder import EPOCHS, ROUNDS, ServerFolder
from secure_triplay.ledger.log import AuditLog
from secure_triplay.server.app import CLOSED_FOLDER, RECORD, ServerSettings, run_rounds
from secure_triplay.server.archive import Archive
from secure_triplay.wire import MAX_CATCH_UP_BYTES, Behind, CatchUp, SessionPlan

FOLDER_VARIABLE, KEEP_VARIABLE = "SECURE_TRIPLAY_SERVER", "SECURE_TRIPLAY_KEEP_RECEIVED"
"""Where the coordinator's folder is; and, for an audit, that every byte string that arrived is kept there."""
PLAN, RUNNING, FINISHED, EVENTS = "plan", "running.json", "finished", "ceremony.jsonl"
PAUSE, PAUSED, NODES = "pause", "paused", "nodes.json"
_CEREMONY_PAUSE_S = 2.0
_CEREMONY_S = 900.0
"""A ceremony may take so long at least: a site loads its model before it offers."""


def make_app() -> ServerApp:
    """The ServerApp over the coordinator's folder that the SuperLink was started for."""
    app = ServerApp()

    @app.main()  # type: ignore[untyped-decorator]
    def main(grid: Grid, context: Context) -> None:
        run_study(grid, ServerFolder.open(Path(os.environ[FOLDER_VARIABLE])))

    return app


def epoch_folder(folder: ServerFolder, epoch: int) -> Path:
    """What the server wrote in one epoch."""
    return folder.path / ROUNDS / f"epoch-{epoch}"


@dataclass(frozen=True)
class Before:
    """What an epoch goes on from: the epoch before it, its closed rounds, and who took part."""

    base: int = 0
    epoch: int = 0
    archive: Archive | None = None
    members: frozenset[str] = frozenset()

    @classmethod
    def of(cls, folder: ServerFolder, epoch: int) -> Before:
        """What lies before an epoch: the last one that had a key. Raises RunError where its last round is open."""
        for earlier in sorted(folder.epochs, reverse=True):
            own = epoch_folder(folder, earlier)
            if earlier >= epoch or not (own / PLAN).exists():
                continue
            plan = SessionPlan.from_bytes(read_public(own / PLAN, "plan", "restore the server's folder"))
            archive = Archive(own / CLOSED_FOLDER, plan)
            names = frozenset(site.name for site in plan.sites)
            if archive.last is None:
                return cls(cls.of(folder, earlier).base, earlier, archive, names)
            archive.closed(archive.last)  # it has its signatures
            return cls(archive.last, earlier, archive, names)
        return cls()


def run_study(grid: Grid, folder: ServerFolder) -> None:
    """The newest epoch of a study, to its end or until it is to pause. Raises RunError where too few take part."""
    bundle = folder.bundle
    own = epoch_folder(folder, bundle.epoch)
    own.mkdir(mode=0o700, parents=True, exist_ok=True)
    rounds = folder.path / ROUNDS
    write_public(rounds / RUNNING, json.dumps({"pid": os.getpid(), "epoch": bundle.epoch}).encode())
    try:
        before = Before.of(folder, bundle.epoch)
        if not (own / PLAN).exists():
            ceremony = Ceremony(grid, folder, own, before)
            plan = ceremony.run(max(bundle.rules.deadline_s, _CEREMONY_S))
            write_public(own / PLAN, plan.to_bytes())
        plan = SessionPlan.from_bytes(read_public(own / PLAN, "plan", "restore the server's folder"))
        (rounds / PAUSED).unlink(missing_ok=True)
        settings = ServerSettings(
            plan=plan,
            rounds=folder.study.total_rounds,
            quorum=bundle.rules.quorum,
            deadline_s=bundle.rules.deadline_s,
            folder=own,
            keep_received=os.environ.get(KEEP_VARIABLE) == "1",
            base=before.base,
            log=folder.path,
        )
        AuditLog.ensure(
            folder.path, folder.identity, party="coordinator", started_by="the server, at its first start"
        )
        ended = run_rounds(grid, settings, (rounds / PAUSE).exists)
        write_public(rounds / (FINISHED if ended else PAUSED), b"The last round was closed and signed.\n")
    finally:
        (rounds / RUNNING).unlink(missing_ok=True)


class Ceremony:
    """Drives a `Relay` over Flower's grid; who did not answer is asked again."""

    def __init__(self, grid: Grid, folder: ServerFolder, own: Path, before: Before) -> None:
        self._grid, self._own, self._before = grid, own, before
        bundle = folder.bundle
        raw = read_public(folder.path / EPOCHS / f"{bundle.epoch}.bundle", "bundle", "restore the folder")
        self._relay = Relay(bundle, raw, before.base)
        self._node_of: dict[str, int] = {}
        self._fresh: set[int] = set()

    def run(self, deadline_s: float) -> SessionPlan:
        """Until every site holds the key. Raises RunError at the deadline."""
        deadline = time.monotonic() + deadline_s
        while self._relay.missing_offers:
            self._offers(self._left(deadline))
        while self._relay.sealed is None:
            node = self._node_of[self._relay.maker]
            for _, content in self._ask({node: self._relay.make}, self._left(deadline)):
                self._take("sealed", content, self._sealed)
        while not self._relay.complete:
            waiting = {
                node: self._relay.deliver(site)
                for site, node in self._node_of.items()
                if site not in self._relay.opened
            }
            for _, content in self._ask(waiting, self._left(deadline)):
                self._take("opened", content, self._opened)
        self._hand_over(self._left(deadline))
        nodes = {site: str(node) for site, node in self._node_of.items()}
        write_public(self._own / NODES, json.dumps(nodes).encode())
        return self._relay.plan

    def _left(self, deadline: float) -> float:
        left = deadline - time.monotonic()
        if left <= 0:
            missing = self._relay.missing_offers or sorted(
                set(self._relay.bundle.identities) - self._relay.opened
            )
            raise RunError(
                f"the key ceremony is not complete: {', '.join(missing)} did not answer",
                where=f"epoch {self._relay.bundle.epoch}",
                fix="start these sites and run again, or `secure-triplay study remove` them",
            )
        return left

    def _offers(self, left_s: float) -> None:
        known = set(self._node_of.values())
        nodes = [node for node in self._grid.get_node_ids() if node not in known]
        if not nodes:
            time.sleep(min(_CEREMONY_PAUSE_S, left_s))
        asked = dict.fromkeys(nodes, self._relay.summon)
        while asked:
            again: dict[int, bytes] = {}
            for node, content in self._ask(asked, left_s):
                behind = self._behind(content)
                if behind is not None:
                    again[node] = self._catch_up(node, behind)
                    continue
                site = self._take("offer", content, self._offer)
                if site is not None:
                    self._node_of[site] = node
                    if self._relay.bundle.epoch > 1 and site not in self._before.members:
                        self._fresh.add(node)
            asked = again

    def _behind(self, content: bytes) -> Behind | None:
        try:
            return Behind.from_bytes(content, max_bytes=1024)
        except ProtocolError:
            return None

    def _catch_up(self, node: int, behind: Behind) -> bytes:
        """The closed rounds of the epoch before that a site still has to apply, or the summons once it has all."""
        before, study = self._before, self._relay.bundle.study_sha256
        if behind.epoch != before.epoch or before.archive is None:
            self._fresh.add(node)
            return self._relay.summon_fresh
        if behind.round >= before.base:
            return self._relay.summon
        closed, size = [], 0
        for number in range(behind.round + 1, before.base + 1):
            closed.append(before.archive.closed(number))
            size += len(closed[-1].total.to_bytes())
            if size > MAX_CATCH_UP_BYTES:
                break
        self._note("catching up", bytes=size)
        return CatchUp(study, before.epoch, tuple(closed)).to_bytes()

    def _hand_over(self, left_s: float) -> None:
        """Bring the state to sites that are new, with the signatures of those that have it."""
        if not self._fresh:
            return
        bundle, base = self._relay.bundle, self._before.base
        old = [node for node in self._node_of.values() if node not in self._fresh]
        asked = {
            node: StateWanted(bundle.study_sha256, bundle.epoch, base, node == old[0]).to_bytes()
            for node in old
        }
        confirmed: dict[str, Confirmed] = {}
        sealed = b""
        for _, content in self._ask(asked, left_s):
            try:
                offered = StateOffered.from_bytes(content)
            except ProtocolError:
                continue
            confirmed[offered.confirmed.site] = offered.confirmed
            sealed = offered.sealed or sealed
        listed = tuple(sorted(confirmed.values(), key=lambda one: one.site))
        if not listed or not sealed:
            raise RunError(
                "no site handed the state over", where="state hand-over", fix="start the sites, and run again"
            )
        given = StateGiven(bundle.study_sha256, bundle.epoch, base, listed, sealed).to_bytes()
        for _, content in self._ask(dict.fromkeys(self._fresh, given), left_s):
            self._take("state", content, self._opened)

    def _offer(self, content: bytes) -> str:
        self._relay, site = self._relay.take_offer(content)
        return site

    def _sealed(self, content: bytes) -> str:
        self._relay = self._relay.take_sealed(content)
        return self._relay.maker

    def _opened(self, content: bytes) -> str:
        self._relay, site = self._relay.take_opened(content)
        return site

    def _take(self, what: str, content: bytes, take: Callable[[bytes], str]) -> str | None:
        try:
            site = take(content)
        except (ProtocolError, CryptoError) as error:
            self._note(f"no {what}", bytes=len(content), reason=error.what)
            time.sleep(_CEREMONY_PAUSE_S)  # a site that declines is asked again, and not at once
            return None
        self._note(what, site=site)
        return site

    def _note(self, event: str, **fields: object) -> None:
        line = json.dumps({"time": round(time.time(), 3), "event": event, **fields})
        with (self._own / EVENTS).open("a") as log:
            log.write(line + "\n")

    def _ask(self, messages: dict[int, bytes], left_s: float) -> Iterator[tuple[int, bytes]]:
        """Send to each node its own, and yield replies until all came or a minute or the deadline is over."""
        sent: dict[str, int] = {}
        for node, content in messages.items():
            record = RecordDict({RECORD: ConfigRecord({RECORD: content})})
            message = Message(
                content=record, message_type=MessageType.TRAIN, dst_node_id=node, ttl=max(left_s, 60.0)
            )
            for identifier in self._grid.push_messages([message]):
                sent[identifier] = node
        deadline = time.monotonic() + left_s
        while sent and time.monotonic() < deadline:
            for reply in self._grid.pull_messages(list(sent)):
                known = sent.pop(str(reply.metadata.reply_to_message_id), None)
                if known is not None:
                    yield known, _only_bytes(reply)
            time.sleep(0.2)


def _only_bytes(reply: Message) -> bytes:
    if reply.has_error():
        return b""
    try:
        (record,) = reply.content.values()
        (value,) = record.values()
    except ValueError:
        return b""
    return value if isinstance(value, bytes) else b""
