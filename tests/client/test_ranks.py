"""Sites of different ranks: the sum stays exact, and each column's mean is over the sites that train it."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from secure_triplay.config import parse_study
from secure_triplay.errors import ConfigError
from secure_triplay.model.adapter import draw_a
from secure_triplay.model.ranks import Ranks, ranks_of

SHAPES = ((5, 4), (3, 4))  # two B's of rank 4
N_PARAMS = 4 * (5 + 3)
RANKS = {"site-0": 4, "site-1": 1, "site-2": 2}
WEIGHTS = {"site-0": 1.0, "site-1": 2.0, "site-2": 0.5}


@pytest.fixture
def ranks(demo) -> Ranks:
    demo["sites"] = [
        {"name": name, "weight": WEIGHTS[name], **({} if rank == 4 else {"rank": rank})}
        for name, rank in RANKS.items()
    ]
    demo["adapter"]["rank"] = 4
    return ranks_of(parse_study(demo), SHAPES)


def padded(ranks: Ranks, seed: int) -> dict[str, np.ndarray]:
    """Each site's update as B's (out, rank) of its own rank, zero-padded: multiples of a level, so nothing rounds."""
    draw = np.random.default_rng(seed)
    level = 1.0 / 2047  # of 12 bits and limit 1
    found = {}
    for name, rank in RANKS.items():
        parts = []
        for out, full in SHAPES:
            b = np.zeros((out, full))
            b[:, :rank] = draw.integers(-900, 900, (out, rank)) * level
            parts.append(b.reshape(-1))
        found[name] = np.concatenate(parts).astype(np.float32)
        assert not found[name][~ranks.trained(name)].any()
    return found


def by_hand(sent: dict[str, np.ndarray], who: list[str]) -> list[float]:
    """Column by column over plain numbers: weighted values of who trains it, over the weights of who trains it."""
    means, place = [], 0
    for out, full in SHAPES:
        for row in range(out):
            for column in range(full):
                index = place + row * full + column
                trains = [name for name in who if RANKS[name] > column]
                level = [round(float(sent[name][index]) * WEIGHTS[name] / 2.0 * 2047) for name in trains]
                weight = sum(Fraction(WEIGHTS[name]) for name in trains)
                means.append(float(Fraction(sum(level), 2047) / (weight / 2)) if trains else 0.0)
        place += out * full
    return means


def test_a_sum_of_three_ranks_through_real_ciphertexts_is_the_plain_sum_column_by_column(
    federation_of, ranks
):
    sent = {
        name: np.round(values * 2047 / 4) * 4 / np.float32(2047) for name, values in padded(ranks, 1).items()
    }
    sent = {name: values.astype(np.float32) for name, values in sent.items()}  # quarters survive the weights
    federation = federation_of(list(sent.values()), weights=list(WEIGHTS.values()))
    federation.members = {name: replace(member, ranks=ranks) for name, member in federation.members.items()}
    message = federation.summed(list(federation.uploads().values()))
    states = [federation.opened(name, federation.start, message) for name in RANKS]
    expected = by_hand(sent, list(RANKS))
    # stochastic rounding moves a value by less than one level, and leaves an exact zero alone
    assert states[0].adapter == pytest.approx(expected, abs=2 * federation.codec.step * 3)
    assert all(np.array_equal(state.adapter, states[0].adapter) for state in states)
    third = ranks.columns >= 2
    alone = sent["site-0"][third]  # nobody else trains these: their mean is site 0's own, not a third of it
    assert states[0].adapter[third] == pytest.approx(alone, abs=2 * federation.codec.step)
    assert np.abs(alone).max() > 0.1


def test_the_mean_by_column_is_the_one_by_hand_whoever_survives(ranks):
    sent = padded(ranks, 2)
    for who in (["site-0", "site-1", "site-2"], ["site-1", "site-2"], ["site-1"]):
        plain = np.mean([sent[name].astype(np.float64) * WEIGHTS[name] / 2.0 for name in who], axis=0)
        assert ranks.mean(plain, who) == pytest.approx(by_hand(sent, who), abs=1e-3)
    plain = np.mean([sent["site-1"].astype(np.float64), sent["site-2"].astype(np.float64)], axis=0)
    assert not ranks.mean(plain, ["site-1", "site-2"])[ranks.columns >= 2].any()  # nobody trained these


def test_a_site_of_lower_rank_shares_the_first_rows_of_the_public_a():
    assert np.array_equal(
        draw_a(b"seed", "layer.lora_A", (8, 64))[:3], draw_a(b"seed", "layer.lora_A", (3, 64))
    )


def test_studies_whose_sites_are_alike_have_no_ranks_and_impossible_ranks_are_refused(demo):
    assert ranks_of(parse_study(demo), SHAPES) is None
    for change, said in (
        ({"rank": 65}, "at most adapter.rank"),
        ({"rank": 0}, "rank"),
    ):
        sites = [{**demo["sites"][0], **change}, *demo["sites"][1:]]
        with pytest.raises(ConfigError, match=said):
            parse_study({**demo, "sites": sites})
    with pytest.raises(ConfigError, match="no site trains all columns"):
        parse_study({**demo, "sites": [{**site, "rank": 2} for site in demo["sites"]]})
    lora = {**demo, "adapter": {**demo["adapter"], "kind": "lora", "basis": "seed", "output_rank": None}}
    with pytest.raises(ConfigError, match="kind ffa"):
        parse_study({**lora, "sites": [{**demo["sites"][0], "rank": 2}, *demo["sites"][1:]]})
