"""Hands the app bundle with the sites' approvals to our own SuperLink, on loopback.

Flower attaches signatures only to bundles that it fetches from its hub. This stands in the hub's place: it answers
two requests, both from this machine, and what it says needs no trust, since every SuperNode verifies it.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from secure_triplay.federation.approval import AppApproval

Offered = Callable[[], tuple[bytes, list[AppApproval]]]
"""The bundle and its approvals as they stand now."""

_FETCH, _BUNDLE = "/v1/hub/fetch-fab", "/v1/triplay.fab"


@contextmanager
def hub(offered: Offered) -> Iterator[str]:
    """A running responder; yields the address for `FLWR_SUPERGRID_API_URL`."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(min(int(self.headers.get("Content-Length") or 0), 65_536))
            if self.path != _FETCH:
                self.send_error(404)
                return
            _, approvals = offered()
            content = {
                "fab_url": f"http://127.0.0.1:{server.server_port}{_BUNDLE}",
                "verifications": [approval.as_flower() for approval in approvals],
            }
            self._reply(json.dumps(content).encode(), "application/json")

        def do_GET(self) -> None:
            if self.path != _BUNDLE:
                self.send_error(404)
                return
            self._reply(offered()[0], "application/octet-stream")

        def _reply(self, content: bytes, kind: str) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing: the SuperLink's log says what was started."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, name="hub", daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
