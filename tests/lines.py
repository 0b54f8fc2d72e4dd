"""Bad lines for tests: a TCP proxy that is slow, late, and breaks its connections every few seconds.

Rate and delay hold in each direction. Every `break_every_s` all open connections are reset at once, as a
flaky router does; new ones are taken again straight away. `cut` and `mend` are a partition.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

_PIECE_BYTES = 1400


@dataclass
class Line:
    """A running proxy; `port` is where to connect, and the counts say what it did."""

    target: tuple[str, int]
    bytes_per_s: float
    delay_s: float
    break_every_s: float | None
    port: int = 0
    connections: int = 0
    broken: int = 0
    carried_bytes: int = 0
    down: bool = False
    _open: set[asyncio.StreamWriter] = field(default_factory=set)

    def cut(self) -> None:
        """Nothing passes any more, and what was open is broken."""
        self.down = True

    def mend(self) -> None:
        """Connections are taken again."""
        self.down = False

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        if self.down:
            writer.transport.abort()
            return
        try:
            far_reader, far_writer = await asyncio.open_connection(*self.target)
        except OSError:
            writer.transport.abort()
            return
        self._open |= {writer, far_writer}
        await asyncio.gather(self._carry(reader, far_writer), self._carry(far_reader, writer))
        self._open -= {writer, far_writer}

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(maxsize=64)

        async def send() -> None:
            while True:
                due, piece = await queue.get()
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                if not piece:
                    break
                writer.write(piece)
                await writer.drain()
                self.carried_bytes += len(piece)

        sender = asyncio.create_task(send())
        free_at = time.monotonic()
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while piece := await reader.read(_PIECE_BYTES):
                free_at = max(free_at, time.monotonic()) + len(piece) / self.bytes_per_s
                await queue.put((free_at + self.delay_s, piece))
        with contextlib.suppress(OSError):
            await queue.put((time.monotonic() + self.delay_s, b""))
            await sender
        sender.cancel()
        writer.close()

    async def _breaker(self) -> None:
        last = time.monotonic()
        while True:
            await asyncio.sleep(0.05)
            due = self.break_every_s is not None and time.monotonic() - last >= self.break_every_s
            if due or self.down:
                last = time.monotonic()
                for writer in tuple(self._open):
                    writer.transport.abort()
                    self.broken += 1
                self._open.clear()

    async def _serve(self, ready: threading.Event, stop: asyncio.Event) -> None:
        server = await asyncio.start_server(self._take, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        breaker = asyncio.create_task(self._breaker())
        ready.set()
        await stop.wait()
        server.close()
        for writer in tuple(self._open):
            writer.transport.abort()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(breaker, *others, return_exceptions=True)


@contextmanager
def bad_line(
    target: tuple[str, int],
    *,
    bytes_per_s: float = 125_000,
    delay_s: float = 0.2,
    break_every_s: float | None = None,
) -> Iterator[Line]:
    """A proxy to `target`: by default 1 Mbit/s and 200 ms each way."""
    line = Line(target, bytes_per_s, delay_s, break_every_s)
    ready, loop = threading.Event(), asyncio.new_event_loop()
    stop = asyncio.Event()
    thread = threading.Thread(target=loop.run_until_complete, args=(line._serve(ready, stop),), daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield line
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()


def free_port() -> int:
    """A port of the loopback interface that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
