"""A real federation on loopback: stock SuperLink and SuperNodes, TLS, separate processes; light workers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import yaml

from secure_triplay.deploy.server.coordinator import status
from secure_triplay.federation import join
from secure_triplay.federation.processes import free_port, stop_group
from secure_triplay.federation.serverfolder import ServerFolder
from secure_triplay.federation.sitefolder import SiteFolder
from secure_triplay.federation.studybundle import Rules, SitePaths
from secure_triplay.ledger.start import start

HERE, ROOT = Path(__file__).parent, Path(__file__).parent.parent.parent
NAMES = ("north", "east", "south")
PATIENCE_S = 600.0
"""After so long a test gives up; nothing waits for it where things go well."""


def study_content(rounds: int, names: tuple[str, ...] = NAMES) -> dict:
    content = yaml.safe_load((ROOT / "configs" / "demo.yaml").read_text())
    content["sites"] = [{"name": name} for name in names]
    # Who makes a bundle need not load a model; test_basis does.
    content["adapter"] |= {"basis": "seed", "output_rank": None}
    content["training"] |= {"rounds": rounds}
    content["server_optimiser"] = {"kind": "fedavg"}
    content["codec"] = {"value_bits": 9, "range": 0.01}
    content["aggregation"] = {"kind": "masked", "colluders": 0}  # so that two of three sites make a round
    return content


@dataclass
class Federation:
    """Folders and processes of one study; everything ends with the block that made it."""

    folder: Path
    server: ServerFolder
    sites: dict[str, SiteFolder]
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    inside: dict[str, str] = field(default_factory=dict)
    """The network namespace that a process runs in, by its name."""

    @classmethod
    def make(
        cls,
        folder: Path,
        *,
        rounds: int,
        names: tuple[str, ...] = NAMES,
        enrolled: tuple[str, ...] = (),
        deadline_s: float = 60.0,
        host: str = "127.0.0.1",
        content: dict | None = None,
    ) -> Federation:
        policy = yaml.safe_load((ROOT / "configs" / "policies" / "public-data.yaml").read_text())
        policy["delta"]["most_records"] = 2000
        (folder / "policy.yaml").write_text(yaml.safe_dump(policy))
        (folder / "study.yaml").write_text(yaml.safe_dump(content or study_content(rounds, names)))
        sites = {}
        for name in names:
            sites[name] = SiteFolder.init(folder / name, name, folder / "policy.yaml")
            start(folder / name, sites[name].policy_file, name=name, approved_by=f"Dr. {name}")
        files = [sites[name].enrolment_file for name in enrolled or names]
        server = ServerFolder.create(
            folder / "coordinator",
            folder / "study.yaml",
            files,
            server=f"{host}:{free_port()}",
            rules=Rules(quorum=len(files) // 2 + 1, deadline_s=deadline_s),
        )
        made = cls(folder, server, sites)
        for name in enrolled or names:
            made.join(name)
        return made

    @classmethod
    def copy(cls, template: Path, folder: Path, names: tuple[str, ...]) -> Federation:
        """A copy of the folders that `make` made."""
        shutil.copytree(template, folder)
        sites = {name: SiteFolder.open(folder / name) for name in names}
        return cls(folder, ServerFolder.open(folder / "coordinator"), sites)

    def survivors(self) -> list[list[str]]:
        """Who was in each closed round, over all epochs."""
        found = []
        for epoch in self.server.epochs:
            log = self.server.path / "rounds" / f"epoch-{epoch}" / "events.jsonl"
            lines = log.read_text().splitlines() if log.exists() else []
            found += [event for event in map(json.loads, lines) if event["event"] == "closed"]
        assert [event["round"] for event in found] == list(range(1, len(found) + 1))
        return [event["survivors"] for event in found]

    def join(self, name: str) -> None:
        asked = join.look(self.sites[name], self.server.public_bundle, SitePaths())
        file = join.confirm(self.sites[name], asked, code=asked.bundle.code, approved_by=f"Dr. {name}")
        self.server.take_confirmation(file)

    def start(self, name: str, *command: str) -> None:
        with (self.folder / f"{name}.out").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [*self._prefix(name), sys.executable, str(HERE / "federation_process.py"), *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )

    def _prefix(self, name: str) -> list[str]:
        return ["ip", "netns", "exec", self.inside[name]] if name in self.inside else []

    def start_server(self, *host: str) -> None:
        self.start("server", "server", str(self.server.path), *host)
        self.until(lambda: "lets in" in self.said("server"))

    def start_site(self, name: str, *superlink: str) -> None:
        self.start(name, "site", str(self.sites[name].path), *superlink)

    def start_run(self) -> None:
        self.start("run", "run", str(self.server.path))

    def said(self, name: str) -> str:
        return (self.folder / f"{name}.out").read_text(errors="replace")

    def events(self, name: str) -> list[dict]:
        """A site's journal."""
        file = self.sites[name].path / "studies" / "demo" / "journal.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def closed(self) -> int:
        return int(status(self.server)["last_closed_round"])

    def until(self, true: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not true():
            if time.monotonic() > deadline:
                raise AssertionError("\n".join(f"{n}: {self.said(n)[-1500:]}" for n in self.processes))
            time.sleep(0.1)

    def adapters(self, *names: str) -> list[np.ndarray]:
        """The sites' published adapters, once they are written."""
        files = [
            self.sites[n].path / "studies" / "demo" / "adapter" / "published.npy" for n in names or self.sites
        ]
        self.until(
            lambda: all(any(e["event"] == "saved" for e in self.events(n)) for n in names or self.sites)
        )
        return [np.load(file) for file in files]

    def ended(self, name: str) -> int:
        self.until(lambda: self.processes[name].poll() is not None)
        return int(self.processes[name].returncode)


@contextmanager
def running(federation: Federation) -> Iterator[Federation]:
    try:
        yield federation
    finally:
        for process in federation.processes.values():
            if process.poll() is None:
                process.terminate()
        for process in federation.processes.values():
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                stop_group(process)
