"""The socket on which a site's resident worker answers its shim, in a simulation as in a real federation."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from secure_triplay.client.frames import receive_frame, send_frame
from secure_triplay.errors import ProtocolError
from secure_triplay.wire import Witness
from secure_triplay.wireformat import MAGIC, VERSION

_WITNESS = MAGIC + bytes((VERSION, Witness.kind))


def serve_one(listener: socket.socket, answer: Callable[[bytes], bytes], reply_after_s: float) -> None:
    """Answer the next question; the reply to a `Witness` leaves `reply_after_s` seconds after it came.

    A shim that hangs up is passed over: the server asks again, and gets the same. Raises what `answer` raises.
    """
    with listener.accept()[0] as connection:
        connection.settimeout(None)
        try:
            request = receive_frame(connection)
        except (OSError, ProtocolError):
            return
        arrived = time.monotonic()
        reply = answer(request)
        if request[: len(_WITNESS)] == _WITNESS:
            time.sleep(max(0.0, arrived + reply_after_s - time.monotonic()))
        with suppress(OSError):
            send_frame(connection, reply)


def listening(path: Path) -> socket.socket:
    """A listening socket that only this user reaches, in a folder with a path of any length; a dead one is replaced."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    path.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:  # a socket's own path may have 107 bytes only
        listener.bind(f"/proc/self/fd/{folder}/{path.name}")
    finally:
        os.close(folder)
    path.chmod(0o600)
    listener.listen(16)
    return listener
