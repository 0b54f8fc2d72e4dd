"""How the sites' key reaches a site: sealed to it, signed by whoever made it, bound to one key epoch.

HPKE (RFC 9180, base mode) over the hybrid of ML-KEM-768 (FIPS 203) and X25519: whoever records an envelope
must break both to open it. Base mode does not name its sender, so the sender's identity signs the sealed
bytes. The context (study, roster, epoch, key id, sender, recipient) is bound twice, in HPKE's `info` and
under the signature, and never read from the envelope: the opener says what it expects, and gets that or an
error. The server relays these bytes and cannot open them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import (
    AEAD,
    KDF,
    KEM,
    MLKEM768X25519PrivateKey,
    MLKEM768X25519PublicKey,
    Suite,
)

from secure_triplay.crypto.identity import SIGNATURE_BYTES, Identity, Purpose, SigningIdentity, transcript
from secure_triplay.errors import CryptoError

MLKEM_PUBLIC_BYTES = 1184
MLKEM_SEED_BYTES = 64
X25519_BYTES = 32
RECIPIENT_BYTES = MLKEM_PUBLIC_BYTES + X25519_BYTES
PRIVATE_BYTES = MLKEM_SEED_BYTES + X25519_BYTES
MAX_SECRET_BYTES = 1 << 20
"""A CKKS key is 70 kB; nothing near this bound is ever sealed."""
OVERHEAD_BYTES = KEM.MLKEM768_X25519.enc_length() + 16 + SIGNATURE_BYTES

_SUITE = Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.CHACHA20_POLY1305)


@dataclass(frozen=True)
class EnvelopeContext:
    """PUBLIC. What an envelope is for; sealer and opener must mean the same in every field.

    `study` is the study's SHA-256 in hex, `roster_sha256` and `key_id` are `(32,)` bytes, `sender` is the
    identity that made the key and `recipient` the name under which the roster lists the opener.
    """

    study: str
    roster_sha256: bytes
    epoch: int
    key_id: bytes
    sender: Identity
    recipient: str

    def fields(self, recipient_key: EnvelopeRecipient) -> tuple[bytes, ...]:
        """The fields that are bound, with the very key that the envelope is sealed to."""
        return (
            self.study.encode(),
            self.roster_sha256,
            str(self.epoch).encode(),
            self.key_id,
            self.sender.public_bytes,
            self.recipient.encode(),
            recipient_key.public_bytes,
        )


@dataclass(frozen=True)
class EnvelopeRecipient:
    """PUBLIC. The key to which one site's envelopes are sealed, `(1216,)` bytes: ML-KEM-768, then X25519.

    Raises:
        CryptoError: if the bytes are not such a key.
    """

    public_bytes: bytes

    def __post_init__(self) -> None:
        if type(self.public_bytes) is not bytes or len(self.public_bytes) != RECIPIENT_BYTES:
            raise _no_recipient()
        self._hybrid()

    def _hybrid(self) -> MLKEM768X25519PublicKey:
        try:
            return MLKEM768X25519PublicKey(
                MLKEM768PublicKey.from_public_bytes(self.public_bytes[:MLKEM_PUBLIC_BYTES]),
                X25519PublicKey.from_public_bytes(self.public_bytes[MLKEM_PUBLIC_BYTES:]),
            )
        except ValueError as error:
            raise _no_recipient() from error


class EnvelopeKey:
    """SECRET. Opens the envelopes of one site and one key epoch; destroyed with the key that they brought."""

    __slots__ = ("_mlkem", "_x25519")

    def __init__(self, mlkem: MLKEM768PrivateKey, x25519: X25519PrivateKey) -> None:
        self._mlkem, self._x25519 = mlkem, x25519

    @classmethod
    def generate(cls) -> EnvelopeKey:
        """A fresh key from the operating system's generator."""
        return cls(MLKEM768PrivateKey.generate(), X25519PrivateKey.generate())

    @classmethod
    def from_private_bytes(cls, content: bytes) -> EnvelopeKey:
        """The key that `to_private_bytes` gave. Raises CryptoError unless it has 96 bytes."""
        if type(content) is not bytes or len(content) != PRIVATE_BYTES:
            raise CryptoError(
                f"an envelope key has {PRIVATE_BYTES} bytes",
                where="envelope key",
                fix="repeat the key ceremony",
            )
        return cls(
            MLKEM768PrivateKey.from_seed_bytes(content[:MLKEM_SEED_BYTES]),
            X25519PrivateKey.from_private_bytes(content[MLKEM_SEED_BYTES:]),
        )

    def to_private_bytes(self) -> bytes:
        """The secret itself `(96,)`, ML-KEM seed and X25519 scalar: for encrypted storage only."""
        return self._mlkem.private_bytes_raw() + self._x25519.private_bytes_raw()

    @property
    def recipient(self) -> EnvelopeRecipient:
        """The public half."""
        return EnvelopeRecipient(
            self._mlkem.public_key().public_bytes_raw() + self._x25519.public_key().public_bytes_raw()
        )

    def open(self, envelope: bytes, context: EnvelopeContext) -> bytes:
        """The secret that `context.sender` sealed to this key in exactly this context.

        The signature is verified first, so that nothing of an unknown sender is ever decrypted.

        Raises:
            CryptoError: if sender, recipient, study, roster, epoch or key id differ, or a bit was changed,
                cut off or added. The error does not say which.
        """
        if type(envelope) is not bytes or not 0 < len(envelope) - OVERHEAD_BYTES <= MAX_SECRET_BYTES:
            raise _refused()
        signature, sealed = envelope[:SIGNATURE_BYTES], envelope[SIGNATURE_BYTES:]
        fields = context.fields(self.recipient)
        try:
            context.sender.verify(signature, Purpose.ENVELOPE, *fields, sealed)
            private = MLKEM768X25519PrivateKey(self._mlkem, self._x25519)
            return _SUITE.decrypt(sealed, private, transcript(Purpose.ENVELOPE.value, *fields))
        except (CryptoError, InvalidTag, ValueError) as error:
            raise _refused() from error

    def __repr__(self) -> str:
        return "<EnvelopeKey>"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise CryptoError(
            "an envelope key cannot be pickled or copied", where="EnvelopeKey", fix="pass it as an argument"
        )


def seal(
    secret: bytes, context: EnvelopeContext, recipient: EnvelopeRecipient, signer: SigningIdentity
) -> bytes:
    """`secret` sealed to `recipient` and signed; 1,200 bytes longer: signature, key exchange, secret, tag.

    Raises:
        CryptoError: if the signer is not the context's sender, the secret is empty or above 1 MiB, or the
            recipient's key cannot be used.
    """
    if signer.identity != context.sender:
        raise CryptoError(
            "only the sender named in the context can seal",
            where="key envelope",
            fix="put the signer's own identity into the context",
        )
    if not 0 < len(secret) <= MAX_SECRET_BYTES:
        raise CryptoError(
            f"a secret of {len(secret):,} bytes cannot be sealed",
            where="key envelope",
            fix=f"seal 1 to {MAX_SECRET_BYTES:,} bytes",
        )
    fields = context.fields(recipient)
    try:
        sealed = _SUITE.encrypt(secret, recipient._hybrid(), transcript(Purpose.ENVELOPE.value, *fields))
    except ValueError as error:
        raise _no_recipient() from error
    return signer.sign(Purpose.ENVELOPE, *fields, sealed) + sealed


def _refused() -> CryptoError:
    return CryptoError(
        "the envelope was not sealed to this site, for this epoch, by the sender it should come from",
        where="key envelope",
        fix="compare the roster code with the other sites out of band, then repeat the key ceremony",
    )


def _no_recipient() -> CryptoError:
    return CryptoError(
        "this is no key that an envelope can be sealed to",
        where="envelope recipient",
        fix="ask the site for its enrolment file again",
    )
