"""A whole study on one machine: real workers, real keys, a real SuperLink, real ciphertexts.

Each site is a process of its own with its own data, keys and journal. Flower carries the messages, the summing
process holds no key, and this harness only starts things, watches and collects. What is not real is the
distance: the sites share a machine, and this process reads their journals for the summary.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from secure_triplay.client.accounts import HARNESS
from secure_triplay.client.answering import listening
from secure_triplay.client.job import Job
from secure_triplay.client.journal import JournalReader
from secure_triplay.client.keys import Roster
from secure_triplay.config import Study
from secure_triplay.constants import noise_multiplier
from secure_triplay.crypto.identity import SigningIdentity
from secure_triplay.crypto.keyfile import save_identity
from secure_triplay.crypto.masking.study import choose_masking
from secure_triplay.errors import RunError, SecureTriplayError
from secure_triplay.federation.bundle import write_bundle
from secure_triplay.federation.superlink import run_simulation_app
from secure_triplay.ledger.log import AuditLog
from secure_triplay.ledger.logbundle import export_log
from secure_triplay.loading import fetch_assets
from secure_triplay.report.summary import Summary
from secure_triplay.runfolder import run_folder
from secure_triplay.server.app import ServerSettings
from secure_triplay.server.service import EVENT_LOG
from secure_triplay.summarise import Collected, summarise, write_outputs
from secure_triplay.wire import SessionPlan

DEADLINE_S = 3600.0
_EPOCH = 1
_WORKER_MODULE = "secure_triplay.client.worker"

Event = dict[str, Any]
Notify = Callable[[str, Event], None]
"""Called with a site's name, or "study", and one event."""


def simulate(
    study: Study, out: Path, notify: Notify = lambda site, event: None, *, keep_received: bool = False
) -> Summary:
    """Run a study and write summary, adapter, card, report and the sites' journals into `out`.

    With `keep_received`, `server/received/` holds every byte string that the summing process was given.

    Raises a SecureTriplayError when anything fails, and then nothing is left at `out`.
    """
    started, started_utc = time.monotonic(), datetime.now(UTC).isoformat(timespec="seconds")
    if study.dp:
        noise_multiplier(study)  # an impossible budget is refused before anything is fetched
    choose_masking(study)  # and masks that cannot be had
    with run_folder(out) as folder, _scratch(folder) as scratch:
        fetch_assets(study, lambda text: notify("study", {"event": "fetching", "text": text}))
        with _sites(study, folder, scratch, notify) as sites:
            plan = _key_ceremony(study, sites)
            sites.collect(*sites.pipes)  # each says that it is ready
            setup_s = time.monotonic() - started
            notify("study", {"event": "rounds", "text": "starting Flower"})
            server = folder / "server"
            server.mkdir()
            coordinator = SigningIdentity.generate()
            save_identity(server, coordinator)
            AuditLog.ensure(server, coordinator, party="coordinator", started_by=HARNESS)
            settings = ServerSettings(
                plan,
                study.total_rounds,
                len(study.sites),
                DEADLINE_S,
                server,
                keep_received,
                log=server,
                masking=choose_masking(study),
            )
            settings.write(write_bundle(scratch / "app", sockets=scratch))
            run_simulation_app(
                scratch / "app",
                scratch / "flower",
                n_sites=len(study.sites),
                cores=os.cpu_count() or 1,
                poll=sites.look,
            )
            export_log(server, server / "evidence", coordinator, purpose="end of a simulated study")
            sites.collect(*sites.pipes)  # each says that it has finished
            sites.look()
        notify("study", {"event": "writing", "text": "writing the report"})
        log = [json.loads(line) for line in (server / EVENT_LOG).read_text().splitlines()]
        collected = Collected(study, sites.events, log, started_utc, setup_s, time.monotonic() - started)
        return write_outputs(summarise(collected), study, folder)


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """Where sockets and Flower's files are: inside the run's folder, where the next run removes what a kill left.

    Some file systems hold no sockets; there it is in the folder for temporary files.
    """
    with tempfile.TemporaryDirectory(prefix=".scratch-", dir=folder) as inside:
        try:
            listening(Path(inside) / "tried").close()
        except OSError:
            with tempfile.TemporaryDirectory(prefix="triplay-") as outside:
                yield Path(outside)
        else:
            (Path(inside) / "tried").unlink()
            yield Path(inside)


@dataclass(frozen=True)
class _Sites:
    """The running workers: their control pipes, and what their journals said so far."""

    pipes: dict[str, Connection]
    processes: dict[str, ForkServerProcess]
    readers: dict[str, JournalReader]
    notify: Notify
    events: dict[str, list[Event]]
    answers: dict[str, list[Any]]
    finished: set[str]

    def look(self) -> None:
        """Take in what the sites wrote and answered. Raises what a worker failed with."""
        for name, reader in self.readers.items():
            for event in reader.new():
                self.events[name].append(event)
                self.notify(name, event)
        for name, pipe in self.pipes.items():
            if name in self.finished:
                continue
            try:
                while pipe.poll():
                    answer = pipe.recv()
                    if isinstance(answer, SecureTriplayError):
                        raise answer
                    self.answers[name].append(answer)
                    if answer == "finished":
                        self.finished.add(name)
                        break
            except (EOFError, ConnectionResetError) as error:
                raise RunError(
                    f"the worker of site {name} ended without a word",
                    where=name,
                    fix="see whether memory is left; a worker of the demo needs about 1 GiB",
                ) from error

    def collect(self, *names: str) -> dict[str, Any]:
        """The next answer of each named site."""
        while not all(self.answers[name] for name in names):
            self.look()
            time.sleep(0.05)
        return {name: self.answers[name].pop(0) for name in names}

    def send(self, content: object) -> None:
        """The same to every site."""
        for pipe in self.pipes.values():
            pipe.send(content)


@contextmanager
def _sites(study: Study, folder: Path, scratch: Path, notify: Notify) -> Iterator[_Sites]:
    """One worker a site, forked from a server that has imported the heavy libraries once; all end with the block."""
    cores, count = os.cpu_count() or 1, len(study.sites)
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(variable, str(max(1, cores // count)))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([_WORKER_MODULE])
    _start_forkserver()
    names = [site.name for site in study.sites]
    sites = _Sites({}, {}, {}, notify, {name: [] for name in names}, {name: [] for name in names}, set())
    try:
        for index, name in enumerate(names):
            own = folder / "sites" / name
            own.mkdir(parents=True, mode=0o700)
            here, there = context.Pipe()
            job = Job(study, _EPOCH, name, own, scratch / str(index), (index, count), max(1, cores // count))
            process = context.Process(target=_work, args=(job, there), daemon=True, name=f"site-{name}")
            process.start()
            there.close()
            sites.pipes[name], sites.processes[name] = here, process
            sites.readers[name] = JournalReader(own)
        yield sites
    finally:
        for process in sites.processes.values():
            process.terminate()
        for process in sites.processes.values():
            process.join(10)
            if process.is_alive():
                process.kill()


def _start_forkserver() -> None:
    """Start it where Ctrl-C does not reach it: it imports for seconds, and would leave the trace of an interrupt.

    A blocked signal is inherited by what is started. For this process it waits until it is let through again.
    """
    resource_tracker.ensure_running()  # lets signals through that were blocked before
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(job: Job, control: Connection) -> None:
    """Body of a site's process, which alone imports what trains and decrypts."""
    from secure_triplay.client.worker import work

    work(job, control)


def _key_ceremony(study: Study, sites: _Sites) -> SessionPlan:
    """Relay identities and sealed envelopes among the sites; this process could not open one."""
    names = [site.name for site in study.sites]
    members = sites.collect(*names)
    sites.send(members)
    n_chunks = sites.collect(*names)
    maker = names[0]
    sites.send(maker)
    key_id, envelopes = sites.collect(maker)[maker]
    for name, pipe in sites.pipes.items():
        pipe.send((key_id, envelopes[name]))
    return Roster.of(study.sha256, _EPOCH, members).plan(key_id, n_chunks[maker])
