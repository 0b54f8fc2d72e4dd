"""What of its ledger a site shows to others, and what they answer: parts of the messages of a round."""

from __future__ import annotations

import re
from dataclasses import dataclass

from secure_triplay.crypto.identity import IDENTITY_BYTES, SIGNATURE_BYTES, Identity, Purpose
from secure_triplay.wireformat import is_bytes, is_number, is_text, require

_HEAD_BYTES = 32
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:00:00Z")


@dataclass(frozen=True)
class LedgerHead:
    """The head of a site's ledger under its own signature, and the head that others are known to hold of it."""

    party_key: bytes
    counter: int
    head: bytes
    time: str
    signature: bytes
    previous_counter: int
    previous_head: bytes
    follows: bytes

    def __post_init__(self) -> None:
        require(is_bytes(self.party_key, IDENTITY_BYTES), "an identity has 32 bytes", LedgerHead)
        require(is_number(self.counter, 1), "entries count from 1", LedgerHead)
        require(is_number(self.previous_counter), "a counter is a number", LedgerHead)
        heads = is_bytes(self.head, _HEAD_BYTES) and is_bytes(self.previous_head, _HEAD_BYTES)
        require(heads, "a head has 32 bytes", LedgerHead)
        require(is_text(self.time, _TIME), "a time is an hour in UTC", LedgerHead)
        signed = is_bytes(self.signature, SIGNATURE_BYTES) and is_bytes(self.follows, SIGNATURE_BYTES)
        require(signed, "a signature has 64 bytes", LedgerHead)

    def verify(self) -> None:
        """Return nothing if the party signed this counter and head, and what it follows. Raises CryptoError."""
        party, own = Identity(self.party_key), (self.counter.to_bytes(8), self.head)
        party.verify(self.signature, Purpose.LEDGER, *own)
        before = self.previous_counter.to_bytes(8), self.previous_head
        party.verify(self.follows, Purpose.LEDGER_FOLLOWS, *own, *before)


@dataclass(frozen=True)
class Countersignature:
    """A receipt: the signature of `peer_key` over the head at `counter` of the ledger of `party_key`."""

    party_key: bytes
    peer_key: bytes
    counter: int
    signature: bytes

    def __post_init__(self) -> None:
        keys = is_bytes(self.party_key, IDENTITY_BYTES) and is_bytes(self.peer_key, IDENTITY_BYTES)
        require(keys, "an identity has 32 bytes", Countersignature)
        require(is_number(self.counter, 1), "entries count from 1", Countersignature)
        require(is_bytes(self.signature, SIGNATURE_BYTES), "a signature has 64 bytes", Countersignature)


@dataclass(frozen=True)
class HeldHead:
    """A peer's other answer: the last head of `party_key` that it holds, under that party's own signature."""

    party_key: bytes
    peer_key: bytes
    counter: int
    head: bytes
    signature: bytes

    def __post_init__(self) -> None:
        keys = is_bytes(self.party_key, IDENTITY_BYTES) and is_bytes(self.peer_key, IDENTITY_BYTES)
        require(keys, "an identity has 32 bytes", HeldHead)
        require(is_number(self.counter, 1), "entries count from 1", HeldHead)
        require(is_bytes(self.head, _HEAD_BYTES), "a head has 32 bytes", HeldHead)
        require(is_bytes(self.signature, SIGNATURE_BYTES), "a signature has 64 bytes", HeldHead)
