"""Sums modulo 2^b inside the codec's fields: exact from 2 to 1,000 sites, at every edge."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secure_triplay.crypto.codec import Codec
from secure_triplay.crypto.masking import masked_codec, residues, word_type
from secure_triplay.crypto.masking.arithmetic import require_masked
from secure_triplay.crypto.masking.expand import add_mask
from secure_triplay.crypto.masking.sharing import combine, split
from secure_triplay.errors import ConfigError, CryptoError


@pytest.mark.parametrize("value_bits", [2, 6, 9, 12, 16])
@pytest.mark.parametrize("n_sites", [2, 3, 4, 5, 31, 32, 33, 50, 64, 65, 500, 1000])
def test_fields_hold_masked_values_and_the_number_of_sites(n_sites, value_bits):
    codec = masked_codec(n_sites=n_sites, value_bits=value_bits, n_params=100_000, limit=1.0)
    largest_sum = n_sites * 2 * codec.levels
    assert largest_sum < 2**codec.integer_bits
    assert largest_sum >= 2 ** (codec.integer_bits - 1) or codec.integer_bits == value_bits
    assert n_sites * (2**codec.integer_bits - 1) < 2**codec.field_bits
    assert codec.wrong_log2() <= -128
    assert 8 * word_type(codec.integer_bits).itemsize >= codec.integer_bits


def test_32_sites_of_9_bits_take_two_fields_of_19_bits():
    codec = masked_codec(n_sites=32, value_bits=9, n_params=100_000, limit=1.0)
    assert (codec.integer_bits, codec.field_bits, codec.fields) == (14, 19, 2)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ConfigError):
        masked_codec(n_sites=1000, value_bits=40, n_params=10, limit=1.0)
    plain = Codec.choose(n_sites=32, value_bits=9, n_params=10, limit=1.0)
    with pytest.raises(CryptoError, match="do not fit"):
        require_masked(plain)
    short = Codec.choose(n_sites=32, value_bits=9, n_params=10, limit=1.0, integer_bits=13)
    with pytest.raises(CryptoError, match="do not fit"):
        require_masked(short)


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
    """Masks of Python's integers that sum to a known total, through fields and slots and back."""
    codec = masked_codec(n_sites=n, value_bits=value_bits, n_params=5, limit=1.0)
    draw, top, modulus = np.random.default_rng(seed), 2 * codec.levels, 2**codec.integer_bits

    def pick(kind, largest):
        edge = {"zero": 0, "top": largest, "one": 1}.get(kind)
        return draw.integers(0, largest, 5, endpoint=True) if edge is None else np.full(5, edge)

    total, plain, known = 0, [0] * 5, [0] * 5
    for _ in range(n):
        value, mask = pick(values, top), pick(masks, modulus - 1)
        masked = np.array([(int(v) + int(m)) % modulus for v, m in zip(value, mask, strict=True)])
        total = total + codec.to_slots(masked)
        plain = [a + int(b) for a, b in zip(plain, value, strict=True)]
        known = [a + int(b) for a, b in zip(known, mask, strict=True)]
    decoded = codec.sum_from_slots(total, n)
    assert [(int(a) - b) % modulus for a, b in zip(decoded, known, strict=True)] == plain
    codec.mean(np.array(plain), n)


@pytest.mark.parametrize("value_bits", [4, 12, 16])
@pytest.mark.parametrize("n_sites", [2, 33, 1000])
def test_masks_added_and_subtracted_cancel_modulo_the_field(n_sites, value_bits):
    codec = masked_codec(n_sites=n_sites, value_bits=value_bits, n_params=1000, limit=1.0)
    start = np.arange(1000).astype(word_type(codec.integer_bits))
    one, other = start.copy(), start.copy()
    add_mask(one, bytes(32))
    add_mask(other, bytes(32), subtract=True)
    modulus = 2**codec.integer_bits
    masked, countered = residues(codec, one), residues(codec, other)
    assert masked.min() >= 0
    assert masked.max() < modulus
    assert ((masked + countered) % modulus == 2 * np.arange(1000) % modulus).all()
    assert len(set((masked - np.arange(1000)) % modulus)) > min(modulus, 1000) / 3


def test_the_keystream_is_chacha20_of_rfc_8439():
    """The RFC's first test vector (appendix A.1): key and nonce of zeros, counter 0."""
    words = np.zeros(8, "<u2")
    add_mask(words, bytes(32))
    assert words.tobytes().hex() == "76b8e0ada0f13d90405d6ae55386bd28"


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
