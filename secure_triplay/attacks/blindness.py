"""The proof that matters: everything that a real server received, wrote and holds, searched for what it must not have.

A real federation runs: SuperLink, SuperNodes, TLS, separate processes. Each time that a sum was just formed, and
after the study, the audit reads the memory of every process of the server, and at the end everything in its folder,
database and logs included. It looks for the CKKS key in every form in which the library holds it, each site's
update and adapter (float32 and as the integers that are encrypted), training images, and record counts. The same
search has to find each of these in a client's memory; otherwise it proves nothing, and the audit says INVALID.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from secure_triplay.attacks.memory import Hit, Needle, Searched, children, search_folder, search_process
from secure_triplay.attacks.site_needles import needles_of
from secure_triplay.config import load_study
from secure_triplay.deploy.server.app import KEEP_VARIABLE
from secure_triplay.deploy.server.coordinator import finished
from secure_triplay.deploy.site.start import start_site
from secure_triplay.errors import RunError, SecureTriplayError
from secure_triplay.federation import join
from secure_triplay.federation.join import JoinedStudy
from secure_triplay.federation.processes import free_port, stop_group
from secure_triplay.federation.serverfolder import ServerFolder
from secure_triplay.federation.sitefolder import SiteFolder
from secure_triplay.federation.studybundle import Rules, SitePaths
from secure_triplay.ledger.start import start
from secure_triplay.report.summary import write_text
from secure_triplay.runfolder import require_place, unwritable

AUDIT = "server-blindness"
KINDS = ("CKKS key", "update", "adapter", "training image", "record count")
PARTS = (
    "memory of the summing process",
    "memory of the ServerApp",
    "memory of the SuperLink",
    "server's folder",
)
"""What uploads pass through: where one of these was not read, nothing found says nothing."""
_COMMAND = "from secure_triplay.cli import main; main()"
_START_S, _STUDY_S = 180.0, 1800.0

Tell = Callable[[str], None]


@dataclass
class Looked:
    """What was searched so far, and what was found."""

    server: list[Hit] = field(default_factory=list)
    control: list[Hit] = field(default_factory=list)
    searched: dict[str, int] = field(default_factory=dict)
    unreadable: set[str] = field(default_factory=set)
    moments: list[str] = field(default_factory=list)

    def take(self, label: str, found: Searched, hits: list[Hit]) -> None:
        """Add what one search gave."""
        hits += [hit for hit in found.hits if hit not in hits]
        self.searched[label] = self.searched.get(label, 0) + found.bytes_searched
        self.unreadable.update(found.unreadable)


def audit_server_blindness(out: Path | None, tell: Tell = lambda text: None) -> dict[str, Any]:
    """Run the federation, search, and judge -> what `result.json` holds.

    Raises RunError where it does not run, and before it runs where `out` cannot be written or holds a result of
    something else; an earlier one of this audit is replaced.
    """
    if out is not None:
        require_place(out, lambda found: found.get("audit") == AUDIT)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="triplay-audit-") as scratch, _federation(Path(scratch)) as fed:
        looked = Looked()
        fed.start(tell)
        for moment in fed.moments():
            tell(f"searching {moment}")
            fed.search(looked, moment)
        tell("searching the server's folder")
        needles = needles_of(fed.study, fed.sites, fed.folder)
        looked.take("server's folder", search_folder(fed.server.path, needles), looked.server)
        result = judge(looked, needles)
    result |= {"wall_s": round(time.monotonic() - started, 1), "rounds": fed.rounds}
    if out is not None:
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unwritable(out, error) from error
        write_text(out / "result.json", json.dumps(result, indent=1) + "\n")
    return result


def judge(looked: Looked, needles: tuple[Needle, ...]) -> dict[str, Any]:
    """The verdict: invalid unless the control found each kind and all of the server was read; then fail or pass."""
    found = {hit.what.partition(" of ")[0] for hit in looked.control}
    missed = [kind for kind in KINDS if kind not in found]
    blind_spots = sorted(where for where in looked.unreadable if "heap" in where or "stack" in where)
    unseen = [part for part in PARTS if not looked.searched.get(part)]
    verdict = "invalid" if missed or blind_spots or unseen else "fail" if looked.server else "pass"
    not_seen = f"not read: {', '.join(unseen)}" if unseen else "all of the memory could not be read"
    return {
        "audit": AUDIT,
        "verdict": verdict,
        "reason": {
            "invalid": f"the control did not find: {', '.join(missed)}" if missed else not_seen,
            "fail": "something that only sites may know is at the server",
            "pass": "nothing of it is in the server's memory, files, database or logs; a client's memory holds it all",
        }[verdict],
        "server_hits": [asdict(hit) for hit in looked.server],
        "control_hits": [asdict(hit) for hit in looked.control],
        "searched": dict(sorted(looked.searched.items())),
        "unreadable": sorted(looked.unreadable),
        "moments": looked.moments,
        "needles": sorted({f"{needle.what} as {needle.form}" for needle in needles}),
    }


class _Federation:
    """A study over three sites, on loopback, with the auditor's workers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        study_file = folder / "study.yaml"
        study_file.write_text((files("secure_triplay.attacks") / "blindness.yaml").read_text())
        self.study = load_study(study_file)
        self.rounds = self.study.training.rounds
        (folder / "policy.yaml").write_text(yaml.safe_dump(_policy()))
        self.sites = {}
        for entry in self.study.sites:
            site = SiteFolder.init(folder / entry.name, entry.name, folder / "policy.yaml")
            start(site.path, site.policy_file, name=entry.name, approved_by="auditor")
            self.sites[entry.name] = site
        self.server = ServerFolder.create(
            folder / "coordinator",
            study_file,
            [site.enrolment_file for site in self.sites.values()],
            server=f"127.0.0.1:{free_port()}",
            rules=Rules(quorum=len(self.sites), deadline_s=600.0),
        )
        for site in self.sites.values():
            asked = join.look(site, self.server.public_bundle, SitePaths())
            file = join.confirm(site, asked, code=asked.bundle.code, approved_by="auditor")
            self.server.take_confirmation(file)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._threads: list[threading.Thread] = []
        self._errors: list[SecureTriplayError] = []
        self._stopping = threading.Event()

    def start(self, tell: Tell) -> None:
        """Server, sites and run; returns once all of them are under way."""
        self._spawn("server", "server", "start", "--dir", str(self.server.path))
        self._until(lambda: "lets in" in (self.folder / "server.out").read_text(), "the server did not start")
        tell("the server is up; starting sites")
        for name, site in self.sites.items():
            thread = threading.Thread(target=self._take_part, args=(name, site), name=f"site-{name}")
            thread.start()
            self._threads.append(thread)
        self._spawn("run", "study", "run", "--dir", str(self.server.path))

    def moments(self) -> Iterator[str]:
        """Yield while rounds go on, each time that a sum was just formed, and once more at the end."""
        deadline = time.monotonic() + _STUDY_S
        log = self.server.path / "rounds" / "epoch-1" / "events.jsonl"
        seen: set[tuple[str, int]] = set()
        while not finished(self.server):
            self._look_after(deadline)
            lines = log.read_text().splitlines() if log.exists() else []
            events = [json.loads(line) for line in lines if line.endswith("}")]
            new = [
                (event["event"], event["round"])
                for event in events
                if event["event"] == "closed" and (event["event"], event["round"]) not in seen
            ]
            if new and needles_of(self.study, self.sites, self.folder):
                seen.update(new)
                kind, number = new[-1]
                yield f"round {number} was just {kind}"
            time.sleep(0.2)
        yield "after the study"

    def search(self, looked: Looked, moment: str) -> None:
        """The memory of every process of the server, and of the workers for control."""
        looked.moments.append(moment)
        with self._workers_stopped() as workers:  # so that the round goes on only after the search
            needles = needles_of(self.study, self.sites, self.folder)
            for name, pid in workers.items():
                if name == next(iter(self.sites)):
                    looked.take(
                        "memory of a client",
                        search_process(pid, needles, "a client", written_only=True),
                        looked.control,
                    )
            for root in ("server", "run"):
                for pid in children(self._processes[root].pid):
                    label = _name(pid)
                    if label is not None:
                        looked.take(f"memory of {label}", _tried(pid, needles, label), looked.server)

    @contextmanager
    def _workers_stopped(self) -> Iterator[dict[str, int]]:
        found: dict[str, int] = {}
        for pid in children(os.getpid()):
            command = _command(pid)
            for name, site in self.sites.items():
                if "secure_triplay.attacks.telling" in command and f"{site.path} " in command:
                    found.setdefault(name, pid)
        try:
            for pid in found.values():
                os.kill(pid, signal.SIGSTOP)
            yield found
        finally:
            for pid in found.values():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    def _take_part(self, name: str, site: SiteFolder) -> None:
        told = self.folder / f"told-{name}"
        command = [
            sys.executable,
            "-m",
            "secure_triplay.attacks.telling",
            str(site.path),
            self.study.study,
            str(told),
        ]
        try:
            start_site(
                site,
                JoinedStudy.open(site),
                lambda event: None,
                worker_command=command,
                stop=self._stopping.is_set,
            )
        except SecureTriplayError as error:
            self._errors.append(error)

    def _spawn(self, name: str, *arguments: str) -> None:
        with (self.folder / f"{name}.out").open("wb") as log:
            self._processes[name] = subprocess.Popen(
                [sys.executable, "-c", _COMMAND, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=os.environ | {KEEP_VARIABLE: "1"},
            )

    def _until(self, true: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + _START_S
        while not true():
            if time.monotonic() > deadline:
                raise RunError(
                    what, where=str(self.folder), fix="see whether loopback and memory are free here"
                )
            self._look_after(deadline)
            time.sleep(0.2)

    def _look_after(self, deadline: float) -> None:
        if self._errors:
            raise self._errors[0]
        ended = [name for name, process in self._processes.items() if process.poll() not in (None, 0)]
        if ended or time.monotonic() > deadline:
            name = ended[0] if ended else "run"
            raise RunError(
                "the federation of the audit did not run to its end",
                where=" | ".join((self.folder / f"{name}.out").read_text().splitlines()[-4:]),
                fix="see whether memory is left; each worker needs about 1 GiB",
            )

    def stop(self) -> None:
        """End every process."""
        self._stopping.set()
        for process in self._processes.values():
            process.terminate()
        for process in self._processes.values():
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                stop_group(process)
        for thread in self._threads:
            thread.join(60)


@contextmanager
def _federation(folder: Path) -> Iterator[_Federation]:
    made = _Federation(folder)
    try:
        yield made
    finally:
        made.stop()


def _tried(pid: int, needles: tuple[Needle, ...], label: str) -> Searched:
    try:
        return search_process(pid, needles, label, written_only=True)
    except RunError:
        if Path(f"/proc/{pid}").exists() and _command(pid):
            raise
        return Searched((), 0)  # it ended meanwhile


def _name(pid: int) -> str | None:
    command = _command(pid)
    if not command:
        return None
    for part, name in (
        ("server.process", "the summing process"),
        ("flwr-serverapp", "the ServerApp"),
        ("superlinkmain", "the SuperLink"),
        ("flower-superexec", "the server's SuperExec"),
        ("study run", "study run"),
        ("server start", "server start"),
    ):
        if part in command:
            return name
    return "another process of the server"


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def _policy() -> dict[str, Any]:
    """A policy for public images that lets the audit run at any hour."""
    return {
        "policy": "audit",
        "epsilon_per_study": 20.0,
        "epsilon_per_year": 100.0,
        "smallest_privacy_unit": "record",
        "delta": {"times_patients": 100, "most_patients": None, "most_records": 2000},
        "fewest_participants": 2,
        "allow_two_site_studies": True,
        "allowed_backbone_sha256": "any",
        "allowed_licences": ["MIT", "Apache-2.0"],
        "allowed_hours": "always",
        "may_export": [],
    }
