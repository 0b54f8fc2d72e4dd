"""c1 of a ciphertext from its public seed, at every site the same.

c1 has to look uniform to somebody who knows the seed, and nobody may have chosen it; it is no secret. So a seed of 128
bits keys AES-128 in counter mode (NIST SP 800-38A), and its keystream is c1: as FrodoKEM makes its public matrix of a
public seed (Alkim et al. 2021, "Frodo.Gen using AES128", with AES for an ideal cipher), and TFHE-rs the masks of
its seeded ciphertexts. A seed is drawn afresh for every upload: two uploads under one c1 would tell the server the
difference of their plaintexts, and any two seeds are the same one time in 2^128.

SEAL has an expansion of its own (BLAKE2xb). It is slower, and since every site expands the seeds of all others, it was
most of what opening a sum of 32 sites took (`audits/crypto-bench`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from secure_triplay.crypto.packing import Coefficients
from secure_triplay.crypto.parameters import DEGREE, MODULUS, MODULUS_BITS

_LOW_BITS = np.uint64(2**MODULUS_BITS - 1)
_ZEROS = memoryview(bytes(8 * DEGREE))
_WITHOUT_CARRY = 2 ** (64 - MODULUS_BITS)
"""So many values below q have a sum below 2^64."""


class C1Stream:
    """The chunks of one seed's c1, one after the other.

    The keystream is cut into little-endian words of 64 bits, of which the lower 60 count; a word that is not below q
    (one in 2^46) is skipped, so that those which are left are uniform. Every 4,096 of them are a chunk.
    """

    def __init__(self, seed: bytes) -> None:
        self._cipher = Cipher(algorithms.AES128(seed), modes.CTR(bytes(16))).encryptor()

    def next(self, n_words: int = DEGREE) -> Coefficients:
        """The next coefficients (n_words,) uint64, below q; at most a chunk of them."""
        keystream = bytearray(8 * n_words)
        self._cipher.update_into(_ZEROS[: 8 * n_words], keystream)
        words = np.frombuffer(keystream, "<u8") & _LOW_BITS
        if words.max() < MODULUS:
            return words
        kept = words[words < MODULUS]
        return np.concatenate([kept, self.next(n_words - len(kept))])


def expand_c1(seed: bytes, n_chunks: int) -> Coefficients:
    """c1 (n_chunks, 4096) uint64 below q that a seed of 16 bytes stands for. Raises ValueError for another length."""
    stream = C1Stream(seed)
    return np.stack([stream.next() for _ in range(n_chunks)])


def sum_of_c1(streams: Sequence[C1Stream]) -> Coefficients:
    """The next chunk (4096,) uint64 below q of the sum of all streams modulo q."""
    total = np.zeros(DEGREE, np.uint64)
    for done, stream in enumerate(streams, start=1):
        total += stream.next()
        if done % (_WITHOUT_CARRY - 1) == 0:  # what is left of the sum so far is one value below q
            total %= np.uint64(MODULUS)
    return total % np.uint64(MODULUS)
