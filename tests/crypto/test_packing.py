import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secure_triplay.crypto.packing import SeededCiphertexts, add_mod, pack60, unpack60
from secure_triplay.crypto.parameters import DEGREE, MODULUS, PACKED_BYTES
from secure_triplay.errors import CryptoError

EDGES = [0, 1, 15, 16, 2**59, 2**32 - 1, MODULUS - 1, MODULUS - 2]


def random_chunks(seed, n_chunks):
    return np.random.default_rng(seed).integers(0, MODULUS, (n_chunks, DEGREE), np.uint64)


def slow_pack(chunk):
    """The layout by big integers: words of 60 bits, their top four bits from the last 256 coefficients."""
    first, rest = [int(v) for v in chunk[:3840]], [int(v) for v in chunk[3840:]]
    words = [value | ((rest[i % 256] >> (4 * (i // 256))) & 15) << 60 for i, value in enumerate(first)]
    return b"".join(word.to_bytes(8, "little") for word in words)


def test_packing_has_the_documented_layout():
    chunks = random_chunks(1, 2)
    assert pack60(chunks) == slow_pack(chunks[0]) + slow_pack(chunks[1])


@given(
    st.integers(0, 2**32),
    st.integers(0, 3),
    st.lists(st.tuples(st.integers(0, DEGREE - 1), st.sampled_from(EDGES)), max_size=8),
)
@settings(max_examples=60, deadline=None)
def test_unpacking_undoes_packing_at_60_bits_a_coefficient(seed, n_chunks, edges):
    chunks = random_chunks(seed, n_chunks)
    for index, value in edges:
        if n_chunks:
            chunks[-1, index] = value
    packed = pack60(chunks)
    assert len(packed) == n_chunks * PACKED_BYTES == n_chunks * DEGREE * 60 // 8
    assert np.array_equal(unpack60(packed, n_chunks), chunks)


@given(st.binary(min_size=64, max_size=64))
@settings(max_examples=50, deadline=None)
def test_accepted_bytes_are_the_only_encoding_of_their_value(noise):
    packed = bytearray(pack60(random_chunks(5, 1)))
    packed[:64] = noise
    try:
        chunks = unpack60(bytes(packed), 1)
    except CryptoError:
        return
    assert pack60(chunks) == bytes(packed)


@pytest.mark.parametrize("length", [0, 1, PACKED_BYTES - 1, PACKED_BYTES + 1, 2 * PACKED_BYTES])
def test_wrong_length_is_refused(length):
    with pytest.raises(CryptoError, match="ciphertexts"):
        unpack60(bytes(length), 1)


@pytest.mark.parametrize("index", [0, 3839, 3840, 4095])
def test_coefficient_not_below_the_modulus_is_refused_both_ways(index):
    chunks = random_chunks(2, 1)
    chunks[0, index] = MODULUS
    with pytest.raises(CryptoError, match="modulus"):
        pack60(chunks)
    with pytest.raises(CryptoError, match="modulus"):
        unpack60(slow_pack(chunks[0]), 1)


def test_other_shapes_and_types_are_refused():
    for bad in (np.zeros((1, 4095), np.uint64), np.zeros(4096, np.uint64), np.zeros((1, 4096), np.int64)):
        with pytest.raises(CryptoError):
            pack60(bad)


@given(st.lists(st.tuples(st.integers(0, MODULUS - 1), st.integers(0, MODULUS - 1)), min_size=1, max_size=50))
def test_addition_is_that_of_python_integers_modulo_q(pairs):
    pairs += [(a, MODULUS - a if a else 0) for a, _ in pairs] + [(MODULUS - 1, MODULUS - 1), (0, 0)]
    total, more = (np.array(side, np.uint64) for side in zip(*pairs, strict=True))
    add_mod(total, more)
    assert [int(v) for v in total] == [(a + b) % MODULUS for a, b in pairs]


def test_addition_refuses_what_could_overflow_or_broadcast():
    good = np.zeros((2, DEGREE), np.uint64)
    for bad in (
        np.zeros((1, DEGREE), np.uint64),
        np.full((2, DEGREE), MODULUS, np.uint64),
        good.astype(np.int64),
    ):
        with pytest.raises(CryptoError):
            add_mod(good.copy(), bad)
    with pytest.raises(CryptoError):
        add_mod(np.full((2, DEGREE), MODULUS, np.uint64), good)


def test_malformed_ciphertexts_cannot_be_made():
    c0, seed = random_chunks(3, 2), bytes(16)
    SeededCiphertexts(c0, seed)
    for bad in (
        (c0, seed[:8]),
        (c0, np.frombuffer(seed, np.uint8)),
        (c0[:, :-1], seed),
        (c0 + np.uint64(2**60), seed),
    ):
        with pytest.raises(CryptoError):
            SeededCiphertexts(*bad)
