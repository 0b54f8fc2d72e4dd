import dataclasses
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secure_triplay.config import Codec as CodecSettings
from secure_triplay.crypto.codec import Codec
from secure_triplay.crypto.exactness import MAX_RESIDUAL, ROUNDS_PER_EPOCH, noise_std
from secure_triplay.crypto.parameters import DEGREE, MODULUS
from secure_triplay.errors import ConfigError, CryptoError


class Seeded:
    def __init__(self, seed):
        self._generator = np.random.default_rng(seed)

    def uniform(self, shape):
        return self._generator.random(shape)


class Constant:
    def __init__(self, value):
        self._value = value

    def uniform(self, shape):
        return np.full(shape, self._value)


def codec_of(n_sites=32, value_bits=9, n_params=20_000, limit=0.1, **more):
    return Codec.choose(n_sites=n_sites, value_bits=value_bits, n_params=n_params, limit=limit, **more)


def extremes(codec):
    """Updates whose fields are all empty, all full, and in between."""
    ones = np.ones(codec.n_params, np.int64)
    return [0 * ones, codec.max_integer * ones, np.arange(codec.n_params) % (codec.max_integer + 1)]


def test_32_sites_of_9_bits_get_3_fields_of_14_bits_at_scale_16():
    codec = codec_of()
    assert (codec.fields, codec.field_bits, codec.scale_bits) == (3, 14, 16)
    assert codec.values_per_chunk == 12_288


@pytest.mark.parametrize("value_bits", [2, 5, 8, 9, 12, 16])
@pytest.mark.parametrize("n_sites", [1, 2, 3, 8, 32, 33, 100, 1000])
def test_chosen_parameters_keep_every_bound_of_the_docstring(n_sites, value_bits):
    """The bounds again, in exact or independent arithmetic."""
    codec = codec_of(n_sites, value_bits, 1_000_000)
    assert n_sites * codec.max_integer < 2**codec.field_bits
    largest = sum(codec.max_integer << (codec.field_bits * j) for j in range(codec.fields))
    reach = n_sites * Fraction(largest + 1, 2)
    scale = 2**codec.scale_bits
    assert 2 * (reach * scale) ** 2 < Fraction(MODULUS - 50 * n_sites, 2) ** 2
    floats = 32 * math.sqrt(2) * float(reach) / 2**53
    error = n_sites * codec.encode_tolerance + floats
    reals = codec.n_chunks * DEGREE * ROUNDS_PER_EPOCH
    proxy = n_sites * 10.5 * DEGREE / 2 / scale**2
    for distance, bits in ((0.5, 128), (MAX_RESIDUAL, 64)):
        assert error < distance
        assert math.log(2 * reals) - (distance - error) ** 2 / (2 * proxy) <= -bits * math.log(2)


def test_failure_bounds_reported_are_those_promised():
    for n_sites in (2, 32, 1000):
        assert codec_of(n_sites).wrong_log2() <= -128
        assert codec_of(n_sites).refused_log2() <= -64


def test_encoder_tolerance_leaves_honest_rounding_nine_standard_deviations():
    for n_sites in (1, 2, 32, 1000):
        codec = codec_of(n_sites)
        assert codec.encode_tolerance * 2**codec.scale_bits > 9 * math.sqrt(DEGREE / 24)


@pytest.mark.parametrize("n_sites", [1, 2, 31, 32, 1000])
def test_sums_in_plain_slots_decode_to_plain_integer_sums(n_sites):
    codec = codec_of(n_sites, n_params=20_000)
    rng = np.random.default_rng(n_sites)
    for integers in [*extremes(codec), rng.integers(0, codec.max_integer + 1, codec.n_params)]:
        slots = codec.to_slots(integers) * n_sites
        assert np.array_equal(codec.sum_from_slots(slots, n_sites), integers * n_sites)


@given(st.integers(1, 200), st.integers(2, 16), st.integers(1, 9000), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_different_sites_sum_exactly_for_any_parameters(n_sites, value_bits, n_params, seed):
    codec = codec_of(n_sites, value_bits, n_params)
    rng = np.random.default_rng(seed)
    n_terms = int(rng.integers(1, min(n_sites, 4) + 1))
    parts = [rng.integers(0, codec.max_integer + 1, n_params) for _ in range(n_terms)]
    slots = sum(codec.to_slots(part) for part in parts) + rng.uniform(-0.24, 0.24)
    assert np.array_equal(codec.sum_from_slots(slots, n_terms), sum(parts))


def test_mean_is_within_a_step_of_the_plain_mean_and_clipped_to_the_range():
    codec = codec_of(n_sites=4)
    deltas = [np.random.default_rng(i).normal(0, 0.08, codec.n_params).astype(np.float32) for i in range(4)]
    slots = sum(codec.encode(delta, Seeded(i)) for i, delta in enumerate(deltas))
    plain = np.mean([np.clip(delta.astype(np.float64), -0.1, 0.1) for delta in deltas], axis=0)
    mean = codec.decode(slots, 4)
    assert mean.dtype == np.float64
    assert np.abs(mean - plain).max() < codec.step
    assert np.abs(mean).max() <= 0.1 * (1 + 1e-12)


def test_rounding_is_unbiased():
    codec = codec_of(n_sites=1, n_params=400_000, limit=1.0)
    for value in (0.3337, -0.7219, 1e-4):
        integers = codec.quantise(np.full(codec.n_params, value, np.float32), Seeded(7))
        exact = float(np.float32(value)) / codec.step + codec.levels
        assert set(np.unique(integers)) <= {math.floor(exact), math.ceil(exact)}
        assert abs(integers.mean() - exact) < 5 * 0.5 / math.sqrt(codec.n_params)


def test_levels_and_zero_are_hit_whatever_the_randomness_says():
    codec = codec_of(n_sites=1, n_params=3, limit=0.25)
    for randomness in (Constant(0.0), Constant(1 - 2**-53)):
        integers = codec.quantise(np.array([-0.25, 0.0, 0.25], np.float32), randomness)
        assert integers.tolist() == [0, codec.levels, 2 * codec.levels]
        far = codec.quantise(np.array([-3e38, 0.0, 3e38], np.float32), randomness)
        assert far.tolist() == integers.tolist()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", [0, -1])
def test_update_that_is_not_finite_is_refused(bad, where):
    codec = codec_of()
    delta = np.zeros(codec.n_params, np.float32)
    delta[where] = bad
    with pytest.raises(CryptoError, match="NaN"):
        codec.encode(delta, Seeded(0))


def test_update_of_another_size_or_type_is_refused():
    codec = codec_of()
    for bad in (
        np.zeros(codec.n_params + 1, np.float32),
        np.zeros(codec.n_params),
        np.zeros((codec.n_params, 1), "f4"),
    ):
        with pytest.raises(CryptoError, match="update"):
            codec.quantise(bad, Seeded(0))


def test_integer_outside_its_field_is_not_encoded():
    codec = codec_of()
    for bad in (-1, codec.max_integer + 1):
        integers = np.zeros(codec.n_params, np.int64)
        integers[17] = bad
        with pytest.raises(CryptoError, match="fit"):
            codec.to_slots(integers)


def test_residual_above_three_eighths_is_refused_and_below_is_not():
    codec = codec_of()
    slots = codec.to_slots(extremes(codec)[2])
    for part in (1, 1j):
        for residual, fine in ((0.37, True), (0.38, False), (-0.38, False), (np.nan, False), (np.inf, False)):
            moved = slots.copy()
            moved[-1, 5] += residual * part
            if fine:
                codec.sum_from_slots(moved, 1)
            else:
                with pytest.raises(CryptoError, match="does not decode"):
                    codec.sum_from_slots(moved, 1)


def test_value_out_of_reach_of_an_honest_sum_is_refused():
    codec = codec_of(n_sites=4, n_params=4096 * 4)
    full = codec.to_slots(extremes(codec)[1])
    two = 2 * full
    codec.sum_from_slots(two, 2)
    one_more = two.copy()
    one_more[0, 0] += 1
    for slots, n_terms in ((two, 1), (one_more, 2), (two * 2**8, 2), (-two * 2, 2), (two * 1e9, 2)):
        with pytest.raises(CryptoError, match="does not decode"):
            codec.sum_from_slots(slots, n_terms)


def test_padding_that_is_not_empty_is_refused():
    codec = codec_of(n_params=codec_of().values_per_chunk - 1)
    slots = codec.to_slots(extremes(codec)[0])
    slots[0, -1] += 1j * 2 ** (codec.field_bits * (codec.fields - 1))
    with pytest.raises(CryptoError, match="does not decode"):
        codec.sum_from_slots(slots, 1)


@pytest.mark.parametrize("n_terms", [0, -1, 33])
def test_impossible_number_of_terms_is_refused(n_terms):
    codec = codec_of()
    with pytest.raises(CryptoError):
        codec.sum_from_slots(codec.to_slots(extremes(codec)[0]), n_terms)


def test_every_refusal_of_a_sum_reads_the_same():
    codec = codec_of(n_sites=4)
    good = codec.to_slots(extremes(codec)[2])
    messages = set()
    for slots, n_terms in ((good + 0.4, 1), (good * 50, 1), (good[:-1], 1), (good, 9), (good * np.nan, 1)):
        with pytest.raises(CryptoError) as refusal:
            codec.sum_from_slots(slots, n_terms)
        messages.add(str(refusal.value))
    assert len(messages) == 1


@pytest.mark.parametrize(
    "wrong",
    [{"n_sites": 0}, {"n_params": 0}, {"value_bits": 1}, {"value_bits": 25}, {"limit": 0.0},
     {"limit": math.nan},
     {"limit": math.inf}, {"limit": -1.0}, {"n_sites": 2**20, "value_bits": 24},
     {"n_sites": 2**20, "value_bits": 24, "masked": True}],
)  # fmt: skip
def test_what_does_not_fit_is_refused_with_a_way_out(wrong):
    with pytest.raises(ConfigError) as refusal:
        codec_of(**wrong)
    assert refusal.value.fix
    assert refusal.value.where == "codec"


@pytest.mark.parametrize(
    "change", [{"scale_bits": 15}, {"scale_bits": 18}, {"fields": 4}, {"field_bits": 13}]
)
def test_codec_made_by_hand_keeps_the_same_bounds(change):
    with pytest.raises(ConfigError):
        dataclasses.replace(codec_of(n_params=1_000_000), **change)


def test_masked_words_cancel_modulo():
    """Issue 7's arithmetic: masks modulo 2^W cancel inside the exact sum."""
    n_sites = 32
    codec = codec_of(n_sites, 9, 10_000, masked=True)
    assert (codec.field_bits, codec.fields) == (14, 3)
    rng = np.random.default_rng(0)
    values = rng.integers(0, 2 * codec.levels + 1, (n_sites, codec.n_params))
    masks = rng.integers(0, 2**codec.word_bits, (n_sites, codec.n_words))
    masks[-1] = -masks[:-1].sum(0) % 2**codec.word_bits
    words = [(codec.pack(v) + m) % 2**codec.word_bits for v, m in zip(values, masks, strict=True)]
    sums = codec.sum_from_slots(sum(codec.to_slots(each) for each in words), n_sites) % 2**codec.word_bits
    assert np.array_equal(codec.unpack(sums, n_sites), values.sum(0))


def test_mean_refuses_a_sum_that_is_still_masked():
    codec = codec_of(2, 9, 10, masked=True)
    with pytest.raises(CryptoError):
        codec.mean(np.full(10, 2 * 2 * codec.levels + 1), 2)


def test_noise_of_a_sum_grows_with_the_root_of_the_sites():
    assert noise_std(32, 16) == pytest.approx(math.sqrt(32 * 10.5 * 2048) / 65536)


def test_field_below_zero_is_refused_even_where_all_others_are_empty():
    codec = codec_of(n_sites=4, n_params=4096 * 4)
    assert codec.n_params == codec.n_chunks * codec.values_per_chunk
    slots = codec.to_slots(extremes(codec)[0])
    slots[0, 0] -= 2 ** (codec.field_bits * (codec.fields - 1))
    with pytest.raises(CryptoError, match="does not decode"):
        codec.sum_from_slots(slots, 1)


def test_wrong_integers_are_excluded_on_their_own_account(monkeypatch):
    monkeypatch.setattr("secure_triplay.crypto.exactness.REFUSED_BITS", -(10**9))
    assert codec_of(n_sites=4).wrong_log2() <= -128
    monkeypatch.setattr("secure_triplay.crypto.exactness.WRONG_BITS", -(10**9))
    assert codec_of(n_sites=4).wrong_log2() > -128


def test_a_study_that_names_no_bits_loses_less_than_half_a_percent_of_the_noises_variance_to_rounding():
    """Stochastic rounding has a variance of at most a quarter of a step squared; the range is told in the noise's."""
    default = CodecSettings()
    levels = codec_of(n_sites=8, value_bits=default.value_bits).levels
    step_in_stds = default.range_noise_stds / levels
    assert step_in_stds**2 / 4 < 0.004
