"""SECRET. A site's signing key on its own disk: a PEM file (PKCS #8, RFC 5958) that only its user can read.

The file is not encrypted: whoever runs as this user, or holds a copy of the disk, has the key. Full-disk
encryption at the site is what protects a stolen disk.
"""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from secure_triplay import durable
from secure_triplay.crypto.identity import SigningIdentity
from secure_triplay.errors import CryptoError

NAME = "identity.key"


def save_identity(folder: Path, identity: SigningIdentity) -> Path:
    """Write the key into the folder, mode 0600, on disk when this returns. Raises CryptoError if one is there."""
    path = folder / NAME
    key = Ed25519PrivateKey.from_private_bytes(identity.to_private_bytes())
    content = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    try:
        durable.write_new(path, content)
    except FileExistsError as error:
        raise CryptoError(
            "this folder has a signing key already, and none is ever overwritten",
            where=str(path),
            fix="use the key that is there, or another folder",
        ) from error
    except OSError as error:
        raise CryptoError(
            f"the signing key cannot be written: {error.strerror}",
            where=str(path),
            fix="check that the folder is yours and that the disk has room",
        ) from error
    return path


def load_identity(folder: Path) -> SigningIdentity:
    """The key that `save_identity` wrote. Raises CryptoError where it is missing, damaged or open to others."""
    path = folder / NAME
    try:
        content = durable.read_private(path)
    except FileNotFoundError as error:
        raise CryptoError(
            "this site has no signing key",
            where=str(path),
            fix="give the folder that `secure-triplay site init` made, or a site's folder of a simulated run",
        ) from error
    except OSError as error:
        raise CryptoError(
            f"the signing key cannot be read: {error.strerror}", where=str(path), fix="make it yours"
        ) from error
    try:
        key = serialization.load_pem_private_key(content, password=None)
    except (ValueError, TypeError):
        key = None  # not chained: a foreign message must not get a chance to quote the key
    if not isinstance(key, Ed25519PrivateKey):
        raise CryptoError("this is no Ed25519 key", where=str(path), fix="restore the site's own copy")
    return SigningIdentity(key)
