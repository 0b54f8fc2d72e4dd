"""An update as integers in complex CKKS slots, such that the sum over all sites decodes exactly.

A value is clipped to the public range [-limit, limit], rounded stochastically to one of 2^value_bits - 1 levels
(zero is one of them) and put into a field of `field_bits` = `value_bits` + bits of the number of sites, so that the
sum of all sites never carries. `fields` fields make a word, a word is the real or the imaginary part of a slot, and
a ciphertext has 2,048 slots. Of several numbers of fields the largest is taken that `exactness` allows.

A `masked` encoding takes words to which masks modulo 2^(fields * field_bits) were added (`crypto.masking`): masks go
over whole words, since sums of values fit a word that does not carry, and what it wraps to is right modulo 2^W.

    quantise        update -> integers (n_params,)
    to_slots        integers -> slots                     masked: words of `pack`, masks added -> slots
    sum_from_slots  decrypted slots -> sums (n_params,)   masked: sums of words; masks off, then `unpack`
    mean            sums -> mean update
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from secure_triplay.crypto.exactness import MAX_RESIDUAL, REAL_BITS, Numbers
from secure_triplay.crypto.parameters import DEGREE, SLOTS, CkksParameters
from secure_triplay.errors import ConfigError, CryptoError

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
    field_bits: int
    fields: int
    scale_bits: int
    limit: float
    masked: bool = False

    @classmethod
    def choose(
        cls, *, n_sites: int, value_bits: int, n_params: int, limit: float, masked: bool = False
    ) -> Codec:
        """The densest encoding whose sums over up to `n_sites` sites are exact (`exactness`).

        Raises:
            ConfigError: if a number makes no sense or not even one value a real fits; says what would fit.
        """
        _require_sensible(n_sites, value_bits, n_params, limit)
        field_bits = value_bits + (n_sites - 1).bit_length()
        for fields in range(REAL_BITS // field_bits, 0, -1):
            for scale_bits in range(8, 40):
                numbers = (n_sites, n_params, value_bits, field_bits, fields, scale_bits)
                if Numbers(*numbers, masked).misfit() is None:
                    return cls(*numbers, limit, masked)
        raise _misfit(
            f"{value_bits}-bit values of {n_sites} sites ({field_bits} bits a field) do not fit a real",
            "lower codec.value_bits, or have fewer sites",
        )

    def __post_init__(self) -> None:
        _require_sensible(self.n_sites, self.value_bits, self.n_params, self.limit)
        why = self._numbers.misfit()
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
        """Largest integer that one site puts into a field, 2 * levels."""
        return self._numbers.max_integer

    @property
    def word_bits(self) -> int:
        """Bits of a word; masks are modulo 2^word_bits."""
        return self._numbers.word_bits

    @property
    def values_per_chunk(self) -> int:
        """Values in a full ciphertext."""
        return DEGREE * self.fields

    @property
    def n_chunks(self) -> int:
        """Ciphertexts of one update."""
        return self._numbers.n_chunks

    @property
    def n_words(self) -> int:
        """Words of one update, padding included: 4,096 a ciphertext."""
        return DEGREE * self.n_chunks

    @property
    def encode_tolerance(self) -> float:
        """The largest error of an encoded real, checked before it is encrypted: T of equation (2) or (5)."""
        return self._numbers.tolerance

    @property
    def _numbers(self) -> Numbers:
        numbers = (self.n_sites, self.n_params, self.value_bits, self.field_bits, self.fields)
        return Numbers(*numbers, self.scale_bits, self.masked)

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
        """Integers (n_params,) in [0, max_integer], or masked words (n_words,) -> centred slots (n_chunks, 2048).

        Raises:
            CryptoError: if the shape is another or an integer is out of range.
        """
        if self.masked:
            if integers.shape != (self.n_words,) or integers.min() < 0 or integers.max() >> self.word_bits:
                raise _unencodable(f"masked words of shape {integers.shape} do not fit this study")
            words = iter(integers.reshape(self.n_chunks, DEGREE))
        else:
            words = self._packed(integers)
        slots, centre = np.empty((self.n_chunks, SLOTS), np.complex128), self._numbers.centre
        for row, word in zip(slots, words, strict=True):
            real = word - centre
            row.real, row.imag = real[:SLOTS], real[SLOTS:]
        return slots

    def pack(self, integers: Integers) -> Integers:
        """Integers (n_params,) in [0, max_integer] -> words (n_words,), to which masks may be added.

        Raises:
            CryptoError: if the shape is another or an integer is out of range.
        """
        return np.concatenate(list(self._packed(integers)))

    def unpack(self, words: Integers, n_terms: int) -> Integers:
        """Sums of `n_terms` sites' packed words (n_words,) -> sums of their integers (n_params,).

        Raises:
            CryptoError: if padding is not empty, or a sum is out of reach of `n_terms` honest sites.
        """
        if words.shape != (self.n_words,) or words.min() < 0 or not 1 <= n_terms <= self.n_sites:
            raise undecodable()
        return self._unpacked(iter(words.reshape(self.n_chunks, DEGREE).copy()), n_terms)

    def sum_from_slots(self, slots: Slots, n_terms: int) -> Integers:
        """Decrypted slots (n_chunks, 2048) of a sum of `n_terms` sites -> exact sums (n_params,) int64.

        Of a masked encoding, exact sums of words (n_words,): take the masks off, then `unpack`.

        Raises:
            CryptoError: with one constant message, if a residual is above its bound (or NaN), a sum is out of reach
                of `n_terms` honest sites, padding is not empty, or shape or `n_terms` are impossible.
        """
        if not 1 <= n_terms <= self.n_sites or slots.shape != (self.n_chunks, SLOTS):
            raise undecodable()
        reals = self._rounded(slots, n_terms)
        return np.concatenate(list(reals)) if self.masked else self._unpacked(reals, n_terms)

    def _packed(self, integers: Integers) -> Iterator[Integers]:
        """Words (4096,) of one chunk after the other."""
        if integers.shape != (self.n_params,) or integers.min() < 0 or integers.max() > self.max_integer:
            raise _unencodable(f"integers of shape {integers.shape} do not fit the fields of this study")
        for start in range(0, self.n_params, self.values_per_chunk):
            part = integers[start : start + self.values_per_chunk]
            if len(part) < self.values_per_chunk:
                part = np.concatenate([part, np.zeros(self.values_per_chunk - len(part), np.int64)])
            planes = part.reshape(self.fields, DEGREE)
            word = planes[-1].copy()
            for plane in planes[-2::-1]:
                word <<= self.field_bits
                word += plane
            yield word

    def _unpacked(self, chunks: Iterator[Integers], n_terms: int) -> Integers:
        """What `_packed` packed; shifts the words that it is given."""
        out = np.empty(self.n_chunks * self.values_per_chunk, np.int64)
        mask, top = 2**self.field_bits - 1, n_terms * self.max_integer
        for word, part in zip(chunks, out.reshape(self.n_chunks, self.fields, DEGREE), strict=True):
            for plane in part[:-1]:
                np.bitwise_and(word, mask, out=plane)
                word >>= self.field_bits
            part[-1] = word
            if part.max() > top:
                raise undecodable()
        if out[self.n_params :].any():
            raise undecodable()
        return out[: self.n_params]

    def _rounded(self, slots: Slots, n_terms: int) -> Iterator[Integers]:
        """The sum of words (4096,) of one chunk after the other."""
        numbers = self._numbers
        most, offset = n_terms * numbers.max_word, n_terms * numbers.centre
        for row in slots:
            raw = np.concatenate([row.real, row.imag])
            # written so that NaN fails; the first bound makes the cast to integers safe
            if not np.abs(raw).max() < 2.0**53:
                raise undecodable()
            near = np.rint(raw)
            if np.abs(raw - near).max() > MAX_RESIDUAL:
                raise undecodable()
            reals = near.astype(np.int64) + offset
            if reals.min() < 0 or reals.max() > most:
                raise undecodable()
            yield reals

    def mean(self, sums: Integers, n_terms: int) -> NDArray[np.float64]:
        """Exact sums (n_params,) of unmasked values -> mean update (n_params,) float64.

        Raises:
            CryptoError: if a sum is out of reach of `n_terms` values (a mask was not taken off).
        """
        if not 1 <= n_terms <= self.n_sites or sums.shape != (self.n_params,):
            raise undecodable()
        if sums.min() < 0 or sums.max() > 2 * self.levels * n_terms:
            raise undecodable()
        mean = sums.astype(
            np.float64
        )  # exact; changed in place, since fresh arrays cost more than the arithmetic
        mean -= n_terms * self.levels
        mean *= self.step / n_terms
        return mean

    def wrong_log2(self) -> float:
        """log2 of the bound on a wrong integer anywhere in a key epoch: at most -128, wrapped words included."""
        wrapped = self._numbers.wrapped_log2() if self.masked else -math.inf
        return max(self._numbers.off_log2(0.5), wrapped)

    def refused_log2(self) -> float:
        """log2 of the bound on a refusal of an honest sum anywhere in a key epoch: at most -64."""
        return self._numbers.off_log2(MAX_RESIDUAL)


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


def _unencodable(what: str) -> CryptoError:
    return CryptoError(what, where="encoder", fix="encode with the study's own codec")


def undecodable() -> CryptoError:
    """One error for every way in which a sum does not decode: which it was would tell of the noise."""
    return CryptoError(
        "the sum does not decode", where="decoder", fix="discard the round and tell the operator"
    )
