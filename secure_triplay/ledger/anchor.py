"""Heads held outside the ledger's disk: what makes an older copy, a clone or a rewritten ledger visible.

A chain that was restored from a backup, or written anew by its owner, verifies. So after each reservation the
chain's counter and head go to others (peers through the server, which sees a hash), who sign them if they
follow the last head that they signed, and keep them. An owner who later shows another chain contradicts them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Self

from secure_triplay.crypto.identity import Identity, Purpose, SigningIdentity
from secure_triplay.errors import CryptoError, PrivacyError, ProtocolError
from secure_triplay.ledger.entries import TIME, TIME_FORMAT, Anchored, Countersigned, Entry, canonical
from secure_triplay.ledger.store import Chain, Clock, utc_now

MAX_STATEMENT_BYTES = 2048
CLOCK_TOLERANCE = timedelta(days=1)
"""How far another party's clock may be off. A clock set ahead would open next year's budget."""


_NOTHING = (0, "00" * 32)


@dataclass(frozen=True)
class Statement:
    """One party's head at one counter, in hex, and the last head of it that was countersigned before (0 and
    zeros). The party signs its head (`signature`), and that it follows the one before (`follows`): nobody else can
    say of an older copy that it does.
    """

    party_key: str
    counter: int
    head: str
    time: str
    signature: str
    previous_counter: int
    previous_head: str
    follows: str

    @classmethod
    def of(cls, chain: Chain) -> Self:
        """The head of a chain as it stands, with the party's own signatures over it."""
        last = chain.entries[-1]
        before = last_anchored(chain.entries)
        previous = (before.counter, before.head) if before else _NOTHING
        own = (
            chain.identity.public_bytes.hex(),
            last.counter,
            last.head.hex(),
            last.time,
            last.signature.hex(),
        )
        return cls(*own, *previous, "").following(chain, *previous)

    def following(self, chain: Chain, counter: int, head: str) -> Self:
        """The same head of this chain, after another one of it, which the caller found in it."""
        signed = replace(self, previous_counter=counter, previous_head=head)
        follows = chain.sign(Purpose.LEDGER_FOLLOWS, *signed._following_fields)
        return replace(signed, follows=follows.hex())

    def to_bytes(self) -> bytes:
        """For the way to others: no more than keys, counters and hashes."""
        return canonical(asdict(self))

    @classmethod
    def from_bytes(cls, content: bytes) -> Self:
        """The statement that `to_bytes` gave, its party's signature verified. Raises ProtocolError
        otherwise.
        """
        try:
            if len(content) > MAX_STATEMENT_BYTES:
                raise ValueError("too long")
            value: dict[str, Any] = json.loads(content)
            statement = cls(**value)
            if statement.to_bytes() != content or type(statement.counter) is not int or statement.counter < 1:
                raise ValueError("another encoding")
            if type(statement.previous_counter) is not int or not TIME.fullmatch(statement.time):
                raise ValueError("another form")
            _ = statement.moment, statement.noted  # what no entry can say is no statement
            statement.verify()
        except (ValueError, TypeError, AttributeError, OverflowError, CryptoError) as error:
            raise ProtocolError(
                "this is no signed head of a ledger", where="statement", fix="look into whoever sent it"
            ) from error
        return statement

    def verify(self) -> None:
        """Return nothing if the party signed this counter and head, and what it follows. Raises CryptoError."""
        _verify_own(self.party_key, self.counter, self.head, self.signature)
        party = Identity(bytes.fromhex(self.party_key))
        party.verify(bytes.fromhex(self.follows), Purpose.LEDGER_FOLLOWS, *self._following_fields)

    @property
    def moment(self) -> datetime:
        """When the party says that it wrote this head. Raises ValueError for a time that no clock shows."""
        return datetime.strptime(self.time, TIME_FORMAT).replace(tzinfo=UTC)

    @property
    def noted(self) -> Countersigned:
        """The entry of who countersigns it. Raises ValueError for what no entry can say."""
        own = {"party_key": self.party_key, "counter": self.counter, "head": self.head}
        return Countersigned.model_validate({**own, "time": self.time, "signature": self.signature})

    @property
    def _following_fields(self) -> tuple[bytes, ...]:
        head, before = bytes.fromhex(self.head), bytes.fromhex(self.previous_head)
        return self.counter.to_bytes(8), head, self.previous_counter.to_bytes(8), before

    @property
    def signed_fields(self) -> tuple[bytes, ...]:
        """What a countersignature is over."""
        return _anchored_fields(self.party_key, self.counter, self.head, self.time)


@dataclass(frozen=True)
class Receipt:
    """A peer's signature over another party's key, counter, head and time; both in hex."""

    peer_key: str
    signature: str

    def verify(self, statement: Statement) -> None:
        """Return nothing if this peer countersigned this statement. Raises CryptoError."""
        _verify_receipt(self.peer_key, self.signature, statement.signed_fields)


@dataclass(frozen=True)
class Held:
    """A peer's other answer: the last head of the party that it holds, under the party's own signature."""

    counter: int
    head: str
    signature: str

    def stands_in(self, chain: Chain) -> bool:
        """Whether it is a head of this chain. Raises CryptoError where the party never signed it: a made-up
        answer.
        """
        _verify_own(chain.identity.public_bytes.hex(), self.counter, self.head, self.signature)
        return self.counter <= len(chain.entries) and chain.entries[self.counter - 1].head.hex() == self.head


class PeerAnchor:
    """A party that countersigns others' heads, and keeps them in its own chain, so that a restart forgets
    none.
    """

    def __init__(
        self, signer: SigningIdentity, chain: Chain, members: Iterable[Identity], clock: Clock = utc_now
    ) -> None:
        self._signer, self._chain, self._clock = signer, chain, clock
        self._members = frozenset(member.public_bytes.hex() for member in members)

    def countersign(self, statement: bytes) -> Receipt | Held:
        """Sign a member's head that follows the last one signed here, once it is in this party's own chain.

        The same head again gets the same answer. One that does not follow gets the head held here, under the
        member's own signature: it has that in its chain, or is an old copy, a clone or a ledger begun anew.
        Raises PrivacyError for a clock that is more than a day off, ProtocolError for anything else.
        """
        asked = Statement.from_bytes(statement)
        if asked.party_key not in self._members:
            raise ProtocolError(
                "a party asks that is no member here", where="countersigning", fix="look into the server"
            )
        off = abs(asked.moment - self._clock())
        if off > CLOCK_TOLERANCE:
            raise PrivacyError(
                f"the clock of a party is off by {off.days} days or more",
                where="countersigning",
                fix="set it right there; a budget of another year is not opened by a clock",
            )
        with self._chain.writing() as append:
            held = _held(self._chain.entries, asked.party_key)
            known = (held.counter, held.head) if held else _NOTHING
            follows = (asked.previous_counter, asked.previous_head) == known and asked.counter > known[0]
            if held is not None and not follows and known != (asked.counter, asked.head):
                return Held(held.counter, held.head, held.signature)
            # A member seen for the first time is taken at its word; what it shows from here on has to follow.
            if known != (asked.counter, asked.head):
                append(asked.noted)
        return self._receipt(asked)

    def _receipt(self, asked: Statement) -> Receipt:
        signature = self._signer.sign(Purpose.ANCHOR, *asked.signed_fields)
        return Receipt(self._signer.identity.public_bytes.hex(), signature.hex())


def last_anchored(entries: Iterable[Entry]) -> Anchored | None:
    """The last entry that holds receipts."""
    return next((entry.body for entry in reversed(tuple(entries)) if isinstance(entry.body, Anchored)), None)


def verify_anchored(entries: tuple[Entry, ...]) -> dict[int, frozenset[str]]:
    """Who countersigned which counter, every receipt verified against the chain itself.

    Raises CryptoError where a receipt does not verify, or is over another head than the chain has there.
    """
    found: dict[int, frozenset[str]] = {}
    party = None
    for entry in entries:
        body = entry.body
        if party is None:
            party = getattr(body, "public_key", "")
        if not isinstance(body, Anchored):
            continue
        if body.counter >= entry.counter or entries[body.counter - 1].head.hex() != body.head:
            raise CryptoError(
                f"entry {entry.counter} holds receipts for another chain than this one",
                where="ledger chain",
                fix="the ledger was rewritten after others had countersigned it",
            )
        for peer, signature in body.receipts.items():
            if peer != party:
                _verify_receipt(peer, signature, _anchored_fields(party, body.counter, body.head, body.time))
        # receipts that came later for the same head stand in an entry of their own
        found[body.counter] = found.get(body.counter, frozenset()) | frozenset(body.receipts) - {party}
    return found


def _held(entries: Iterable[Entry], party_key: str) -> Countersigned | None:
    """The last head of a party that was countersigned in this chain."""
    return next(
        (
            entry.body
            for entry in reversed(tuple(entries))
            if isinstance(entry.body, Countersigned) and entry.body.party_key == party_key
        ),
        None,
    )


def verify_countersigned(body: Countersigned) -> None:
    """Return nothing if the party itself signed what this entry says that it showed. Raises CryptoError."""
    _verify_own(body.party_key, body.counter, body.head, body.signature)


def _verify_own(party_key: str, counter: int, head: str, signature: str) -> None:
    try:
        party, fields = Identity(bytes.fromhex(party_key)), (counter.to_bytes(8), bytes.fromhex(head))
        signed = bytes.fromhex(signature)
    except (ValueError, TypeError, OverflowError, AttributeError) as error:
        raise CryptoError("a head cannot be read", where="countersigning", fix="ask for it again") from error
    party.verify(signed, Purpose.LEDGER, *fields)


def _anchored_fields(party_key: str, counter: int, head: str, time: str) -> tuple[bytes, ...]:
    return bytes.fromhex(party_key), counter.to_bytes(8), bytes.fromhex(head), time.encode()


def _verify_receipt(peer_key: str, signature: str, fields: tuple[bytes, ...]) -> None:
    try:
        peer, signed = Identity(bytes.fromhex(peer_key)), bytes.fromhex(signature)
    except ValueError as error:
        raise CryptoError(
            "a receipt cannot be read", where="ledger chain", fix="ask the peer for it again"
        ) from error
    peer.verify(signed, Purpose.ANCHOR, *fields)
