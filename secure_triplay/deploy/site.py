"""`secure-triplay site start`: the worker and a stock SuperNode, kept alive until the study ends."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from secure_triplay.client.journal import JournalReader
from secure_triplay.deploy.processes import Kept
from secure_triplay.deploy.worker import SOCKET
from secure_triplay.federation.approval import require_trust_file
from secure_triplay.federation.bundle import require_own_app
from secure_triplay.federation.deployment import supernode_command
from secure_triplay.federation.join import (
    LOCAL_CA,
    LOCAL_CERTIFICATE,
    LOCAL_KEY,
    SERVER_CA,
    TRUST,
    JoinedStudy,
)
from secure_triplay.federation.processes import environment, free_port
from secure_triplay.federation.sitefolder import SUPERNODE_KEY, SiteFolder

Event = dict[str, Any]
_LINGER_S = 3.0


def start_site(
    site: SiteFolder,
    joined: JoinedStudy,
    notify: Callable[[Event], None],
    *,
    worker_command: list[str] | None = None,
    superlink: str | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Take part until the study ends; what dies is started again. Raises a SecureTriplayError.

    `superlink` is another way to the same server (a tunnel), host:port; its certificate has to name that host.
    """
    require_trust_file(joined.folder / TRUST, site.enrolment.approval_key)
    require_own_app(joined.bundle.app_bytes, "study bundle")
    flower = joined.folder / "flower"
    flower.mkdir(mode=0o700, exist_ok=True)
    env = environment(flower)
    reader = JournalReader(joined.folder)
    for _ in reader.new():
        pass  # what earlier starts wrote
    worker = Kept(
        "worker",
        worker_command or [sys.executable, "-m", "secure_triplay.deploy.worker", *_arguments(site, joined)],
        flower,
        env,
    )
    # A SuperNode ends by itself, and says that all is well, where a line breaks in the middle of a handshake.
    node_command = _node_command(site, joined, superlink or joined.bundle.server)
    node = Kept("supernode", node_command, flower, env, lasting=True)

    def tell(text: str) -> None:
        notify({"event": "operator", "text": text})

    try:
        worker.start()
        _until_listening(joined.folder / SOCKET, worker, tell)
        while not worker.ended and not stop():
            worker.look(tell)
            node.look(tell)
            for event in reader.new():
                notify(event)
            time.sleep(0.2)
        for event in reader.new():
            notify(event)
        ends = time.monotonic() + _LINGER_S  # so that the last answer still reaches the server
        while time.monotonic() < ends and not stop():
            node.look(tell)
            time.sleep(0.5)
    finally:
        node.stop()
        worker.stop()


def _arguments(site: SiteFolder, joined: JoinedStudy) -> list[str]:
    return [str(site.path.absolute()), joined.study.study]


def _node_command(site: SiteFolder, joined: JoinedStudy, server: str) -> list[str]:
    own = joined.folder.absolute()
    return supernode_command(
        server=server,
        server_ca=own / SERVER_CA,
        auth_key=site.path.absolute() / SUPERNODE_KEY,
        trusted=own / TRUST,
        local_tls=(own / LOCAL_CA, own / LOCAL_CERTIFICATE, own / LOCAL_KEY),
        local_port=free_port(),
        worker_socket=own / SOCKET,
    )


def _until_listening(socket_path: Path, worker: Kept, tell: Callable[[str], None]) -> None:
    """The worker listens before it loads; until then a question would be declined."""
    before = time.time()
    while not (socket_path.exists() and os.stat(socket_path).st_ctime >= before - 1):
        worker.look(tell)
        if worker.ended:
            return
        time.sleep(0.1)
