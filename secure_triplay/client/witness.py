"""A site's ledger and its peers, who are reached through the server an exchange later.

heads         what this site shows: its head, and what each peer is known to hold of it
countersign   what it answers to the heads of others, kept in its own chain first
take_in       what peers answered to its own: receipts go into the chain; a head that this chain does not have
              means that somebody went on with another copy of this ledger
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable

from secure_triplay.crypto.identity import Identity, SigningIdentity
from secure_triplay.errors import CryptoError, PrivacyError, SecureTriplayError
from secure_triplay.ledger.anchor import Held, PeerAnchor, Receipt, Statement
from secure_triplay.ledger.entries import Anchored
from secure_triplay.ledger.store import Chain, Clock, utc_now
from secure_triplay.wire import Countersignature, HeldHead, LedgerHead

_MAX_OWN_HEADS = 8


class Witnesses:
    """One site's ledger chain and the other members of its study, by their public keys."""

    def __init__(
        self, chain: Chain, signer: SigningIdentity, peers: Iterable[Identity], clock: Clock = utc_now
    ) -> None:
        own = signer.identity.public_bytes
        self._chain, self._own_key = chain, own
        self._peers = frozenset(peer.public_bytes.hex() for peer in peers if peer.public_bytes != own)
        self._anchor = PeerAnchor(signer, chain, [Identity(bytes.fromhex(key)) for key in self._peers], clock)
        self._held: dict[str, tuple[int, str]] = {}

    def heads(self) -> tuple[LedgerHead, ...]:
        """The head as it stands; once for each different head that peers hold, so that it follows for each of them."""
        self._chain.refresh()
        statement = Statement.of(self._chain)
        known = {(statement.previous_counter, statement.previous_head)}
        for peer in self._peers:
            held = self._held.get(peer) or self._last_signed_by(peer)
            if held is not None:
                known.add(held)
        latest = sorted(known, reverse=True)[:_MAX_OWN_HEADS]
        return tuple(_to_wire(statement.following(self._chain, counter, head)) for counter, head in latest)

    def countersign(
        self, heads: Iterable[LedgerHead], note: Callable[[SecureTriplayError], None]
    ) -> tuple[tuple[Countersignature, ...], tuple[HeldHead, ...]]:
        """This site's answer to each party's heads: a receipt where one of them follows, else the head it holds.

        What is refused (a stranger, a forged head, a clock that is days off) is noted and left out.
        """
        by_party: dict[bytes, list[LedgerHead]] = defaultdict(list)
        for head in heads:
            by_party[head.party_key].append(head)
        receipts, held = [], []
        for party, shown in by_party.items():
            answer: Receipt | Held | None = None
            for head in shown:
                try:
                    answer = self._anchor.countersign(_from_wire(head).to_bytes())
                except SecureTriplayError as error:
                    note(error)
                    continue
                if isinstance(answer, Receipt):
                    signature = bytes.fromhex(answer.signature)
                    receipts.append(Countersignature(party, self._own_key, head.counter, signature))
                    break
            if isinstance(answer, Held):
                there = bytes.fromhex(answer.head), bytes.fromhex(answer.signature)
                held.append(HeldHead(party, self._own_key, answer.counter, *there))
        return tuple(receipts), tuple(held)

    def take_in(self, receipts: Iterable[Countersignature], held: Iterable[HeldHead]) -> None:
        """Put valid receipts of peers for heads of this chain into it; leave out what does not verify.

        Raises PrivacyError where a peer holds a head that this site signed and this chain does not have.
        """
        self._chain.refresh()
        for one in held:
            self._take_held(one)
        by_counter: dict[int, dict[str, str]] = defaultdict(dict)
        for receipt in receipts:
            peer = receipt.peer_key.hex()
            if peer in self._peers and self._is_ours(receipt):
                by_counter[receipt.counter][peer] = receipt.signature.hex()
        for counter, signed in sorted(by_counter.items()):
            if not set(signed) <= self._signers(at=counter):
                entry = self._chain.entries[counter - 1]
                self._chain.append(
                    Anchored(counter=counter, head=entry.head.hex(), time=entry.time, receipts=signed)
                )
            for peer in signed:
                self._held.pop(peer, None)

    def count_after(self, counter: int) -> int:
        """How many peers countersigned this chain at `counter` or later; receipts for them are in the chain."""
        found: set[str] = set()
        for body in self._anchored():
            if body.counter >= counter:
                found |= set(body.receipts)
        return len(found & self._peers)

    def _take_held(self, one: HeldHead) -> None:
        peer = one.peer_key.hex()
        if peer not in self._peers or one.party_key != self._own_key:
            return
        held = Held(one.counter, one.head.hex(), one.signature.hex())
        try:
            stands = held.stands_in(self._chain)
        except CryptoError:
            return  # never signed here: made up
        if not stands:
            raise PrivacyError(
                f"others hold entry {held.counter} of this ledger, signed by this site, and this copy does not "
                "have it: it is an older copy, a clone, or was begun anew",
                where=str(self._chain.path),
                fix="release nothing from it; find the machine that went on, or explain the loss to all",
            )
        self._held[peer] = held.counter, held.head

    def _is_ours(self, receipt: Countersignature) -> bool:
        if receipt.party_key != self._own_key or receipt.counter > len(self._chain.entries):
            return False
        entry = self._chain.entries[receipt.counter - 1]
        about = Statement(
            self._own_key.hex(), entry.counter, entry.head.hex(), entry.time, entry.signature.hex(), 0, "", ""
        )
        try:
            Receipt(receipt.peer_key.hex(), receipt.signature.hex()).verify(about)
        except CryptoError:
            return False
        return True

    def _anchored(self) -> list[Anchored]:
        # newest first; entries are only ever appended
        return [entry.body for entry in reversed(self._chain.entries) if isinstance(entry.body, Anchored)]

    def _signers(self, *, at: int) -> set[str]:
        return {peer for body in self._anchored() if body.counter == at for peer in body.receipts}

    def _last_signed_by(self, peer: str) -> tuple[int, str] | None:
        return next(((body.counter, body.head) for body in self._anchored() if peer in body.receipts), None)


def _to_wire(statement: Statement) -> LedgerHead:
    return LedgerHead(
        bytes.fromhex(statement.party_key),
        statement.counter,
        bytes.fromhex(statement.head),
        statement.time,
        bytes.fromhex(statement.signature),
        statement.previous_counter,
        bytes.fromhex(statement.previous_head),
        bytes.fromhex(statement.follows),
    )


def _from_wire(head: LedgerHead) -> Statement:
    return Statement(
        head.party_key.hex(),
        head.counter,
        head.head.hex(),
        head.time,
        head.signature.hex(),
        head.previous_counter,
        head.previous_head.hex(),
        head.follows.hex(),
    )
