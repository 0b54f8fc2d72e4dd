"""SECRET. A linearly homomorphic tag over c0, so that sites verify a sum before they decrypt it.

Construction: Agrawal and Boneh, "Homomorphic MACs: MAC-Based Integrity for Network Coding" (ACNS 2009),
section 3, over the field Z_q. For chunk c0 in Z_q^4096 of (epoch, round, site, chunk):

    t = <k, c0> + PRF(epoch, round, site, chunk)   (mod q)

The server adds tags as it adds ciphertexts. Whoever does not know k and the PRF's key makes a sum of other
ciphertexts than the listed ones verify with probability at most 1/q < 2^-59 a try (their theorem 1). c1 is
not covered: it never travels; every site expands it from seeds that the other sites signed.

Sites know the key; so this authenticates against the server and the network, not against a site. A site
never tags two different ciphertexts under one (epoch, round, site, chunk): a retry sends the same bytes.
"""

from __future__ import annotations

import hashlib
import hmac
import operator
from collections.abc import Iterable

import numpy as np
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from secure_triplay.crypto.packing import Coefficients
from secure_triplay.crypto.parameters import DEGREE, MODULUS
from secure_triplay.errors import CryptoError

_LIMB_BITS = 20
_LIMBS = 3


class TagKey:
    """The sites' shared tagging key of one epoch, derived from a 32-byte secret."""

    __slots__ = ("_limbs", "_prf_key")

    def __init__(self, secret: bytes) -> None:
        if len(secret) != 32:
            raise CryptoError("a tag key has 32 bytes", where="key envelope", fix="repeat the key ceremony")
        derived = HKDF(hashes.SHA256(), length=64, salt=None, info=b"secure-triplay sum tag").derive(secret)
        self._prf_key = derived[:32]
        stream = Cipher(algorithms.ChaCha20(derived[32:], bytes(16)), mode=None).encryptor()
        blocks = stream.update(bytes(16 * DEGREE))
        # 128 bits reduced modulo a 60-bit prime are uniform up to 2^-68
        key = [int.from_bytes(blocks[i : i + 16], "little") % MODULUS for i in range(0, len(blocks), 16)]
        self._limbs = _limbs(np.array(key, np.uint64)).T.copy()

    def __reduce__(self) -> str:
        raise CryptoError("a tag key cannot be pickled", where="TagKey", fix="pass it as an argument")

    def tag(self, c0: Coefficients, *, epoch: int, round_number: int, site: str) -> NDArray[np.uint64]:
        """Tags (n_chunks,) of one site's ciphertexts (n_chunks, 4096)."""
        sums = self._inner_products(c0)
        pads = self._pads(len(c0), epoch, round_number, site)
        return np.array([(a + b) % MODULUS for a, b in zip(sums, pads, strict=True)], np.uint64)

    def verify(self, c0: Coefficients, tags: NDArray[np.uint64], *, epoch: int, round_number: int,
               sites: Iterable[str]) -> None:
        """Return if `c0` and `tags` are the sums over exactly `sites`; raise CryptoError otherwise."""
        expected = self._inner_products(c0)
        for site in sites:
            pads = self._pads(len(c0), epoch, round_number, site)
            expected = list(map(operator.add, expected, pads))
        wanted = np.array([value % MODULUS for value in expected], np.uint64)
        if tags.shape != wanted.shape or not hmac.compare_digest(wanted.tobytes(), tags.astype(np.uint64).tobytes()):
            raise CryptoError("the sum is not the sum of the listed sites' uploads; it was not decrypted",
                              where="sum", fix="discard the round; look into the server if it happens again")

    def _pads(self, n_chunks: int, epoch: int, round_number: int, site: str) -> list[int]:
        head = f"{epoch}|{round_number}|{site}|".encode()
        return [
            int.from_bytes(hmac.digest(self._prf_key, head + str(chunk).encode(), hashlib.sha256)[:16], "little") % MODULUS
            for chunk in range(n_chunks)
        ]

    def _inner_products(self, c0: Coefficients) -> list[int]:
        """<k, c0> of every chunk, exact: limb products stay below 2^40 and their sums below 2^52, so that
        double precision holds every partial sum in whichever order it is formed."""
        n_chunks = len(c0)
        products = (_limbs(c0.reshape(-1)).reshape(_LIMBS * n_chunks, DEGREE) @ self._limbs).astype(np.int64)
        by_chunk = products.reshape(_LIMBS, n_chunks, _LIMBS)
        return [
            sum(int(by_chunk[i, chunk, j]) << (_LIMB_BITS * (i + j)) for i in range(_LIMBS) for j in range(_LIMBS)) % MODULUS
            for chunk in range(n_chunks)
        ]


def _limbs(values: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Values (n,) below 2^60 -> their three 20-bit limbs (3, n), lowest first."""
    mask = np.uint64((1 << _LIMB_BITS) - 1)
    return np.stack([((values >> np.uint64(_LIMB_BITS * i)) & mask).astype(np.float64) for i in range(_LIMBS)])
