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
from pathlib import Path

from flwr.app import ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.serverapp import Grid, ServerApp

from secure_triplay.errors import CryptoError, ProtocolError, RunError
from secure_triplay.federation.files import read_public, write_public
from secure_triplay.federation.relay import Relay
from secure_triplay.federation.serverfolder import EPOCHS, ROUNDS, ServerFolder
from secure_triplay.server.app import CLOSED_FOLDER, RECORD, ServerSettings, run_rounds
from secure_triplay.server.archive import Archive
from secure_triplay.wire import SessionPlan

FOLDER_VARIABLE = "SECURE_TRIPLAY_SERVER"
PLAN, RUNNING, FINISHED, EVENTS = "plan", "running.json", "finished", "ceremony.jsonl"
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


def last_round(folder: ServerFolder, before_epoch: int) -> int:
    """The last closed round of all epochs before this one."""
    last = 0
    for epoch in folder.epochs:
        own = epoch_folder(folder, epoch)
        if epoch < before_epoch and (own / PLAN).exists():
            plan = SessionPlan.from_bytes(read_public(own / PLAN, "plan", "restore the server's folder"))
            last = Archive(own / CLOSED_FOLDER, plan).last or last
    return last


def run_study(grid: Grid, folder: ServerFolder) -> None:
    """The newest epoch of a study, to its end. Raises RunError where too few sites take part."""
    bundle = folder.bundle
    own = epoch_folder(folder, bundle.epoch)
    own.mkdir(mode=0o700, parents=True, exist_ok=True)
    running = folder.path / ROUNDS / RUNNING
    write_public(running, json.dumps({"pid": os.getpid(), "epoch": bundle.epoch}).encode())
    try:
        if not (own / PLAN).exists():
            plan = Ceremony(grid, folder, own).run(max(bundle.rules.deadline_s, _CEREMONY_S))
            write_public(own / PLAN, plan.to_bytes())
        plan = SessionPlan.from_bytes(read_public(own / PLAN, "plan", "restore the server's folder"))
        study = folder.study
        run_rounds(
            grid,
            ServerSettings(
                plan=plan,
                rounds=study.training.rounds,
                quorum=bundle.rules.quorum,
                deadline_s=bundle.rules.deadline_s,
                folder=own,
                base=last_round(folder, bundle.epoch),
            ),
        )
        write_public(folder.path / ROUNDS / FINISHED, b"The last round was closed and opened.\n")
    finally:
        running.unlink(missing_ok=True)


class Ceremony:
    """Drives a `Relay` over Flower's grid; who did not answer is asked again."""

    def __init__(self, grid: Grid, folder: ServerFolder, own: Path) -> None:
        self._grid, self._own = grid, own
        bundle = folder.bundle
        raw = read_public(folder.path / EPOCHS / f"{bundle.epoch}.bundle", "bundle", "restore the folder")
        self._relay = Relay(bundle, raw)
        self._node_of: dict[str, int] = {}

    def run(self, deadline_s: float) -> SessionPlan:
        """Until every site holds the key. Raises RunError at the deadline."""
        deadline = time.monotonic() + deadline_s
        while self._relay.missing_offers:
            self._offers(self._before(deadline))
        while self._relay.sealed is None:
            node = self._node_of[self._relay.maker]
            for _, content in self._ask({node: self._relay.make}, self._before(deadline)):
                self._take("sealed", content, self._sealed)
        while not self._relay.complete:
            waiting = {
                node: self._relay.deliver(site)
                for site, node in self._node_of.items()
                if site not in self._relay.opened
            }
            for _, content in self._ask(waiting, self._before(deadline)):
                self._take("opened", content, self._opened)
        return self._relay.plan

    def _before(self, deadline: float) -> float:
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
        for node, content in self._ask(dict.fromkeys(nodes, self._relay.summon), left_s):
            site = self._take("offer", content, self._offer)
            if site is not None:
                self._node_of[site] = node

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
