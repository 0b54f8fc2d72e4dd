"""Seeds to keys to masks: HKDF-SHA256 (RFC 5869) and ChaCha20 (RFC 8439) as the paper's PRG.

Each seed has labels of its own for each use, bound to the round. A ChaCha20 key is used for one mask, from the start
of its stream, so its nonce may be constant.
"""

from __future__ import annotations

import numpy as np
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from secure_triplay.crypto.identity import transcript
from secure_triplay.crypto.masking.arithmetic import Words
from secure_triplay.crypto.masking.context import MaskContext
from secure_triplay.errors import ProtocolError

SEED_BYTES = 16
"""Of a shared secret: one element of the sharing library's field, GF(2^128)."""
KEY_BYTES = 32


def derive(secret: bytes, label: bytes, *fields: bytes) -> bytes:
    """A key `(32,)` for one use of a secret."""
    kdf = HKDF(hashes.SHA256(), length=KEY_BYTES, salt=None, info=transcript(label, *fields))
    return kdf.derive(secret)


def self_mask_key(context: MaskContext, name: str, seed: bytes) -> bytes:
    """Key of PRG(b) of a site."""
    return derive(seed, b"self mask 1", context.sha256, name.encode())


def self_mask_check(context: MaskContext, name: str, seed: bytes) -> bytes:
    """What a site signs of b before it is shared, so that b is known again when it comes back."""
    return derive(seed, b"self mask check 1", context.sha256, name.encode())


def mask_private_key(context: MaskContext, name: str, seed: bytes) -> X25519PrivateKey:
    """The private half of s of a site."""
    content = derive(seed, b"mask key 1", context.sha256, name.encode())
    return X25519PrivateKey.from_private_bytes(content)


def pair_mask_key(
    context: MaskContext, private: X25519PrivateKey, public: bytes, one: str, other: str
) -> bytes:
    """Key of PRG(s_uv), the same from either side. Raises ProtocolError for a key under which nothing is secret."""
    first, second = sorted((one, other))
    return derive(agree(private, public), b"pair mask 1", context.sha256, first.encode(), second.encode())


def agree(private: X25519PrivateKey, public: bytes) -> bytes:
    """The shared secret `(32,)`. Raises ProtocolError for a public key of small order."""
    try:
        return private.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError as error:
        raise ProtocolError(
            "a key agrees on no secret", where="masking", fix="leave this site out of the round"
        ) from error


def add_mask(total: Words, key: bytes, *, subtract: bool = False) -> None:
    """Add PRG(key), as many words as `total` (n_params,) has, in place and modulo the word."""
    stream = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor()
    mask = np.frombuffer(stream.update(bytes(total.nbytes)), total.dtype)
    (np.subtract if subtract else np.add)(total, mask, out=total)


def subtracts(name: str, other: str) -> bool:
    """Whether `name` subtracts the mask that it shares with `other`, who then adds it."""
    return name < other
