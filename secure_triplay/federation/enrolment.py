"""What a site shows of itself: the public halves of its keys, signed by it, with a fingerprint for the phone."""

from __future__ import annotations

import hashlib
from typing import ClassVar, Literal

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from pydantic import field_validator

from secure_triplay.config import Name
from secure_triplay.crypto.identity import Purpose, transcript
from secure_triplay.federation.documents import Document


class Enrolment(Document):
    """PUBLIC. One site: its name, its two signing keys, its SuperNode's key and its approval key (OpenSSH lines)."""

    version: Literal[1] = 1
    site: Name
    supernode_key: str
    approval_key: str

    purpose: ClassVar[Purpose] = Purpose.ENROLMENT
    called: ClassVar[str] = "enrolment"

    @field_validator("supernode_key")
    @classmethod
    def _supernode(cls, line: str) -> str:
        if not isinstance(_public(line), EllipticCurvePublicKey):
            raise ValueError("a SuperNode's key is an elliptic-curve key")
        return line

    @field_validator("approval_key")
    @classmethod
    def _approval(cls, line: str) -> str:
        if not isinstance(_public(line), Ed25519PublicKey):
            raise ValueError("an approval key is an Ed25519 key")
        return line

    @property
    def fingerprint(self) -> str:
        """Eight groups of four hex digits over everything in it: 128 bits of a SHA-256."""
        digits = hashlib.sha256(transcript(b"enrolment fingerprint 1", self.canonical())).hexdigest()
        return " ".join(digits[i : i + 4] for i in range(0, 32, 4))


def _public(line: str) -> object:
    try:
        return serialization.load_ssh_public_key(line.encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ValueError("this is no OpenSSH public key") from error
