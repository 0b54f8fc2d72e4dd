"""The Flower ServerApp: carries bytes between Flower's grid and the state machine of the rounds.

It opens no upload. `Rounds` says what goes to whom, the `SummingProcess` verifies and adds, and this module
brings messages, watches the clock and notices who is connected.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from secure_triplay.crypto.masking.parameters import MaskingParameters, require_threshold
from secure_triplay.errors import RunError
from secure_triplay.server.archive import Archive
from secure_triplay.server.carrier import Carrier
from secure_triplay.server.log import RoundLog
from secure_triplay.server.process import SummingProcess
from secure_triplay.server.rounds import Rounds
from secure_triplay.wire import SessionPlan, require_quorum

CLOSED_FOLDER = "closed"
_ENDING_S = 120.0
"""So long a try lasts in which sites are to open the last sum: nothing depends on it that others wait for."""
_REST_S, _LONGEST_REST_S = 60.0, 900.0
"""How long the server waits before it asks again for a round that too many sites declined: ever longer."""


@dataclass(frozen=True)
class ServerSettings:
    """What the coordinator fixes before the first round; nothing of it comes from run-config.

    `quorum` is the fewest sites of which a sum is opened, and more than half of them; `deadline_s` bounds each
    exchange, and the wait for sites that are not connected yet, after which the server begins with a quorum. `base` is
    the last round of the key epoch before this one. `log` is the folder of the coordinator's signing key and audit log.
    A question without an answer is sent again after `retry_s`; None never does, where no message is lost.
    `masking` are the masks' parameters; None is a shared key.
    """

    plan: SessionPlan
    rounds: int
    quorum: int
    deadline_s: float
    folder: Path
    keep_received: bool = False
    base: int = 0
    log: Path | None = None
    retry_s: float | None = None
    masking: MaskingParameters | None = None

    def __post_init__(self) -> None:
        require_quorum(self.quorum, len(self.plan.sites))
        require_threshold(self.masking, self.quorum, len(self.plan.sites))

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
            base=raw["base"],
            log=None if raw["log"] is None else Path(raw["log"]),
            retry_s=raw["retry_s"],
            masking=None if raw["masking"] is None else MaskingParameters(**raw["masking"]),
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
            "base": self.base,
            "log": None if self.log is None else str(self.log),
            "retry_s": self.retry_s,
            "masking": None if self.masking is None else asdict(self.masking),
        }
        path.write_text(json.dumps(fields, indent=1))


def make_app(settings: ServerSettings) -> ServerApp:
    """The ServerApp of one study; nothing of a study runs when this is imported."""
    app = ServerApp()

    @app.main()  # type: ignore[untyped-decorator]
    def main(grid: Grid, context: Context) -> None:
        run_rounds(grid, settings)

    return app


def run_rounds(grid: Grid, settings: ServerSettings, pause: Callable[[], bool] = lambda: False) -> bool:
    """Every round of a study that is not closed yet; after a crash the same call goes on from the last closed one.

    Where `pause` says so it ends between two rounds: then the last one is closed and signed, and nothing of the next
    one was asked for. Returns whether the study is finished.

    Raises RunError when too few sites are connected, or a round failed as often as it may.
    """
    plan = settings.plan
    archive = Archive(settings.folder / CLOSED_FOLDER, plan)
    with (
        RoundLog(settings.log, plan) as log,
        SummingProcess(
            plan,
            quorum=settings.quorum,
            log_folder=settings.folder,
            keep_received=settings.keep_received,
            last_closed=archive.last or settings.base,
        ) as summing,
    ):
        rounds = Rounds(
            plan,
            rounds=settings.rounds,
            quorum=settings.quorum,
            sums=summing,
            archive=archive,
            base=settings.base,
            patient=settings.retry_s is not None,
            masking=settings.masking,
        )
        carrier = Carrier(
            grid, settings.deadline_s, settings.retry_s, lambda size: summing.note("again", bytes=size)
        )
        wanted, rest_s = len(plan.sites), _REST_S / 2
        while not rounds.finished:
            if (rounds.exchange.kind, rounds.exchange.attempt) == ("train", 1) and pause():
                return False
            if rounds.ending:  # whoever has opened the last sum may be gone already
                nodes = list(grid.get_node_ids())
            else:
                nodes = _wait_for_nodes(grid, wanted, settings.quorum, settings.deadline_s)
            wanted = settings.quorum  # once begun, nobody is waited for
            deadline_s = min(settings.deadline_s, _ENDING_S) if rounds.ending else settings.deadline_s
            _exchange(rounds, carrier, nodes, deadline_s)
            log.take_in(archive, settings.base)
            rest_s = min(2 * rest_s, _LONGEST_REST_S) if rounds.resting else _REST_S / 2
            if rounds.resting and not _rest(rounds, summing, rest_s, pause):
                return False
    return True


def _rest(rounds: Rounds, summing: SummingProcess, rest_s: float, pause: Callable[[], bool]) -> bool:
    """Wait before a round is asked for again that too many sites declined; False where the study is to stop."""
    now = rounds.exchange
    summing.note("resting", round=now.round, declined=rounds.declined, again_s=round(rest_s))
    until = time.monotonic() + rest_s
    while time.monotonic() < until:
        if pause():
            return False
        time.sleep(min(0.5, rest_s))
    return True


def _exchange(rounds: Rounds, carrier: Carrier, nodes: list[int], deadline_s: float) -> None:
    """One exchange, until every node has answered or the deadline is over."""
    number = rounds.exchange.number
    deadline = time.monotonic() + deadline_s
    carrier.begin()
    for node, content in rounds.begin(nodes).items():
        carrier.ask(node, number, content)
    pause_s = 0.02
    while not rounds.settled and time.monotonic() < deadline:
        quiet = True
        for node, to, content in carrier.answers():
            quiet = False
            more = rounds.take(node, to, content)
            if more is not None:
                carrier.ask(node, number, more)
        pause_s = min(pause_s * 1.3, 0.5) if quiet else 0.02
        time.sleep(pause_s)
    rounds.end()


def _wait_for_nodes(grid: Grid, wanted: int, quorum: int, deadline_s: float) -> list[int]:
    """Ids of the connected nodes: `wanted` of them if they come in time, else a quorum. Raises RunError for fewer."""
    started = time.monotonic()
    while True:
        nodes = list(grid.get_node_ids())
        late = time.monotonic() - started >= deadline_s
        if len(nodes) >= wanted or (late and len(nodes) >= quorum):
            return nodes
        if late:
            raise RunError(
                f"{len(nodes)} sites are connected, and the study needs {quorum}",
                where="server",
                fix="start the missing sites, and run again: the study goes on from its last closed round",
            )
        time.sleep(0.1)
