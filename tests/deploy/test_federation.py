"""A real federation through `kill -9`: SuperLink, ServerApp and a worker die, and the study ends as if none had."""

from __future__ import annotations

import json
import os
import signal

import numpy as np
import psutil
import pytest

from secure_triplay.ledger.ledger import TRAINING, Ledger

from .conftest import NAMES, Federation, running
from .light_worker import N_PARAMS, update_of

ROUNDS = 2


def kill_one(*parts: str) -> int:
    """`kill -9` for the one process whose command line has all these parts."""
    found = [
        process
        for process in psutil.process_iter(["cmdline"])
        if all(any(part in word for word in process.info["cmdline"] or ()) for part in parts)
    ]
    assert len(found) == 1, [process.info["cmdline"] for process in found]
    os.kill(found[0].pid, signal.SIGKILL)
    return found[0].pid


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A finished study in which everything was killed once."""
    made = Federation.make(tmp_path_factory.mktemp("federation"), rounds=ROUNDS)
    with running(made):
        made.start_server()
        for name in NAMES:
            made.start_site(name)
        made.start_run()
        made.until(lambda: any(event["event"] == "uploaded" for event in made.events("east")))
        kill_one("light_worker.py", str(made.sites["east"].path))
        made.until(lambda: made.closed() >= 1)
        pid = json.loads((made.server.path / "rounds" / "running.json").read_text())["pid"]
        os.kill(pid, signal.SIGKILL)
        kill_one("superlinkmain", str(made.server.path))
        assert made.ended("run") == 0
        for name in NAMES:
            assert made.ended(name) == 0
        yield made


def test_every_round_is_closed_exactly_once_over_a_quorum(study):
    assert all(len(names) >= 2 for names in study.survivors())


def test_all_sites_end_with_the_same_adapter_and_it_is_the_right_one(study):
    expected = np.zeros(N_PARAMS)
    for names in study.survivors():
        expected += np.mean([update_of(name) for name in names], axis=0)
    found = [
        np.load(site.path / "studies" / "demo" / "adapter" / "published.npy") for site in study.sites.values()
    ]
    assert all((one == found[0]).all() for one in found)
    step = 0.01 / 2**8  # stochastic rounding moves a value by less than one step a round
    assert np.abs(found[0] - expected).max() < ROUNDS * step


def test_no_round_was_charged_twice_and_no_charge_was_given_back(study):
    for site in study.sites.values():
        with Ledger.open(site.ledger, None) as ledger:
            rounds = [made.round for made in ledger.books.reservations.values() if made.what == TRAINING]
            assert sorted(rounds) == list(range(1, ROUNDS + 1))


def test_the_server_and_its_folder_hold_no_key_of_the_epoch(study):
    secrets = [path for site in study.sites.values() for path in site.path.glob("*.key")]
    content = b"".join(path.read_bytes() for path in study.server.path.rglob("*") if path.is_file())
    for secret in secrets:
        raw = secret.read_bytes()
        assert raw not in content
        assert raw[len(raw) // 2 : len(raw) // 2 + 24] not in content
