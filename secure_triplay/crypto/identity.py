"""Who signed what: a site's Ed25519 identity, secret and public half as two types.

A signature is never over bare bytes. It is over a purpose from a closed set and over length-prefixed fields,
so that what was signed as one thing cannot be shown as another, and no two lists of fields give the same
bytes. Ed25519: Bernstein et al. 2012, RFC 8032.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import Enum
from typing import NoReturn

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from secure_triplay.errors import CryptoError

IDENTITY_BYTES = 32
SIGNATURE_BYTES = 64

_Y_MASK = (1 << 255) - 1
# y of the points whose order divides 8, and the two that have a second encoding: under such a key anyone can
# make a signature that verifies, so it names nobody (a test finds these values again from the curve).
_SMALL_ORDER_Y = frozenset(
    {
        0,
        1,
        2707385501144840649318225287225658788936804267575313519463743609750303402022,
        55188659117513257062467267217118295137698188065244968500265048394206261417927,
        2**255 - 20,
        2**255 - 19,
        2**255 - 18,
    }
)


class Purpose(Enum):
    """Everything that a site's key ever signs; a new kind of statement gets a member of its own."""

    UPLOAD = b"upload 1"
    APPROVAL = b"approved sum 1"
    ENVELOPE = b"key envelope 1"
    LEDGER = b"ledger entry 1"
    LEDGER_FOLLOWS = b"ledger head follows 1"
    ANCHOR = b"countersigned head 1"
    EVIDENCE = b"evidence bundle 1"
    ENROLMENT = b"enrolment 1"
    STUDY_BUNDLE = b"study bundle 1"
    CONFIRMATION = b"study confirmed 1"
    CEREMONY = b"key ceremony 1"
    MASK_KEYS = b"mask keys 1"
    MASK_SEALED = b"sealed mask shares 1"
    MASK_SHARES = b"revealed shares 1"


def transcript(label: bytes, *fields: bytes) -> bytes:
    """Label and fields as one byte string that no other label and fields give: all lengths go in front."""
    parts = (b"secure_triplay " + label, *fields)
    lengths = [len(part).to_bytes(8, "big") for part in parts]
    return len(parts).to_bytes(8, "big") + b"".join(
        [x for pair in zip(lengths, parts, strict=True) for x in pair]
    )


@dataclass(frozen=True)
class Identity:
    """PUBLIC. Whose signatures these are: an Ed25519 public key, `(32,)` bytes.

    Raises:
        CryptoError: if the bytes are no Ed25519 key, or one under which anyone could sign.
    """

    public_bytes: bytes

    def __post_init__(self) -> None:
        if type(self.public_bytes) is not bytes or len(self.public_bytes) != IDENTITY_BYTES:
            raise _no_identity(f"an identity has {IDENTITY_BYTES} bytes")
        if int.from_bytes(self.public_bytes, "little") & _Y_MASK in _SMALL_ORDER_Y:
            raise _no_identity("under a key of small order anyone can sign")

    @property
    def fingerprint(self) -> str:
        """Eight groups of four hex digits to read out over the phone: 128 bits of a SHA-256."""
        digits = hashlib.sha256(transcript(b"identity fingerprint 1", self.public_bytes)).hexdigest()
        return " ".join(digits[i : i + 4] for i in range(0, 32, 4))

    def verify(self, signature: bytes, purpose: Purpose, *fields: bytes) -> None:
        """Return nothing if this identity signed exactly these fields for this purpose.

        Raises:
            CryptoError: in every other case, also when the signature is empty or has another length.
        """
        try:
            key = Ed25519PublicKey.from_public_bytes(self.public_bytes)
            key.verify(signature, transcript(purpose.value, *fields))
        except (InvalidSignature, ValueError, TypeError) as error:
            raise CryptoError(
                "a signature does not verify",
                where=f"signature of {self.fingerprint}",
                fix="compare this fingerprint with the signer's own, out of band",
            ) from error


class SigningIdentity:
    """SECRET. The key with which a site signs; it has no repr, pickle or JSON."""

    __slots__ = ("_key",)

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key

    @classmethod
    def generate(cls) -> SigningIdentity:
        """A fresh key from the operating system's generator."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def from_private_bytes(cls, content: bytes) -> SigningIdentity:
        """The key that `to_private_bytes` gave. Raises CryptoError unless it has 32 bytes."""
        try:
            return cls(Ed25519PrivateKey.from_private_bytes(content))
        except (ValueError, TypeError):
            # not chained: a foreign message must not get a chance to quote the key
            raise CryptoError(
                f"a signing key has {IDENTITY_BYTES} bytes",
                where="signing key",
                fix="restore the site's own copy",
            ) from None

    def to_private_bytes(self) -> bytes:
        """The secret itself `(32,)`, for encrypted storage at the site and for nothing else."""
        return self._key.private_bytes_raw()

    @property
    def identity(self) -> Identity:
        """The public half."""
        return Identity(self._key.public_key().public_bytes_raw())

    def sign(self, purpose: Purpose, *fields: bytes) -> bytes:
        """Signature `(64,)` over the purpose and the fields, for `Identity.verify`."""
        return self._key.sign(transcript(purpose.value, *fields))

    def __repr__(self) -> str:
        return "<SigningIdentity>"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise CryptoError(
            "a signing key cannot be pickled or copied", where="SigningIdentity", fix="pass it as an argument"
        )


def _no_identity(what: str) -> CryptoError:
    return CryptoError(what, where="identity", fix="ask the site for its enrolment file again")
