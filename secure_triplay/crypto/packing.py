"""Ring elements as bytes, and their addition: all that the server ever does with a ciphertext.

Adding two ciphertexts of one key *is* adding their coefficients modulo q (a test holds SEAL's own
Evaluator against it), so untrusted bytes meet neither a C++ parser nor a key here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from secure_triplay.crypto.parameters import DEGREE, MODULUS, PACKED_BYTES, SEED_BYTES
from secure_triplay.errors import CryptoError

Coefficients = NDArray[np.uint64]

_WORDS = PACKED_BYTES // 8
_REST = DEGREE - _WORDS
_SHIFTS = (4 * np.arange(_WORDS // _REST, dtype=np.uint64)).reshape(1, -1, 1)
_LOW_4, _LOW_60, _60 = np.uint64(15), np.uint64(2**60 - 1), np.uint64(60)
_FIX = "ask the sender for the bytes again; if they are the same, leave this sender out"


@dataclass(frozen=True)
class SeededCiphertexts:
    """Ciphertexts as they travel: c0 (n_chunks, 4096) uint64 below q, and the seed of 16 bytes of all their c1."""

    c0: Coefficients
    seed: bytes

    def __post_init__(self) -> None:
        require_reduced(self.c0)
        if self.c0.shape[1:] != (DEGREE,):
            raise CryptoError(f"c0 has shape {self.c0.shape}", where="ciphertexts", fix=_FIX)
        if type(self.seed) is not bytes or len(self.seed) != SEED_BYTES:
            raise CryptoError(f"a seed has {SEED_BYTES} bytes", where="ciphertexts", fix=_FIX)


def require_reduced(values: Coefficients) -> None:
    """Return if `values` are uint64 below the modulus q; raise CryptoError otherwise."""
    if values.dtype != np.uint64:
        raise CryptoError(f"coefficients are {values.dtype}, not uint64", where="ciphertext", fix=_FIX)
    if values.size and int(values.max()) >= MODULUS:
        raise CryptoError("a coefficient is not below the modulus", where="ciphertext", fix=_FIX)


def pack60(coefficients: Coefficients) -> bytes:
    """Coefficients (n_chunks, 4096) below q as n_chunks * 30,720 bytes; each value has one encoding.

    A 60-bit coefficient leaves four bits of a word free: the first 3,840 words of a chunk carry one
    coefficient each and, in their top bits, the last 256 coefficients, nibble by nibble.

    Raises:
        CryptoError: if the shape or dtype is another, or a coefficient is not below q.
    """
    if coefficients.ndim != 2 or coefficients.shape[1] != DEGREE:
        raise CryptoError(f"cannot pack shape {coefficients.shape}", where="ciphertext", fix=_FIX)
    require_reduced(coefficients)
    out = np.empty((len(coefficients), _WORDS), "<u8")
    for words, chunk in zip(out, coefficients, strict=True):
        nibbles = (chunk[_WORDS:] >> _SHIFTS[0]) & _LOW_4
        nibbles <<= _60
        np.bitwise_or(chunk[:_WORDS], nibbles.reshape(_WORDS), out=words)
    return out.tobytes()


def unpack60(packed: bytes | bytearray | memoryview, n_chunks: int) -> Coefficients:
    """The coefficients (n_chunks, 4096) uint64, all below q, that `pack60` made into bytes.

    Raises:
        CryptoError: if the length is not that of exactly `n_chunks`, or a coefficient is not below q.
    """
    if n_chunks < 0 or len(packed) != n_chunks * PACKED_BYTES:
        raise CryptoError(
            f"{len(packed)} bytes are not {n_chunks} ciphertexts", where="packed bytes", fix=_FIX
        )
    words = np.frombuffer(packed, "<u8").reshape(n_chunks, _WORDS)
    out = np.empty((n_chunks, DEGREE), np.uint64)
    for chunk, row in zip(out, words, strict=True):
        np.bitwise_and(row, _LOW_60, out=chunk[:_WORDS])
        nibbles = (row >> _60).reshape(-1, _REST)
        np.bitwise_or.reduce(nibbles << _SHIFTS[0], axis=0, out=chunk[_WORDS:])
    require_reduced(out)
    return out


def add_mod(total: NDArray[np.uint64], more: NDArray[np.uint64]) -> None:
    """Add `more` to `total` modulo q, in place and exactly; serves ciphertexts and tags alike.

    Raises:
        CryptoError: if shapes differ, or a value of either is not uint64 below the modulus.
    """
    if total.shape != more.shape:
        raise CryptoError(f"cannot add shape {more.shape} to {total.shape}", where="sum", fix=_FIX)
    require_reduced(total)
    require_reduced(more)
    q = np.uint64(MODULUS)
    for here, there in zip(np.atleast_2d(total), np.atleast_2d(more), strict=True):
        # both are below q < 2^60, so nothing overflows; below q the subtraction wraps to a huge value
        here += there
        np.minimum(here, here - q, out=here)
