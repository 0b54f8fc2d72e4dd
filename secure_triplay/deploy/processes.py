"""Keeping processes alive: start again what died, with a growing pause, until told to stop."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from secure_triplay.errors import RunError
from secure_triplay.federation.processes import last_lines, stop_group
from secure_triplay.runfolder import alone_in

_FIRST_PAUSE_S, _LONGEST_PAUSE_S, _STEADY_S = 1.0, 60.0, 120.0
_EXEC_S = 1.0
_LASTING_PAUSE_S = 8.0
"""A SuperLink takes a SuperNode that was killed for connected for a minute, and until then refuses the next one."""


def only_one(folder: Path, otherwise: str) -> AbstractContextManager[None]:
    """What is kept in `folder`, under one supervisor: a second would take the first one's for leftovers, and end them.

    Raises RunError, in the words of `otherwise`, where one is at work.
    """
    return alone_in(folder, otherwise, "leave that one running, or stop it with Ctrl-C first")


@dataclass
class Kept:
    """One command that is kept running; `ended` says that its job is done and it is not started again.

    `lasting`: its job is never done, so any end of it is followed by another start.
    """

    name: str
    command: list[str]
    folder: Path
    env: dict[str, str]
    restarts: int = 0
    ended: bool = False
    lasting: bool = False
    _process: subprocess.Popen[bytes] | None = None
    _pause_s: float = _FIRST_PAUSE_S
    _started: float = 0.0
    _due: float = field(default_factory=time.monotonic)

    @property
    def log(self) -> Path:
        """Where its output goes."""
        return self.folder / f"{self.name}.log"

    @property
    def pid(self) -> int | None:
        """Its process, while it runs."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def look(self, notify: Callable[[str], None]) -> None:
        """Start it if it is due; take note if it died. Raises RunError where it will never run."""
        if self.ended:
            return
        if self._process is not None:
            code = self._process.poll()
            if code is None:
                return
            stop_group(self._process)  # what it started and left behind
            self._process = None
            if code == 0 and not self.lasting:
                self.ended = True
                return
            if 3 <= code <= 9 and not self.lasting:
                # an error that was said in words: starting again would say it again
                raise RunError(
                    f"{self.name} ended: {last_lines(self.log, 1)}",
                    where=str(self.log),
                    fix="mend what is named, and start again; nothing that was spent is given back",
                )
            if time.monotonic() - self._started > _STEADY_S:
                self._pause_s = _FIRST_PAUSE_S
            self._due = time.monotonic() + self._pause_s
            self.restarts += 1
            notify(
                f"{self.name} ended with code {code}; it is started again in {self._pause_s:.0f} s (see {self.log})"
            )
            longest_s = _LASTING_PAUSE_S if self.lasting else _LONGEST_PAUSE_S
            self._pause_s = min(2 * self._pause_s, longest_s)
        if time.monotonic() >= self._due:
            self.start()

    def start(self) -> subprocess.Popen[bytes]:
        """Start it now; one that a killed supervisor left behind is ended first."""
        self.end_leftover()
        with self.log.open("ab") as log:
            process = self._process = subprocess.Popen(
                self.command,
                cwd=self.folder / "empty",
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._note_file.write_text(json.dumps({"pid": process.pid, "command": self.command}))
        self._started = time.monotonic()
        return process

    @property
    def _note_file(self) -> Path:
        return self.folder / f"{self.name}.pid"

    def end_leftover(self) -> None:
        """End the process that was noted, if it still is that one: two of them would share a key, ports and books."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            noted = json.loads(self._note_file.read_text())
            pid, command = int(noted["pid"]), [word.encode() for word in noted["command"]]
            running = _words_of(pid)
            if command and running[-len(command) :] == command:
                os.killpg(pid, signal.SIGKILL)
                while Path(f"/proc/{pid}").exists() and not _is_zombie(pid):
                    time.sleep(0.05)

    def stop(self) -> None:
        """End it and everything that it started; another `look` starts it again."""
        process, self._process = self._process, None
        if process is not None:
            stop_group(process)


def _words_of(pid: int) -> list[bytes]:
    """The command of a process; for a moment after it was started it has none."""
    deadline = time.monotonic() + _EXEC_S
    while not (words := Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:-1]):
        if _is_zombie(pid) or time.monotonic() > deadline:
            break
        time.sleep(0.01)
    return words


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True
