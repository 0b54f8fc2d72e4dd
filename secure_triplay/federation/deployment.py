"""Flower's own SuperLink and SuperNode as a real federation runs them: the commands, and nothing around them.

The SuperLink serves all its APIs on one port, over TLS by the study's authority, and lets in only SuperNodes whose
keys were registered. Its control interface has no accounts in this version of Flower: whoever reaches the port can
start a run or register a node. That disturbs; it opens nothing, since sites run approved bundles only and the
inbox takes signed uploads only.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from secure_triplay.errors import RunError
from secure_triplay.federation.bundle import APP_SPEC
from secure_triplay.federation.files import write_public
from secure_triplay.federation.processes import tool

_COMMAND_TIMEOUT_S = 120.0
_CONNECTION = "study"


def superlink_command(
    *, host: str, port: int, database: Path, ca: Path, certificate: Path, key: Path
) -> list[str]:
    """`flower-superlink` with TLS, node authentication and a database that survives it."""
    return [
        tool("flower-superlink"),
        "--ssl-ca-certfile",
        str(ca),
        "--ssl-certfile",
        str(certificate),
        "--ssl-keyfile",
        str(key),
        "--enable-supernode-auth",
        "--disable-runtime-dependency-installation",
        "--database",
        str(database),
        "--host",
        host,
        "--port",
        str(port),
    ]


def supernode_command(
    *,
    server: str,
    server_ca: Path,
    auth_key: Path,
    trusted: Path,
    local_tls: tuple[Path, Path, Path],
    local_port: int,
    worker_socket: Path,
) -> list[str]:
    """`flower-supernode` that proves itself by its key and runs only what its site approved.

    `local_tls` are the CA, certificate and key of its local interface, which only this machine reaches.
    """
    ca, certificate, key = local_tls
    return [
        tool("flower-supernode"),
        "--superlink",
        server,
        "--root-certificates",
        str(server_ca),
        "--auth-supernode-private-key",
        str(auth_key),
        "--trusted-entities",
        str(trusted),
        "--host",
        "127.0.0.1",
        "--port",
        str(local_port),
        "--ssl-ca-certfile",
        str(ca),
        "--ssl-certfile",
        str(certificate),
        "--ssl-keyfile",
        str(key),
        "--node-config",
        f"worker-socket={json.dumps(str(worker_socket))}",
    ]


def write_connection(home: Path, address: str, ca: Path) -> None:
    """Tell `flwr` commands with this FLWR_HOME where the SuperLink is."""
    home.mkdir(parents=True, exist_ok=True)
    lines = [
        "[superlink]",
        f'default = "{_CONNECTION}"',
        "",
        f"[superlink.{_CONNECTION}]",
        f"address = {json.dumps(address)}",
        f"root-certificates = {json.dumps(str(ca))}",
    ]
    write_public(home / "config.toml", ("\n".join(lines) + "\n").encode())


def register_node(public_line: str, name: str, scratch: Path, env: dict[str, str]) -> None:
    """Let the SuperNode with this key in; one that is registered already is fine. Raises RunError."""
    file = scratch / f"{name}.pub"
    write_public(file, public_line.encode() + b"\n")
    done = _flwr(["supernode", "register", str(file), _CONNECTION, "--name", name], scratch, env)
    if done.returncode != 0 and "already" not in done.stdout.lower():
        raise _refused(f"{name} could not be registered with the SuperLink", done)


def unregister_node(node_id: str, scratch: Path, env: dict[str, str]) -> None:
    """Shut a SuperNode out; it is told so at its next message. Raises RunError."""
    done = _flwr(["supernode", "unregister", node_id, _CONNECTION], scratch, env)
    if done.returncode != 0:
        raise _refused("a SuperNode could not be removed from the SuperLink", done)


def start_run(scratch: Path, env: dict[str, str]) -> str:
    """Start the study's app by its address in the hub, and return the run's id. Raises RunError."""
    done = _flwr(["run", APP_SPEC, _CONNECTION, "--format", "json"], scratch, env)
    try:
        return str(json.loads(done.stdout)["run-id"])
    except (ValueError, KeyError, TypeError) as error:
        raise _refused("the run could not be started", done) from error


def stop_run(run_id: str, scratch: Path, env: dict[str, str]) -> None:
    """Stop a run; one that has ended is fine."""
    _flwr(["stop", run_id, _CONNECTION], scratch, env)


def _flwr(arguments: list[str], scratch: Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            [tool("flwr"), *arguments],
            cwd=scratch / "empty",
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_COMMAND_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired as error:
        raise RunError(
            "the SuperLink does not answer", where=" ".join(arguments[:2]), fix="see whether it is running"
        ) from error


def _refused(what: str, done: subprocess.CompletedProcess[str]) -> RunError:
    lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    return RunError(
        what,
        where=" | ".join(lines[-3:]),
        fix="see whether `secure-triplay server start` is running; its log is flower/superlink.log",
    )
