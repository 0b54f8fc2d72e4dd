"""What the server passes on between ledgers."""

from __future__ import annotations

import pytest

from secure_triplay.server.relayed import Relayed
from secure_triplay.wire import MAX_HEADS, Approval, Countersignature, HeldHead

PARTY = b"p" * 32


def said_by(number, counter, kind):
    peer = number.to_bytes(32)
    if kind == "receipt":
        receipts, held = (Countersignature(PARTY, peer, counter, bytes(64)),), ()
    else:
        receipts, held = (), (HeldHead(PARTY, peer, counter, bytes(32), bytes(64)),)
    return peer, Approval("ab" * 32, 1, 1, f"site-{number}", b"", receipts, held)


@pytest.mark.parametrize("kind", ["receipt", "held"])
def test_the_newest_word_reaches_its_party_however_many_peers_spoke_before(kind):
    relayed = Relayed()
    for number in range(MAX_HEADS + 6):
        relayed.said(*said_by(number, 1, kind))
    relayed.said(*said_by(0, 2, kind))
    due = relayed.due(PARTY)[kind == "held"]
    assert len(due) == MAX_HEADS
    assert {one.counter for one in due if one.peer_key == (0).to_bytes(32)} == {2}
    assert (MAX_HEADS + 5).to_bytes(32) in {one.peer_key for one in due}


def test_a_peers_newest_word_takes_the_place_of_its_word_before():
    relayed = Relayed()
    for counter, kind in enumerate(("receipt", "held", "held", "receipt"), start=1):
        relayed.said(*said_by(0, counter, kind))
        (one,) = (*relayed.due(PARTY)[0], *relayed.due(PARTY)[1])
        assert one.counter == counter
