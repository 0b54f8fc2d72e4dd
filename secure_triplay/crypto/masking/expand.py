"""Seeds to keys to masks: HKDF-SHA256 (RFC 5869) and ChaCha20 (RFC 8439) as the paper's PRG.

Each seed has labels of its own for each use, bound to the round. A ChaCha20 key is used for one mask, from the start
of its stream, so its nonce may be constant.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable

import numpy as np
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from secure_triplay.crypto.identity import transcript
from secure_triplay.crypto.masking.arithmetic import Words
from secure_triplay.crypto.masking.context import MaskContext
from secure_triplay.crypto.masking.sharing import PRIME
from secure_triplay.errors import ProtocolError

SEED_BYTES = 16
"""Of a shared secret: one element of the field in which it is shared, below 2^128."""
KEY_BYTES = 32
_BLOCK = 1 << 13
_ZEROS = memoryview(bytes(8 * _BLOCK))


def new_seed() -> bytes:
    """A secret `(16,)` to be shared, uniform below the field's prime."""
    return secrets.randbelow(PRIME).to_bytes(SEED_BYTES, "big")


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


def add_masks(total: Words, masks: Iterable[tuple[bytes, bool]]) -> None:
    """Add PRG(key) of each (key, subtract), or subtract it, in place and modulo 2^64: `total` (n_words,) uint64.

    Goes over `total` once, block by block, so that a block of it and of the keystreams stays in the cache.
    """
    streams = [
        (Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor(), subtract)
        for key, subtract in masks
    ]
    keystream = bytearray(len(_ZEROS))
    for start in range(0, len(total), _BLOCK):
        part = total[start : start + _BLOCK]
        mask = np.frombuffer(keystream, "<u8", len(part))
        for stream, subtract in streams:
            stream.update_into(_ZEROS[: part.nbytes], keystream)
            (np.subtract if subtract else np.add)(part, mask, out=part)


def subtracts(name: str, other: str) -> bool:
    """Whether `name` subtracts the mask that it shares with `other`, who then adds it."""
    return name < other
