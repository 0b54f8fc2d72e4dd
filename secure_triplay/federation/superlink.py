"""A headless Flower simulation: our own SuperLink on free loopback ports, stopped whatever happens.

`flwr run` would otherwise start a SuperLink of its own that outlives the run, listens on a fixed port and
serves later runs with its old settings. Every process here has its own FLWR_HOME and an empty working
directory (Ray's actors would load a project found there instead of the bundle), and neither telemetry nor
the installation of dependencies at run time is on.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from secure_triplay.errors import RunError

_START_TIMEOUT_S = 60.0
_STOP_TIMEOUT_S = 10.0


def run_simulation_app(
    app: Path, folder: Path, *, n_sites: int, cores: int, poll: Callable[[], None]
) -> None:
    """Run the bundle in `app` over `n_sites` simulated SuperNodes until it ends.

    `folder` receives Flower's logs. `poll` is called several times a second; what it raises stops the run.
    Raises RunError when Flower could not start or reported a failure.
    """
    env = _environment(folder)
    with _superlink(folder, env) as address:
        (folder / "home" / "config.toml").write_text(
            f'[superlink]\ndefault = "own"\n\n[superlink.own]\naddress = "{address}"\ninsecure = true\n'
        )
        resources = f"num-supernodes={n_sites} client-resources-num-cpus=1 init-args-num-cpus={cores}"
        command = [_tool("flwr"), "run", str(app), "own", "--stream", "--federation-config", resources]
        with _running(command, folder, env, "flwr-run.log") as run:
            while run.poll() is None:
                poll()
                _raise_if_failed(folder / "flwr-run.log")
                time.sleep(0.1)
        poll()
        _raise_if_failed(folder / "flwr-run.log")
        if run.returncode != 0:
            raise _failed(folder / "flwr-run.log")


@contextmanager
def _superlink(folder: Path, env: dict[str, str]) -> Iterator[str]:
    """A SuperLink for one simulation; yields its address (one port serves all its APIs)."""
    port = free_port()
    command = [
        _tool("flower-superlink"),
        "--insecure",
        "--simulation",
        "--disable-runtime-dependency-installation",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    with _running(command, folder, env, "superlink.log") as process:
        _wait_until_listening(process, port, folder / "superlink.log")
        yield f"127.0.0.1:{port}"


@contextmanager
def _running(
    command: list[str], folder: Path, env: dict[str, str], log_name: str
) -> Iterator[subprocess.Popen[bytes]]:
    """A command in a session of its own and an empty working directory; it and its children end with the block."""
    with (folder / log_name).open("wb") as log:
        process = subprocess.Popen(
            command,
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


def _environment(folder: Path) -> dict[str, str]:
    (folder / "home").mkdir(parents=True)
    (folder / "empty").mkdir()
    return os.environ | {
        "FLWR_HOME": str(folder / "home"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DEDUP_LOGS": "0",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
    }


def _wait_until_listening(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise RunError(
        "Flower's SuperLink did not start",
        where=f"{log}: {_last_lines(log)}",
        fix="see whether loopback ports are allowed here, and whether memory is left",
    )


def _tool(name: str) -> str:
    """Path of a command that was installed with this package's environment."""
    path = Path(sys.executable).parent / name
    if not path.exists():
        raise RunError(
            f"the command {name} is not installed", where=str(path.parent), fix="run `make env` again"
        )
    return str(path)


def _raise_if_failed(log: Path) -> None:
    """`flwr run` goes on streaming for minutes after a simulation has died; its log says so at once."""
    if b"Exit Code:" in log.read_bytes():
        raise _failed(log)


def _failed(log: Path) -> RunError:
    text = log.read_text(errors="replace")
    reason = re.findall(r"^secure_triplay\.errors\.\w+: (.+)$", text, re.MULTILINE)
    return RunError(
        "Flower's run failed",
        where=reason[-1] if reason else _last_lines(log),
        fix="mend what is named; report it if it is not about this machine or study",
    )


def _last_lines(path: Path, count: int = 5) -> str:
    lines = path.read_text(errors="replace").strip().splitlines()
    return " | ".join(lines[-count:])
