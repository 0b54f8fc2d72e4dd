"""A site's state between rounds, encrypted on its disk: keys of the epoch, adapter and optimiser, the last upload.

AES-256-GCM under the site's storage key (NIST SP 800-38D; a fresh random nonce each time). Every file is bound to
its name, study and epoch, so that none passes for another. What it does not show is an older copy of the whole
folder: that is what the ledger's countersigned heads are for.
"""

from __future__ import annotations

import os
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from secure_triplay import durable
from secure_triplay.crypto.identity import transcript
from secure_triplay.errors import CryptoError, RunError

KEY_BYTES = 32
_NONCE_BYTES = 12
_MAGIC = b"S3PV\x01"


def new_storage_key() -> bytes:
    """A fresh storage key, 32 bytes."""
    return os.urandom(KEY_BYTES)


class Vault:
    """Named secrets of one study and epoch in a folder; each is replaced whole, and on disk when `save` returns."""

    def __init__(self, folder: Path, key: bytes, *, study: str, epoch: int) -> None:
        if len(key) != KEY_BYTES:
            raise CryptoError(
                f"a storage key has {KEY_BYTES} bytes", where="vault", fix="restore the site's own copy"
            )
        self._folder, self._cipher, self._of = folder, AESGCM(key), (study.encode(), str(epoch).encode())
        try:
            durable.private_folder(folder)
        except OSError as error:
            raise _unwritable(folder, error) from error

    def save(self, name: str, content: bytes) -> None:
        """Put `content` in place of what has this name. Raises RunError where the disk is full or read-only."""
        nonce = os.urandom(_NONCE_BYTES)
        sealed = _MAGIC + nonce + self._cipher.encrypt(nonce, content, self._bound_to(name))
        try:
            durable.replace_private(self._folder / name, sealed)
        except OSError as error:
            raise _unwritable(self._folder / name, error) from error

    def load(self, name: str) -> bytes | None:
        """What has this name, or None. Raises CryptoError where it was changed, moved or made with another key."""
        path = self._folder / name
        try:
            sealed = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _unwritable(path, error) from error
        start = len(_MAGIC) + _NONCE_BYTES
        try:
            if not sealed.startswith(_MAGIC):
                raise InvalidTag
            return self._cipher.decrypt(sealed[len(_MAGIC) : start], sealed[start:], self._bound_to(name))
        except (InvalidTag, ValueError) as error:
            raise CryptoError(
                "a file of the site's state is damaged, or belongs to another study, epoch or storage key",
                where=str(path),
                fix="restore the site's folder as a whole; nothing is trained from this state",
            ) from error

    def destroy(self, name: str) -> None:
        """Remove what has this name, and what a stop left of saving it; gone from the folder when this returns."""
        try:
            durable.remove(self._folder / name)
        except OSError as error:
            raise _unwritable(self._folder / name, error) from error

    def _bound_to(self, name: str) -> bytes:
        return transcript(b"vault 1", name.encode(), *self._of)

    def __repr__(self) -> str:
        return "<Vault>"


def _unwritable(path: Path, error: OSError) -> RunError:
    return RunError(
        f"the site's state cannot be read or written: {error.strerror}",
        where=str(path),
        fix="free some space or make the folder writable; nothing left the site",
    )
