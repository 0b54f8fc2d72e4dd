r"""An update as integers in complex slots, such that the sum of all sites decodes exactly.

A value is clipped to the public range [-limit, limit], stochastically rounded to one of 2^value_bits levels,
and put into a field of `field_bits` = value_bits + bits of the number of sites, so that the sum of all sites
never carries. Several fields make one real, two reals one complex slot, 2,048 slots one ciphertext.

**Why the sum is exact.** A decrypted slot is (m(z) + e(z)) / 2^s for the root z of its slot. Fresh noise
coefficients are centred binomial, a sum of 42 independent +-1/2, hence sub-Gaussian with proxy 10.5. The
real part of e(z) weighs coefficient k by cos(theta k), and these squares sum to exactly N/2 for a primitive
2N-th root. For the sum of n sites, one real therefore errs by a sub-Gaussian X with proxy

    v = n * 10.5 * (N/2) / 4^s,       P(|X| > t) <= 2 exp(-t^2 / (2 v)).

Floating point in encoding errs by at most 1/(8 n) a site, which the encoder checks on its own plaintext
before it encrypts, so by 1/8 in the sum; decoding is given another 1/8. Rounding fails only if |X| > 1/4.
Over at most 2^40 reals in a key epoch, `scale_bits` s is the smallest with 2^40 * 2 exp(-1 / (32 v)) <= 2^-128.

**Why it fits.** The sum's slots are centred, |z| <= sqrt(2) 2^(B-1) for reals of B bits; the coefficients of
the encoded polynomial are means of slots times 2^s, so sqrt(2) 2^(B-1) 2^s + noise < q/2 keeps them in range.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from secure_triplay.crypto.parameters import DEGREE, MODULUS, NOISE_VARIANCE, SLOTS, CkksParameters
from secure_triplay.errors import ConfigError, CryptoError

REALS_PER_EPOCH_BITS = 40
"""A key epoch decodes at most 2^40 reals (2^28 chunks); the failure bound counts them all."""
FAILURE_BITS = 128
MAX_RESIDUAL = 0.25
"""A decoded real farther than this from an integer is refused."""

Integers = NDArray[np.int64]
Slots = NDArray[np.complex128]


class Uniform(Protocol):
    """A source of uniform numbers in [0, 1); in a round it is the cryptographic one."""

    def uniform(self, shape: tuple[int, ...]) -> NDArray[np.floating[Any]]: ...


@dataclass(frozen=True)
class Codec:
    """The public encoding of one study; get one from `Codec.choose`."""

    n_sites: int
    n_params: int
    limit: float
    value_bits: int
    field_bits: int
    fields: int
    scale_bits: int

    @classmethod
    def choose(cls, *, n_sites: int, n_params: int, value_bits: int, limit: float) -> Codec:
        """The densest encoding whose sums over up to `n_sites` sites are exact.

        Raises ConfigError when not even one value a real fits.
        """
        if n_sites < 1 or n_params < 1 or value_bits < 1 or not (math.isfinite(limit) and limit > 0):
            raise ConfigError("n_sites, n_params, value_bits and range must be positive", where="codec",
                              fix="mend the study's codec section")
        field_bits = value_bits + (n_sites - 1).bit_length()
        scale_bits = _least_scale_bits(n_sites)
        real_bits = math.floor(math.log2((MODULUS / 2 - _noise_ceiling(n_sites)) / math.sqrt(2)) - scale_bits) + 1
        fields = min(real_bits, _float_bits(n_sites)) // field_bits
        if fields < 1:
            raise ConfigError(
                f"{value_bits}-bit values of {n_sites} sites need {field_bits} bits and {real_bits} are there",
                where="codec.value_bits", fix=f"at most {real_bits - field_bits + value_bits} bits fit",
            )
        return cls(n_sites, n_params, limit, value_bits, field_bits, fields, scale_bits)

    @property
    def parameters(self) -> CkksParameters:
        """The encryption that this encoding needs."""
        return CkksParameters(self.scale_bits)

    @property
    def levels(self) -> int:
        """Largest integer of one site's value."""
        return (1 << self.value_bits) - 1

    @property
    def step(self) -> float:
        """Distance of two neighbouring levels, in units of the update."""
        return 2 * self.limit / self.levels

    @property
    def values_per_chunk(self) -> int:
        """Values in one full ciphertext."""
        return 2 * SLOTS * self.fields

    @property
    def n_chunks(self) -> int:
        """Ciphertexts of one update."""
        return -(-self.n_params // self.values_per_chunk)

    @property
    def encode_tolerance(self) -> float:
        """Largest error of one encoded real that the bound above allows."""
        return 1 / (8 * self.n_sites)

    @property
    def _centre(self) -> int:
        return (1 << (self.field_bits * self.fields - 1)) // self.n_sites

    def quantise(self, update: NDArray[np.float32] | NDArray[np.float64], noise: Uniform) -> Integers:
        """Update (n_params,) -> levels (n_params,), unbiased inside the range.

        Raises CryptoError when the update has another shape or is not finite.
        """
        if update.shape != (self.n_params,):
            raise CryptoError(f"an update has shape {(self.n_params,)}, not {update.shape}", where="codec",
                              fix="check that adapter and study belong together")
        if not np.isfinite(update).all():
            raise CryptoError("the update holds NaN or infinity; nothing was encoded", where="codec",
                              fix="lower the learning rate, and look at the training log")
        exact = (np.clip(update.astype(np.float64), -self.limit, self.limit) + self.limit) / self.step
        floor = np.floor(exact)
        levels = floor + (noise.uniform(exact.shape) < exact - floor)
        return np.clip(levels, 0, self.levels).astype(np.int64)

    def to_slots(self, levels: Integers) -> Slots:
        """Levels (n_params,) -> centred complex slots (n_chunks, 2048). Raises CryptoError out of range."""
        if levels.shape != (self.n_params,) or levels.min() < 0 or levels.max() > self.levels:
            raise CryptoError("a level is outside the field of its value", where="codec",
                              fix="encode with this study's own codec")
        padded = np.zeros(self.n_chunks * self.values_per_chunk, np.int64)
        padded[: self.n_params] = levels
        fields = padded.reshape(self.n_chunks, 2 * SLOTS, self.fields)
        reals = (fields << self._shifts).sum(-1) - self._centre
        return reals[:, :SLOTS] + 1j * reals[:, SLOTS:]

    def sum_from_slots(self, slots: Slots, n_terms: int) -> Integers:
        """Decrypted slots (n_chunks, 2048) of a sum of `n_terms` sites -> exact summed levels (n_params,).

        Raises CryptoError when a slot is not near an integer or the sum is out of reach of `n_terms` sites.
        """
        if not 1 <= n_terms <= self.n_sites or slots.shape != (self.n_chunks, SLOTS):
            raise CryptoError(f"no sum of {n_terms} sites has shape {slots.shape}", where="decoding",
                              fix="discard the round")
        raw = np.concatenate([slots.real, slots.imag], axis=1)
        rounded = np.rint(raw)
        if not np.isfinite(raw).all() or np.abs(raw - rounded).max() > MAX_RESIDUAL:
            raise _undecodable()
        reals = rounded.astype(np.int64) + self._centre * n_terms
        if reals.min() < 0 or int(reals.max()) >> (self.field_bits * self.fields):
            raise _undecodable()
        values = (reals[..., None] >> self._shifts) & ((1 << self.field_bits) - 1)
        flat: Integers = values.reshape(-1)
        if flat.max() > n_terms * self.levels or flat[self.n_params :].any():
            raise _undecodable()
        return flat[: self.n_params]

    def mean(self, summed: Integers, n_terms: int) -> NDArray[np.float64]:
        """Exact summed levels (n_params,) -> mean update (n_params,) over `n_terms` sites."""
        return summed / n_terms * self.step - self.limit

    @property
    def _shifts(self) -> Integers:
        return np.arange(self.fields, dtype=np.int64) * self.field_bits


def _undecodable() -> CryptoError:
    """One error for every way in which a sum does not decode: which way it was is nobody's business."""
    return CryptoError("the sum does not decode", where="decoding", fix="discard the round")


def noise_proxy(n_sites: int, scale_bits: int) -> float:
    """Sub-Gaussian variance proxy v of one decoded real of a sum (module docstring)."""
    return n_sites * NOISE_VARIANCE * (DEGREE / 2) / 4.0**scale_bits


def _least_scale_bits(n_sites: int) -> int:
    """Smallest scale whose sums over `n_sites` fail to round with probability below 2^-128 in an epoch."""
    needed = (FAILURE_BITS + REALS_PER_EPOCH_BITS + 1) * math.log(2)
    scale_bits = 1
    while 1 / (32 * noise_proxy(n_sites, scale_bits)) < needed:
        scale_bits += 1
    return scale_bits


def _noise_ceiling(n_sites: int) -> float:
    """Largest possible summed noise coefficient: 21 a site, and one for rounding the encoding."""
    return n_sites * 22.0


def _float_bits(n_sites: int) -> int:
    """Bits of a real for which double precision leaves the sum's decoding error below 1/8.

    An FFT of 4,096 points errs by a few units in the last of 53 bits, relative to the largest slot; six
    bits of room hold it (measured: 2^-50 of full range), and the encoder checks itself besides.
    """
    return 53 - 6 - max(0, (n_sites - 1).bit_length() - 6) // 2
