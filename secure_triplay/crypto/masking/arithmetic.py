"""Integers modulo 2^b in the codec's fields.

A value is in [0, 2 L], L = 2^(value_bits - 1) - 1; the sum of n values is at most 2 n L, and b is its bits. A site
puts (value + masks) mod 2^b into a field, so a field of the sum holds up to n (2^b - 1) < 2^(b + bits of n - 1),
which is what `Codec.choose` reserves when it is told `integer_bits = b`. Decoding is exact; then modulo 2^b, the
masks off, modulo 2^b again, and what is left is the plain sum, since that is below 2^b. Masks are drawn as whole
words of 16, 32 or 64 bits: 2^b divides these, so a uniform word is uniform modulo 2^b.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from secure_triplay.crypto.codec import Codec, Integers
from secure_triplay.errors import CryptoError

Words = NDArray[np.unsignedinteger[Any]]


def masked_codec(*, n_sites: int, value_bits: int, n_params: int, limit: float) -> Codec:
    """The densest encoding of masked values of up to `n_sites` sites.

    Raises:
        ConfigError: if not even one field fits a real; says what would.
    """
    largest = n_sites * ((1 << value_bits) - 2)
    bits = max(largest.bit_length(), value_bits)
    return Codec.choose(
        n_sites=n_sites, value_bits=value_bits, n_params=n_params, limit=limit, integer_bits=bits
    )


def require_masked(codec: Codec) -> None:
    """Raise CryptoError unless sums of the codec's values are below 2^integer_bits."""
    if codec.n_sites * 2 * codec.levels >= 1 << codec.integer_bits:
        raise CryptoError(
            f"sums of {codec.n_sites} sites do not fit {codec.integer_bits} bits",
            where="masking", fix="take the codec from masked_codec",
        )  # fmt: skip


def word_type(bits: int) -> np.dtype[np.unsignedinteger[Any]]:
    """The smallest word of 16, 32 or 64 bits that holds residues modulo 2^bits, little-endian."""
    return np.dtype("<u2" if bits <= 16 else "<u4" if bits <= 32 else "<u8")


def residues(codec: Codec, words: Words) -> Integers:
    """Words (n_params,), whatever they wrapped to, as integers (n_params,) int64 in [0, 2^integer_bits)."""
    kept = words & words.dtype.type((1 << codec.integer_bits) - 1)
    return kept.astype(np.int64)
