"""Ring elements as bytes, and their addition: all that the server ever does to a ciphertext.

Adding two ciphertexts of one key is adding their coefficients modulo q (SEAL's Evaluator does the same; a
test holds them against each other). Parsing untrusted bytes here needs no C++ and no key.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from secure_triplay.crypto.parameters import DEGREE, MODULUS, PACKED_BYTES
from secure_triplay.errors import CryptoError

Coefficients = NDArray[np.uint64]

_LOW4 = np.uint64(0xF)
_LOW60 = np.uint64((1 << 60) - 1)
_Q = np.uint64(MODULUS)


def pack(coefficients: Coefficients) -> bytes:
    """Coefficients (n_chunks, 4096) below q as n_chunks x 30,720 bytes, two in fifteen bytes."""
    pairs = np.ascontiguousarray(coefficients, dtype=np.uint64).reshape(-1, 2)
    out = np.empty((len(pairs), 15), np.uint8)
    out[:, :8] = (pairs[:, 0] | (pairs[:, 1] & _LOW4) << np.uint64(60)).astype("<u8").view(np.uint8).reshape(-1, 8)
    out[:, 8:] = (pairs[:, 1] >> np.uint64(4)).astype("<u8").view(np.uint8).reshape(-1, 8)[:, :7]
    return out.tobytes()


def unpack(content: bytes, n_chunks: int) -> Coefficients:
    """The coefficients (n_chunks, 4096) that `pack` made into bytes.

    Raises CryptoError when the length is not exactly that of n_chunks, or a coefficient is not below q.
    """
    if len(content) != n_chunks * PACKED_BYTES:
        raise CryptoError(
            f"a ciphertext of {n_chunks} chunks has {n_chunks * PACKED_BYTES:,} bytes, not {len(content):,}",
            where="packed ciphertext", fix="the sender must send it again",
        )
    packed = np.frombuffer(content, np.uint8).reshape(-1, 15)
    words = np.zeros((len(packed), 2, 8), np.uint8)
    words[:, 0] = packed[:, :8]
    words[:, 1, :7] = packed[:, 8:]
    low, high = words.reshape(-1, 16).view("<u8").T
    pairs = np.empty((len(packed), 2), np.uint64)
    pairs[:, 0] = low & _LOW60
    pairs[:, 1] = (high << np.uint64(4)) | (low >> np.uint64(60))
    coefficients = pairs.reshape(n_chunks, DEGREE)
    require_reduced(coefficients)
    return coefficients


def require_reduced(values: Coefficients) -> None:
    """Raise CryptoError unless every value is below q."""
    if values.size and int(values.max()) >= MODULUS:
        raise CryptoError("a coefficient is not below the modulus", where="packed ciphertext",
                          fix="the sender must send it again")


def add_into(total: Coefficients, more: Coefficients) -> None:
    """Add `more` into `total` modulo q, in place; both are below q, so the sum fits 61 bits."""
    total += more
    np.subtract(total, _Q, out=total, where=total >= _Q)
