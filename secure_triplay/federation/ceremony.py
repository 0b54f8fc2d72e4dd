"""The messages by which sites agree on an epoch's key over a server that can open none of it.

    server -> site    Summon    the bundle of the epoch, and the last round that was closed before it
    site -> server    Offer     this site's recipient key of the epoch: it confirmed this very bundle
    server -> maker   MakeKeys  every site's offer
    maker -> server   Sealed    one envelope for each site, and a signature over all of them
    server -> site    Deliver   every offer, what the maker signed, and this site's envelope
    site -> server    Opened    the key id, signed

Offers and envelopes are signed twice (Ed25519 and ML-DSA-65) and name study, epoch and bundle, so one that was
swapped, dropped or kept from another epoch does not verify. Encoding and checks are those of `wireformat`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Self

from secure_triplay.crypto.double import DOUBLE_SIGNATURE_BYTES, DoubleIdentity, DoubleSigner
from secure_triplay.crypto.envelope import OVERHEAD_BYTES, RECIPIENT_BYTES
from secure_triplay.crypto.identity import Purpose, transcript
from secure_triplay.crypto.parameters import ID_BYTES
from secure_triplay.errors import ProtocolError
from secure_triplay.federation.files import MAX_PUBLIC_BYTES
from secure_triplay.wireformat import (
    MAX_CHUNKS,
    MAX_SITES,
    NAME,
    Message,
    fields_of,
    is_bytes,
    is_number,
    is_text,
    is_tuple,
    list_of,
    require,
    require_study,
)

SHA256_BYTES = 32
_MAX_ENVELOPE_BYTES = 1 << 20


@dataclass(frozen=True)
class Summon(Message):
    """Server to site: take part in this epoch, which goes on after round `base`; `bundle` is the signed file.

    `fresh` is for a site that missed a whole epoch, whose keys it never had: its state will be handed over.
    """

    study: str
    epoch: int
    base: int
    fresh: bool
    bundle: bytes

    kind: ClassVar[int] = 32

    def __post_init__(self) -> None:
        require_study(self.study, self.epoch, Summon)
        require(is_number(self.base), "a round is a number", Summon)
        require(type(self.fresh) is bool, "yes or no is due", Summon)
        require(
            type(self.bundle) is bytes and 0 < len(self.bundle) <= MAX_PUBLIC_BYTES, "a bundle is due", Summon
        )

    def _head(self) -> list[Any]:
        return [self.study, self.epoch, self.base, self.fresh]

    def _body(self) -> tuple[bytes, ...]:
        return (self.bundle,)

    @classmethod
    def _from_parts(cls, head: list[Any], body: memoryview) -> Self:
        study, epoch, base, fresh = fields_of(head, 4, cls)
        return cls(study, epoch, base, fresh, bytes(body))


@dataclass(frozen=True)
class Offer(Message):
    """Site to server: my recipient key for this epoch `(1216,)`, signed together with the bundle that I confirmed."""

    study: str
    epoch: int
    site: str
    bundle_sha256: bytes
    recipient: bytes
    signature: bytes

    kind: ClassVar[int] = 33

    def __post_init__(self) -> None:
        require_study(self.study, self.epoch, Offer)
        require(is_text(self.site, NAME), "a site's name is a-z, 0-9 and -", Offer)
        require(is_bytes(self.bundle_sha256, SHA256_BYTES), "a SHA-256 has 32 bytes", Offer)
        require(is_bytes(self.recipient, RECIPIENT_BYTES), "this is no recipient key", Offer)
        require(is_bytes(self.signature, DOUBLE_SIGNATURE_BYTES), "two signatures are due", Offer)

    @classmethod
    def signed(
        cls,
        signer: DoubleSigner,
        *,
        study: str,
        epoch: int,
        site: str,
        bundle_sha256: bytes,
        recipient: bytes,
    ) -> Self:
        """The offer of one site."""
        fields = _offer_fields(study, epoch, site, bundle_sha256, recipient)
        return cls(study, epoch, site, bundle_sha256, recipient, signer.sign(Purpose.CEREMONY, *fields))

    def verify(self, by: DoubleIdentity) -> None:
        """Return nothing if this site made it. Raises CryptoError."""
        fields = _offer_fields(self.study, self.epoch, self.site, self.bundle_sha256, self.recipient)
        by.verify(self.signature, Purpose.CEREMONY, *fields)

    def as_list(self) -> list[Any]:
        """Its fields, to stand in other messages."""
        return [self.study, self.epoch, self.site, self.bundle_sha256, self.recipient, self.signature]

    def _head(self) -> list[Any]:
        return self.as_list()

    @classmethod
    def _from_parts(cls, head: list[Any], body: memoryview) -> Self:
        require(not body, "it has no body", cls)
        return cls(*fields_of(head, 6, cls))


@dataclass(frozen=True)
class Offers:
    """Every site's offer for one epoch, sorted by name, each once."""

    offers: tuple[Offer, ...]

    def __post_init__(self) -> None:
        require(is_tuple(self.offers, Offer, MAX_SITES), "offers are due", Offers)
        require(all(a.site < b.site for a, b in pairwise(self.offers)), "offers are sorted by name", Offers)

    def require_all(
        self, study: str, epoch: int, bundle_sha256: bytes, members: Mapping[str, DoubleIdentity]
    ) -> None:
        """Return nothing if exactly the roster's sites offered, each for this epoch and bundle.

        So a key is never sealed to a roster that some site did not confirm. Raises ProtocolError or CryptoError.
        """
        if [offer.site for offer in self.offers] != sorted(members):
            raise ProtocolError(
                "the offers are not those of the roster",
                where="key ceremony",
                fix="look into the server, or wait for the missing sites",
            )
        for offer in self.offers:
            if (offer.study, offer.epoch, offer.bundle_sha256) != (study, epoch, bundle_sha256):
                raise ProtocolError(
                    f"{offer.site} confirmed another bundle, or its offer is of another epoch",
                    where="key ceremony",
                    fix="compare the roster code with that site, out of band",
                )
            offer.verify(members[offer.site])

    @property
    def sha256(self) -> bytes:
        """Hash `(32,)` over all of them."""
        return hashlib.sha256(transcript(b"offers 1", *(offer.to_bytes() for offer in self.offers))).digest()

    def as_list(self) -> list[Any]:
        """Fields of every offer."""
        return [offer.as_list() for offer in self.offers]

    @classmethod
    def from_list(cls, value: object, message: type) -> Self:
        """What `as_list` gave. Raises ProtocolError."""
        return cls(tuple(Offer(*fields_of(entry, 6, message)) for entry in list_of(value, message)))


@dataclass(frozen=True)
class MakeKeys(Message):
    """Server to the maker: all sites offered; make the epoch's keys and seal them."""

    study: str
    epoch: int
    offers: Offers

    kind: ClassVar[int] = 34

    def __post_init__(self) -> None:
        require_study(self.study, self.epoch, MakeKeys)
        require(type(self.offers) is Offers, "offers are due", MakeKeys)

    def _head(self) -> list[Any]:
        return [self.study, self.epoch, self.offers.as_list()]

    @classmethod
    def _from_parts(cls, head: list[Any], body: memoryview) -> Self:
        require(not body, "it has no body", cls)
        study, epoch, offers = fields_of(head, 3, cls)
        return cls(study, epoch, Offers.from_list(offers, cls))


@dataclass(frozen=True)
class SealedHead:
    """What the maker signs: the key's id, the size of an upload, and the hash of each site's envelope in turn."""

    study: str
    epoch: int
    maker: str
    offers_sha256: bytes
    key_id: bytes
    n_chunks: int
    digests: tuple[bytes, ...]
    signature: bytes

    def __post_init__(self) -> None:
        require_study(self.study, self.epoch, Sealed)
        require(is_text(self.maker, NAME), "a site's name is a-z, 0-9 and -", Sealed)
        require(is_bytes(self.offers_sha256, SHA256_BYTES), "a SHA-256 has 32 bytes", Sealed)
        require(is_bytes(self.key_id, ID_BYTES), "a key id has 32 bytes", Sealed)
        require(is_number(self.n_chunks, 1, MAX_CHUNKS), f"n_chunks is 1 to {MAX_CHUNKS}", Sealed)
        require(is_tuple(self.digests, bytes, MAX_SITES), "digests are due", Sealed)
        require(all(len(digest) == SHA256_BYTES for digest in self.digests), "a SHA-256 has 32 bytes", Sealed)
        require(is_bytes(self.signature, DOUBLE_SIGNATURE_BYTES), "two signatures are due", Sealed)

    def verify(self, by: DoubleIdentity) -> None:
        """Return nothing if the maker signed it. Raises CryptoError."""
        by.verify(self.signature, Purpose.CEREMONY, *_sealed_fields(self))

    def as_list(self) -> list[Any]:
        """Its fields, to stand in messages."""
        own = [self.study, self.epoch, self.maker, self.offers_sha256, self.key_id, self.n_chunks]
        return [*own, list(self.digests), self.signature]

    @classmethod
    def from_list(cls, value: object, message: type) -> Self:
        """What `as_list` gave. Raises ProtocolError."""
        study, epoch, maker, offers, key, n_chunks, digests, signature = fields_of(value, 8, message)
        return cls(study, epoch, maker, offers, key, n_chunks, tuple(list_of(digests, message)), signature)


@dataclass(frozen=True)
class Sealed(Message):
    """Maker to server: the envelopes, one for each site in the order of the offers, all of one size."""

    head: SealedHead
    envelopes: tuple[bytes, ...]

    kind: ClassVar[int] = 35

    def __post_init__(self) -> None:
        require(type(self.head) is SealedHead, "a signed head is due", Sealed)
        require(is_tuple(self.envelopes, bytes, MAX_SITES), "envelopes are due", Sealed)
        sizes = {len(envelope) for envelope in self.envelopes}
        require(
            len(sizes) == 1 and OVERHEAD_BYTES < min(sizes) <= _MAX_ENVELOPE_BYTES, "sizes differ", Sealed
        )
        found = tuple(hashlib.sha256(envelope).digest() for envelope in self.envelopes)
        require(found == self.head.digests, "the envelopes are not those that were signed", Sealed)

    @classmethod
    def signed(
        cls,
        signer: DoubleSigner,
        *,
        study: str,
        epoch: int,
        maker: str,
        offers: Offers,
        key_id: bytes,
        n_chunks: int,
        envelopes: Mapping[str, bytes],
    ) -> Self:
        """The envelopes by site, signed as a whole."""
        ordered = tuple(envelopes[offer.site] for offer in offers.offers)
        digests = tuple(hashlib.sha256(envelope).digest() for envelope in ordered)
        unsigned = (study, epoch, maker, offers.sha256, key_id, n_chunks, digests)
        draft = SealedHead(*unsigned, bytes(DOUBLE_SIGNATURE_BYTES))
        return cls(SealedHead(*unsigned, signer.sign(Purpose.CEREMONY, *_sealed_fields(draft))), ordered)

    def _head(self) -> list[Any]:
        return self.head.as_list()

    def _body(self) -> tuple[bytes, ...]:
        return self.envelopes

    @classmethod
    def _from_parts(cls, head: list[Any], body: memoryview) -> Self:
        signed = SealedHead.from_list(head, cls)
        count = len(signed.digests)
        require(len(body) % count == 0, "the envelopes are not whole", cls)
        size = len(body) // count
        return cls(signed, tuple(bytes(body[i * size : (i + 1) * size]) for i in range(count)))


@dataclass(frozen=True)
class Deliver(Message):
    """Server to site: all offers, what the maker signed over all envelopes, and yours."""

    offers: Offers
    head: SealedHead
    envelope: bytes

    kind: ClassVar[int] = 36

    def __post_init__(self) -> None:
        require(type(self.offers) is Offers and type(self.head) is SealedHead, "a field is missing", Deliver)
        require(
            type(self.envelope) is bytes and OVERHEAD_BYTES < len(self.envelope) <= _MAX_ENVELOPE_BYTES,
            "an envelope is due",
            Deliver,
        )

    @property
    def study(self) -> str:
        """The study that it is of."""
        return self.head.study

    @property
    def epoch(self) -> int:
        """The epoch that it is of."""
        return self.head.epoch

    def _head(self) -> list[Any]:
        return [self.offers.as_list(), self.head.as_list()]

    def _body(self) -> tuple[bytes, ...]:
        return (self.envelope,)

    @classmethod
    def _from_parts(cls, head: list[Any], body: memoryview) -> Self:
        offers, signed = fields_of(head, 2, cls)
        return cls(Offers.from_list(offers, cls), SealedHead.from_list(signed, cls), bytes(body))


@dataclass(frozen=True)
class Opened(Message):
    """Site to server: I hold the key of this id."""

    study: str
    epoch: int
    site: str
    key_id: bytes
    signature: bytes

    kind: ClassVar[int] = 37

    def __post_init__(self) -> None:
        require_study(self.study, self.epoch, Opened)
        require(is_text(self.site, NAME), "a site's name is a-z, 0-9 and -", Opened)
        require(is_bytes(self.key_id, ID_BYTES), "a key id has 32 bytes", Opened)
        require(is_bytes(self.signature, DOUBLE_SIGNATURE_BYTES), "two signatures are due", Opened)

    @classmethod
    def signed(cls, signer: DoubleSigner, *, study: str, epoch: int, site: str, key_id: bytes) -> Self:
        """The acknowledgement of one site."""
        fields = _opened_fields(study, epoch, site, key_id)
        return cls(study, epoch, site, key_id, signer.sign(Purpose.CEREMONY, *fields))

    def verify(self, by: DoubleIdentity) -> None:
        """Return nothing if this site made it. Raises CryptoError."""
        fields = _opened_fields(self.study, self.epoch, self.site, self.key_id)
        by.verify(self.signature, Purpose.CEREMONY, *fields)

    def _head(self) -> list[Any]:
        return [self.study, self.epoch, self.site, self.key_id, self.signature]

    @classmethod
    def _from_parts(cls, head: list[Any], body: memoryview) -> Self:
        require(not body, "it has no body", cls)
        return cls(*fields_of(head, 5, cls))


def _offer_fields(
    study: str, epoch: int, site: str, bundle_sha256: bytes, recipient: bytes
) -> tuple[bytes, ...]:
    return b"offer", study.encode(), str(epoch).encode(), site.encode(), bundle_sha256, recipient


def _sealed_fields(head: SealedHead) -> tuple[bytes, ...]:
    own = (b"sealed", head.study.encode(), str(head.epoch).encode(), head.maker.encode())
    return (*own, head.offers_sha256, head.key_id, str(head.n_chunks).encode(), *head.digests)


def _opened_fields(study: str, epoch: int, site: str, key_id: bytes) -> tuple[bytes, ...]:
    return b"opened", study.encode(), str(epoch).encode(), site.encode(), key_id
