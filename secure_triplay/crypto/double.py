"""Two signatures for one: Ed25519 and ML-DSA-65 (FIPS 204) over the same fields, and both have to verify.

What sites agree on once and rely on for years (who they are, what they joined, which key is sealed to whom) is
signed so. Whoever wants to forge it must break both. The messages of a round carry the Ed25519 half alone: they
are worth nothing after the round.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import NoReturn

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey, MLDSA65PublicKey

from secure_triplay.crypto.identity import SIGNATURE_BYTES, Identity, Purpose, SigningIdentity, transcript
from secure_triplay.errors import CryptoError

MLDSA_PUBLIC_BYTES = 1952
MLDSA_SIGNATURE_BYTES = 3309
MLDSA_SEED_BYTES = 32
DOUBLE_SIGNATURE_BYTES = SIGNATURE_BYTES + MLDSA_SIGNATURE_BYTES


@dataclass(frozen=True)
class DoubleIdentity:
    """PUBLIC. Both public keys of one party; `mldsa` has `(1952,)` bytes.

    Raises:
        CryptoError: if the bytes are no ML-DSA-65 key.
    """

    identity: Identity
    mldsa: bytes

    def __post_init__(self) -> None:
        if type(self.mldsa) is not bytes or len(self.mldsa) != MLDSA_PUBLIC_BYTES:
            raise _no_key()
        _ = self._key

    @cached_property
    def _key(self) -> MLDSA65PublicKey:
        try:
            return MLDSA65PublicKey.from_public_bytes(self.mldsa)
        except ValueError as error:
            raise _no_key() from error

    @property
    def fingerprint(self) -> str:
        """Eight groups of four hex digits over both keys: 128 bits of a SHA-256."""
        fields = transcript(b"double fingerprint 1", self.identity.public_bytes, self.mldsa)
        digits = hashlib.sha256(fields).hexdigest()
        return " ".join(digits[i : i + 4] for i in range(0, 32, 4))

    def verify(self, signature: bytes, purpose: Purpose, *fields: bytes) -> None:
        """Return nothing if both keys signed exactly these fields for this purpose. Raises CryptoError otherwise."""
        if type(signature) is not bytes or len(signature) != DOUBLE_SIGNATURE_BYTES:
            raise self._refused()
        self.identity.verify(signature[:SIGNATURE_BYTES], purpose, *fields)
        try:
            self._key.verify(signature[SIGNATURE_BYTES:], transcript(purpose.value, *fields))
        except (InvalidSignature, ValueError) as error:
            raise self._refused() from error

    def _refused(self) -> CryptoError:
        return CryptoError(
            "a signature does not verify",
            where=f"signature of {self.fingerprint}",
            fix="compare this fingerprint with the signer's own, out of band",
        )


class DoubleSigner:
    """SECRET. Both signing keys of one party; it has no repr, pickle or JSON."""

    __slots__ = ("_mldsa", "signer")

    def __init__(self, signer: SigningIdentity, mldsa: MLDSA65PrivateKey) -> None:
        self.signer, self._mldsa = signer, mldsa

    @classmethod
    def generate(cls) -> DoubleSigner:
        """Fresh keys from the operating system's generator."""
        return cls(SigningIdentity.generate(), MLDSA65PrivateKey.generate())

    @classmethod
    def from_private_bytes(cls, signer: SigningIdentity, seed: bytes) -> DoubleSigner:
        """The pair with the ML-DSA key that `to_private_bytes` gave. Raises CryptoError unless it has 32 bytes."""
        if type(seed) is not bytes or len(seed) != MLDSA_SEED_BYTES:
            raise CryptoError(
                f"an ML-DSA key has {MLDSA_SEED_BYTES} bytes",
                where="signing key",
                fix="restore the site's own copy",
            )
        return cls(signer, MLDSA65PrivateKey.from_seed_bytes(seed))

    def to_private_bytes(self) -> bytes:
        """The seed `(32,)` of the ML-DSA key, for a private file at its owner and for nothing else."""
        return self._mldsa.private_bytes_raw()

    @property
    def identity(self) -> DoubleIdentity:
        """The public half."""
        return DoubleIdentity(self.signer.identity, self._mldsa.public_key().public_bytes_raw())

    def sign(self, purpose: Purpose, *fields: bytes) -> bytes:
        """Signature `(3373,)`: Ed25519, then ML-DSA-65, for `DoubleIdentity.verify`."""
        return self.signer.sign(purpose, *fields) + self._mldsa.sign(transcript(purpose.value, *fields))

    def __repr__(self) -> str:
        return "<DoubleSigner>"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise CryptoError(
            "a signing key cannot be pickled or copied", where="DoubleSigner", fix="pass it as an argument"
        )


def _no_key() -> CryptoError:
    return CryptoError(
        "this is no ML-DSA-65 key", where="identity", fix="ask the site for its enrolment file again"
    )
