"""Flower's stock SuperLink, with one rule before it: from other machines only SuperNodes' requests pass.

A SuperLink of Flower 1.41 serves SuperNodes, administrators and its own app processes on one port, and asks
administrators for no account. Without this rule whoever reaches the port could start code on the server. The rule
hangs on Flower's own hook for middleware; nothing of its transport is changed.
"""

from __future__ import annotations

import ipaddress
from typing import Any

_FLEET = "/v1/fleet/"


class FleetOnlyFromAfar:
    """ASGI middleware: a request from another machine is answered only under /v1/fleet/."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan" or may_pass(scope["type"], scope.get("path", ""), scope.get("client")):
            await self._app(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": 403, "headers": []})
        await send({"type": "http.response.body", "body": b""})


def may_pass(kind: str, path: str, client: tuple[str, int] | None) -> bool:
    """Whether a request passes: SuperNodes' own from everywhere, all others from this machine."""
    if kind == "http" and path.startswith(_FLEET) and ".." not in path:
        return True
    try:
        return client is not None and ipaddress.ip_address(client[0]).is_loopback
    except ValueError:
        return False


def main() -> None:
    """`flower-superlink` with the rule."""
    from flwr.superlink import extensions
    from flwr.superlink.cli.flower_superlink import flower_superlink
    from starlette.middleware import Middleware

    stock = extensions.get_middleware
    extensions.get_middleware = lambda: (Middleware(FleetOnlyFromAfar), *stock())
    flower_superlink()


if __name__ == "__main__":
    main()
