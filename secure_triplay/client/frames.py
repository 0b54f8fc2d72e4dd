"""Length-prefixed byte frames over a local socket between the shim and the worker."""

from __future__ import annotations

import socket
import struct

from secure_triplay.errors import ProtocolError

MAX_FRAME_BYTES = 1 << 30
_LENGTH = struct.Struct(">Q")


def send_frame(connection: socket.socket, content: bytes) -> None:
    """Send one frame. Raises OSError when the other side is gone."""
    connection.sendall(_LENGTH.pack(len(content)) + content)


def receive_frame(connection: socket.socket) -> bytes:
    """Receive one whole frame. Raises ProtocolError when it is cut short or larger than 1 GiB."""
    (size,) = _LENGTH.unpack(_receive_exactly(connection, _LENGTH.size))
    if size > MAX_FRAME_BYTES:
        raise ProtocolError(f"a local frame claims {size:,} bytes", fix="restart the worker")
    return _receive_exactly(connection, size)


def _receive_exactly(connection: socket.socket, size: int) -> bytes:
    buffer = bytearray(size)
    view, filled = memoryview(buffer), 0
    while filled < size:
        got = connection.recv_into(view[filled:])
        if got == 0:
            raise ProtocolError(
                "the connection closed in the middle of a frame", fix="look at the worker's log"
            )
        filled += got
    return bytes(buffer)
