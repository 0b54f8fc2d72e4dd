"""The federation in one process gives what real ciphertexts give, and the figures are what they say."""

from __future__ import annotations

import numpy as np
import pytest

from secure_triplay.client.ckks import CkksSecretKey
from secure_triplay.client.optimiser import GlobalState, step
from secure_triplay.config import ServerOptimiser
from secure_triplay.crypto.codec import Codec
from secure_triplay.crypto.packing import add_mod
from secure_triplay.crypto.wrapping import WrappingCodec
from secure_triplay.experiments.federation import one_round
from secure_triplay.experiments.scores import Answers, Truth, score, thirds
from secure_triplay.privacy.noise import NoiseSource

N_PARAMS = 9_000
WEIGHTS = {"north": 1.0, "south": 0.5, "west": 2.0}


class Fixed:
    """A learner whose update does not depend on anything."""

    def __init__(self, update):
        self._update = update

    def update(self, adapter):
        return self._update


@pytest.mark.parametrize("kind", ["fedavg", "fedadam"])
def test_a_round_added_in_the_clear_equals_one_through_real_ciphertexts_bit_for_bit(kind):
    draw = np.random.default_rng(0)
    updates = {name: draw.normal(0, 0.2, N_PARAMS).astype(np.float32) for name in WEIGHTS}
    codec = Codec.choose(n_sites=len(WEIGHTS), value_bits=9, n_params=N_PARAMS, limit=1.0)
    rule = ServerOptimiser(kind=kind, learning_rate=0.5)
    start = GlobalState.start(draw.normal(0, 1, N_PARAMS).astype(np.float32))

    def noises():  # the same stochastic rounding both times
        return {name: NoiseSource.unsafe_from_seed(seed) for seed, name in enumerate(WEIGHTS)}

    clear = one_round(
        start, {name: Fixed(update) for name, update in updates.items()}, noises(), codec, WEIGHTS, rule
    )

    key, rounding = CkksSecretKey.generate(codec.parameters), noises()
    total, seeds = None, []
    for name, update in updates.items():
        slots = codec.to_slots(codec.quantise(update * np.float32(WEIGHTS[name] / 2.0), rounding[name]))
        sealed = key.encrypt(slots, codec.encode_tolerance)
        seeds.append(sealed.seed)
        if total is None:
            total = sealed.c0.copy()
        else:
            add_mod(total, sealed.c0)
    opened = codec.sum_from_slots(key.decrypt(total, seeds), len(WEIGHTS))
    mean = codec.mean(opened, len(WEIGHTS)) * 3 / (sum(WEIGHTS.values()) / 2.0)
    encrypted = step(start, mean, rule)

    assert np.array_equal(clear.adapter, encrypted.adapter)
    assert np.abs(clear.adapter - start.adapter).max() > 0.01
    assert clear.round == encrypted.round == 1


def test_the_mean_of_a_round_is_weighted_by_the_public_weights():
    updates = {"north": np.full(10, 0.5, np.float32), "south": np.full(10, -0.25, np.float32)}
    weights = {"north": 3.0, "south": 1.0}
    codec = Codec.choose(n_sites=2, value_bits=16, n_params=10, limit=1.0)
    found = one_round(
        GlobalState.start(np.zeros(10, np.float32)),
        {name: Fixed(update) for name, update in updates.items()},
        {name: NoiseSource() for name in updates},
        codec,
        weights,
        ServerOptimiser(),
    )
    assert found.adapter == pytest.approx(np.full(10, (3 * 0.5 - 0.25) / 4), abs=2 * codec.step)


def test_figures_of_a_cell_by_hand():
    truth = Truth(
        test=np.array([0, 0, 1, 1, 2, 2]),
        held_back={"north": np.array([0, 1]), "south": np.array([2])},
        trained_on=np.array([50, 5, 500]),
    )
    found = score(
        Answers(
            test={"north": np.array([0, 0, 0, 0, 2, 2]), "south": np.array([2, 2, 1, 2, 2, 2])},
            held_back={"north": np.array([0, 0]), "south": np.array([2])},
        ),
        truth,
    )
    assert found["accuracy"] == pytest.approx((4 / 6 + 3 / 6) / 2)
    assert found["worst_site_public"] == pytest.approx(3 / 6)
    assert found["by_site"] == {"north": 0.5, "south": 1.0}
    assert found["worst_site"] == 0.5
    assert found["by_class"] == pytest.approx([0.5, 0.25, 1.0])
    assert (found["head"], found["middle"], found["tail"]) == pytest.approx((1.0, 0.5, 0.25))
    assert found["worst_class"] == pytest.approx(0.25)


def test_thirds_hold_each_class_once_with_the_odd_ones_in_the_middle():
    parts = thirds(np.array([3, 9, 1, 7, 5, 2, 8]))
    assert parts == {"head": [1, 6], "middle": [3, 4, 0], "tail": [5, 2]}


def test_nothing_held_back_gives_no_figure_for_the_worst_site():
    truth = Truth(np.array([0, 1]), {"north": np.empty(0, np.int64)}, np.array([1, 1]))
    found = score(Answers({"": np.array([0, 0])}, {"north": np.empty(0, np.int64)}), truth)
    assert found["worst_site"] is None
    assert found["accuracy"] == 0.5


class Integers:
    """A learner in a study with shared noise: integers that do not depend on anything."""

    def __init__(self, made):
        self._made = made

    def noised_sum(self, adapter):
        return self._made


@pytest.mark.parametrize("width", [2**9, 2**40])
def test_a_round_with_shared_noise_is_what_words_modulo_their_size_give(width):
    """The second is far too wide, and wraps as the words would."""
    draw, rule = np.random.default_rng(0), ServerOptimiser(kind="fedavg", learning_rate=1.0)
    n_params = 3 * 4096  # no padding, into which they would be seen to wrap
    codec = WrappingCodec.for_sums(n_sites=3, n_params=n_params, bits=12, step=0.5)
    assert codec.values_per_chunk == n_params
    made = {name: draw.integers(-width, width, n_params) for name in WEIGHTS}
    start = GlobalState.start(np.zeros(n_params, np.float32))
    got = one_round(
        start, {n: Integers(m) for n, m in made.items()}, {}, codec, dict.fromkeys(WEIGHTS, 1.0), rule
    )
    words = sum(codec.pack(part) for part in made.values()) % (1 << codec.word_bits)
    expected = step(start, codec.mean(codec.unpack(words, 3), 3) * 3 / 3.0, rule)
    assert got.to_bytes() == expected.to_bytes()
    if width == 2**9:
        assert got.adapter == pytest.approx(sum(made.values()) * 0.5 / 3)
