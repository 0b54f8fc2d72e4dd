"""Words modulo 2^W: what masks are added to, and what is left when they are off.

A value is in [0, 2 L], L = 2^(value_bits - 1) - 1. A field holds the sum of n values, so a word of `fields` fields
holds the packed sums: W = fields * field_bits, and pack(x_1) + ... + pack(x_n) < 2^W carries from no field into the
next. A site sends y = (pack(x) + masks) mod 2^W, one group element a *word*, not one a field. The ciphertexts' sum
decodes exactly to Y = y_1 + ... + y_n as an integer below n 2^W (`crypto.exactness`, masked words), and

    (Y - masks) mod 2^W = (pack(x_1) + ... + pack(x_n)) mod 2^W = pack(x_1) + ... + pack(x_n),

whose fields are the sums. Masks are the low W bits of 64-bit words of keystream: 2^W divides 2^64, so they are
uniform modulo 2^W, and sums of masks may wrap modulo 2^64 on the way.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from secure_triplay.crypto.codec import Codec, Integers
from secure_triplay.errors import CryptoError

Words = NDArray[np.uint64]
"""Little-endian, (n_words,)."""


def masked_codec(*, n_sites: int, value_bits: int, n_params: int, limit: float) -> Codec:
    """The densest encoding of masked values of up to `n_sites` sites.

    Raises:
        ConfigError: if not even one field fits a real; says what would.
    """
    return Codec.choose(n_sites=n_sites, value_bits=value_bits, n_params=n_params, limit=limit, masked=True)


def require_masked(codec: Codec) -> None:
    """Raise CryptoError unless the codec's reals hold sums of masked words."""
    if not codec.masked:
        raise CryptoError(
            "this encoding holds sums of values, not of masked words",
            where="masking", fix="take the codec from masked_codec",
        )  # fmt: skip


def zero_words(codec: Codec) -> Words:
    """Words (n_words,) of zeros, for masks to be added to."""
    return np.zeros(codec.n_words, "<u8")


def residues(codec: Codec, words: Words) -> Integers:
    """Words (n_words,), whatever they wrapped to, as integers (n_words,) int64 in [0, 2^word_bits)."""
    return (words & np.uint64((1 << codec.word_bits) - 1)).astype(np.int64)
