"""Kill a site with SIGKILL again and again between reserve and release, and look at its ledger after each.

    python crashing.py FOLDER SEED

A small process (no torch) forks one child a kill. The child opens the ledger, reserves the next round, has it
countersigned, settles it and says so over a pipe. It dies at a chosen line of the ledger's own code, at a
chosen instruction inside one of SQLite's statements, or at a random moment. Prints one JSON line.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from secure_triplay.client import witness as witness_module
from secure_triplay.crypto.identity import SigningIdentity
from secure_triplay.ledger import ledger as ledger_module
from secure_triplay.ledger.budget import Limits, figures
from secure_triplay.ledger.ledger import TRAINING, Ledger, Release
from secure_triplay.ledger.log import AuditLog
from secure_triplay.privacy.mechanisms import DpSgdCharge
from tests.ledger.witnessing import Member

CHARGE = DpSgdCharge(noise_multiplier=8.0, sampling_rate=0.5, steps=1, unit="patient")
LIMITS = Limits(epsilon_per_study=6.0, epsilon_per_year=6.0, delta=1e-6, max_units=1000, unit="patient")
STUDY = "a" * 64
KILLS_A_LEDGER = 20
OWN_CODE = (str(Path(ledger_module.__file__).parent), str(witness_module.__file__))

Place = tuple[str, int]


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def trace(seen: Callable[[Place], None]) -> None:
    """Call `seen` before each line of the ledger's code, and of what has it countersigned."""

    def local(frame: FrameType, event: str, _: Any) -> Any:
        if event == "line":
            seen((os.path.basename(frame.f_code.co_filename), frame.f_lineno))
        return local

    sys.settrace(lambda frame, event, _: local if frame.f_code.co_filename.startswith(OWN_CODE) else None)


class Site:
    """A ledger, a peer's log, and what must never be taken back."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.key, self.peer_key = folder, SigningIdentity.generate(), SigningIdentity.generate()
        self.charged: set[int] = set()
        self.settled: set[int] = set()
        with Ledger.create(folder / "site", self.key, site="site", limits=LIMITS, approved_by="A") as ledger:
            ledger.approve(STUDY, "study", [Release(TRAINING, CHARGE, 60)], approved_by="A")
        AuditLog.create(folder / "peer", self.peer_key, party="peer", started_by="B").close()

    def cycle(self, round_number: int, say: Callable[[str], None]) -> None:
        """One round as a worker does it, without the training."""
        with (
            Ledger.open(self.folder / "site", self.key) as ledger,
            AuditLog.open(self.folder / "peer", self.peer_key) as peer,
        ):
            made = ledger.reserve(CHARGE, study=STUDY, round=round_number)
            say(f"reserved {made.counter}")
            own = Member(ledger.chain, self.key, [self.peer_key.identity])
            other = Member(peer.chain, self.peer_key, [self.key.identity])
            # after a crash, a first exchange may only tell which head the peer holds
            found = own.paid_for(made, other) or own.paid_for(made, other)
            assert found == 1, "a crash locked the ledger out"
            say("training")
            ledger.settle(made, b"upload %d" % round_number)
            say(f"settled {made.counter}")

    def look(self, said: list[str]) -> None:
        """What must hold after any crash. Raises AssertionError, or whatever a broken ledger raises."""
        with (
            Ledger.open(self.folder / "site", self.key) as ledger,
            AuditLog.open(self.folder / "peer", self.peer_key),
        ):
            reservations = ledger.books.reservations
        charged = set(reservations)
        settled = {counter for counter, made in reservations.items() if made.released_sha256}
        assert charged >= self.charged, "a charge was given back"
        assert settled >= self.settled, "a release was forgotten"
        assert len(charged) <= len(self.charged) + 1, "one round was charged twice"
        for line in said:
            what, _, counter = line.partition(" ")
            assert what != "reserved" or int(counter) in charged, "reserved was said before it was on disk"
            assert what != "settled" or int(counter) in settled, "settled was said before it was on disk"
        rounds = [made.round for made in reservations.values()]
        assert len(rounds) == len(set(rounds)), "one round has two charges"
        self.charged, self.settled = charged, settled

    @property
    def next_round(self) -> int:
        return len(self.settled) + 1


def run(site: Site, arm: Callable[[], None], kill_after_s: float | None = None) -> tuple[bool, list[str]]:
    """One child; whether it was killed, and what it said before."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(reader)
            arm()
            site.cycle(site.next_round, lambda text: (os.write(writer, text.encode() + b"\n"), None)[1])
            status = 0
        finally:
            sys.settrace(None)
            os._exit(status)
    os.close(writer)
    if kill_after_s is not None:
        time.sleep(kill_after_s)
        os.kill(child, signal.SIGKILL)
    with os.fdopen(reader, "rb") as pipe:
        said = pipe.read().decode().split("\n")[:-1]
    _, status = os.waitpid(child, 0)
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    assert killed or os.WEXITSTATUS(status) == 0, f"a child failed without being killed: {said}"
    return killed, said


def instructions(count: int) -> None:
    """Die after `count` instructions of SQLite's machine, which is inside a statement."""
    real = sqlite3.connect
    left = [count]

    def step() -> int:
        left[0] -= 1
        if left[0] == 0:
            die()
        return 0

    def connect(*args: Any, **more: Any) -> sqlite3.Connection:
        made = real(*args, **more)
        made.set_progress_handler(step, 1)
        return made

    sqlite3.connect = connect  # type: ignore[assignment]


def main(folder: Path, seed: int) -> None:
    draw = random.Random(seed)
    site = Site(folder / "dry")
    # A dry run tells which lines there are, and how often each runs; and it fills the accountant's cache.
    hits: dict[Place, int] = {}

    def note(place: Place) -> None:
        hits[place] = hits.get(place, 0) + 1

    trace(note)
    site.cycle(1, lambda _: None)
    sys.settrace(None)
    began = time.perf_counter()
    site.cycle(2, lambda _: None)
    cycle_s = time.perf_counter() - began

    def at_line(place: Place, time_hit: int) -> Callable[[], None]:
        left = [time_hit]

        def seen(here: Place) -> None:
            if here == place:
                left[0] -= 1
                if left[0] == 0:
                    die()

        return lambda: trace(seen)

    plans: list[tuple[str, Callable[[], None], float | None]] = [
        ("line", at_line(place, draw.randint(1, count)), None) for place, count in hits.items()
    ]
    plans += [("instruction", partial(instructions, draw.randint(1, 900)), None) for _ in range(60)]
    plans += [("moment", (lambda: None), draw.uniform(0, 1.1 * cycle_s)) for _ in range(60)]
    draw.shuffle(plans)
    kills = {"line": 0, "instruction": 0, "moment": 0}
    for index, (kind, arm, delay) in enumerate(plans):
        if index % KILLS_A_LEDGER == 0:
            site = Site(folder / str(index))
        killed, said = run(site, arm, delay)
        kills[kind] += killed
        site.look(said)
    spends = []
    with Ledger.open(site.folder / "site", None) as ledger:
        spends = list(ledger.books.spends)
    print(
        json.dumps(
            {
                "kills": kills,
                "lines": len(hits),
                "last_epsilon": figures(spends, LIMITS.delta).deciding,
                "torch": "torch" in sys.modules,
            }
        )
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
