"""A real federation through `kill -9` at seeded moments: every process dies, and the study ends as if none had."""

from __future__ import annotations

import json
import os
import random
import signal
from contextlib import suppress

import numpy as np
import psutil
import pytest

from secure_triplay.constants import update_noise_std
from secure_triplay.deploy.site.light import N_PARAMS, update_of
from secure_triplay.federation.join import JoinedStudy
from secure_triplay.ledger.ledger import TRAINING, Ledger

from .conftest import NAMES, Federation, running

pytestmark = pytest.mark.timeout(1200)  # a busy machine needs more than half of that
ROUNDS, SEED = 3, 7
VICTIMS = ("worker", "supernode", "site", "serverapp", "summing", "superlink", "supervisor")
STEPS = (
    ("offer", None),
    ("sealed", None),
    *((step, n) for n in range(1, ROUNDS + 1) for step in ("train", "received", "witness")),
)
"""What the server notes in turn, of the key ceremony and of each round; somebody dies right after one of them."""


def processes(*parts: str) -> list[psutil.Process]:
    """Those whose command line has all these parts."""
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if all(any(part in word for word in process.info["cmdline"] or ()) for part in parts)
    ]


def serverapp(made: Federation) -> list[psutil.Process]:
    with suppress(OSError, ValueError, psutil.NoSuchProcess):
        return [psutil.Process(json.loads((made.server.path / "rounds" / "running.json").read_text())["pid"])]
    return []


def kill(made: Federation, victim: str, site: str) -> bool:
    """`kill -9` for one process; whether there was one."""
    folder = str(made.sites[site].path)
    found = {
        "worker": lambda: processes("secure_triplay.deploy.site.light", folder),
        "supernode": lambda: processes("flower-supernode", folder),
        "site": lambda: processes("federation_process.py", folder),
        "serverapp": lambda: serverapp(made),
        "summing": lambda: [child for one in serverapp(made) for child in one.children()],
        "superlink": lambda: processes("superlinkmain", str(made.server.path)),
        "supervisor": lambda: [psutil.Process(made.processes["server"].pid)],
    }[victim]()
    for process in found[:1]:
        os.kill(process.pid, signal.SIGKILL)
    if found and victim == "site":
        made.processes[site].wait()
        made.start_site(site)
    if found and victim == "supervisor":
        made.processes["server"].wait()
        made.start_server()
    return bool(found)


def has_come_to(made: Federation, step: tuple[str, int | None]) -> bool:
    """Whether the server has noted a step."""
    logs = (made.server.path / "rounds").glob("epoch-*/*.jsonl")
    events = [json.loads(line) for log in logs for line in log.read_text().splitlines()]
    return any((event["event"], event.get("round")) == step for event in events)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A finished study in which everything was killed once, and who was."""
    schedule = random.Random(SEED)
    steps = sorted(schedule.sample(STEPS, len(VICTIMS)), key=STEPS.index)
    victims = schedule.sample(VICTIMS, len(VICTIMS))
    made, killed = Federation.make(tmp_path_factory.mktemp("federation"), rounds=ROUNDS), []
    with running(made):
        made.start_server()
        for name in NAMES:
            made.start_site(name)
        made.start_run()
        for step, victim in zip(steps, victims, strict=True):
            made.until(lambda step=step: has_come_to(made, step))
            site = schedule.choice(NAMES)
            made.until(lambda v=victim, s=site: kill(made, v, s) or made.processes["run"].poll() is not None)
            killed.append((victim, made.processes["run"].poll() is None))
        assert made.ended("run") == 0
        yield made, made.adapters(), killed


def test_everything_was_killed_once(study):
    """The control of the tests below, which hold for a quiet study too."""
    assert {victim for victim, in_time in study[2] if in_time} == set(VICTIMS)


def test_every_round_is_closed_exactly_once_over_a_quorum(study):
    assert len(study[0].survivors()) == ROUNDS
    assert all(len(names) >= 2 for names in study[0].survivors())


def test_all_sites_end_with_the_same_adapter_and_it_is_the_right_one(study):
    made, found, _ = study
    expected = np.zeros(N_PARAMS)
    for names in made.survivors():
        expected += np.mean([update_of(name) for name in names], axis=0)
    assert all((one == found[0]).all() for one in found)
    step = 0.01 / 2**8  # stochastic rounding moves a value by less than one step a round
    assert np.abs(found[0] - expected).max() < ROUNDS * step


def test_each_sites_personal_adapter_holds_each_round_that_it_trained_in_once(study):
    """A site's update is always the same here, so T of them move its adapter by sqrt(T) times one of them."""
    made, found, _ = study
    std = update_noise_std(JoinedStudy.open(made.sites["north"]).study)
    for (name, site), published in zip(made.sites.items(), found, strict=True):
        own = site.path / "studies" / "demo" / "personal"
        moved = (np.load(own / "published.npy") - published).astype(np.float64)
        one = 0.002 * update_of(name).astype(np.float64) / std
        rounds = (moved @ one / (one @ one)) ** 2
        with Ledger.open(site.ledger, None) as ledger:
            trained = [made.what for made in ledger.books.reservations.values() if made.released_sha256]
        assert rounds == pytest.approx(trained.count(TRAINING), rel=1e-3)
        assert "must not be shared" in (own / "README.md").read_text()


def test_no_round_was_charged_twice_and_every_round_that_was_sent_is_charged(study):
    """A site that was dead when a round began is not in it, and is not charged for it."""
    made = study[0]
    for name, site in made.sites.items():
        with Ledger.open(site.ledger, None) as ledger:
            charged = [one.round for one in ledger.books.reservations.values() if one.what == TRAINING]
        sent = {event["round"] for event in made.events(name) if event["event"] == "uploaded"}
        summed = {number for number, names in enumerate(made.survivors(), start=1) if name in names}
        assert len(charged) == len(set(charged))
        assert summed <= sent <= set(charged) <= set(range(1, ROUNDS + 1))


def test_the_server_and_its_folder_hold_no_key_of_the_epoch(study):
    made = study[0]
    secrets = [path for site in made.sites.values() for path in site.path.glob("*.key")]
    content = b"".join(path.read_bytes() for path in made.server.path.rglob("*") if path.is_file())
    assert len(secrets) >= len(NAMES)
    for secret in secrets:
        raw = secret.read_bytes()
        assert raw not in content
        assert raw[len(raw) // 2 : len(raw) // 2 + 24] not in content
