"""Processes of Flower: each in a session of its own, an empty folder and an environment without telemetry."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from secure_triplay.errors import RunError
from secure_triplay.lifetime import ending_with_this_process

_START_TIMEOUT_S = 60.0
_STOP_TIMEOUT_S = 10.0


@contextmanager
def running(
    command: list[str], folder: Path, env: dict[str, str], log_name: str
) -> Iterator[subprocess.Popen[bytes]]:
    """A command in a session of its own and an empty working directory; it and its children end with the block.

    Where this process is killed, the command ends as well.
    """
    with (folder / log_name).open("wb") as log:
        process = subprocess.Popen(
            ending_with_this_process(command),
            cwd=folder / "empty",
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            stop_group(process)


def free_port() -> int:
    """A TCP port that was free on loopback a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def stop_group(process: subprocess.Popen[bytes]) -> None:
    """End a process started in its own session, and everything that it started."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sign)
        except ProcessLookupError:
            break
        try:
            process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def environment(folder: Path) -> dict[str, str]:
    """The environment of Flower's processes that work in `folder`, which is made: home/ and empty/."""
    (folder / "home").mkdir(parents=True, exist_ok=True)
    (folder / "empty").mkdir(exist_ok=True)
    return os.environ | {
        "FLWR_HOME": str(folder / "home"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DEDUP_LOGS": "0",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
    }


def wait_until_listening(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Return once a loopback port accepts connections. Raises RunError when the process ends first, or never does."""
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise RunError(
        "Flower's SuperLink did not start",
        where=f"{log}: {last_lines(log)}",
        fix="see whether loopback ports are allowed here, and whether memory is left",
    )


def tool(name: str) -> str:
    """Path of a command that was installed with this package's environment."""
    path = Path(sys.executable).parent / name
    if not path.exists():
        raise RunError(
            f"the command {name} is not installed", where=str(path.parent), fix="run `make env` again"
        )
    return str(path)


def last_lines(path: Path, count: int = 5) -> str:
    """The end of a log, on one line."""
    lines = path.read_text(errors="replace").strip().splitlines()
    return " | ".join(lines[-count:])
