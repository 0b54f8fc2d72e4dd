"""How a site that is new in an epoch gets adapter and optimiser: sealed under the epoch's key, confirmed by a quorum.

    server -> old site   StateWanted    the state after this round
    old site -> server   StateOffered   its hash, signed; and, where asked, the state itself, sealed
    server -> new site   StateGiven     the sealed state, and a quorum's signatures under one hash

The server sees a hash and a ciphertext. A new site takes a state only where more than half of the roster's old
sites signed the very hash that it finds in the seal.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Self

from secure_triplay.crypto.double import DOUBLE_SIGNATURE_BYTES, DoubleIdentity, DoubleSigner
from secure_triplay.crypto.identity import Purpose
from secure_triplay.errors import ProtocolError
from secure_triplay.wireformat import (
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

_SHA256_BYTES = 32


@dataclass(frozen=True)
class Confirmed:
    """One site's signature under the hash of the state after a round."""

    site: str
    state_sha256: bytes
    signature: bytes

    def __post_init__(self) -> None:
        require(is_text(self.site, NAME), "a site's name is a-z, 0-9 and -", StateOffered)
        require(is_bytes(self.state_sha256, _SHA256_BYTES), "a SHA-256 has 32 bytes", StateOffered)
        require(is_bytes(self.signature, DOUBLE_SIGNATURE_BYTES), "two signatures are due", StateOffered)

    @classmethod
    def signed(
        cls, signer: DoubleSigner, *, study: str, epoch: int, round: int, site: str, state_sha256: bytes
    ) -> Self:
        """The confirmation of one site."""
        fields = _fields(study, epoch, round, site, state_sha256)
        return cls(site, state_sha256, signer.sign(Purpose.CEREMONY, *fields))

    def verify(self, by: DoubleIdentity, *, study: str, epoch: int, round: int) -> None:
        """Return nothing if this site signed it. Raises CryptoError."""
        fields = _fields(study, epoch, round, self.site, self.state_sha256)
        by.verify(self.signature, Purpose.CEREMONY, *fields)

    def as_list(self) -> list[Any]:
        """Its fields, to stand in messages."""
        return [self.site, self.state_sha256, self.signature]


@dataclass(frozen=True)
class StateWanted(Message):
    """Server to an old site: confirm your state after `round`; `give`: and seal it."""

    study: str
    epoch: int
    round: int
    give: bool

    kind: ClassVar[int] = 38

    def __post_init__(self) -> None:
        require_study(self.study, self.epoch, StateWanted)
        require(is_number(self.round), "a round is a number", StateWanted)
        require(type(self.give) is bool, "yes or no is due", StateWanted)

    def _head(self) -> list[Any]:
        return [self.study, self.epoch, self.round, self.give]

    @classmethod
    def _from_parts(cls, head: list[Any], body: memoryview) -> Self:
        require(not body, "it has no body", cls)
        return cls(*fields_of(head, 4, cls))


@dataclass(frozen=True)
class StateOffered(Message):
    """Old site to server: the confirmation, and the sealed state or nothing."""

    study: str
    epoch: int
    round: int
    confirmed: Confirmed
    sealed: bytes

    kind: ClassVar[int] = 39

    def __post_init__(self) -> None:
        require_study(self.study, self.epoch, StateOffered)
        require(is_number(self.round), "a round is a number", StateOffered)
        require(
            type(self.confirmed) is Confirmed and type(self.sealed) is bytes, "a field is missing", type(self)
        )

    def _head(self) -> list[Any]:
        return [self.study, self.epoch, self.round, self.confirmed.as_list()]

    def _body(self) -> tuple[bytes, ...]:
        return (self.sealed,)

    @classmethod
    def _from_parts(cls, head: list[Any], body: memoryview) -> Self:
        study, epoch, round, confirmed = fields_of(head, 4, cls)
        return cls(study, epoch, round, Confirmed(*fields_of(confirmed, 3, cls)), bytes(body))


@dataclass(frozen=True)
class StateGiven(Message):
    """Server to a new site: the state after `round`, sealed under the epoch's key, and who confirmed its hash."""

    study: str
    epoch: int
    round: int
    confirmed: tuple[Confirmed, ...]
    sealed: bytes

    kind: ClassVar[int] = 40

    def __post_init__(self) -> None:
        require_study(self.study, self.epoch, StateGiven)
        require(is_number(self.round), "a round is a number", StateGiven)
        require(is_tuple(self.confirmed, Confirmed, MAX_SITES), "confirmations are due", StateGiven)
        require(
            all(a.site < b.site for a, b in pairwise(self.confirmed)), "sorted by name, each once", StateGiven
        )
        require(type(self.sealed) is bytes and len(self.sealed) > 0, "a sealed state is due", StateGiven)

    def require_quorum(self, members: Mapping[str, DoubleIdentity], quorum: int, taker: str) -> bytes:
        """The hash `(32,)` that at least `quorum` other sites of the roster signed, and nobody another.

        Raises ProtocolError or CryptoError.
        """
        hashes = {one.state_sha256 for one in self.confirmed}
        if len(hashes) != 1 or len(self.confirmed) < quorum or taker in {one.site for one in self.confirmed}:
            raise ProtocolError(
                f"{len(self.confirmed)} sites confirmed {len(hashes)} states, and {quorum} have to confirm one",
                where="state hand-over",
                fix="look into the server, and ask the other sites where their study stands",
            )
        for one in self.confirmed:
            if one.site not in members:
                raise ProtocolError(
                    "a stranger confirms a state", where="state hand-over", fix="look into the server"
                )
            one.verify(members[one.site], study=self.study, epoch=self.epoch, round=self.round)
        return hashes.pop()

    def _head(self) -> list[Any]:
        return [self.study, self.epoch, self.round, [one.as_list() for one in self.confirmed]]

    def _body(self) -> tuple[bytes, ...]:
        return (self.sealed,)

    @classmethod
    def _from_parts(cls, head: list[Any], body: memoryview) -> Self:
        study, epoch, round, listed = fields_of(head, 4, cls)
        confirmed = tuple(Confirmed(*fields_of(one, 3, cls)) for one in list_of(listed, cls))
        return cls(study, epoch, round, confirmed, bytes(body))


def needed(old_sites: int) -> int:
    """How many confirmations a new site asks for: more than half of the sites that have a state."""
    return old_sites // 2 + 1


def _fields(study: str, epoch: int, round: int, site: str, state_sha256: bytes) -> tuple[bytes, ...]:
    own = (b"state", study.encode(), str(epoch).encode(), str(round).encode())
    return (*own, site.encode(), state_sha256)
