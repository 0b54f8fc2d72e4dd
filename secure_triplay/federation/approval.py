"""Approval of an app bundle by its hash, in the form that a stock SuperNode enforces.

`flower-supernode --trusted-entities` runs a bundle only with a signature by a key that is listed there. Each
site lists one key, its own, and signs one hash, the one that a person approved. So no publisher can push new
code: a bundle with another hash has no signature of this site, and the SuperNode refuses it. An empty list would
check nothing, so it is refused here.
"""

from __future__ import annotations

import base64
import hashlib
import time
from pathlib import Path

import yaml
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from secure_triplay.errors import ConfigError, CryptoError
from secure_triplay.federation.files import write_public
from secure_triplay.schema import Frozen, read_mapping


class AppApproval(Frozen):
    """One site's signature over one bundle: Ed25519 over 8-byte signing time and SHA-256 of the bundle."""

    key_id: str
    app_sha256: str
    signed_at: int
    signature: str

    @classmethod
    def sign(cls, key: Ed25519PrivateKey, fab: bytes) -> AppApproval:
        """Approve exactly these bytes."""
        digest, now = hashlib.sha256(fab).digest(), int(time.time())
        signature = key.sign(now.to_bytes(8) + digest)
        return cls(
            key_id=key_id(public_line(key)),
            app_sha256=digest.hex(),
            signed_at=now,
            signature=base64.urlsafe_b64encode(signature).decode(),
        )

    def verify(self, line: str, fab: bytes) -> None:
        """Return nothing if the key in this OpenSSH line approved exactly these bytes. Raises CryptoError."""
        digest = hashlib.sha256(fab).digest()
        try:
            key = serialization.load_ssh_public_key(line.encode())
            if not isinstance(key, Ed25519PublicKey) or self.key_id != key_id(line):
                raise ValueError("another key")
            key.verify(base64.urlsafe_b64decode(self.signature), self.signed_at.to_bytes(8) + digest)
            if self.app_sha256 != digest.hex():
                raise ValueError("another bundle")
        except (InvalidSignature, UnsupportedAlgorithm, ValueError, OverflowError) as error:
            raise CryptoError(
                "a site's approval is not for this app bundle",
                where="app approval",
                fix="the site joins again with the bundle of this study",
            ) from error

    def as_flower(self) -> dict[str, str | int]:
        """The record that Flower hands from its hub to the SuperNodes."""
        return {"public_key_id": self.key_id, "signed_at": self.signed_at, "signature": self.signature}


def public_line(key: Ed25519PrivateKey | EllipticCurvePrivateKey) -> str:
    """The public half as one OpenSSH line."""
    encoding, form = serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    return key.public_key().public_bytes(encoding, form).decode()


def key_id(line: str) -> str:
    """The name of a key in a trust file: it follows from the key."""
    return "fpk_" + hashlib.sha256(line.strip().encode()).hexdigest()[:32]


def write_trust_file(path: Path, line: str) -> None:
    """A trust file with the one key whose signatures count at this site. Raises CryptoError for an empty line."""
    if not line.strip():
        raise CryptoError(
            "a trust file without a key would check nothing", where=str(path), fix="enrol the site anew"
        )
    write_public(path, yaml.safe_dump({key_id(line): line.strip()}).encode())


def require_trust_file(path: Path, line: str) -> None:
    """Return nothing if the file lists exactly this key. Raises CryptoError: Flower takes an empty one for no check."""
    try:
        listed = read_mapping(path, "a file of trusted keys", "join the study again")
    except ConfigError:
        listed = None
    if listed != {key_id(line): line.strip()}:
        raise CryptoError(
            "the file of trusted keys does not list this site's own approval key, and only that",
            where=str(path),
            fix="join the study again; nothing is run before",
        )
