"""Sums modulo 2^W over whole words: exact from 2 to 1,000 sites, at every edge."""

import math
from fractions import Fraction

import numpy as np
import pytest
import shamirs
import sympy
from hypothesis import given, settings
from hypothesis import strategies as st

from secure_triplay.client.ckks import CkksSecretKey
from secure_triplay.crypto.codec import Codec
from secure_triplay.crypto.exactness import MAX_RESIDUAL, ROUNDS_PER_EPOCH
from secure_triplay.crypto.masking import masked_codec, residues
from secure_triplay.crypto.masking.arithmetic import require_masked, zero_words
from secure_triplay.crypto.masking.expand import add_masks, new_seed
from secure_triplay.crypto.masking.sharing import PRIME, combine, split
from secure_triplay.crypto.parameters import DEGREE, MODULUS
from secure_triplay.errors import ConfigError, CryptoError

SITES = [2, 3, 4, 5, 8, 31, 32, 33, 50, 64, 65, 500, 1000]


@pytest.mark.parametrize("value_bits", [2, 6, 8, 9, 12, 16])
@pytest.mark.parametrize("n_sites", SITES)
def test_words_hold_sums_and_every_bound_of_the_docstring_holds(n_sites, value_bits):
    """The bounds of `exactness` for masked words again, in exact or independent arithmetic."""
    codec = masked_codec(n_sites=n_sites, value_bits=value_bits, n_params=1_000_000, limit=1.0)
    assert n_sites * 2 * codec.levels < 2**codec.field_bits
    assert codec.word_bits == codec.fields * codec.field_bits
    assert n_sites * (2**codec.word_bits - 1) < 2**52
    scale, half = 2**codec.scale_bits, 2 ** (codec.word_bits - 1)
    reals = codec.n_chunks * DEGREE * ROUNDS_PER_EPOCH
    variance = Fraction(n_sites * 4**codec.word_bits, 6 * DEGREE)
    room = Fraction(MODULUS, 2 * scale) - Fraction(22 * n_sites, scale) - n_sites
    assert math.log(2 * reals) - float(room**2 / (2 * variance)) <= -128 * math.log(2)
    floats = 9.8 * 2.5 * half / 2**53
    error = n_sites * codec.encode_tolerance + math.sqrt(n_sites) * floats
    assert codec.encode_tolerance == pytest.approx(math.hypot(9.8 * math.sqrt(DEGREE / 24) / scale, floats))
    proxy = n_sites * 10.5 * DEGREE / 2 / scale**2
    for distance, bits in ((0.5, 128), (MAX_RESIDUAL, 64)):
        assert error < distance
        assert math.log(2 * reals) - (distance - error) ** 2 / (2 * proxy) <= -bits * math.log(2)
    assert codec.wrong_log2() <= -128
    assert codec.refused_log2() <= -64


@pytest.mark.parametrize("n_sites", [2, 3, 4, 8, 16, 32, 64, 500])
def test_masks_cost_no_field(n_sites):
    numbers = {"n_sites": n_sites, "value_bits": 9, "n_params": 100_000, "limit": 1.0}
    assert masked_codec(**numbers).fields == Codec.choose(**numbers).fields


def test_32_sites_of_9_bits_take_three_fields_of_14_bits():
    codec = masked_codec(n_sites=32, value_bits=9, n_params=100_000, limit=1.0)
    assert (codec.field_bits, codec.fields, codec.word_bits) == (14, 3, 42)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ConfigError):
        masked_codec(n_sites=1000, value_bits=40, n_params=10, limit=1.0)
    plain = Codec.choose(n_sites=32, value_bits=9, n_params=10, limit=1.0)
    with pytest.raises(CryptoError, match="not of masked words"):
        require_masked(plain)


@pytest.mark.parametrize("n_sites", [2, 4, 32, 500])
def test_random_words_err_by_less_than_a_ninth_of_what_the_encoder_allows(n_sites):
    """Rounding and double precision together, as SEAL's encoder and decoder make them; seeded, so always the same."""
    codec = masked_codec(n_sites=n_sites, value_bits=9, n_params=DEGREE, limit=1.0)
    key = CkksSecretKey.generate(codec.parameters)
    draw = np.random.default_rng(n_sites)
    squares = []
    for _ in range(10):
        slots = codec.to_slots(draw.integers(0, 2**codec.word_bits, DEGREE))
        plain = key._encoder, key._parameters.scale
        found = _encoded_and_decoded(slots[0], *plain)
        squares.append(np.square((found - slots[0]).view(np.float64)).mean())
    assert math.sqrt(np.mean(squares)) < codec.encode_tolerance / 9


def _encoded_and_decoded(row, encoder, scale):
    import tenseal.sealapi as seal

    plain = seal.Plaintext()
    encoder.encode(row.tolist(), scale, plain)
    return np.array(encoder.decode_complex(plain))


EDGES = st.sampled_from(["zero", "top", "one", "random"])


@settings(max_examples=60, deadline=None)
@given(
    n=st.sampled_from([2, 3, 4, 7, 8, 9, 32, 33, 128, 1000]),
    value_bits=st.integers(2, 16),
    values=EDGES,
    masks=EDGES,
    seed=st.integers(0, 2**32 - 1),
)
def test_masked_sums_are_plain_sums_at_every_edge(n, value_bits, values, masks, seed):
    """Masks of Python's integers that sum to a known total, through words and slots and back."""
    codec = masked_codec(n_sites=n, value_bits=value_bits, n_params=5, limit=1.0)
    draw, top, modulus = np.random.default_rng(seed), 2 * codec.levels, 2**codec.word_bits

    def pick(kind, largest, size):
        edge = {"zero": 0, "top": largest, "one": 1}.get(kind)
        return draw.integers(0, largest, size, endpoint=True) if edge is None else np.full(size, edge)

    total, plain, known = 0, [0] * 5, [0] * codec.n_words
    for _ in range(min(n, 40)):
        value, mask = pick(values, top, 5), pick(masks, modulus - 1, codec.n_words)
        masked = (codec.pack(value) + mask) % modulus
        total = total + codec.to_slots(masked)
        plain = [a + int(b) for a, b in zip(plain, value, strict=True)]
        known = [a + int(b) for a, b in zip(known, mask, strict=True)]
    terms = min(n, 40)
    decoded = codec.sum_from_slots(total, terms)
    left = np.array([(int(a) - b) % modulus for a, b in zip(decoded, known, strict=True)])
    assert codec.unpack(left, terms).tolist() == plain
    codec.mean(np.array(plain), terms)


@pytest.mark.parametrize("n_sites", [2, 32, 1000])
def test_fullest_values_of_all_sites_do_not_carry_between_fields(n_sites):
    """Every field of every word at its largest at every site, in Python's integers."""
    codec = masked_codec(n_sites=n_sites, value_bits=9, n_params=9_000, limit=1.0)
    full = codec.pack(np.full(9_000, codec.max_integer))
    assert int(full.max()) * n_sites < 2**codec.word_bits
    assert (codec.unpack(full * n_sites, n_sites) == codec.max_integer * n_sites).all()


def test_words_that_no_honest_sum_leaves_are_refused():
    codec = masked_codec(n_sites=4, value_bits=9, n_params=5, limit=1.0)
    words = codec.pack(np.full(5, 3))
    assert codec.unpack(words, 1).tolist() == [3] * 5
    for at, value in ((-1, 1), (0, 2**codec.word_bits - 1), (0, -1), (0, codec.max_integer + 1)):
        wrong = words.copy()
        wrong[at] = value
        with pytest.raises(CryptoError, match="does not decode"):
            codec.unpack(wrong, 1)
    for shape, terms in ((words[:-1], 1), (words, 0), (words, 5)):
        with pytest.raises(CryptoError, match="does not decode"):
            codec.unpack(shape, terms)


@pytest.mark.parametrize("bad", [-1, 1 << 44, 1 << 60])
def test_words_beyond_the_modulus_are_not_encoded(bad):
    codec = masked_codec(n_sites=4, value_bits=9, n_params=5, limit=1.0)
    assert codec.word_bits == 44
    words = codec.pack(np.zeros(5, np.int64))
    words[17] = bad
    with pytest.raises(CryptoError, match="do not fit"):
        codec.to_slots(words)
    with pytest.raises(CryptoError, match="do not fit"):
        codec.to_slots(np.zeros(5, np.int64))


@pytest.mark.parametrize("value_bits", [4, 12, 16])
@pytest.mark.parametrize("n_sites", [2, 33, 1000])
def test_masks_added_and_subtracted_cancel_modulo_the_word(n_sites, value_bits):
    """Over more words than one block of keystream, so that blocks have to join."""
    codec = masked_codec(n_sites=n_sites, value_bits=value_bits, n_params=90_000, limit=1.0)
    assert codec.n_words > 1 << 13
    start = np.arange(codec.n_words, dtype="<u8")
    one, other = start.copy(), start.copy()
    add_masks(one, [(bytes(32), False), (b"k" * 32, True)])
    add_masks(other, [(b"k" * 32, False), (bytes(32), True)])
    modulus = 2**codec.word_bits
    masked, countered = residues(codec, one), residues(codec, other)
    assert masked.min() >= 0
    assert masked.max() < modulus
    assert ((masked + countered) % modulus == 2 * start.astype(np.int64) % modulus).all()
    assert len(set(((masked - start.astype(np.int64)) % modulus).tolist())) > 0.9 * codec.n_words


def test_the_keystream_is_chacha20_of_rfc_8439():
    """The RFC's first test vector (appendix A.1): key and nonce of zeros, counter 0."""
    words = zero_words(masked_codec(n_sites=2, value_bits=9, n_params=1, limit=1.0))
    add_masks(words, [(bytes(32), False)])
    assert words[:2].tobytes().hex() == "76b8e0ada0f13d90405d6ae55386bd28"


def test_the_field_of_shares_is_the_largest_prime_of_128_bits():
    assert sympy.prevprime(2**128) == PRIME


def test_secrets_are_shared_as_the_library_shares_and_reads_them():
    """Shares of ours through the library's own interpolation, and the largest secret there is."""
    for secret in (new_seed(), bytes(16), (PRIME - 1).to_bytes(16, "big")):
        shares = split(secret, 3, 5)
        points = [
            shamirs.share(at, int.from_bytes(one, "big"), PRIME) for at, one in enumerate(shares, start=1)
        ]
        assert shamirs.interpolate(points[1:4], threshold=3) == int.from_bytes(secret, "big")
        assert combine(dict(enumerate(shares, start=1)), 3, lambda found: True) == secret


@pytest.mark.parametrize(("threshold", "holders"), [(2, 2), (2, 3), (3, 5), (11, 21)])
def test_as_many_shares_as_the_threshold_give_the_secret_and_fewer_do_not(threshold, holders):
    secret = bytes(range(16))
    shares = dict(enumerate(split(secret, threshold, holders), start=1))
    last = dict(list(shares.items())[-threshold:])
    assert combine(last, threshold, lambda found: found == secret) == secret
    fewer = dict(list(shares.items())[: threshold - 1])
    assert combine(fewer, threshold - 1, lambda found: found == secret) is None


@pytest.mark.parametrize("wrong", range(1, 7))
def test_one_wrong_share_is_found_out_wherever_it_stands(wrong):
    secret = bytes(range(16))
    shares = dict(enumerate(split(secret, 5, 6), start=1))
    shares[wrong] = bytes(16)
    assert combine(shares, 5, lambda found: found == secret) == secret


def test_masks_cost_a_field_of_eight_bit_values_from_42_to_64_sites_and_nowhere_else():
    updates = {"value_bits": 8, "n_params": 100_000, "limit": 0.1}
    costs = [
        n
        for n in range(2, 1001)
        if masked_codec(n_sites=n, **updates).fields < Codec.choose(n_sites=n, **updates).fields
    ]
    assert costs == list(range(42, 65))
