"""What the summing process does with requests, and what it writes down about them.

The event log is append-only JSON lines: what arrived (size and hash), accepted or why not, which rounds
closed over whom. It holds no content. With `keep_received` every received byte is kept besides, so that an
outsider can search all that the server ever got. A log that cannot be written ends the process.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from secure_triplay.durable import private_file
from secure_triplay.errors import RunError
from secure_triplay.eventlog import EventLog
from secure_triplay.memory import peak_bytes
from secure_triplay.server.inbox import Admitted, Reason, Refusal
from secure_triplay.server.round import Round
from secure_triplay.wire import SessionPlan

EVENT_LOG = "events.jsonl"
RECEIVED_FOLDER = "received"


@dataclass(frozen=True)
class ServerStats:
    """What the summing process did so far; `sum_s` is the time for verifying, adding and closing.

    `peak_rss_bytes` is the kernel's own high-water mark (VmHWM); `refused` counts by reason.
    """

    peak_rss_bytes: int
    sum_s: float
    received_bytes: int
    accepted: int
    accepted_bytes: int
    rounds_closed: int
    refused: dict[str, int] = field(default_factory=dict)


class Events:
    """Append-only record of what happened, and of every received byte where that is asked for."""

    def __init__(self, folder: Path | None, keep_received: bool) -> None:
        self._log: EventLog | None = None
        self._received: Path | None = None
        self._count = 0
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self._log = EventLog(folder / EVENT_LOG)
        if folder is not None and keep_received:
            self._received = folder / RECEIVED_FOLDER
            self._received.mkdir(mode=0o700, exist_ok=True)
            self._count = len(list(self._received.iterdir()))

    def write(self, event: str, **fields: object) -> None:
        """Append one event, at once."""
        if self._log is not None:
            self._log.write(event, **fields)

    def keeping(self, pieces: Iterable[bytes], round_number: int) -> Iterator[bytes]:
        """The same pieces, each kept on disk first."""
        if self._received is None:
            yield from pieces
            return
        self._count += 1
        path = self._received / f"{self._count:06d}-round-{round_number}.bin"
        with open(path, "xb", opener=private_file) as kept:
            for piece in pieces:
                kept.write(piece)
                yield piece


class Service:
    """The state that requests step: the open round, and counts over all of them."""

    def __init__(self, plan: SessionPlan, quorum: int, events: Events, *, last_closed: int = 0) -> None:
        Round.open(plan, 1, quorum)  # a quorum that cannot be met is an error now, not after training
        self.plan = plan
        self._quorum, self._events = quorum, events
        self._round: Round | None = None
        self._last_closed, self._rounds_closed = last_closed, 0
        self._sum_s = 0.0
        self._received_bytes = self._accepted = self._accepted_bytes = 0
        self._refused: Counter[str] = Counter()
        events.write("started", study=plan.study, epoch=plan.epoch, sites=len(plan.sites), quorum=quorum)

    def open(self, number: int, admitted: Admitted | None = None) -> None:
        """Open a round, for the members only where it is masked; one that failed goes on with what it has.

        Raises RunError when another one is open, or this or a later one was closed before.
        """
        if self._round is not None and self._round.inbox.round == number:
            return
        if self._round is not None or number <= self._last_closed:
            raise RunError(
                f"round {number} cannot be opened: one is open, or it was closed before",
                where="server",
                fix="close the open round; a closed one is never opened again",
            )
        self._round = Round.open(self.plan, number, self._quorum, admitted)
        self._events.write("opened", round=number)

    def offer(self, pieces: Iterable[bytes], size: int) -> Refusal | None:
        """Take `size` bytes that come in pieces; of what is above the plan's bound nothing is held."""
        number = 0 if self._round is None else self._round.inbox.round
        fits = size <= self.plan.max_upload_bytes
        digest = hashlib.sha256()
        parts: list[bytes] = []
        for piece in self._events.keeping(pieces, number):
            digest.update(piece)
            if fits:
                parts.append(piece)
        started = time.perf_counter()
        refusal = self._add(b"".join(parts)) if fits else Refusal(Reason.OVERSIZED)
        self._sum_s += time.perf_counter() - started
        self._received_bytes += size
        if refusal is None:
            self._accepted += 1
            self._accepted_bytes += size
        else:
            self._refused[refusal.reason.value] += 1
        self._events.write(
            "received", round=number, bytes=size, sha256=digest.hexdigest(), **self._outcome(refusal)
        )
        return refusal

    def close(self, *, last: bool, ready: bool = True) -> bytes:
        """The bytes of the open round's sum.

        Raises RunError if there is no quorum, or the next round is not `ready` to follow, and then keeps what came.
        """
        if self._round is None:
            raise RunError("no round is open", where="server", fix="open one first")
        current = self._round
        number, survivors = current.inbox.round, sorted(current.inbox.accepted)
        started = time.perf_counter()
        try:
            message = current.close("finish" if last else "train")
            if not ready:
                raise RunError(
                    f"round {number} failed: too few sites sent the keys of their next masks with their updates",
                    where="server",
                    fix="see which sites are missing, or run another version; repeat the round then",
                )
        except RunError:
            self._events.write("failed", round=number, survivors=survivors, quorum=self._quorum)
            raise
        self._round = None
        content = message.to_bytes()
        self._sum_s += time.perf_counter() - started
        self._last_closed = number
        self._rounds_closed += 1
        self._events.write(
            "closed",
            round=number,
            survivors=survivors,
            bytes=len(content),
            sum_sha256=message.sha256.hex(),
            stats=asdict(self.stats()),
        )
        return content

    def note(self, event: str, **fields: str | int) -> None:
        """Write an event of the exchanges around the rounds; what came too late is counted as refused."""
        if event == "late":
            self._refused[event] += 1
        self._events.write(event, **fields)

    def stats(self) -> ServerStats:
        """Counts so far."""
        return ServerStats(
            peak_bytes(),
            self._sum_s,
            self._received_bytes,
            self._accepted,
            self._accepted_bytes,
            self._rounds_closed,
            dict(self._refused),
        )

    def stop(self) -> None:
        """Write the last event."""
        self._events.write("stopped", stats=asdict(self.stats()))

    def _outcome(self, refusal: Refusal | None) -> dict[str, str | None]:
        if refusal is not None:
            return {"outcome": refusal.reason.value, "claimed_site": refusal.claimed_site}
        return {"outcome": "accepted", "site": self._round.total.headers[-1].site if self._round else None}

    def _add(self, content: bytes) -> Refusal | None:
        if self._round is None:
            return Refusal(Reason.NO_OPEN_ROUND)
        self._round, refusal = self._round.offer(content)
        return refusal
