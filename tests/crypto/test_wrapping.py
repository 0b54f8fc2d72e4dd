"""Words modulo 2^W hold sums of integers of any size, and say nothing but the sum."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secure_triplay.crypto.codec import Codec
from secure_triplay.crypto.wrapping import WrappingCodec
from secure_triplay.errors import ConfigError, CryptoError

N_PARAMS = 20_000


def codec_of(n_sites=4, bits=14, n_params=N_PARAMS, step=0.5) -> WrappingCodec:
    return WrappingCodec.for_sums(n_sites=n_sites, n_params=n_params, bits=bits, step=step)


def slow_word(codec, values: list[int]) -> int:
    """The word of one column of values, lowest field first, in Python's integers."""
    return sum(v << (codec.field_bits * j) for j, v in enumerate(values)) % (1 << codec.word_bits)


def added(codec, parts) -> np.ndarray:
    """What is left of masked words when masks are off: their sum modulo 2^W."""
    total = [sum(int(word) for word in words) % (1 << codec.word_bits) for words in zip(*parts, strict=True)]
    return np.array(total, np.int64)


INTEGERS = st.integers(-(2**62), 2**62)


@settings(max_examples=50, deadline=None)
@given(values=st.lists(INTEGERS, min_size=3, max_size=3), bits=st.sampled_from([6, 9, 14]))
def test_a_word_is_the_formula_in_python_integers(values, bits):
    codec = codec_of(bits=bits, n_params=4096 * 3)
    planes = np.zeros((codec.n_chunks * codec.fields, 4096), np.int64)
    flat = planes.reshape(-1)[: codec.n_params].reshape(3, 4096)
    flat[:, 7] = values
    words = codec.pack(planes.reshape(-1)[: codec.n_params])
    columns = planes.reshape(codec.n_chunks, codec.fields, 4096)
    for chunk in range(codec.n_chunks):
        expected = slow_word(codec, [int(v) for v in columns[chunk, :, 7]])
        assert words[chunk * 4096 + 7] == expected


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    n=st.integers(1, 4),
    bits=st.sampled_from([4, 5, 11, 14, 21, 40]),
    data=st.data(),
)
def test_sums_within_their_bits_are_read_exactly_whatever_single_sites_send(seed, n, bits, data):
    """Sites' own integers are as wide as they like; the last one brings the sum into its range, to its very edges."""
    codec, draw = codec_of(bits=bits, n_params=9_000), np.random.default_rng(seed)
    half = 1 << (codec.field_bits - 1)
    wanted = draw.integers(-half, half, 9_000)
    wanted[draw.random(9_000) < 0.3] = data.draw(st.sampled_from([-half, half - 1, 0, -1, 1]))
    parts = [draw.integers(-(2**60), 2**60, 9_000) for _ in range(n - 1)]
    parts.append(wanted - sum(parts, np.zeros(9_000, np.int64)))
    got = codec.unpack(added(codec, [codec.pack(part) for part in parts]), n)
    assert (got == wanted).all()
    assert codec.mean(got, n) == pytest.approx(wanted * 0.5 / n)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_two_ways_to_the_same_sum_leave_the_same_words_even_where_it_wraps(seed):
    """What is unmasked is a function of the sum: this is why wrapping costs no privacy."""
    codec, draw = codec_of(bits=5, n_params=6_000), np.random.default_rng(seed)
    total = draw.integers(-(2**40), 2**40, 6_000)
    ways = []
    for _ in range(2):
        first, second = draw.integers(-(2**60), 2**60, (2, 6_000))
        ways.append(added(codec, [codec.pack(part) for part in (first, second, total - first - second)]))
    assert (ways[0] == ways[1]).all()
    assert (ways[0] == codec.pack(total)).all()


def test_reducing_each_field_by_itself_would_tell_of_single_sites():
    """The mistake that is not made here: the same sum in two ways, and carries between fields tell them apart."""
    codec = codec_of(bits=5, n_params=6_000)
    size = 1 << codec.field_bits

    def by_field(values):
        return codec.pack(values % size)

    one = np.full(6_000, size - 1)
    assert (added(codec, [by_field(one), by_field(-one)]) != added(codec, [by_field(0 * one)] * 2)).any()
    assert (added(codec, [codec.pack(one), codec.pack(-one)]) == codec.pack(0 * one)).all()


def test_no_room_is_kept_for_the_number_of_sites():
    assert codec_of(n_sites=4, bits=21).field_bits == 21
    assert codec_of(n_sites=4, bits=21).fields == 2
    assert codec_of(n_sites=4, bits=21).limit == 0.5 * 2**20
    assert codec_of(n_sites=1000, bits=5).field_bits == 12  # as much as the number of sites needs to be told


@pytest.mark.parametrize(("n_sites", "bits"), [(4, 50), (4, 53), (1000, 45)])
def test_sums_that_fit_no_real_are_refused(n_sites, bits):
    with pytest.raises(ConfigError, match="do not fit"):
        codec_of(n_sites=n_sites, bits=bits)


def test_numbers_that_would_not_be_exact_are_refused_however_they_come():
    codec = codec_of()
    for change in ({"scale_bits": 8}, {"fields": 5}, {"limit": float("nan")}):
        with pytest.raises(ConfigError):
            dataclasses.replace(codec, **change)


def test_a_plain_update_has_no_way_into_a_sum_of_shared_noise():
    codec = codec_of()
    with pytest.raises(CryptoError, match="no place"):
        codec.quantise(np.zeros(N_PARAMS, np.float32), None)
    assert isinstance(codec, Codec)
    assert codec.masked


SHAPES = [
    ((N_PARAMS - 1,), np.int64),
    ((N_PARAMS,), np.int32),
    ((N_PARAMS,), float),
    ((1, N_PARAMS), np.int64),
]


@pytest.mark.parametrize(("shape", "kind"), SHAPES)
def test_other_shapes_and_types_are_not_packed(shape, kind):
    with pytest.raises(CryptoError):
        codec_of().pack(np.zeros(shape, kind))


def test_words_that_no_honest_sum_leaves_are_refused():
    codec = codec_of()
    good = codec.pack(np.arange(N_PARAMS))
    padding, beyond, negative = good.copy(), good.copy(), good.copy()
    padding[-1] += 1 << (codec.field_bits * (codec.fields - 1))
    beyond[0], negative[0] = 1 << codec.word_bits, -1
    for words, terms in ((padding, 2), (beyond, 2), (negative, 2), (good[:-1], 2), (good, 0), (good, 5)):
        with pytest.raises(CryptoError, match="does not decode"):
            codec.unpack(words, terms)
    half = 1 << (codec.field_bits - 1)
    for sums in (np.full(N_PARAMS, half), np.full(N_PARAMS, -half - 1), np.zeros(3, np.int64)):
        with pytest.raises(CryptoError, match="does not decode"):
            codec.mean(sums, 2)
