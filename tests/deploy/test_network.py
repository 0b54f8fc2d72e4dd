"""Four hosts: one site is cut off in the middle of a round and comes back, another one has a slow line."""

from __future__ import annotations

import numpy as np
import pytest

from secure_triplay.deploy.site.light import N_PARAMS, update_of
from secure_triplay.ledger.ledger import TRAINING, Ledger

from .conftest import NAMES, Federation, running
from .network import network, why_not

ROUNDS, CUT_OFF, SLOW = 3, "south", "east"

REASON = why_not()
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A finished study, who was in which round, and how often the slow line was full."""
    with network("server", *NAMES) as hosts:
        made = Federation.make(
            tmp_path_factory.mktemp("network"), rounds=ROUNDS, deadline_s=45.0, host=hosts.address("server")
        )
        made.inside = {name: hosts.namespace(name) for name in ("server", *NAMES)}
        made.inside["run"] = hosts.namespace("server")
        hosts.slow(SLOW, "1mbit")
        with running(made):
            made.start_server("0.0.0.0")
            for name in NAMES:
                made.start_site(name)
            made.start_run()
            made.until(lambda: made.closed() >= 1)
            hosts.link(CUT_OFF, up=False)
            made.until(lambda: made.closed() >= 2)
            hosts.link(CUT_OFF, up=True)
            assert made.ended("run") == 0
            yield made, made.adapters(), hosts.held_back(SLOW)


def test_the_cut_off_site_missed_a_round_and_the_others_closed_it(study):
    missed = [names for names in study[0].survivors() if CUT_OFF not in names]
    assert missed
    assert all(set(names) == set(NAMES) - {CUT_OFF} for names in missed)


def test_every_site_ends_with_the_right_adapter(study):
    made, found, _ = study
    assert len(made.survivors()) == ROUNDS
    expected = sum(np.mean([update_of(name) for name in names], axis=0) for names in made.survivors())
    assert found[0].shape == (N_PARAMS,)
    assert all((one == found[0]).all() for one in found)
    assert np.abs(found[0] - expected).max() < ROUNDS * 0.01 / 2**8


def test_the_slow_site_took_part_over_a_line_that_was_full(study):
    made, _, held_back = study
    assert held_back > 0
    assert any(SLOW in names for names in made.survivors())


def test_no_round_was_charged_twice(study):
    for site in study[0].sites.values():
        with Ledger.open(site.ledger, None) as ledger:
            rounds = [one.round for one in ledger.books.reservations.values() if one.what == TRAINING]
        assert len(rounds) == len(set(rounds)) <= ROUNDS
