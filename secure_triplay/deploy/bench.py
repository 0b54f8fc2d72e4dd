"""What a round of a real federation costs beyond training: stock SuperLink and SuperNodes on loopback, light sites.

Everything is a process of its own, as `server start`, `site start` and `study run` start them; only training is
left out. A round is counted from its first message to the first one of the next round, so that every exchange, the
quorum's signatures and the opening of the sum are in it.
"""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import yaml
from rich.table import Table

from secure_triplay.config import load_study, study_content
from secure_triplay.deploy.server.app import epoch_folder
from secure_triplay.deploy.server.coordinator import finished
from secure_triplay.errors import ConfigError, RunError, SecureTriplayError
from secure_triplay.federation import join
from secure_triplay.federation.processes import free_port, stop_group
from secure_triplay.federation.serverfolder import ServerFolder
from secure_triplay.federation.sitefolder import SiteFolder
from secure_triplay.federation.studybundle import Rules, SitePaths
from secure_triplay.ledger.start import start
from secure_triplay.policy import load_policy, policy_content
from secure_triplay.server.service import EVENT_LOG

GOAL_S = 15.0
_PATIENCE_S = 3600.0
_EXCHANGES = ("train", "witness", "unmask")
_COMMAND = "from secure_triplay.cli import main; main()"


def run_federation_bench(
    study_file: Path, policy_file: Path, *, sites: int = 3, rounds: int = 6, aggregation: str | None = None
) -> dict[str, Any]:
    """Run this study with light sites, and time its rounds -> what `result.json` holds.

    Of the study stand its privacy, its classes and, where no other `aggregation` is named, how it aggregates; sites,
    rounds, optimiser and codec are the bench's. Raises RunError where it does not end, ConfigError where a file is
    wrong or the policy does not allow it.
    """
    # what is wrong with a file is said of the file itself, and not of our changed copy
    load_study(study_file)
    load_policy(policy_file)
    if aggregation not in (None, "masked", "shared-key"):
        raise ConfigError(
            f"there is no aggregation {aggregation!r}", where="--aggregation", fix="give masked or shared-key"
        )
    os.umask(0o077)
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="triplay-bench-") as scratch:
        folder = Path(scratch)
        names = [f"site-{i}" for i in range(1, sites + 1)]
        try:
            server, members = _prepared(folder, study_file, policy_file, names, rounds, aggregation)
            cpu_s = _run(folder, server, members)
            seconds = round_seconds(epoch_folder(server, 1) / EVENT_LOG, rounds)
        except SecureTriplayError as error:
            raise _in_files_that_stay(error, folder, study_file, policy_file) from error
    median_s = statistics.median(one["round_s"] for one in seconds)
    return {
        "bench": "federation",
        "sites": sites,
        "aggregation": aggregation or "as the study says",
        "rounds": seconds,
        "median_round_s": round(median_s, 2),
        "slowest_round_s": max(one["round_s"] for one in seconds),
        "goal_s": GOAL_S,
        "met": median_s <= GOAL_S,
        "cpu_s_of_all_processes": round(cpu_s, 1),
        "cpus": os.cpu_count(),
        "load_before": round(load_before, 2),
        "load_after": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
    }


def _in_files_that_stay(
    error: SecureTriplayError, folder: Path, study_file: Path, policy_file: Path
) -> SecureTriplayError:
    """The same error without a path in the bench's own folder, which is gone when somebody reads it."""

    def told(text: str) -> str:
        inside = re.escape(str(folder)) + r"(?:/[\w.-]+)*"
        for pattern, stays in (
            (rf"{inside}/policy\.yaml", policy_file),
            (rf"{inside}/study\.yaml", study_file),
            (inside, "the bench's own folder"),
        ):
            text = str(stays).join(re.split(pattern, text))
        return text

    return type(error)(told(error.what), where=told(error.where), fix=told(error.fix))


def _prepared(
    folder: Path,
    study_file: Path,
    policy_file: Path,
    names: list[str],
    rounds: int,
    aggregation: str | None,
) -> tuple[ServerFolder, dict[str, SiteFolder]]:
    """Folders of a coordinator and of sites that joined."""
    content = study_content(study_file)
    content |= {
        "study": "bench",
        "sites": [{"name": name} for name in names],
        "server_optimiser": {"kind": "fedavg"},
        "codec": {"value_bits": 9, "range": 0.01},
    }
    content["training"]["rounds"] = rounds
    if aggregation is not None:
        content["aggregation"] = aggregation
    (folder / "study.yaml").write_text(yaml.safe_dump(content))
    policy = policy_content(policy_file)
    policy["allowed_hours"] = "always"
    (folder / "policy.yaml").write_text(yaml.safe_dump(policy))
    members = {}
    for name in names:
        members[name] = SiteFolder.init(folder / name, name, folder / "policy.yaml")
        start(folder / name, members[name].policy_file, name=name, approved_by="bench")
    server = ServerFolder.create(
        folder / "coordinator",
        folder / "study.yaml",
        [site.enrolment_file for site in members.values()],
        server=f"127.0.0.1:{free_port()}",
        rules=Rules(quorum=len(members), deadline_s=600.0),
    )
    for site in members.values():
        asked = join.look(site, server.public_bundle, SitePaths())
        server.take_confirmation(join.confirm(site, asked, code=asked.bundle.code, approved_by="bench"))
    return server, members


def _run(folder: Path, server: ServerFolder, members: dict[str, SiteFolder]) -> float:
    """The study from `server start` to its end -> processor seconds of all its processes."""
    with _Processes(folder) as processes:
        processes.start("server", "-c", _COMMAND, "server", "start", "--dir", str(server.path))
        processes.until(lambda: "lets in" in processes.said("server"))
        for name, site in members.items():
            processes.start(
                name, "-m", "secure_triplay.deploy.site.light", str(site.path), "bench", "with a SuperNode"
            )
        processes.start("run", "-c", _COMMAND, "study", "run", "--dir", str(server.path))
        processes.until(lambda: finished(server))
        return processes.cpu_s()


def round_seconds(log: Path, rounds: int) -> list[dict[str, float]]:
    """For each round its seconds, and how many of them each exchange took, by the server's event log.

    Raises RunError where a round, or what follows it, did not begin.
    """
    begun: dict[tuple[str, int], float] = {}
    for line in log.read_text().splitlines():
        event = json.loads(line)
        if event["event"] in _EXCHANGES:
            begun.setdefault((event["event"], event["round"]), float(event["time"]))
    found = []
    for number in range(1, rounds + 1):
        times = [begun[kind, number] for kind in _EXCHANGES if (kind, number) in begun]
        if not times or ("train", number + 1) not in begun:
            raise RunError(
                f"the server's log has no beginning and end of round {number}",
                where=str(log),
                fix="run the bench again; if it happens again, `study run` says what ends the rounds early",
            )
        times.append(begun["train", number + 1])
        kinds = [kind for kind in _EXCHANGES if (kind, number) in begun]
        lasted = {f"{kind}_s": round(b - a, 2) for kind, a, b in zip(kinds, times, times[1:], strict=False)}
        found.append({"round": number, **lasted, "round_s": round(times[-1] - times[0], 2)})
    return found


class _Processes:
    """Commands of this package, each in a session of its own; all end with the block."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> _Processes:
        return self

    def __exit__(self, *exc_info: object) -> None:
        for process in self._running.values():
            process.terminate()
        for process in self._running.values():
            with suppress(subprocess.TimeoutExpired):
                process.wait(30)
            stop_group(process)

    def start(self, name: str, *command: str) -> None:
        with (self._folder / f"{name}.out").open("wb") as log:
            self._running[name] = subprocess.Popen(
                [sys.executable, *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def said(self, name: str) -> str:
        return (self._folder / f"{name}.out").read_text(errors="replace")

    def until(self, true: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _PATIENCE_S
        while not true():
            ended = [name for name, process in self._running.items() if process.poll() is not None]
            if time.monotonic() > deadline or [name for name in ended if name != "run"]:
                raise RunError(
                    "the study did not end",
                    where=" | ".join(self.said(name)[-300:] for name in ended or self._running),
                    fix="see what the named process said",
                )
            time.sleep(0.2)

    def cpu_s(self) -> float:
        """Processor seconds of every process and of those that it waited for."""
        total = 0.0
        for process in self._running.values():
            with suppress(psutil.NoSuchProcess):
                own = psutil.Process(process.pid)
                for one in (own, *own.children(recursive=True)):
                    with suppress(psutil.NoSuchProcess):
                        total += sum(one.cpu_times()[:4])
        return total


def federation_table(result: dict[str, Any]) -> Table:
    """The rounds as a table."""
    table = Table(title=f"{result['sites']} light sites on stock SuperNodes, seconds")
    for heading in ("round", *_EXCHANGES, "whole"):
        table.add_column(heading, justify="right")
    for one in result["rounds"]:
        parts = [f"{one[f'{kind}_s']:.1f}" if f"{kind}_s" in one else "-" for kind in _EXCHANGES]
        table.add_row(str(one["round"]), *parts, f"{one['round_s']:.1f}")
    met = "met" if result["met"] else "NOT met"
    table.caption = (
        f"median {result['median_round_s']:.1f} s, goal {result['goal_s']:.0f} s: {met}; load "
        f"{result['load_before']} before and {result['load_after']} after on {result['cpus']} processors"
    )
    return table
