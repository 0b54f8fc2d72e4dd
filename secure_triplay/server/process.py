"""The process that receives and sums: a child that loads server modules only and is fed over a socket.

In a simulation Flower runs ServerApp and client engine in one process, so what the server knows must be
looked at elsewhere: here. The child is a fresh interpreter in isolated mode with an empty environment; it
inherits one end of a socket pair and nothing else. `SummingProcess` is the other end.

A request is one byte of operation, eight of length, and that many bytes; a reply is the same with a status
in front. An upload above the plan's bound is read past in small pieces and refused. Everything is public.
"""

from __future__ import annotations

import json
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, Self

from secure_triplay import errors
from secure_triplay.errors import ProtocolError, RunError, SecureTriplayError
from secure_triplay.server.inbox import Admitted, Reason, Refusal
from secure_triplay.server.service import Events, ServerStats, Service
from secure_triplay.wire import SessionPlan

_START, _OPEN, _OFFER, _CLOSE, _STATS, _STOP, _NOTE = range(7)
_OK, _FAILED = range(2)
_FRAME = struct.Struct(">BQ")
_MAX_CONTROL_BYTES = 1 << 20
_PIECE_BYTES = 1 << 20
_STOP_TIMEOUT_S = 10.0
_REPLY_TIMEOUT_S = 600.0
_LAST_WORDS_TIMEOUT_S = 2.0
_BOOT = """
import sys
root = sys.argv.pop()
root in sys.path or sys.path.insert(0, root)
from secure_triplay.server.process import main
main()
"""


class SummingProcess:
    """A running summing process; a context manager, so that it ends whatever happens.

    With a `log_folder` every event is appended to `events.jsonl` there; with `keep_received` also every byte
    string that was offered is kept, in `received/`, for whoever wants to search what the server got.
    """

    def __init__(
        self,
        plan: SessionPlan,
        *,
        quorum: int,
        log_folder: Path | None = None,
        keep_received: bool = False,
        last_closed: int = 0,
    ) -> None:
        if keep_received and log_folder is None:
            raise RunError(
                "what is received can be kept only where there is a log folder",
                where="server",
                fix="name a log folder",
            )
        self._plan = plan
        self._settings = {
            "plan": plan.to_bytes().hex(),
            "quorum": quorum,
            "log_folder": None if log_folder is None else str(log_folder.absolute()),
            "keep_received": keep_received,
            "last_closed": last_closed,
        }
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """Process id of the child. Raises RunError when there is none."""
        if self._process is None:
            raise self._gone()
        return self._process.pid

    def start(self) -> None:
        """Start the child. Raises RunError when it does not come up, and then leaves nothing behind."""
        ours, theirs = socket.socketpair()
        ours.settimeout(_REPLY_TIMEOUT_S)
        self._socket, self._reader = ours, ours.makefile("rb")
        self._messages = tempfile.TemporaryFile()  # noqa: SIM115  (closed by stop)
        with theirs:
            # -I: no PYTHONPATH, no user site, no current directory; only this package's root is added.
            command = [sys.executable, "-I", "-c", _BOOT, str(Path(errors.__file__).parent.parent)]
            self._process = subprocess.Popen(
                command,
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=self._messages,
                env=_clean_environment(),
                cwd="/",
            )
        try:
            self._ask(_START, json.dumps(self._settings).encode())
        except BaseException:
            self.stop()
            raise

    def open(self, round_number: int, admitted: Admitted | None = None) -> None:
        """Open a round, for the members only where it is masked; one that failed goes on with what it has.

        Raises RunError when another one is open or this one was closed before.
        """
        members = None if admitted is None else [sorted(admitted.names), admitted.sha256.hex()]
        self._ask(_OPEN, json.dumps([round_number, members]).encode())

    def offer(self, content: bytes) -> Refusal | None:
        """Give the child what a site sent; None when it was added, otherwise why it was refused."""
        reply = self._ask(_OFFER, content)
        if not reply:
            return None
        reason, claimed_site = json.loads(reply)
        return Refusal(Reason(reason), claimed_site)

    def close(self, *, last: bool, ready: bool = True) -> bytes:
        """Close the round: the bytes of its `SumMessage`.

        Raises RunError below the quorum, or where the next one is not `ready` to follow, and then it stays open.
        """
        return self._ask(_CLOSE, bytes([last, ready]))

    def note(self, event: str, **fields: str | int) -> None:
        """Have one more event written into the log: of the exchanges around the rounds, never of content."""
        self._ask(_NOTE, json.dumps([event, fields]).encode())

    def stats(self) -> ServerStats:
        """What was done so far."""
        return ServerStats(**json.loads(self._ask(_STATS)))

    def stop(self) -> None:
        """End the child, at the latest by force; safe to call twice."""
        process, self._process = self._process, None
        if process is None:
            return
        try:
            self._socket.settimeout(_STOP_TIMEOUT_S)
            self._socket.sendall(_FRAME.pack(_STOP, 0))
            self._socket.shutdown(socket.SHUT_RDWR)  # also ends a child that waits for the rest of a frame
        except OSError:
            pass  # it is gone already
        try:
            process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        finally:
            self._reader.close()
            self._socket.close()
            self._messages.close()

    def _ask(self, operation: int, content: bytes = b"") -> bytes:
        if self._process is None:
            raise self._gone()
        try:
            self._socket.sendall(_FRAME.pack(operation, len(content)))
            self._socket.sendall(content)
            status, reply = self._read_reply()
        except (OSError, ProtocolError) as error:
            raise self._gone() from error
        if status == _OK:
            return reply
        raise _error_from(reply)

    def _read_reply(self) -> tuple[int, bytes]:
        status, size = _unpacked_head(self._reader.read(_FRAME.size))
        return status, _read_exactly(self._reader, size, max(_MAX_CONTROL_BYTES, self._plan.max_sum_bytes))

    def _gone(self) -> RunError:
        if self._process is None:
            return RunError("the summing process is not running", where="server", fix="start it first")
        # A dying child's socket closes a moment before its last words are written; one that hangs has none.
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_LAST_WORDS_TIMEOUT_S)
        self._messages.seek(0)
        lines = self._messages.read().decode(errors="replace").strip().splitlines()
        return RunError(
            "the summing process ended or does not answer",
            where=f"server ({lines[-1] if lines else 'it left no message'})",
            fix="see whether memory and disk are left on the server; the round must be repeated",
        )


def main() -> None:
    """Body of the child: answer requests on standard input's socket until told to stop or left alone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then stops this process
    with socket.socket(fileno=0) as connection, connection.makefile("rb") as reader:
        service: Service | None = None
        while head := reader.read(_FRAME.size):
            operation, size = _unpacked_head(head)
            if operation == _STOP:
                break
            content = b"" if operation == _OFFER else _read_exactly(reader, size, _MAX_CONTROL_BYTES)
            try:
                if service is None:
                    service, reply = _started(content), b""
                elif operation == _OFFER:
                    reply = _offered(service, size, reader)
                else:
                    reply = _answer(service, operation, content)
                status = _OK
            except SecureTriplayError as error:
                status, reply = _FAILED, _error_bytes(error)
            connection.sendall(_FRAME.pack(status, len(reply)))
            connection.sendall(reply)
        if service is not None:
            service.stop()


def _started(content: bytes) -> Service:
    settings = json.loads(content)
    folder = settings["log_folder"]
    events = Events(None if folder is None else Path(folder), keep_received=settings["keep_received"])
    plan = SessionPlan.from_bytes(bytes.fromhex(settings["plan"]))
    return Service(plan, settings["quorum"], events, last_closed=settings["last_closed"])


def _offered(service: Service, size: int, reader: IO[bytes]) -> bytes:
    refusal = service.offer(_pieces(reader, size, service.plan.max_upload_bytes), size)
    return b"" if refusal is None else json.dumps([refusal.reason.value, refusal.claimed_site]).encode()


def _answer(service: Service, operation: int, content: bytes) -> bytes:
    if operation == _OPEN:
        number, members = json.loads(content)
        service.open(
            number, None if members is None else Admitted(frozenset(members[0]), bytes.fromhex(members[1]))
        )
        return b""
    if operation == _CLOSE:
        last, ready = content
        return service.close(last=last == 1, ready=ready == 1)
    if operation == _NOTE:
        event, fields = json.loads(content)
        service.note(event, **fields)
        return b""
    if operation == _STATS:
        return json.dumps(asdict(service.stats())).encode()
    raise ProtocolError("an operation that is not known", where="summing process", fix="restart the server")


def _pieces(reader: IO[bytes], size: int, max_whole_bytes: int) -> Iterator[bytes]:
    """`size` bytes: in one piece when they may be an upload, otherwise in small ones, to be thrown away."""
    step = max(1, size) if size <= max_whole_bytes else _PIECE_BYTES
    for start in range(0, size, step):
        yield _read_exactly(reader, min(step, size - start), step)


def _unpacked_head(head: bytes) -> tuple[int, int]:
    if len(head) != _FRAME.size:
        raise ProtocolError("a frame is cut short", where="summing process", fix="restart the server")
    kind, size = _FRAME.unpack(head)
    return kind, size


def _read_exactly(reader: IO[bytes], size: int, most: int) -> bytes:
    if size > most:
        raise ProtocolError(
            f"a frame claims {size:,} bytes of at most {most:,}",
            where="summing process",
            fix="restart the server",
        )
    content = reader.read(size)
    if len(content) != size:
        raise ProtocolError("a frame is cut short", where="summing process", fix="restart the server")
    return content


def _clean_environment() -> dict[str, str]:
    """Nothing of the parent's environment; the sums are memory-bound, so threads would only cost memory."""
    return {"LANG": "C.UTF-8", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def _error_bytes(error: SecureTriplayError) -> bytes:
    return json.dumps([type(error).__name__, error.what, error.where, error.fix]).encode()


def _error_from(content: bytes) -> SecureTriplayError:
    """The child's error with its own type, so that a caller sees no difference between near and far."""
    name, what, where, fix = json.loads(content)
    kind = getattr(errors, name, RunError)
    made = kind(what, where=where, fix=fix)
    return made if isinstance(made, SecureTriplayError) else RunError(what, where=where, fix=fix)
