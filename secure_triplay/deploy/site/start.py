"""`secure-triplay site start`: the worker and a stock SuperNode, kept alive until the study ends."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from secure_triplay.client.journal import JournalReader
from secure_triplay.deploy.processes import Kept, only_one
from secure_triplay.deploy.site.worker import SOCKET
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
_WATCH_S, _STUCK_S, _TAIL_BYTES = 2.0, 20.0, 65_536


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

    The SuperNode starts when the worker is ready. So nobody who sees the site connect learns how long it took to encode
    its images, and with that about how many there are.

    `superlink` is another way to the same server (a tunnel), host:port; its certificate has to name that host.
    """
    require_trust_file(joined.folder / TRUST, site.enrolment.approval_key)
    require_own_app(joined.bundle.app_bytes)
    flower = joined.folder / "flower"
    flower.mkdir(mode=0o700, exist_ok=True)
    env = environment(flower)
    reader = JournalReader(joined.folder)
    for _ in reader.new():
        pass  # what earlier starts wrote
    worker = Kept(
        "worker",
        worker_command
        or [sys.executable, "-m", "secure_triplay.deploy.site.worker", *_arguments(site, joined)],
        flower,
        env,
    )
    # A SuperNode ends by itself, and says that all is well, where a line breaks in the middle of a handshake.
    node_command = _node_command(site, joined, superlink or joined.bundle.server)
    node = Kept("supernode", node_command, flower, env, lasting=True)

    def tell(text: str) -> None:
        notify({"event": "operator", "text": text})

    watch, ready = Watch(node), False
    with only_one(flower, "this site takes part in the study already"):
        try:
            node.end_leftover()
            worker.start()
            while not worker.ended and not stop():
                worker.look(tell)
                if ready:
                    node.look(tell)
                if watch.stuck():
                    tell(
                        "the SuperNode waits for an app process that has died, or lost its line; it is started again"
                    )
                    node.stop()
                for event in reader.new():
                    ready = ready or event["event"] == "ready"
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


class Watch:
    """Notices a SuperNode that waits for ever.

    It does so where the app process of a message died without a reply; and where a line broke in the middle of a
    handshake, its connection may end while the process stays.
    """

    def __init__(self, node: Kept) -> None:
        self._node = node
        self._since: float | None = None
        self._due = 0.0

    def stuck(self) -> bool:
        """Whether for a while an answer was due without an app process, or the connection had ended."""
        now = time.monotonic()
        if now < self._due:
            return False
        self._due = now + _WATCH_S
        pid = self._node.pid
        tail = _tail(self._node.log)
        waits = pid is not None and (
            _has_lost_its_line(tail) or (_answer_is_due(tail) and not _has_app_process(pid))
        )
        if not waits:
            self._since = None
            return False
        self._since = self._since or now
        if now - self._since < _STUCK_S:
            return False
        self._since = None
        return True


def _tail(log: Path) -> str:
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def _answer_is_due(tail: str) -> bool:
    """Whether the last thing that a SuperNode's log says of messages is that one was received whole."""
    return _is_last(tail, "Received successfully", ("Sending:", "SuperNode ID", "Starting Flower"))


def _has_lost_its_line(tail: str) -> bool:
    """Whether a handshake failed, and nothing was done since then."""
    return _is_last(
        tail, "handshake error detected", ("Receiv", "Sending:", "SuperNode ID", "Starting Flower SuperNode")
    )


def _is_last(tail: str, words: str, later: tuple[str, ...]) -> bool:
    begun = tail.rfind(words)
    return begun >= 0 and not any(word in tail[begun:] for word in later)


def _has_app_process(pid: int) -> bool:
    try:
        below = psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return False
    for process in below:
        with suppress(psutil.NoSuchProcess):
            if any("flwr-clientapp" in word for word in process.cmdline()):
                return True
    return False


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
