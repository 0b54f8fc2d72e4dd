"""Members of a study that countersign one another's ledgers, as they do in a round, without a network between them."""

from __future__ import annotations

from collections.abc import Iterable

from secure_triplay.client.witness import Witnesses
from secure_triplay.crypto.identity import Identity, SigningIdentity
from secure_triplay.errors import SecureTriplayError
from secure_triplay.ledger.anchor import PeerAnchor
from secure_triplay.ledger.books import Reservation
from secure_triplay.ledger.store import Chain, Clock, utc_now


class Member(Witnesses):
    """A member's witnesses, with the chain and the key that a test looks at."""

    def __init__(
        self, chain: Chain, signer: SigningIdentity, peers: Iterable[Identity], clock: Clock = utc_now
    ) -> None:
        peers = tuple(peers)
        super().__init__(chain, signer, peers, clock)
        self.chain, self.key, self.refused = chain, signer.identity, list[SecureTriplayError]()
        self.anchor = PeerAnchor(signer, chain, peers, clock)

    def answer(self, heads):
        """What this member answers to the heads of others; what it refuses is in `refused`."""
        return self.countersign(heads, self.refused.append)

    def exchange(self, *peers: Member) -> None:
        """Show the head to these peers, and take their answers in. Raises what `take_in` raises."""
        heads = self.heads()
        answers = [peer.answer(heads) for peer in peers]
        self.take_in(
            [receipt for receipts, _ in answers for receipt in receipts],
            [held for _, answered in answers for held in answered],
        )

    def paid_for(self, reservation: Reservation, *peers: Member) -> int:
        """How many peers countersigned a charge, after one exchange with these."""
        self.exchange(*peers)
        return self.count_after(reservation.counter)
