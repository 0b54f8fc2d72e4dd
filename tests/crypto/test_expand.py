"""c1 from its seed, against one block of AES at a time and plain integers."""

from __future__ import annotations

import os
from itertools import islice

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from secure_triplay.crypto import expand
from secure_triplay.crypto.expand import C1Stream, expand_c1, sum_of_c1
from secure_triplay.crypto.parameters import DEGREE, MODULUS

SEED = bytes(range(16))


def blocks(seed):
    """AES-128 of 0, 1, 2, ..., as SP 800-38A has its counter."""
    cipher = Cipher(algorithms.AES(seed), modes.ECB()).encryptor()
    for counter in range(2**20):
        yield cipher.update(counter.to_bytes(16, "big"))


def words(seed, modulus=MODULUS):
    for block in blocks(seed):
        for half in (block[:8], block[8:]):
            word = int.from_bytes(half, "little") % 2**60
            if word < modulus:
                yield word


def test_c1_is_the_counters_under_the_seed_cut_to_sixty_bits():
    assert expand_c1(SEED, 3).ravel().tolist() == list(islice(words(SEED), 3 * DEGREE))


def test_the_cipher_is_aes_128_of_the_standard():
    """FIPS 197, appendix B: of a seed and the counter 0 there is no published value, of the cipher there is."""
    cipher = Cipher(
        algorithms.AES128(bytes.fromhex("2b7e151628aed2a6abf7158809cf4f3c")), modes.ECB()
    ).encryptor()
    plain = bytes.fromhex("3243f6a8885a308d313198a2e0370734")
    assert cipher.update(plain).hex() == "3925841d02dc09fbdc118597196a0b32"


@pytest.mark.parametrize("kept", [0.5, 0.999])
def test_a_word_that_is_not_below_the_modulus_is_skipped_and_no_other(kept, monkeypatch):
    """Of the real modulus one word in 2^46 is skipped, which no test would see."""
    modulus = int(kept * 2**60)
    monkeypatch.setattr(expand, "MODULUS", modulus)
    drawn = expand_c1(SEED, 3)
    assert drawn.ravel().tolist() == list(islice(words(SEED, modulus), 3 * DEGREE))
    assert drawn.max() < modulus


@pytest.mark.parametrize("n_sites", [1, 2, 14, 15, 16, 17, 31, 200])
def test_sum_of_all_sites_c1_is_that_of_plain_integers(n_sites):
    seeds = [os.urandom(16) for _ in range(n_sites)]
    streams = [C1Stream(seed) for seed in seeds]
    plain = [expand_c1(seed, 2).astype(object) for seed in seeds]
    for chunk in range(2):
        assert sum_of_c1(streams).tolist() == (sum(each[chunk] for each in plain) % MODULUS).tolist()


@pytest.mark.parametrize("n_sites", [15, 16, 30, 64])
def test_the_largest_coefficients_do_not_overflow_the_sum(n_sites):
    class Largest:
        def next(self):
            return np.full(DEGREE, MODULUS - 1, np.uint64)

    assert set(sum_of_c1([Largest()] * n_sites).tolist()) == {n_sites * (MODULUS - 1) % MODULUS}


@pytest.mark.parametrize("length", [0, 8, 15, 17, 32])
def test_a_seed_of_another_length_is_refused(length):
    with pytest.raises(ValueError, match="key size"):
        expand_c1(bytes(length), 1)


def test_coefficients_look_uniform_and_two_seeds_have_nothing_in_common():
    one, other = expand_c1(SEED, 8), expand_c1(os.urandom(16), 8)
    for drawn in (one, other):
        uniform = drawn / MODULUS
        assert abs(uniform.mean() - 0.5) < 6 / np.sqrt(12 * uniform.size)
    assert not np.isin(one, other).any()
