"""What the server passes on between ledgers: heads to witnesses, and what these say of them back to the party."""

from __future__ import annotations

from dataclasses import dataclass, field

from secure_triplay.errors import CryptoError
from secure_triplay.wire import MAX_HEADS, Approval, Countersignature, HeldHead, LedgerHead, SessionPlan

WITNESSES = 4
"""To how many others a site's ledger head is shown in a round; one receipt is enough to train."""
_MOST_HEADS = MAX_HEADS // WITNESSES
"""So many of one site are shown, so that all of those that a site is shown fit; an honest site has fewer."""


@dataclass
class Relayed:
    """Each site's heads, and by party what each peer said of them last.

    That is kept until the peer says something newer, since the message that brings it to the party may be lost.
    """

    heads: dict[str, tuple[LedgerHead, ...]] = field(default_factory=dict)
    receipts: dict[bytes, dict[bytes, Countersignature]] = field(default_factory=dict)
    held: dict[bytes, dict[bytes, HeldHead]] = field(default_factory=dict)

    def take(self, plan: SessionPlan, heads: tuple[LedgerHead, ...]) -> str | None:
        """Keep a site's heads -> its name; None, and nothing kept, where no site of the plan signed them.

        Of several that come in one exchange the newest count: peers have older ones, and could show them in its place.
        """
        try:
            for head in heads:
                head.verify()
        except CryptoError:
            return None
        party = heads[0].party_key if heads else b""
        name = next((site.name for site in plan.sites if site.identity.public_bytes == party), None)
        if name is not None:
            both = (*self.heads.get(name, ()), *heads)
            newest = max(head.counter for head in both)
            self.heads[name] = tuple(dict.fromkeys(head for head in both if head.counter == newest))
        return name

    def shown_to(self, site: str) -> tuple[LedgerHead, ...]:
        """Heads of the sites before this one, in the order of names: so each head finds as many witnesses."""
        others = sorted(name for name in self.heads if name != site)
        after = sum(name < site for name in others)
        ring = others[after:] + others[:after]
        return tuple(head for name in ring[-WITNESSES:] for head in self.heads[name][:_MOST_HEADS])

    def said(self, key: bytes, reply: Approval) -> None:
        """Keep what the site with this key says of others' heads; the newest word counts."""
        for receipt in reply.receipts:
            if receipt.peer_key == key:
                self._forget(receipt.party_key, key)
                self.receipts.setdefault(receipt.party_key, {})[key] = receipt
        for held in reply.held:
            if held.peer_key == key:
                self._forget(held.party_key, key)
                self.held.setdefault(held.party_key, {})[key] = held

    def due(self, key: bytes) -> tuple[tuple[Countersignature, ...], tuple[HeldHead, ...]]:
        """What peers said of the heads of the party with this key; where that is too much, what they said last."""
        receipts, held = self.receipts.get(key, {}), self.held.get(key, {})
        return tuple(receipts.values())[-MAX_HEADS:], tuple(held.values())[-MAX_HEADS:]

    def _forget(self, party: bytes, peer: bytes) -> None:
        """What a peer said of a party before: what it says now stands last."""
        for said in (self.receipts, self.held):
            said.get(party, {}).pop(peer, None)
