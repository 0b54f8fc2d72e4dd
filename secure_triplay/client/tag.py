"""SECRET. A linearly homomorphic tag on c0: sites verify a sum before they decrypt it.

Agrawal and Boneh, "Homomorphic MACs: MAC-Based Integrity for Network Coding" (ACNS 2009), section 3,
over Z_q. For the chunk c0 in Z_q^4096 of (epoch, round, site, chunk):

    tag = <k, c0> + PRF(epoch, round, site, chunk)   mod q

The server adds tags as it adds ciphertexts (`packing.add_mod`); a sum verifies against the pads of
exactly the listed sites.

**What it authenticates.** c0 alone, and with it which sites, round, epoch and position went into the sum.
c1 never travels: each site expands it from the seeds, which the sites' signatures cover.

**Bound.** Each honest tag is masked by a pad used once, so what the server sees is independent of k. Another
(c0', tag') for the same list verifies only if <k, c0' - c0> = tag' - tag, and for c0' != c0 and uniform k
that has probability 1/q < 2^-59 a chunk and try (their theorem 1), plus the advantage against HMAC-SHA256,
HKDF and ChaCha20.

**What it does not.** Every site holds the key: a site can forge. **A site must never tag two different
ciphertexts under one (epoch, round, site, chunk)**: their difference is free of the pad and gives a linear
equation in k, with which sums can be altered unseen. A retry sends the same bytes again; it never encrypts
again.
"""

from __future__ import annotations

import hmac
import os
import struct
from collections.abc import Sequence
from typing import NoReturn

import numpy as np
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from secure_triplay.crypto.packing import Coefficients, require_reduced
from secure_triplay.crypto.parameters import DEGREE, MODULUS
from secure_triplay.errors import CryptoError

TAG_SEED_BYTES = 32
_LIMB_BITS, _LIMBS = 20, 3
_BLOCK = 16


class TagKey:
    """The sites' shared tagging key of one epoch; it has no repr, pickle or JSON."""

    __slots__ = ("_limbs", "_prf_key", "_seed")

    def __init__(self, seed: bytes) -> None:
        if len(seed) != TAG_SEED_BYTES:
            raise CryptoError("a tag key has 32 bytes", where="key envelope", fix="repeat the key ceremony")
        derived = HKDF(hashes.SHA256(), length=64, salt=None, info=b"secure_triplay tag 1").derive(seed)
        self._seed, self._prf_key = bytes(seed), derived[:32]
        stream = Cipher(algorithms.ChaCha20(derived[32:], bytes(16)), mode=None).encryptor()
        blocks = stream.update(bytes(16 * DEGREE))
        # 128 bits modulo a 60-bit prime are uniform within 2^-68
        key = [int.from_bytes(blocks[i : i + 16], "little") % MODULUS for i in range(0, len(blocks), 16)]
        self._limbs = np.ascontiguousarray(_split(np.array([key], np.uint64))[:, 0].T)

    @classmethod
    def generate(cls) -> TagKey:
        """A fresh key from the operating system's generator."""
        return cls(os.urandom(TAG_SEED_BYTES))

    @classmethod
    def from_envelope_bytes(cls, content: bytes) -> TagKey:
        """The key that an opened envelope brought. Raises CryptoError unless it has 32 bytes."""
        return cls(content)

    def to_envelope_bytes(self) -> bytes:
        """The secret itself, 32 bytes: to be sealed into a key envelope and for nothing else."""
        return self._seed

    def tag(self, c0: Coefficients, *, epoch: int, round_number: int, site: str) -> NDArray[np.uint64]:
        """Tags (n_chunks,) uint64 below q of one site's c0 (n_chunks, 4096).

        Raises:
            CryptoError: if c0 has another shape or dtype, or a coefficient is not below q.
        """
        products = self._inner_products(c0)
        pads = self._pads(len(c0), epoch, round_number, site)
        return np.array([(a + b) % MODULUS for a, b in zip(products, pads, strict=True)], np.uint64)

    def verify_sum(
        self,
        summed_c0: Coefficients,
        summed_tags: NDArray[np.uint64],
        *,
        epoch: int,
        round_number: int,
        sites: Sequence[str],
    ) -> None:
        """Return if c0 and tags are the sums over exactly `sites`; there is no other way to return.

        Raises:
            CryptoError: one constant message for every failure, so that it tells a forger nothing.
        """
        try:
            require_reduced(summed_tags)
            expected = self._inner_products(summed_c0)
        except CryptoError:
            raise _refused() from None
        if not len(summed_c0) or summed_tags.shape != (len(summed_c0),):
            raise _refused()
        if not sites or len(set(sites)) != len(sites):
            raise _refused()
        for site in sites:
            pads = self._pads(len(summed_c0), epoch, round_number, site)
            expected = [a + b for a, b in zip(expected, pads, strict=True)]
        wanted = np.array([value % MODULUS for value in expected], "<u8").tobytes()
        if not hmac.compare_digest(wanted, summed_tags.astype("<u8").tobytes()):
            raise _refused()

    def _pads(self, n_chunks: int, epoch: int, round_number: int, site: str) -> list[int]:
        # fixed-length numbers first, so that no two (epoch, round, chunk, site) share an input
        name = site.encode()
        inputs = (struct.pack(">QQQ", epoch, round_number, chunk) + name for chunk in range(n_chunks))
        return [
            int.from_bytes(hmac.digest(self._prf_key, each, "sha256"), "big") % MODULUS for each in inputs
        ]

    def _inner_products(self, c0: Coefficients) -> list[int]:
        """<k, c0> modulo q of each chunk, exact: products of 20-bit limbs stay below 2^40 and 4,096 of them
        below 2^52, so double precision holds every partial sum, in whatever order BLAS forms it."""
        if c0.ndim != 2 or c0.shape[1] != DEGREE:
            raise CryptoError(f"c0 has shape {c0.shape}", where="tag", fix="tag what encrypt returned")
        require_reduced(c0)
        out: list[int] = []
        for start in range(0, len(c0), _BLOCK):
            limbs = _split(c0[start : start + _BLOCK])
            products = (limbs @ self._limbs).astype(np.int64).transpose(1, 0, 2)
            for chunk in products.tolist():
                total = sum(chunk[i][j] << _LIMB_BITS * (i + j) for i in range(_LIMBS) for j in range(_LIMBS))
                out.append(total % MODULUS)
        return out

    def __repr__(self) -> str:
        return "<TagKey>"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise CryptoError(
            "a tag key cannot be copied or pickled", where="TagKey", fix="seal it into an envelope"
        )


def _refused() -> CryptoError:
    return CryptoError(
        "the sum does not verify and was not decrypted",
        where="tag",
        fix="discard the round and tell the operator",
    )


def _split(values: Coefficients) -> NDArray[np.float64]:
    """Values (n, 4096) below 2^60 -> their 20-bit limbs (3, n, 4096), lowest first."""
    out = np.empty((_LIMBS, *values.shape))
    mask = np.uint64(2**_LIMB_BITS - 1)
    for limb in range(_LIMBS):
        # int64 converts faster than uint64, and every limb fits
        out[limb] = ((values >> np.uint64(_LIMB_BITS * limb)) & mask).view(np.int64)
    return out
