"""Flower's stock SuperLink, with two rules before it: who may ask what from afar, and how much a request may bring.

A SuperLink of Flower 1.41 serves SuperNodes, administrators and its own app processes on one port, and asks
administrators for no account: without the first rule whoever reaches the port could start code on the server. It
holds a request of up to 2 GiB in memory before it looks at it: by the second rule a SuperNode's request is no larger
than a piece of a message. What is refused is counted and logged. The rules hang on Flower's own hook for middleware;
nothing of its transport is changed.
"""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from typing import Any

from secure_triplay.deploy.server.app import FOLDER_VARIABLE
from secure_triplay.eventlog import EventLog
from secure_triplay.federation.serverfolder import ROUNDS
from secure_triplay.parcel import MOST_PIECES
from secure_triplay.wireformat import MAX_MESSAGE_BYTES

_FLEET = "/v1/fleet/"
MOST_REQUEST_BYTES = MAX_MESSAGE_BYTES // MOST_PIECES + (1 << 16)
"""A piece of the largest message, and what Flower puts around it."""
REFUSED = "refused.jsonl"


class Entrance:
    """ASGI middleware: from another machine only /v1/fleet/ is answered, and only up to the size of a piece."""

    def __init__(self, app: Any, log: Path | None = None) -> None:
        self._app, self._log = app, None if log is None else EventLog(log)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        kind, path = scope["type"], scope.get("path", "")
        if kind == "lifespan":
            await self._app(scope, receive, send)
        elif not may_pass(kind, path, scope.get("client")):
            await self._refuse(scope, send, 403, "not-from-afar", 0)
        elif kind == "http" and path.startswith(_FLEET):
            await self._measured(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _measured(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass on a request whose whole body is small; of another one no more than that is read."""
        said = int(dict(scope["headers"]).get(b"content-length", b"0") or 0)
        body, more = bytearray(), said <= MOST_REQUEST_BYTES
        if not more:
            await self._refuse(scope, send, 413, "oversized-request", said)
            return
        while more:
            event = await receive()
            if event["type"] != "http.request":
                return  # whoever asked has gone
            body += event.get("body", b"")
            more = event.get("more_body", False)
            if len(body) > MOST_REQUEST_BYTES:
                await self._refuse(scope, send, 413, "oversized-request", len(body))
                return
        whole = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def again() -> Any:
            return whole.pop() if whole else await receive()

        await self._app(scope, again, send)

    async def _refuse(self, scope: Any, send: Any, status: int, reason: str, size: int) -> None:
        if self._log is not None:
            client = scope.get("client") or ("unknown", 0)
            path = scope.get("path", "")[:80]
            self._log.write("refused", reason=reason, bytes=size, client=str(client[0]), path=path)
        if scope["type"] == "http":
            await send(
                {"type": "http.response.start", "status": status, "headers": [(b"connection", b"close")]}
            )
            await send({"type": "http.response.body", "body": b""})
        else:
            await send({"type": "websocket.close", "code": 1008})


def may_pass(kind: str, path: str, client: tuple[str, int] | None) -> bool:
    """Whether a request passes: SuperNodes' own from everywhere, all others from this machine."""
    if kind == "http" and path.startswith(_FLEET) and ".." not in path:
        return True
    try:
        return client is not None and ipaddress.ip_address(client[0]).is_loopback
    except ValueError:
        return False


def main() -> None:
    """`flower-superlink` with the rules."""
    from flwr.superlink import extensions
    from flwr.superlink.cli.flower_superlink import flower_superlink
    from starlette.middleware import Middleware

    stock = extensions.get_middleware
    folder = os.environ.get(FOLDER_VARIABLE)
    log = None if folder is None else Path(folder) / ROUNDS / REFUSED
    extensions.get_middleware = lambda: (Middleware(Entrance, log=log), *stock())
    flower_superlink()


if __name__ == "__main__":
    main()
