r"""Signed integers of any size in words modulo 2^W, so that only their sum modulo 2^W can be unmasked.

For noise that sites share (`privacy.shares`): there a site's integers have noise in them and are never clipped, so they
have no range, and the sum alone has one. With f = `field_bits`, values v_0 .. v_(k-1) make the word

    X = v_0 + v_1 2^f + ... + v_(k-1) 2^((k-1) f)      modulo 2^W, W = k f.

This is a homomorphism of groups from integer vectors to words, so X_1 + ... + X_n mod 2^W is the word of the sums: what
is left when masks are off is a function of the summed integers, with borrows from field to field and all. Reducing each
field by itself before adding would not do: fields have no masks of their own, and how often they carry would tell of
single sites. Where every sum is in [-2^(f-1), 2^(f-1)), its digits are read off uniquely, lowest first.

The sum needs f bits whatever a site sends, so there is no room for the number of sites above each value.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from secure_triplay.crypto.codec import Codec, Integers, Uniform, undecodable
from secure_triplay.crypto.exactness import REAL_BITS, Numbers
from secure_triplay.errors import ConfigError, CryptoError


@dataclass(frozen=True)
class WrappingCodec(Codec):
    """The encoding of sums in [-2^(field_bits-1), 2^(field_bits-1)); `limit` is the update at its end."""

    @classmethod
    def for_sums(cls, *, n_sites: int, n_params: int, bits: int, step: float) -> WrappingCodec:
        """The densest encoding of sums of `bits` bits, of up to `n_sites` sites; an integer is `step` of an update.

        Raises ConfigError if not even one fits a real.
        """
        above = (n_sites - 1).bit_length()
        bits = max(bits, above + 2)
        value_bits = min(24, bits - above)
        for fields in range(REAL_BITS // bits, 0, -1):
            for scale_bits in range(8, 40):
                numbers = (n_sites, n_params, value_bits, bits, fields, scale_bits)
                if Numbers(*numbers, masked=True).misfit() is None:
                    return cls(*numbers, limit=step * 2.0 ** (bits - 1), masked=True)
        raise ConfigError(
            f"sums of {bits} bits over {n_sites} sites do not fit a real",
            where="codec",
            fix="lower privacy.noise.clip_steps or the batch, or have fewer sites",
        )

    @property
    def step(self) -> float:
        """An integer's update."""
        return self.limit / self._half

    @property
    def _half(self) -> int:
        return 1 << (self.field_bits - 1)

    def quantise(self, delta: NDArray[np.float32], source: Uniform) -> Integers:
        """Refused: integers come with their noise in them, and clipping them would make the sum another one."""
        raise CryptoError(
            "an update in floats has no place in a sum of shared noise",
            where="encoder",
            fix="send `noised_sum`",
        )

    def pack(self, integers: Integers) -> Integers:
        """Integers (n_params,) int64 of any size -> words (n_words,) in [0, 2^word_bits). Raises CryptoError."""
        if integers.shape != (self.n_params,) or integers.dtype != np.int64:
            raise CryptoError(
                f"integers of shape {integers.shape} do not fit this study",
                where="encoder",
                fix="use its own codec",
            )
        padded = np.zeros((self.n_chunks, self.fields, self.n_words // self.n_chunks), np.uint64)
        # modulo 2^64, of which 2^W is a divisor
        padded.reshape(-1)[: self.n_params] = integers.astype(np.uint64)
        word = np.zeros((self.n_chunks, self.n_words // self.n_chunks), np.uint64)
        for plane in range(self.fields - 1, -1, -1):
            word = (word << np.uint64(self.field_bits)) + padded[:, plane]
        return (word & np.uint64((1 << self.word_bits) - 1)).astype(np.int64).reshape(-1)

    def unpack(self, words: Integers, n_terms: int) -> Integers:
        """Sums of packed words, modulo 2^word_bits (n_words,) -> sums of their integers (n_params,).

        Raises CryptoError if padding is not empty, or the words are none.
        """
        impossible = words.shape != (self.n_words,) or words.min() < 0 or words.max() >> self.word_bits
        if impossible or not 1 <= n_terms <= self.n_sites:
            raise undecodable()
        left = words.reshape(self.n_chunks, -1).copy()
        out = np.empty((self.n_chunks, self.fields, left.shape[1]), np.int64)
        for plane in range(self.fields):
            digit = ((left + self._half) & (2 * self._half - 1)) - self._half
            out[:, plane] = digit
            left = (left - digit) >> self.field_bits
        flat = out.reshape(-1)
        if flat[self.n_params :].any():
            raise undecodable()
        return flat[: self.n_params]

    def mean(self, sums: Integers, n_terms: int) -> NDArray[np.float64]:
        """Sums (n_params,) of `n_terms` sites' integers -> mean update (n_params,) float64. Raises CryptoError."""
        if not 1 <= n_terms <= self.n_sites or sums.shape != (self.n_params,):
            raise undecodable()
        if sums.min() < -self._half or sums.max() >= self._half:
            raise undecodable()
        return sums.astype(np.float64) * (self.step / n_terms)
