"""A headless Flower simulation: our own SuperLink on free loopback ports, stopped whatever happens.

`flwr run` would otherwise start a SuperLink of its own that outlives the run, listens on a fixed port and
serves later runs with its old settings. Every process here has its own FLWR_HOME and an empty working
directory (Ray's actors would load a project found there instead of the bundle), and neither telemetry nor
the installation of dependencies at run time is on.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from secure_triplay.errors import RunError
from secure_triplay.federation.processes import (
    environment,
    free_port,
    last_lines,
    running,
    tool,
    wait_until_listening,
)


def run_simulation_app(
    app: Path, folder: Path, *, n_sites: int, cores: int, poll: Callable[[], None]
) -> None:
    """Run the bundle in `app` over `n_sites` simulated SuperNodes until it ends.

    `folder` receives Flower's logs. `poll` is called several times a second; what it raises stops the run.
    Raises RunError when Flower could not start or reported a failure.
    """
    env = environment(folder)
    with _superlink(folder, env) as address:
        (folder / "home" / "config.toml").write_text(
            f'[superlink]\ndefault = "own"\n\n[superlink.own]\naddress = "{address}"\ninsecure = true\n'
        )
        resources = f"num-supernodes={n_sites} client-resources-num-cpus=1 init-args-num-cpus={cores}"
        command = [tool("flwr"), "run", str(app), "own", "--stream", "--federation-config", resources]
        with running(command, folder, env, "flwr-run.log") as run:
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
        tool("flower-superlink"),
        "--insecure",
        "--simulation",
        "--disable-runtime-dependency-installation",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    with running(command, folder, env, "superlink.log") as process:
        wait_until_listening(process, port, folder / "superlink.log")
        yield f"127.0.0.1:{port}"


def _raise_if_failed(log: Path) -> None:
    """`flwr run` goes on streaming for minutes after a simulation has died; its log says so at once."""
    if b"Exit Code:" in log.read_bytes():
        raise _failed(log)


def _failed(log: Path) -> RunError:
    text = log.read_text(errors="replace")
    reason = re.findall(r"^secure_triplay\.errors\.\w+: (.+)$", text, re.MULTILINE)
    return RunError(
        "Flower's run failed",
        where=reason[-1] if reason else last_lines(log),
        fix="mend what is named; report it if it is not about this machine or study",
    )
