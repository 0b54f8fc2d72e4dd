"""The Flower ClientApp: a torch-free shim before the site's resident worker.

It hands the message's bytes to the worker over a Unix socket that only this user can open, and the
worker's bytes back. Whatever goes wrong, the answer is the one constant `Declined`: Flower sends the text
of an uncaught exception to the server, and such a text can hold a path, a shape or a value.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from secure_triplay import parcel
from secure_triplay.client.frames import receive_frame, send_frame
from secure_triplay.wire import Declined


def make_app(socket_path: Callable[[Context], Path]) -> ClientApp:
    """The ClientApp whose worker listens at `socket_path(context)`."""
    app = ClientApp()

    @app.train()  # type: ignore[untyped-decorator]
    def train(message: Message, context: Context) -> Message:
        reply = Declined().to_bytes()
        with suppress(BaseException):  # nothing of an error may reach the server, not even its kind
            reply = ask_worker(socket_path(context), parcel.unpack(message.content))
        return Message(content=parcel.pack(reply), reply_to=message)

    return app


def ask_worker(path: Path, request: bytes) -> bytes:
    """The worker's answer to one request; OSError or ProtocolError when there is none."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
        try:  # a socket's own path may have 107 bytes only
            connection.connect(f"/proc/self/fd/{folder}/{path.name}")
        finally:
            os.close(folder)
        send_frame(connection, request)
        return receive_frame(connection)
