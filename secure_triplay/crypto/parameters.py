"""The public constants of our CKKS encryption, and the identities derived from them.

One ring for every study: degree 4096 and one 60-bit prime, far inside the 128-bit table of the
Homomorphic Encryption Standard (Albrecht et al. 2018, table 1: log q <= 109 at degree 4096). The
server only ever adds, so there is no second prime, no relinearisation key and no Galois key. What a
study chooses is the scale, derived by `codec.Codec.choose`.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from typing import NewType

from secure_triplay.errors import CryptoError

DEGREE = 4096
SLOTS = DEGREE // 2
# The prime of SEAL's CoeffModulus.Create(4096, [60]); a test asks SEAL itself.
MODULUS = 2**60 - 2**14 + 1
MODULUS_BITS = 60
PACKED_BYTES = DEGREE * MODULUS_BITS // 8
SEED_BYTES = 16
NONCE_BYTES = 32
ID_BYTES = 32

# Sum of 42 fair bits, half of them subtracted: SEAL's centred binomial noise (rlwe.cpp, sample_poly_cbd).
NOISE_VARIANCE = 10.5
NOISE_MAX = 21

ContextId = NewType("ContextId", bytes)
KeyId = NewType("KeyId", bytes)


@dataclass(frozen=True)
class CkksParameters:
    """Everything public that a ciphertext depends on; `scale_bits` is the only choice."""

    scale_bits: int
    degree: int = DEGREE
    modulus: int = MODULUS

    def __post_init__(self) -> None:
        if (self.degree, self.modulus) != (DEGREE, MODULUS):
            raise CryptoError(
                f"no CKKS ring of degree {self.degree} modulo {self.modulus} is supported",
                where="CKKS parameters",
                fix=f"use degree {DEGREE} and modulus {MODULUS}",
            )
        if type(self.scale_bits) is not int or not 1 <= self.scale_bits <= 58:
            raise CryptoError(
                f"a scale of {self.scale_bits!r} bits is not between 1 and 58",
                where="CKKS parameters",
                fix="take the parameters from Codec.choose",
            )

    @property
    def scale(self) -> float:
        """The factor between a slot's value and the polynomial's, `2**scale_bits`."""
        return float(2**self.scale_bits)

    @property
    def context_id(self) -> ContextId:
        """SHA-256 over all public parameters: two parties with one id mean the same ciphertext space."""
        fields = struct.pack("<QQQQd", self.degree, self.modulus, self.scale_bits, SEED_BYTES, NOISE_VARIANCE)
        return ContextId(hashlib.sha256(b"secure_triplay ckks symmetric aes128-ctr 2\0" + fields).digest())


def key_id(context_id: ContextId, nonce: bytes) -> KeyId:
    """Public name of a key: SHA-256 of its context and of the nonce drawn with it, `(32,)` bytes.

    It tells nothing of the key, and differs for every key ever made, so ciphertexts of two keys, which
    CKKS would add without complaint, are told apart before they are added.

    Raises:
        CryptoError: if the context id or the nonce has not 32 bytes.
    """
    if len(context_id) != ID_BYTES or len(nonce) != NONCE_BYTES:
        raise CryptoError(
            f"a key id needs {ID_BYTES} + {NONCE_BYTES} bytes, not {len(context_id)} + {len(nonce)}",
            where="key id",
            fix="pass CkksParameters.context_id and the nonce that was drawn with the key",
        )
    return KeyId(hashlib.sha256(b"secure_triplay ckks key 1\0" + context_id + nonce).digest())
