"""Faults at every step of a round, by seed: the round's result is the undisturbed one, or it was declared failed."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from federation_driver import BadWire, Federation, closing, survive

from secure_triplay.crypto.masking import MaskingParameters
from secure_triplay.ledger.entries import Reserved, Settled


def run(folder, seed: int, n_sites: int = 3, masking: MaskingParameters | None = None) -> str:
    """One seeded schedule, with every invariant checked after it; how it ended."""
    schedule = random.Random(seed)
    rates = {
        "drop": schedule.choice([0.0, 0.05, 0.15]),
        "copy": schedule.choice([0.0, 0.2]),
        "keep": schedule.choice([0.0, 0.1]),
        "alter": schedule.choice([0.0, 0.03]),
    }
    quorum = 2 if masking is None else masking.threshold
    with closing(Federation(folder, n_sites, rounds=2, quorum=quorum, masking=masking)) as federation:
        wire = BadWire(schedule, **rates)
        ended = survive(federation, schedule, wire, kills=schedule.randrange(1, 6))
        assert ended == "finished" or "failed" in ended or "signed the sum" in ended or "masks" in ended
        undisturbed = federation.oracle()
        for index, state in federation.states().items():
            assert state.to_bytes() == undisturbed[state.round].to_bytes(), f"site {index}, {rates}"
        if ended == "finished":
            assert max(state.round for state in federation.states().values()) == 2
        assert all(len(sent) == 1 for sent in wire.uploads.values()), "a retry sent other bytes"
        assert all(len(signed) == 1 for signed in wire.signatures.values()), "a site signed two sums"
        assert all(len(shown) == 1 for shown in wire.shares.values()), "a site revealed two kinds of share"
        for site in federation.sites.values():
            books_are_kept(site.ledger.chain.entries)
        return ended


def books_are_kept(entries) -> None:
    """No charge twice, none released twice, and none taken back (the chain only grows)."""
    reserved = [entry.body.round for entry in entries if isinstance(entry.body, Reserved)]
    settled = [entry.body.reservation for entry in entries if isinstance(entry.body, Settled)]
    assert len(set(reserved)) == len(reserved)
    assert len(set(settled)) == len(settled)
    assert all(before.counter + 1 == after.counter for before, after in pairwise(entries))


ENDED: dict[int, str] = {}


@pytest.mark.parametrize("seed", range(60))
def test_after_any_faults_the_result_is_the_undisturbed_one_or_the_round_was_declared_failed(seed, tmp_path):
    ENDED[seed] = run(tmp_path, seed)


def test_most_schedules_end_the_study_in_spite_of_their_faults(tmp_path):
    """The control of the test above, which would pass if every round failed."""
    ends = [ENDED.get(seed) or run(tmp_path / str(seed), seed) for seed in range(60)]
    assert ends.count("finished") >= 45


MASKED: dict[int, str] = {}


@pytest.mark.parametrize("seed", range(20))
def test_masked_rounds_keep_the_same_promise(seed, tmp_path):
    MASKED[seed] = run(tmp_path, seed, 4, MaskingParameters.derive(4))


def test_most_masked_schedules_end_the_study_in_spite_of_their_faults(tmp_path):
    ends = [
        MASKED.get(seed) or run(tmp_path / str(seed), seed, 4, MaskingParameters.derive(4))
        for seed in range(20)
    ]
    assert ends.count("finished") >= 14
