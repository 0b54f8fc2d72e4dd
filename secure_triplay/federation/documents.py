"""Signed public files that people hand to one another: canonical JSON, signed twice, read back into one type.

A document carries its signer's keys. That it verifies says only that whoever holds those keys wrote it; whose
keys they are is for the reader to know: from a fingerprint, or because a roster lists them.
"""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from typing import Any, ClassVar, Self

from pydantic import ValidationError

from secure_triplay.crypto.double import DoubleIdentity, DoubleSigner
from secure_triplay.crypto.identity import Identity, Purpose
from secure_triplay.errors import ConfigError, CryptoError
from secure_triplay.federation.files import MAX_PUBLIC_BYTES
from secure_triplay.schema import Frozen, lists_to_tuples


class Document(Frozen):
    """A signed file; subclasses name their purpose and what a person calls it."""

    ed25519: str
    mldsa65: str

    purpose: ClassVar[Purpose]
    called: ClassVar[str]

    def canonical(self) -> bytes:
        """The one byte string of its content: what is signed and hashed."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":")).encode()

    @cached_property
    def sha256(self) -> bytes:
        """Hash `(32,)` of the content."""
        return hashlib.sha256(self.canonical()).digest()

    @property
    def signer(self) -> DoubleIdentity:
        """Whose keys it names. Raises CryptoError if they are none."""
        return DoubleIdentity(Identity(bytes.fromhex(self.ed25519)), bytes.fromhex(self.mldsa65))

    def signed(self, signer: DoubleSigner) -> bytes:
        """The file: content and both signatures. Raises CryptoError if the document names other keys."""
        if signer.identity != self.signer:
            raise CryptoError(
                f"this {self.called} names another signer", where=self.called, fix="sign with its own keys"
            )
        signature = signer.sign(self.purpose, self.canonical())
        content = {self.called: self.model_dump(mode="json"), "signature": signature.hex()}
        return json.dumps(content, indent=1, sort_keys=True).encode() + b"\n"

    @classmethod
    def read(cls, content: bytes, *, where: str) -> Self:
        """The document in a file, its signatures verified against the keys that it names.

        Raises:
            ConfigError: if it is no such file.
            CryptoError: if a signature does not verify.
        """
        fix = f"ask its sender for the {cls.called} again, unchanged"
        if len(content) > MAX_PUBLIC_BYTES:
            raise ConfigError(f"this is no {cls.called}: it is too large", where=where, fix=fix)
        try:
            outer = json.loads(content)
            fields, signature = outer.pop(cls.called), bytes.fromhex(outer.pop("signature"))
            if outer:
                raise ValueError("more than content and signature")
            document = cls.model_validate(lists_to_tuples(fields))
            signer = document.signer
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, ValidationError) as error:
            raise ConfigError(f"this is no {cls.called}, or it is damaged", where=where, fix=fix) from error
        signer.verify(signature, cls.purpose, document.canonical())
        return document


def keys_of(signer: DoubleSigner) -> dict[str, Any]:
    """The fields by which a document names its signer."""
    identity = signer.identity
    return {"ed25519": identity.identity.public_bytes.hex(), "mldsa65": identity.mldsa.hex()}
