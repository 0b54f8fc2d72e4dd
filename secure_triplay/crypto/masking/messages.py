"""What travels in a masked round. Nothing here is secret but `SealedShares`, which only their recipients open.

Each message is checked for its form when it is made, and for its truth by `verify`, which the server calls before it
passes a message on; sites verify again what is theirs to judge. `wire.masks` makes bytes of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from secure_triplay.crypto.identity import SIGNATURE_BYTES, Purpose, SigningIdentity, transcript
from secure_triplay.crypto.masking.context import MaskContext
from secure_triplay.crypto.masking.expand import KEY_BYTES, SEED_BYTES, agree
from secure_triplay.errors import ProtocolError

SEALED_BYTES = 2 * SEED_BYTES + 16
"""Two shares and the tag of the AEAD."""


class _Sent(Protocol):
    @property
    def site(self) -> str: ...


M = TypeVar("M", bound=_Sent)


@dataclass(frozen=True)
class MaskKeys:
    """Round 0: a site's X25519 keys c (seals shares) and s (agrees on masks), and what its b is known again by."""

    site: str
    seal_key: bytes
    mask_key: bytes
    self_mask_check: bytes
    signature: bytes

    def __post_init__(self) -> None:
        for key in (self.seal_key, self.mask_key, self.self_mask_check):
            _require_bytes(key, KEY_BYTES, "a key")
        _require_bytes(self.signature, SIGNATURE_BYTES, "a signature")

    @classmethod
    def signed(
        cls, context: MaskContext, site: str, signer: SigningIdentity, seal: bytes, mask: bytes, check: bytes
    ) -> MaskKeys:
        """The keys under the site's signature."""
        fields = (context.sha256, site.encode(), seal, mask, check)
        return cls(site, seal, mask, check, signer.sign(Purpose.MASK_KEYS, *fields))

    def verify(self, context: MaskContext) -> None:
        """Return nothing if the site signed these keys for this round.

        Raises:
            ProtocolError: for a stranger.
            CryptoError: if the signature does not verify.
        """
        fields = (context.sha256, self.site.encode(), self.seal_key, self.mask_key, self.self_mask_check)
        context.identity(self.site).verify(self.signature, Purpose.MASK_KEYS, *fields)

    def require_usable(self) -> None:
        """Raise ProtocolError for a key of small order, under which every site would refuse to go on.

        The server asks this before it passes keys on, so that one site cannot stop the round with them.
        """
        probe = X25519PrivateKey.generate()
        for key in (self.seal_key, self.mask_key):
            agree(probe, key)


@dataclass(frozen=True)
class SealedShares:
    """Round 1: shares of s and b of `site`, sealed to each of its peers.

    The signature is for the server, which can open none: nobody takes another's place in a round with bytes that open
    for nobody.
    """

    site: str
    sealed: Mapping[str, bytes]
    signature: bytes

    def __post_init__(self) -> None:
        for content in self.sealed.values():
            _require_bytes(content, SEALED_BYTES, "a sealed share")
        _require_bytes(self.signature, SIGNATURE_BYTES, "a signature")

    @classmethod
    def signed(
        cls, context: MaskContext, site: str, signer: SigningIdentity, sealed: Mapping[str, bytes]
    ) -> SealedShares:
        """The sealed shares under the site's signature."""
        fields = (context.sha256, site.encode(), *_flat(sealed))
        return cls(site, dict(sealed), signer.sign(Purpose.MASK_SEALED, *fields))

    def verify(self, context: MaskContext, advertised: Collection[str]) -> None:
        """Return nothing if the site signed this and sealed to each of its peers among those that sent keys.

        Raises ProtocolError or CryptoError.
        """
        fields = (context.sha256, self.site.encode(), *_flat(self.sealed))
        context.identity(self.site).verify(self.signature, Purpose.MASK_SEALED, *fields)
        if set(self.sealed) != set(context.peers(self.site)) & set(advertised):
            raise _wrong("a site did not share its secrets with each of its peers")


@dataclass(frozen=True)
class Revealed:
    """Round 4: by peer, the share of b of a survivor or of s of one that is lost; the lists say which it is."""

    site: str
    shares: Mapping[str, bytes]
    signature: bytes

    def __post_init__(self) -> None:
        for share in self.shares.values():
            _require_bytes(share, SEED_BYTES, "a share")
        _require_bytes(self.signature, SIGNATURE_BYTES, "a signature")

    @classmethod
    def signed(
        cls,
        context: MaskContext,
        site: str,
        signer: SigningIdentity,
        lists: bytes,
        shares: Mapping[str, bytes],
    ) -> Revealed:
        """The shares under the site's signature."""
        return cls(
            site, dict(shares), signer.sign(Purpose.MASK_SHARES, *_revealed(context, site, lists, shares))
        )

    def verify(self, context: MaskContext, lists: bytes) -> None:
        """Return nothing if the site revealed these shares for these lists, and holds such shares.

        Raises ProtocolError or CryptoError.
        """
        fields = _revealed(context, self.site, lists, self.shares)
        context.identity(self.site).verify(self.signature, Purpose.MASK_SHARES, *fields)
        if not set(self.shares) <= set(context.holders(self.site)):
            raise _wrong("a site reveals a share that it cannot have")


def members_hash(context: MaskContext, members: tuple[str, ...]) -> bytes:
    """Hash `(32,)` of round and list of members. Raises ProtocolError if the list is too short or out of order.

    It stands in the signed header of each masked upload: with whom its site masked.
    """
    context.require_list(members, "members")
    names = (name.encode() for name in members)
    return hashlib.sha256(transcript(b"members 1", context.sha256, *names)).digest()


def lists_hash(context: MaskContext, members: tuple[str, ...], survivors: tuple[str, ...]) -> bytes:
    """Hash `(32,)` of members and survivors.

    Raises ProtocolError unless the survivors are members, and enough of all and in each stretch of the graph.
    """
    first = members_hash(context, members)
    context.require_list(survivors, "survivors")
    if not set(survivors) <= set(members) or not context.parameters.accepts(context.ring, set(survivors)):
        raise _wrong("the survivors are not members, or too few in one part of the graph")
    return hashlib.sha256(transcript(b"survivors 1", first, *(name.encode() for name in survivors))).digest()


def by_site(messages: Iterable[M]) -> dict[str, M]:
    """The messages by their senders. Raises ProtocolError if one sent two."""
    found: dict[str, M] = {}
    for message in messages:
        if message.site in found:
            raise _wrong("one site sent two")
        found[message.site] = message
    return found


def _revealed(
    context: MaskContext, site: str, lists: bytes, shares: Mapping[str, bytes]
) -> tuple[bytes, ...]:
    return context.sha256, site.encode(), lists, *_flat(shares)


def _flat(by_peer: Mapping[str, bytes]) -> list[bytes]:
    return [part for peer in sorted(by_peer) for part in (peer.encode(), by_peer[peer])]


def _require_bytes(value: object, length: int, what: str) -> None:
    if type(value) is not bytes or len(value) != length:
        raise _wrong(f"{what} has {length} bytes")


def _wrong(what: str) -> ProtocolError:
    return ProtocolError(
        f"a message of the masked round was refused: {what}",
        where="masking", fix="look into its sender, and leave it out of the round",
    )  # fmt: skip
