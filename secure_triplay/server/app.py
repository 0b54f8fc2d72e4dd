"""The Flower ServerApp: carries bytes between Flower's grid and the process that verifies and sums.

It reads no upload. What arrives goes to a `SummingProcess`, which loads server modules only; what that
process closes a round with goes to every site. One message a site and round: it brings the sum of the
round before and asks for the next upload.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from flwr.app import ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.serverapp import Grid, ServerApp

from secure_triplay.errors import RunError
from secure_triplay.server.process import SummingProcess
from secure_triplay.wire import Begin, SessionPlan

RECORD = "secure-triplay"
"""Name of the one record, and of its one field, that a message carries."""


@dataclass(frozen=True)
class ServerSettings:
    """What the coordinator fixes before the first round; nothing of it comes from run-config.

    `quorum` is the fewest sites of which a sum is opened; `deadline_s` bounds each exchange.
    """

    plan: SessionPlan
    rounds: int
    quorum: int
    deadline_s: float
    folder: Path
    keep_received: bool = False

    @classmethod
    def read(cls, path: Path) -> ServerSettings:
        """The settings that `write` wrote."""
        raw = json.loads(path.read_text())
        return cls(
            plan=SessionPlan.from_bytes(bytes.fromhex(raw["plan"])),
            rounds=raw["rounds"],
            quorum=raw["quorum"],
            deadline_s=raw["deadline_s"],
            folder=Path(raw["folder"]),
            keep_received=raw["keep_received"],
        )

    def write(self, path: Path) -> None:
        """Write the settings as JSON; all of it is public."""
        fields = {
            "plan": self.plan.to_bytes().hex(),
            "rounds": self.rounds,
            "quorum": self.quorum,
            "deadline_s": self.deadline_s,
            "folder": str(self.folder),
            "keep_received": self.keep_received,
        }
        path.write_text(json.dumps(fields, indent=1))


def make_app(settings: ServerSettings) -> ServerApp:
    """The ServerApp of one study; nothing of a study runs when this is imported."""
    app = ServerApp()

    @app.main()  # type: ignore[untyped-decorator]
    def main(grid: Grid, context: Context) -> None:
        run_rounds(grid, settings)

    return app


def run_rounds(grid: Grid, settings: ServerSettings) -> None:
    """Every round of a study, from the first `Begin` to the last sum.

    Raises RunError when fewer than `quorum` sites delivered before the deadline.
    """
    plan = settings.plan
    with SummingProcess(
        plan, quorum=settings.quorum, log_folder=settings.folder, keep_received=settings.keep_received
    ) as summing:
        nodes = _wait_for_nodes(grid, len(plan.sites), settings.quorum, settings.deadline_s)
        message = Begin(study=plan.study, epoch=plan.epoch, round=1).to_bytes()
        for round_number in range(1, settings.rounds + 1):
            summing.open(round_number)
            for reply in exchange(grid, nodes, message, settings.deadline_s):
                summing.offer(reply)
            message = summing.close(last=round_number == settings.rounds)
        for _ in exchange(grid, nodes, message, settings.deadline_s):
            pass  # the sites' acknowledgements carry nothing


def exchange(grid: Grid, nodes: Iterable[int], content: bytes, deadline_s: float) -> Iterator[bytes]:
    """Send the same bytes to every node and yield each reply's bytes as it arrives.

    A reply that is an error, or that is not exactly one byte string, is yielded as empty bytes, which the
    inbox refuses and counts. Ends when every node answered or the deadline passed.
    """
    record = RecordDict({RECORD: ConfigRecord({RECORD: content})})
    waiting = set(
        grid.push_messages(
            [
                Message(content=record, message_type=MessageType.TRAIN, dst_node_id=node, ttl=deadline_s)
                for node in nodes
            ]
        )
    )
    deadline = time.monotonic() + deadline_s
    pause_s = 0.02
    while waiting and time.monotonic() < deadline:
        replies = list(grid.pull_messages(waiting))
        for reply in replies:
            waiting.discard(reply.metadata.reply_to_message_id)
            yield _only_bytes(reply)
        pause_s = 0.02 if replies else min(pause_s * 1.3, 0.5)
        time.sleep(pause_s)


def _only_bytes(reply: Message) -> bytes:
    if reply.has_error():
        return b""
    try:
        (record,) = reply.content.values()
        (value,) = record.values()
    except ValueError:
        return b""
    return value if isinstance(value, bytes) else b""


def _wait_for_nodes(grid: Grid, expected: int, quorum: int, deadline_s: float) -> list[int]:
    """Ids of the connected nodes: all that are expected, or at least a quorum when time is up."""
    deadline = time.monotonic() + deadline_s
    nodes: list[int] = []
    while len(nodes) < expected and time.monotonic() < deadline:
        nodes = list(grid.get_node_ids())
        time.sleep(0.1)
    if len(nodes) < quorum:
        raise RunError(
            f"{len(nodes)} of {expected} sites are connected, and the study needs {quorum}",
            where="server",
            fix="start the missing sites and run again",
        )
    return nodes
