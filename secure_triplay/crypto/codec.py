r"""An update as integers in complex CKKS slots, such that the sum over all sites decodes exactly.

A value is clipped to the public range [-limit, limit], rounded stochastically to one of 2^value_bits - 1
levels (zero is one of them) and put into a field of `field_bits` = `integer_bits` + bits of the number of
sites, so that the sum of all sites never carries. `fields` fields make a real of B = fields * field_bits
bits, two reals a complex slot, 2,048 slots a ciphertext. `integer_bits` is `value_bits` unless masks modulo
2^integer_bits are added between `quantise` and `to_slots`: then fields hold every residue.

**Why the sum is exact.** The real part of a decrypted slot of the sum is z + X + E for the true integer z.

*Noise X.* A fresh noise coefficient of SEAL is centred binomial (rlwe.cpp, sample_poly_cbd; a test measures
its variance, 10.5): half the sum of 42 signs, hence sub-Gaussian with proxy 42/4 = 10.5. In the real part of
a slot, coefficient j has weight cos(j t) for an odd multiple t of pi/N, and

    sum_j cos(j t)^2 = N/2 + Re(sum_j exp(2 i j t)) / 2 = N/2,

because exp(2 i t) is an N-th root of unity other than 1; likewise with sines for the imaginary part. The sum
of n sites at scale D = 2^scale_bits has n independent noises, so X is sub-Gaussian with proxy
v = 10.5 n (N/2) / D^2, and

    P(|X| > x) <= 2 exp(-x^2 / (2 v)).                                                              (1)

*Everything else, E.* Encoding rounds coefficients to integers: an error of variance N/24 in the slot, in
units of 1/D. Double precision errs by u |z| c with u = 2^-53 (measured: c <= 8.5 over random, constant and
alternating slots of full range; c = 32 is allowed). So the encoder demands of its own plaintext, decoded
again before it is encrypted, an error of at most

    T = (128 + 32 u sqrt(2) A D / n) / D                                                            (2)

where A is the largest real of the sum and A / n that of a site; 128 is 9.8 standard deviations of the
rounding, so an honest update is never turned away. Decoding the sum is allowed 32 u sqrt(2) A more:

    |E| <= n T + 32 u sqrt(2) A.                                                                    (3)

*Choice of scale.* A real that is off by 1/2 would round wrongly; a residual above 1/4 is refused already.
With R reals in a key epoch (4,096 a chunk, `ROUNDS_PER_EPOCH` rounds), `Codec.choose` takes the smallest
scale at which, with (1), (3) and the union bound,

    R P(|X| > 1/2 - |E|) <= 2^-128   no sum of honest uploads ever decodes to a wrong integer,
    R P(|X| > 1/4 - |E|) <= 2^-64    nor is one refused.

So what an epoch releases is a function of the exact integer sums alone, but for one refusal of probability
2^-64: nothing for the attack of Li and Micciancio (2021) to work on. This holds for *honestly formed* sums;
others are kept from the decryptor by tags and signatures.

**Why it fits.** A coefficient of the encoded polynomial is a mean of slots turned by units, so at most
sqrt(2) A D; with rounding and noise (21 + 1/2 a site at most) it must stay below q/2. SEAL encodes up to
2^58 besides. Of several numbers of fields the largest is taken.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from secure_triplay.crypto.parameters import DEGREE, MODULUS, NOISE_MAX, NOISE_VARIANCE, SLOTS, CkksParameters
from secure_triplay.errors import ConfigError, CryptoError

ROUNDS_PER_EPOCH = 2**16
WRONG_BITS, REFUSED_BITS = 128, 64
MAX_RESIDUAL = 0.25
_ROUNDING_UNITS = 128.0
_FLOAT_UNITS = 32.0 * math.sqrt(2) * 2.0**-53
_SEAL_MAX = 2.0**58
_BLOCK = 1 << 14

Integers = NDArray[np.int64]
Slots = NDArray[np.complex128]


class Uniform(Protocol):
    """Uniform numbers in [0, 1); in a round they come from the cryptographic generator (`NoiseSource`)."""

    def uniform(self, shape: tuple[int, ...], /) -> NDArray[np.floating[Any]]: ...


@dataclass(frozen=True)
class Codec:
    """The public encoding of one study; `Codec.choose` makes it, and any other is checked the same way."""

    n_sites: int
    n_params: int
    value_bits: int
    integer_bits: int
    field_bits: int
    fields: int
    scale_bits: int
    limit: float

    @classmethod
    def choose(
        cls, *, n_sites: int, value_bits: int, n_params: int, limit: float, integer_bits: int | None = None
    ) -> Codec:
        """The densest encoding whose sums over up to `n_sites` sites are exact (module docstring).

        `integer_bits` is for integers masked modulo 2^integer_bits (Bonawitz et al. 2017).

        Raises:
            ConfigError: if a number makes no sense or not even one value a real fits; says what would fit.
        """
        _require_sensible(n_sites, value_bits, n_params, limit)
        bits = value_bits if integer_bits is None else integer_bits
        if not value_bits <= bits <= 48:
            raise _misfit(f"{bits}-bit integers cannot hold {value_bits}-bit values", "raise integer_bits")
        field_bits = bits + (n_sites - 1).bit_length()
        for fields in range(52 // field_bits, 0, -1):
            for scale_bits in range(8, 40):
                codec = (n_sites, n_params, value_bits, bits, field_bits, fields, scale_bits, limit)
                if _misfits(*codec[:-1]) is None:
                    return cls(*codec)
        raise _misfit(
            f"{value_bits}-bit values of {n_sites} sites ({field_bits} bits a field) do not fit a real",
            "lower codec.value_bits, or have fewer sites",
        )

    def __post_init__(self) -> None:
        _require_sensible(self.n_sites, self.value_bits, self.n_params, self.limit)
        numbers = (self.n_sites, self.n_params, self.value_bits, self.integer_bits, self.field_bits)
        why = _misfits(*numbers, self.fields, self.scale_bits)
        if why is not None:
            raise _misfit(why, "take the parameters from Codec.choose")

    @property
    def parameters(self) -> CkksParameters:
        """The encryption that this encoding needs."""
        return CkksParameters(self.scale_bits)

    @property
    def levels(self) -> int:
        """Levels on each side of zero, 2^(value_bits-1) - 1; a value is an integer in [0, 2 * levels]."""
        return (1 << (self.value_bits - 1)) - 1

    @property
    def step(self) -> float:
        """Distance of neighbouring levels, in units of the update."""
        return self.limit / self.levels

    @property
    def max_integer(self) -> int:
        """Largest integer that one site puts into a field."""
        return _max_integer(self.value_bits, self.integer_bits)

    @property
    def values_per_chunk(self) -> int:
        """Values in a full ciphertext."""
        return DEGREE * self.fields

    @property
    def n_chunks(self) -> int:
        """Ciphertexts of one update."""
        return -(-self.n_params // self.values_per_chunk)

    @property
    def encode_tolerance(self) -> float:
        """T of equation (2): the largest error of an encoded real, checked before it is encrypted."""
        return _tolerance(self.n_sites, self._centre, self.scale_bits)

    @property
    def _centre(self) -> int:
        return _centre(self.value_bits, self.integer_bits, self.field_bits, self.fields)

    def encode(self, delta: NDArray[np.float32], source: Uniform) -> Slots:
        """`to_slots` of `quantise`: update (n_params,) float32 -> slots (n_chunks, 2048) complex128."""
        return self.to_slots(self.quantise(delta, source))

    def decode(self, slots: Slots, n_terms: int) -> NDArray[np.float64]:
        """`mean` of `sum_from_slots`: decrypted slots (n_chunks, 2048) -> mean update (n_params,) float64."""
        return self.mean(self.sum_from_slots(slots, n_terms), n_terms)

    def quantise(self, delta: NDArray[np.float32], source: Uniform) -> Integers:
        """Update (n_params,) float32 -> integers (n_params,) in [0, 2 * levels].

        Unbiased within the range, up to the grid of the uniforms (2^-24 of a step for float32).

        Raises:
            CryptoError: if the shape or dtype is another, or a value is NaN or infinite.
        """
        if delta.shape != (self.n_params,) or delta.dtype != np.float32:
            raise CryptoError(
                f"an update is ({self.n_params},) float32, not {delta.shape} {delta.dtype}",
                where="encoder", fix="check that the adapter belongs to this study",
            )  # fmt: skip
        out = np.empty(self.n_params, np.int64)
        top = float(self.levels)
        for start in range(0, self.n_params, _BLOCK):
            exact = delta[start : start + _BLOCK].astype(np.float64)
            if not np.isfinite(exact).all():
                raise CryptoError(
                    "the update holds NaN or infinity; nothing was encoded",
                    where="encoder", fix="lower the learning rate and look at the local training log",
                )  # fmt: skip
            exact *= 1.0 / self.step
            np.clip(exact, -top, top, out=exact)
            floor = np.floor(exact)
            exact -= floor
            # goes up with probability exactly the fraction; at the upper end the fraction is zero
            floor += source.uniform(exact.shape) < exact
            floor += top
            out[start : start + _BLOCK] = floor
        return out

    def to_slots(self, integers: Integers) -> Slots:
        """Integers (n_params,) in [0, max_integer] -> centred slots (n_chunks, 2048) complex128.

        Raises:
            CryptoError: if the shape is another or an integer is out of range.
        """
        if integers.shape != (self.n_params,) or integers.min() < 0 or integers.max() > self.max_integer:
            raise CryptoError(
                f"integers of shape {integers.shape} do not fit the fields of this study",
                where="encoder", fix="encode with the study's own codec",
            )  # fmt: skip
        slots = np.empty((self.n_chunks, SLOTS), np.complex128)
        for chunk, row in enumerate(slots):
            part = integers[chunk * self.values_per_chunk : (chunk + 1) * self.values_per_chunk]
            if len(part) < self.values_per_chunk:
                part = np.concatenate([part, np.zeros(self.values_per_chunk - len(part), np.int64)])
            planes = part.reshape(self.fields, DEGREE)
            real = planes[-1].copy()
            for plane in planes[-2::-1]:
                real <<= self.field_bits
                real += plane
            real -= self._centre
            row.real, row.imag = real[:SLOTS], real[SLOTS:]
        return slots

    def sum_from_slots(self, slots: Slots, n_terms: int) -> Integers:
        """Decrypted slots (n_chunks, 2048) of a sum of `n_terms` sites -> exact sums (n_params,) int64.

        Raises:
            CryptoError: with one constant message, if a residual is above 1/4 (or NaN), a sum is out of reach
                of `n_terms` honest sites, padding is not empty, or shape or `n_terms` are impossible.
        """
        if not 1 <= n_terms <= self.n_sites or slots.shape != (self.n_chunks, SLOTS):
            raise _undecodable()
        out = np.empty(self.n_chunks * self.values_per_chunk, np.int64)
        mask, top = 2**self.field_bits - 1, n_terms * self.max_integer
        for row, part in zip(slots, out.reshape(self.n_chunks, self.fields, DEGREE), strict=True):
            raw = np.concatenate([row.real, row.imag])
            # written so that NaN fails; the first bound makes the cast to integers safe
            if not np.abs(raw).max() < 2.0**53:
                raise _undecodable()
            near = np.rint(raw)
            if np.abs(raw - near).max() > MAX_RESIDUAL:
                raise _undecodable()
            reals = near.astype(np.int64) + n_terms * self._centre
            if reals.min() < 0:
                raise _undecodable()
            for plane in part[:-1]:
                np.bitwise_and(reals, mask, out=plane)
                reals >>= self.field_bits
            part[-1] = reals
            if part.max() > top:
                raise _undecodable()
        if out[self.n_params :].any():
            raise _undecodable()
        return out[: self.n_params]

    def mean(self, sums: Integers, n_terms: int) -> NDArray[np.float64]:
        """Exact sums (n_params,) of unmasked values -> mean update (n_params,) float64.

        Raises:
            CryptoError: if a sum is out of reach of `n_terms` values (a mask was not taken off).
        """
        if not 1 <= n_terms <= self.n_sites or sums.shape != (self.n_params,):
            raise _undecodable()
        if sums.min() < 0 or sums.max() > 2 * self.levels * n_terms:
            raise _undecodable()
        return (sums - n_terms * self.levels).astype(np.float64) * (self.step / n_terms)

    def wrong_log2(self) -> float:
        """log2 of the bound on a wrong integer anywhere in a key epoch: at most -128."""
        return _tail_log2(self, 0.5)

    def refused_log2(self) -> float:
        """log2 of the bound on a refusal of an honest sum anywhere in a key epoch: at most -64."""
        return _tail_log2(self, MAX_RESIDUAL)


def noise_std(n_terms: int, scale_bits: int) -> float:
    """Standard deviation of the noise in a decoded real of a sum, sqrt(v) of equation (1)."""
    return math.sqrt(n_terms * NOISE_VARIANCE * DEGREE / 2) / 2.0**scale_bits


def _max_integer(value_bits: int, integer_bits: int) -> int:
    return (1 << value_bits) - 2 if integer_bits == value_bits else (1 << integer_bits) - 1


def _centre(value_bits: int, integer_bits: int, field_bits: int, fields: int) -> int:
    """What is taken off a site's real so that it lies around zero: half its largest, rounded up."""
    largest = _max_integer(value_bits, integer_bits) * sum(1 << (field_bits * j) for j in range(fields))
    return (largest + 1) // 2


def _tolerance(n_sites: int, centre: int, scale_bits: int) -> float:
    """Equation (2), with A / n = centre."""
    return _ROUNDING_UNITS / 2.0**scale_bits + _FLOAT_UNITS * centre


def _exceeds_log2(n_sites: int, n_chunks: int, scale_bits: int, centre: int, distance: float) -> float:
    """log2 of R P(|X| > distance - |E|), by (1) and (3); infinite where |E| leaves no room."""
    margin = distance - n_sites * _tolerance(n_sites, centre, scale_bits) - _FLOAT_UNITS * centre * n_sites
    if margin <= 0:
        return math.inf
    reals = math.log2(DEGREE) + math.log2(n_chunks) + math.log2(ROUNDS_PER_EPOCH)
    return reals + 1 - margin**2 / (2 * noise_std(n_sites, scale_bits) ** 2) / math.log(2)


def _tail_log2(codec: Codec, distance: float) -> float:
    centre = _centre(codec.value_bits, codec.integer_bits, codec.field_bits, codec.fields)
    return _exceeds_log2(codec.n_sites, codec.n_chunks, codec.scale_bits, centre, distance)


def _misfits(n_sites: int, n_params: int, value_bits: int, integer_bits: int, field_bits: int, fields: int,
             scale_bits: int) -> str | None:  # fmt: skip
    """Why sums with these numbers would not be exact, or None where they are."""
    if not value_bits <= integer_bits or fields < 1 or fields * field_bits > 52:
        return f"{fields} fields of {field_bits} bits do not fit a real"
    if n_sites * _max_integer(value_bits, integer_bits) >= 2**field_bits:
        return f"the sum of {n_sites} sites does not fit {field_bits} bits"
    centre = _centre(value_bits, integer_bits, field_bits, fields)
    largest = math.sqrt(2) * centre * 2.0**scale_bits
    if largest >= _SEAL_MAX or n_sites * (largest + NOISE_MAX + 0.5) >= MODULUS / 2:
        return f"{fields} x {field_bits} bits at scale 2^{scale_bits} do not stay below q/2"
    n_chunks = -(-n_params // (DEGREE * fields))
    if _exceeds_log2(n_sites, n_chunks, scale_bits, centre, 0.5) > -WRONG_BITS:
        return f"noise could round a sum wrongly at scale 2^{scale_bits}"
    if _exceeds_log2(n_sites, n_chunks, scale_bits, centre, MAX_RESIDUAL) > -REFUSED_BITS:
        return f"noise could have an honest sum refused at scale 2^{scale_bits}"
    return None


def _require_sensible(n_sites: int, value_bits: int, n_params: int, limit: float) -> None:
    if n_sites < 1 or n_params < 1:
        raise _misfit(
            f"{n_sites} sites and {n_params} parameters are nothing to sum", "both must be at least 1"
        )
    if not 2 <= value_bits <= 24:
        raise _misfit(f"{value_bits}-bit values are not supported", "take codec.value_bits from 2 to 24")
    if not (math.isfinite(limit) and 1e-30 < limit < 1e30):
        raise _misfit(
            f"a range of {limit} is not a positive number", "take the largest |update| as codec.range"
        )


def _misfit(what: str, fix: str) -> ConfigError:
    return ConfigError(what, where="codec", fix=fix)


def _undecodable() -> CryptoError:
    """One error for every way in which a sum does not decode: which it was would tell of the noise."""
    return CryptoError(
        "the sum does not decode", where="decoder", fix="discard the round and tell the operator"
    )
