"""Randomness that privacy rests on: one cryptographic stream for sampling, noise and stochastic rounding.

The stream is ChaCha with 20 rounds (Bernstein 2008) under a key from the operating system. numpy's `Generator`
reads it under nonce 0 and makes distributions of it; uniforms for rounding, one for every value that is sent, are
OpenSSL's output under the same key and nonce 1, since that is much faster. Whoever could predict it could take the
noise off a release, so a source cannot be seeded, copied, pickled, printed, or carried into a forked process.

Not covered: the time that drawing takes depends on the values drawn (Jin, McMurtry, Rubinstein and
Ohrimenko 2022, arXiv 2112.05307). Whoever can time single draws inside a site is outside every threat
model here.
"""

from __future__ import annotations

import hashlib
import math
import os
from typing import NoReturn

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from numpy.random import Generator
from randomgen import ChaCha

from secure_triplay.errors import PrivacyError

GAUSSIANS_PER_VALUE = 4  # 2n with n = 2, as in Opacus' secure mode
LARGEST_SKELLAM_VARIANCE = 2.0**32
_KEY_BYTES = 32
_UNIFORMS_START = bytes(8) + (1).to_bytes(8, "little")  # block 0 of 2^64, nonce 1
_CHUNK = 1 << 15  # values at a time; the scratch stays in the processor's cache


class NoiseSource:
    """A cryptographic stream of Gaussian noise, Poisson masks and uniforms, fresh in every process.

    Guarantee: no two sources ever give the same stream, a forked child included, unless both were made by
    `unsafe_from_seed`.
    """

    __slots__ = ("_generator", "_process", "_uniforms", "_unsafe_seeded")

    def __init__(self) -> None:
        self._unsafe_seeded = False
        self._rekey(os.urandom(_KEY_BYTES))

    @classmethod
    def unsafe_from_seed(cls, seed: int) -> NoiseSource:
        """A source that repeats itself: for tests and audits only, since its noise protects nobody."""
        source = cls()
        source._unsafe_seeded = True
        source._rekey(hashlib.sha256(b"secure-triplay unsafe noise %d" % seed).digest())
        return source

    @property
    def unsafe_seeded(self) -> bool:
        """Whether the stream can be predicted; a report must then say so."""
        return self._unsafe_seeded

    def gaussian(self, shape: int | tuple[int, ...], std: float) -> npt.NDArray[np.float64]:
        """Independent N(0, std^2), `shape` float64, each the sum of four Gaussians divided by two.

        One floating-point Gaussian takes few enough values for the low bits of `value + noise` to tell the
        value (Mironov 2012; Jin et al. 2022, arXiv 2112.05307). A sum of 2n of them divided by sqrt(2n)
        cannot be searched (Holohan and Braghin 2021, arXiv 2107.10138, section 5.1; Opacus' secure mode).
        Add it in float64 and round only the sum: noise rounded before it is added brings float32's grid back.

        Raises PrivacyError for a std that is not positive and finite.
        """
        if not (std > 0 and np.isfinite(std)):
            raise PrivacyError(
                f"noise of standard deviation {std!r} was asked for",
                where="NoiseSource.gaussian",
                fix="noise must be positive and finite; training without noise is `train_unsafe_without_dp`",
            )
        generator = self._stream()
        total = np.zeros(shape, dtype=np.float64)
        flat = total.reshape(-1)
        scratch = np.empty(min(_CHUNK, flat.size), dtype=np.float64)
        for start in range(0, flat.size, _CHUNK):
            part = flat[start : start + _CHUNK]
            for _ in range(GAUSSIANS_PER_VALUE):
                generator.standard_normal(out=scratch[: part.size])
                part += scratch[: part.size]
        flat *= std / np.sqrt(GAUSSIANS_PER_VALUE)
        return total

    def skellam(self, shape: int | tuple[int, ...], variance: float) -> npt.NDArray[np.int64]:
        """Independent Skellam noise of mean 0, `shape` int64: the difference of two Poissons of mean variance / 2.

        Sums of independent ones are Skellam again, and variances add up (Skellam 1946); no low bit tells of floats,
        since there are none in it. numpy draws a Poisson by rejection in double precision (Hoermann 1993). Its test
        subtracts numbers of the size of variance * log(variance), so its probabilities are right to about that times
        2^-53: some 10^-9 at a variance of 2^21, about what a demo's share has, and 10^-5 at the largest that is taken
        here. No accountant here counts that. Far beyond, doubles are no integers any more, and the noise is another.

        Raises PrivacyError for a variance that is not positive, or beyond `LARGEST_SKELLAM_VARIANCE`.
        """
        if not 0 < variance <= LARGEST_SKELLAM_VARIANCE:
            raise PrivacyError(
                f"Skellam noise of variance {variance!r} was asked for, and what is drawn here is right up to "
                f"{LARGEST_SKELLAM_VARIANCE:g}",
                where="NoiseSource.skellam",
                fix="take fewer `clip_steps` or a larger epsilon",
            )
        generator = self._stream()
        first = generator.poisson(variance / 2, shape)
        return np.asarray(first - generator.poisson(variance / 2, shape), np.int64)

    def poisson_mask(self, n: int, rate: float) -> npt.NDArray[np.bool_]:
        """Who takes part in one step: `(n,) bool`, each true independently with probability `rate`.

        The comparison is made on 53 random bits, so the rate is met to 2^-53. Raises PrivacyError for a rate
        outside (0, 1] or a negative n.
        """
        if not 0 < rate <= 1 or n < 0:
            raise PrivacyError(
                f"a Poisson sample of {n!r} records at rate {rate!r} was asked for",
                where="NoiseSource.poisson_mask",
                fix="the sampling rate must lie above 0 and be at most 1",
            )
        return np.asarray(self._stream().random(n) < rate)

    def subset(self, n: int, k: int) -> npt.NDArray[np.int64]:
        """`k` of `n` without replacement, each subset equally likely: `(k,) int64` in rising order."""
        return np.sort(self._stream().choice(n, size=k, replace=False, shuffle=False)).astype(np.int64)

    def uniform(self, shape: int | tuple[int, ...]) -> npt.NDArray[np.float32]:
        """Uniforms in [0, 1) on a grid of 2^-24, `shape` float32, for stochastic rounding."""
        self._stream()
        stream = self._uniforms.update(bytes(4 * math.prod(np.atleast_1d(shape))))
        drawn = (np.frombuffer(stream, "<u4") >> 8).view("<i4").astype(np.float32)
        drawn *= np.float32(2.0**-24)
        return drawn.reshape(shape)

    def _rekey(self, key: bytes) -> None:
        # `key` goes into the cipher as it is; randomgen's `seed` would be stretched from perhaps fewer bits.
        self._generator = Generator(ChaCha(key=int.from_bytes(key, "little"), rounds=20))
        self._uniforms = Cipher(algorithms.ChaCha20(key, _UNIFORMS_START), mode=None).encryptor()
        self._process = os.getpid()

    def _stream(self) -> Generator:
        if self._process != os.getpid():
            # A forked child would otherwise draw its parent's noise, and a difference of releases has none.
            if self._unsafe_seeded:
                raise PrivacyError("a seeded source was carried into another process", fix="make one there")
            self._rekey(os.urandom(_KEY_BYTES))
        return self._generator

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise PrivacyError(
            "a noise source cannot be copied or written down", fix="make a new NoiseSource() where needed"
        )

    def __repr__(self) -> str:
        return f"<{type(self).__name__}{' UNSAFE: seeded' if self._unsafe_seeded else ''}>"
