"""SECRET. A site's part in handing the state over to a site that is new in this epoch."""

from __future__ import annotations

import hashlib
import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from secure_triplay.client.keys import EpochKeys
from secure_triplay.client.optimiser import GlobalState
from secure_triplay.crypto.identity import transcript
from secure_triplay.errors import CryptoError

_NONCE_BYTES = 12


def seal_state(state: GlobalState, keys: EpochKeys, *, study: str, epoch: int) -> bytes:
    """The state under a key that follows from the epoch's, AES-256-GCM with a fresh nonce."""
    nonce, bound = os.urandom(_NONCE_BYTES), _bound(study, epoch, state.round)
    return nonce + AESGCM(_key(keys)).encrypt(nonce, state.to_bytes(), bound)


def open_state(
    sealed: bytes, sha256: bytes, keys: EpochKeys, *, study: str, epoch: int, round: int
) -> GlobalState:
    """The state in a seal of this epoch, whose hash a quorum confirmed. Raises CryptoError."""
    try:
        content = AESGCM(_key(keys)).decrypt(
            sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], _bound(study, epoch, round)
        )
    except (InvalidTag, ValueError) as error:
        raise _refused() from error
    if hashlib.sha256(content).digest() != sha256:
        raise _refused()
    state = GlobalState.from_bytes(content)
    if state.round != round:
        raise _refused()
    return state


def state_sha256(state: GlobalState) -> bytes:
    """Hash `(32,)` of a state: the same at every site that applied the same rounds."""
    return hashlib.sha256(state.to_bytes()).digest()


def _key(keys: EpochKeys) -> bytes:
    return HKDF(hashes.SHA256(), 32, salt=keys.key_id, info=b"secure_triplay state hand-over 1").derive(
        keys.tag.to_envelope_bytes()
    )


def _bound(study: str, epoch: int, round: int) -> bytes:
    return transcript(b"state hand-over 1", study.encode(), str(epoch).encode(), str(round).encode())


def _refused() -> CryptoError:
    return CryptoError(
        "the state that the server brought is not the one that the other sites confirmed",
        where="state hand-over",
        fix="look into the server; nothing was taken over",
    )
