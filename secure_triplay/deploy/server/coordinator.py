"""`secure-triplay server start` and `study run`: the SuperLink kept alive, and the study's runs on it."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from secure_triplay.deploy.processes import Kept, only_one
from secure_triplay.deploy.server.app import (
    FINISHED,
    FOLDER_VARIABLE,
    PAUSE,
    PAUSED,
    RUNNING,
    epoch_folder,
)
from secure_triplay.deploy.server.epochstart import EVENTS, NODES
from secure_triplay.deploy.server.superlinkmain import REFUSED
from secure_triplay.errors import ConfigError, RunError
from secure_triplay.eventlog import events_after
from secure_triplay.federation import deployment
from secure_triplay.federation.files import write_public
from secure_triplay.federation.hub import hub
from secure_triplay.federation.processes import environment, wait_until_listening
from secure_triplay.federation.serverfolder import FLOWER, ROUNDS, ServerFolder
from secure_triplay.federation.studybundle import StudyBundle
from secure_triplay.server.service import EVENT_LOG

Event = dict[str, Any]
Notify = Callable[[Event], None]
_REGISTERED, _RUN = "registered.json", "run.json"
_MOST_RUNS = 30
_START_S = 90.0
_STARTS_IN_S, _STOPS_IN_S = 60.0, 600.0
"""How long is waited for a run to start, and for a round to end after which a run stops."""
_END_S = 8.0
_FREE_S = 5.0
_HOSTS = ("127.0.0.1", "localhost", "0.0.0.0")  # noqa: S104  (what a person may ask for)


def start_server(
    folder: ServerFolder, notify: Notify, *, host: str, stop: Callable[[], bool] = lambda: False
) -> None:
    """Keep hub and SuperLink running, with the roster's SuperNodes let in. Raises ConfigError, RunError."""
    if host not in _HOSTS:
        raise ConfigError(
            f"the server cannot listen on {host} alone: this machine's own commands reach it on loopback",
            where="--host",
            fix="give 0.0.0.0, and let a firewall say which addresses are open; or 127.0.0.1",
        )
    bundle = folder.bundle
    missing = [name for name in bundle.members if name not in folder.approvals()]
    if missing:
        raise RunError(
            f"{', '.join(missing)} did not confirm the study yet",
            where=str(folder.path),
            fix="secure-triplay study confirm *.joined --dir DIR, with what the sites sent back",
        )
    flower = folder.path / FLOWER
    flower.mkdir(mode=0o700, exist_ok=True)
    env = environment(flower) | {FOLDER_VARIABLE: str(folder.path.absolute())}
    port = int(bundle.server.rpartition(":")[2])
    ca, certificate, key = (path.absolute() for path in folder.tls)

    def offered() -> tuple[bytes, list[Any]]:
        current = ServerFolder.open(folder.path)
        return current.bundle.app_bytes, [joined.approval for joined in current.approvals().values()]

    with only_one(flower, "this study's server is running already"), hub(offered) as address:
        deployment.write_connection(flower / "home", f"127.0.0.1:{port}", ca)
        stock = deployment.superlink_command(
            host=host, port=port, database=flower / "state.db", ca=ca, certificate=certificate, key=key
        )
        command = [sys.executable, "-m", "secure_triplay.deploy.server.superlinkmain", *stock[1:]]
        link = Kept("superlink", command, flower, env | {"FLWR_SUPERGRID_API_URL": address})

        def tell(text: str) -> None:
            notify({"event": "operator", "text": text})

        try:
            link.end_leftover()
            _require_free(host, port)
            wait_until_listening(link.start(), port, link.log)
            _until_registered(folder, flower, env, link, tell)
            tell(f"the SuperLink listens on {host}:{port}, and lets in {len(bundle.members)} sites")
            epochs = len(folder.epochs)
            while not stop():
                link.look(tell)
                if len(folder.epochs) != epochs:
                    epochs = len(folder.epochs)
                    _until_registered(folder, flower, env, link, tell)
                    _shut_out(folder, flower, env)
                    tell(f"key epoch {folder.bundle.epoch}: {', '.join(folder.bundle.members)}")
                time.sleep(0.3)
        finally:
            link.stop()
            _end_serverapp(folder)


def _require_free(host: str, port: int) -> None:
    """Return nothing once a server can listen there. Raises RunError: a SuperLink would end again and again.

    Threads of a SuperLink that was just ended may hold the port for a moment.
    """
    deadline = time.monotonic() + _FREE_S
    while (error := _why_taken(host, port)) is not None:
        if time.monotonic() > deadline:
            raise RunError(
                f"the server cannot listen on {host}:{port}: {error.strerror}",
                where="the port in the study's --server",
                fix=f"end what uses it (`ss -ltnp` names that), or make the study with another port than {port}",
            ) from error
        time.sleep(0.1)


def _why_taken(host: str, port: int) -> OSError | None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the SuperLink does
        try:
            probe.bind((host, port))
        except OSError as error:
            return error
    return None


def _until_registered(
    folder: ServerFolder, flower: Path, env: dict[str, str], link: Kept, tell: Callable[[str], None]
) -> None:
    """Register every SuperNode of the roster once the SuperLink answers."""
    file = flower / _REGISTERED
    known = set(json.loads(file.read_text())) if file.exists() and (flower / "state.db").exists() else set()
    deadline = time.monotonic() + _START_S
    for name, member in folder.bundle.members.items():
        while member.supernode_key not in known:
            link.look(tell)
            try:
                deployment.register_node(member.supernode_key, name, flower, env)
                known.add(member.supernode_key)
            except RunError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(1.0)
    write_public(file, json.dumps(sorted(known)).encode())


def _end_serverapp(folder: ServerFolder) -> None:
    """Flower starts the ServerApp in a session of its own, so it does not end with the SuperLink."""
    with suppress(OSError, ValueError, KeyError):
        pid = int(json.loads((folder.path / ROUNDS / RUNNING).read_bytes())["pid"])
        for sign in (signal.SIGTERM, signal.SIGKILL):
            if is_running(folder):
                os.kill(pid, sign)
            deadline = time.monotonic() + _END_S
            while is_running(folder) and time.monotonic() < deadline:
                time.sleep(0.1)


def _shut_out(folder: ServerFolder, flower: Path, env: dict[str, str]) -> None:
    """Take from the SuperLink the nodes of sites that are no longer on the roster."""
    for epoch in folder.epochs:
        file = epoch_folder(folder, epoch) / NODES
        nodes = json.loads(file.read_text()) if file.exists() else {}
        for site in sorted(set(nodes) - set(folder.bundle.members)):
            with suppress(RunError):  # it is gone already
                deployment.unregister_node(nodes[site], flower, env)


def run_study(folder: ServerFolder, notify: Notify) -> None:
    """Run the study to its end; a ServerApp that died is started again, and goes on where it was.

    Raises RunError where the SuperLink is not there, or after too many runs.
    """
    flower, rounds = folder.path / FLOWER, folder.path / ROUNDS
    env = environment(flower)
    follow = _Follow(folder)
    if not is_running(folder):
        (rounds / PAUSE).unlink(missing_ok=True)
        (rounds / PAUSED).unlink(missing_ok=True)
    for _ in range(_MOST_RUNS):
        if finished(folder):
            break
        if not is_running(folder):
            write_public(flower / _RUN, json.dumps({"run": _started(flower, env)}).encode())
            _until_running(folder)
        while is_running(folder):
            for event in follow.new():
                notify(event)
            time.sleep(0.3)
        for event in follow.new():
            notify(event)
        if (rounds / PAUSED).exists():
            notify({"event": "operator", "text": "stopped between two rounds; `study run` goes on"})
            return
        if not finished(folder):
            notify({"event": "operator", "text": "the ServerApp ended before the study; it is started again"})
            time.sleep(2.0)
    if not finished(folder):
        raise RunError(
            f"the study was started {_MOST_RUNS} times and did not end",
            where=str(flower / "superlink.log"),
            fix="look into that log; `secure-triplay study run` goes on from the last closed round",
        )


def finished(folder: ServerFolder) -> bool:
    """Whether the last round was closed and opened."""
    return (folder.path / ROUNDS / FINISHED).exists()


def is_running(folder: ServerFolder) -> bool:
    """Whether a ServerApp of this study is alive; the number that was noted may be another study's by now."""
    own = f"{FOLDER_VARIABLE}=".encode()
    try:
        pid = int(json.loads((folder.path / ROUNDS / RUNNING).read_bytes())["pid"])
        if b"flwr" not in Path(f"/proc/{pid}/cmdline").read_bytes():
            return False
        words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        served = [os.fsdecode(word.removeprefix(own)) for word in words if word.startswith(own)]
        return any(folder.path.samefile(path) for path in served)
    except (OSError, ValueError, KeyError):
        return False


def stop_study(folder: ServerFolder, *, now: bool = False) -> None:
    """Stop between two rounds, where nothing of a round is half done; `now`: at once, and the round is repeated.

    Raises RunError where nothing runs, or the round does not end in time.
    """
    flower, rounds = folder.path / FLOWER, folder.path / ROUNDS
    if not is_running(folder):
        raise RunError(
            "no run is going on", where=str(folder.path), fix="secure-triplay study status --dir DIR"
        )
    write_public(rounds / PAUSE, b"")
    if now:
        run = str(json.loads((flower / _RUN).read_bytes())["run"])
        deployment.stop_run(run, flower, environment(flower))
    deadline = time.monotonic() + _STOPS_IN_S
    while is_running(folder):
        if time.monotonic() > deadline:
            raise RunError(
                "the round has not ended yet; the study stops after it",
                where=str(folder.path),
                fix="wait, or `secure-triplay study stop --now`, after which the round is repeated",
            )
        time.sleep(0.2)


def change_roster(
    folder: ServerFolder, *, add: list[Path] | None = None, remove: list[str] | None = None
) -> StudyBundle:
    """Begin a new key epoch after the last round that a quorum signed; an open one is repeated under the new key.

    Raises RunError while a round may be going on, or after the last one.
    """
    if finished(folder):
        raise RunError(
            "the study has ended, and no round would come under a new key",
            where=str(folder.path),
            fix="secure-triplay study create makes a new study, under a name of its own",
        )
    if is_running(folder):
        raise RunError(
            "the study is running",
            where=str(folder.path),
            fix="secure-triplay study stop --dir DIR (`--now`, where a round does not end), and then again",
        )
    return folder.next_epoch(add=add, remove=remove)


def status(folder: ServerFolder) -> Event:
    """Where the study stands, from what the server wrote."""
    bundle = folder.bundle
    said = list(_Follow(folder).new())
    events = [event for event in said if event["event"] == "closed"]
    running = is_running(folder)
    return {
        "study": bundle.study["study"],
        "epoch": bundle.epoch,
        "sites": list(bundle.members),
        "confirmed": list(folder.approvals()),
        "running": running,
        "waiting": _waiting(said) if running else "",
        "finished": finished(folder),
        "rounds": folder.study.total_rounds,
        "last_closed_round": max((event["round"] for event in events), default=0),
        "refused": dict(Counter(_reason(event) for event in said if _reason(event))),
        "last_survivors": events[-1]["survivors"] if events else [],
    }


def _reason(event: Event) -> str:
    """Why something that came was refused; empty for all else."""
    if event["event"] == "refused":
        return str(event["reason"])
    if event["event"] == "received" and event["outcome"] != "accepted":
        return str(event["outcome"])
    return ""


def _waiting(said: list[Event]) -> str:
    """What a running study waits for, from the last thing that the server noted; empty where it goes on."""
    ongoing = [event for event in said if event["event"] not in ("catching up", "again", "late", "declined")]
    last = max(ongoing, key=lambda event: float(event["time"]), default={"event": ""})
    if last["event"] == "missing":
        sites = ", ".join(last["sites"])
        return f"the key ceremony waits for {sites}: see whether they run, or stop and `study remove` them"
    if last["event"] == "resting":
        again = time.strftime("%H:%M", time.localtime(float(last["time"]) + float(last["again_s"])))
        return (
            f"{last['declined']} sites declined round {last['round']}, and do not say why (their hours, policy or "
            f"budget); they are asked again at {again}"
        )
    return ""


def _started(flower: Path, env: dict[str, str]) -> str:
    deadline = time.monotonic() + _STARTS_IN_S
    while True:
        try:
            return deployment.start_run(flower, env)
        except RunError:
            if time.monotonic() > deadline:
                raise
            time.sleep(2.0)  # the SuperLink may be on its way up again


def _until_running(folder: ServerFolder) -> None:
    deadline = time.monotonic() + _STARTS_IN_S
    while not is_running(folder) and not finished(folder):
        if time.monotonic() > deadline:
            return  # the caller starts another run
        time.sleep(0.2)


class _Follow:
    """What the server wrote since the last look, over all epochs."""

    def __init__(self, folder: ServerFolder) -> None:
        self._folder = folder
        self._read: dict[Path, int] = {}

    def new(self) -> Iterator[Event]:
        """Events that are whole and were not given before."""
        for own in self._folders():
            for path in (own / EVENTS, own / EVENT_LOG, own / REFUSED):
                for event, end in events_after(path, self._read.get(path, 0)):
                    self._read[path] = end
                    yield event

    def _folders(self) -> list[Path]:
        return [
            *(epoch_folder(self._folder, epoch) for epoch in self._folder.epochs),
            self._folder.path / ROUNDS,
        ]
