"""Randomness: cryptographic, never repeated, and of exactly the distribution that the accountants assume."""

from __future__ import annotations

import copy
import hashlib
import math
import os
import pickle

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from numpy.random import Generator
from randomgen import ChaCha
from scipy import stats

from secure_triplay.errors import PrivacyError
from secure_triplay.privacy.noise import NoiseSource


def chi_square_bounds(n: int, chance: float = 1e-9) -> tuple[float, float]:
    """Between these lies the ratio of sample to true variance of n Gaussians, but for `chance`."""
    return stats.chi2.ppf(chance / 2, n) / n, stats.chi2.ppf(1 - chance / 2, n) / n


def test_stream_is_chacha20_of_its_key():
    """Another library's ChaCha20 gives the same bytes, so `rounds` and the whole key are really used."""
    key = bytes(range(32))
    ours = np.asarray(ChaCha(key=int.from_bytes(key, "little"), rounds=20).random_raw(4096), dtype="<u8")
    theirs = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor().update(bytes(8 * 4096))
    assert ours.tobytes() == theirs

    source = NoiseSource.unsafe_from_seed(7)
    key = hashlib.sha256(b"secure-triplay unsafe noise 7").digest()
    stream = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor().update(bytes(8 * 1000))
    expected = (np.frombuffer(stream, dtype="<u8") >> 11) * 2.0**-53 < 0.3
    assert (source.poisson_mask(1000, 0.3) == expected).all()


def test_production_key_is_32_bytes_of_the_operating_system(monkeypatch):
    asked = []
    monkeypatch.setattr(os, "urandom", lambda n: asked.append(n) or bytes(range(n)))
    drawn = NoiseSource().poisson_mask(1000, 0.3)
    assert asked == [32]
    same = Generator(ChaCha(key=int.from_bytes(bytes(range(32)), "little"), rounds=20))
    assert (drawn == (same.random(1000) < 0.3)).all()


def test_uniforms_are_chacha20_of_the_same_key_under_a_nonce_of_their_own():
    """Another library's ChaCha20, however they are asked for: what is drawn besides never moves or repeats them."""
    source = NoiseSource.unsafe_from_seed(7)
    drawn = [source.uniform(5), source.uniform((2, 3)).reshape(-1)]
    source.gaussian(10, 1.0)
    drawn.append(source.uniform(989))
    key = int.from_bytes(hashlib.sha256(b"secure-triplay unsafe noise 7").digest(), "little")
    # randomgen counts words, 16 a block: this is block 2^64, where OpenSSL's 64-bit nonce turns 1
    expected = Generator(ChaCha(key=key, counter=16 << 64, rounds=20)).random(1000, dtype=np.float32)
    assert (np.concatenate(drawn) == expected).all()
    other = Generator(ChaCha(key=key, rounds=20)).random(1000, dtype=np.float32)
    assert not np.isin(expected[:8], other).any()


def test_production_source_takes_no_seed():
    with pytest.raises(TypeError):
        NoiseSource(1)
    with pytest.raises(TypeError):
        NoiseSource(seed=1)
    assert not NoiseSource().unsafe_seeded
    assert NoiseSource.unsafe_from_seed(1).unsafe_seeded


def test_no_two_sources_draw_the_same_noise():
    draws = np.stack([NoiseSource().gaussian(500, 1.0) for _ in range(20)])
    assert len(np.unique(draws)) == draws.size


def test_forked_child_never_draws_its_parents_noise():
    source = NoiseSource()
    source.gaussian(3, 1.0)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(write, source.gaussian(64, 1.0).tobytes() + source.uniform(64).tobytes())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    theirs = os.read(read, 1 << 16)
    assert len(theirs) == 64 * (8 + 4)
    assert not np.isin(np.frombuffer(theirs[: 64 * 8]), source.gaussian(64, 1.0)).any()
    assert not np.array_equal(np.frombuffer(theirs[64 * 8 :], np.float32), source.uniform(64))


def test_source_cannot_be_copied_pickled_or_read_from_its_repr():
    source = NoiseSource()
    for escape in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(PrivacyError):
            escape(source)
    assert repr(source) == "<NoiseSource>"
    assert "UNSAFE" in repr(NoiseSource.unsafe_from_seed(1))


@pytest.mark.parametrize("n", [24_576, 300_001])
def test_gaussian_has_the_asked_standard_deviation_and_shape(n):
    noise = NoiseSource.unsafe_from_seed(1).gaussian(n, 0.37)
    low, high = chi_square_bounds(n)
    assert low < np.mean(noise**2) / 0.37**2 < high
    assert stats.kstest(noise / 0.37, "norm").pvalue > 1e-6
    assert abs(np.corrcoef(noise[:-1], noise[1:])[0, 1]) < 6 / math.sqrt(n)
    assert len(np.unique(noise)) == n
    assert noise.dtype == np.float64
    assert NoiseSource().gaussian((3, 4), 1.0).shape == (3, 4)


def test_each_value_sums_four_gaussians():
    """One alone can be searched through (arXiv 2107.10138, section 5.1)."""
    source = NoiseSource.unsafe_from_seed(5)
    key = hashlib.sha256(b"secure-triplay unsafe noise 5").digest()
    plain = Generator(ChaCha(key=int.from_bytes(key, "little"), rounds=20)).standard_normal((4, 100))
    assert np.allclose(source.gaussian(100, 3.0), 3.0 * plain.sum(axis=0) / 2, rtol=1e-14, atol=0)


@pytest.mark.parametrize("std", [0.0, -1.0, math.nan, math.inf])
def test_no_noise_is_an_error_not_a_release(std):
    with pytest.raises(PrivacyError, match="standard deviation"):
        NoiseSource().gaussian(4, std)


@pytest.mark.parametrize("rate", [0.001, 0.2, 0.9])
def test_each_record_is_drawn_independently_at_the_rate(rate):
    source, n, steps = NoiseSource.unsafe_from_seed(2), 300, 2000
    masks = np.stack([source.poisson_mask(n, rate) for _ in range(steps)])
    z = (masks.sum() - n * steps * rate) / math.sqrt(n * steps * rate * (1 - rate))
    assert abs(z) < 5
    # Sizes vary as a binomial's do: a sampler of fixed-size batches has no variance here.
    low, high = chi_square_bounds(steps)
    assert low * 0.9 < masks.sum(axis=1).var() / (n * rate * (1 - rate)) < high * 1.1
    by_record = (masks.sum(axis=0) - steps * rate) / math.sqrt(steps * rate * (1 - rate))
    assert np.abs(by_record).max() < 6


def test_rate_one_draws_everybody():
    assert NoiseSource().poisson_mask(1000, 1.0).all()


@pytest.mark.parametrize(("n", "rate"), [(5, 0.0), (5, 1.5), (5, -0.1), (5, math.nan), (-1, 0.5)])
def test_impossible_samples_are_refused(n, rate):
    with pytest.raises(PrivacyError):
        NoiseSource().poisson_mask(n, rate)


def test_uniforms_lie_in_zero_to_one_evenly():
    drawn = NoiseSource.unsafe_from_seed(3).uniform((200, 500))
    assert drawn.dtype == np.float32
    assert drawn.shape == (200, 500)
    assert drawn.min() >= 0
    assert drawn.max() < 1
    assert stats.kstest(drawn.ravel().astype(float), "uniform").pvalue > 1e-6
