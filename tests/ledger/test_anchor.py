"""An older copy, a clone and a rewritten ledger are found out by what others hold."""

from __future__ import annotations

import dataclasses
import shutil
from datetime import timedelta

import pytest

from secure_triplay.crypto.identity import Purpose, SigningIdentity
from secure_triplay.errors import CryptoError, PrivacyError, ProtocolError
from secure_triplay.ledger.anchor import Held, PeerAnchor, Receipt, Statement, verify_anchored
from secure_triplay.ledger.budget import Limits
from secure_triplay.ledger.entries import Anchored, Countersigned
from secure_triplay.ledger.ledger import NAME, TRAINING, Ledger, Release
from secure_triplay.ledger.log import AuditLog, cross_check
from secure_triplay.privacy.mechanisms import DpSgdCharge

CHARGE = DpSgdCharge(noise_multiplier=4.0, sampling_rate=0.5, steps=1, unit="patient")
STUDY = "a" * 64
LIMITS = Limits(epsilon_per_study=3.0, epsilon_per_year=6.0, delta=1e-6, max_units=1000, unit="patient")


@pytest.fixture
def peer(tmp_path, identity, clock):
    signer = SigningIdentity.generate()
    with AuditLog.create(tmp_path / "peer", signer, party="peer", started_by="B", clock=clock) as log:
        yield PeerAnchor(signer, log.chain, [identity.identity], clock)


def reserve(ledger, round):
    return ledger.reserve(CHARGE, study=STUDY, round=round)


def copied(folder, to):
    """A backup: what a disk image of the closed ledger holds."""
    shutil.copytree(folder, to)
    return to


def test_a_restored_older_ledger_is_refused_before_it_spends(ledger, folder, peer, tmp_path, identity, clock):
    reserve(ledger, 1)
    ledger.anchor([peer])
    backup = copied(folder, tmp_path / "backup")
    reserve(ledger, 2)
    ledger.anchor([peer])
    ledger.close()
    with Ledger.open(backup, identity, clock=clock) as old:  # self-consistent: it opens
        reserve(old, 2)
        with pytest.raises(PrivacyError, match="older copy, a clone"):
            old.anchor([peer])


def test_whoever_carries_an_older_copys_heads_cannot_say_that_they_follow(
    ledger, folder, peer, tmp_path, identity, clock
):
    reserve(ledger, 1)
    ledger.anchor([peer])
    backup = copied(folder, tmp_path / "backup")
    reserve(ledger, 2)
    held = ledger.statement()
    ledger.anchor([peer])
    ledger.close()
    with Ledger.open(backup, identity, clock=clock) as old:
        for number in (2, 3, 4):
            reserve(old, number)
        honest = old.statement()
        assert honest.counter > held.counter
        assert isinstance(peer.countersign(honest.to_bytes()), Held)
        for follows in (honest.follows, held.follows, honest.signature):
            forged = dataclasses.replace(
                honest, previous_counter=held.counter, previous_head=held.head, follows=follows
            )
            with pytest.raises(ProtocolError):
                peer.countersign(forged.to_bytes())


def test_of_two_clones_only_one_goes_on(ledger, folder, peer, tmp_path, identity, clock):
    reserve(ledger, 1)
    ledger.anchor([peer])
    with Ledger.open(copied(folder, tmp_path / "clone"), identity, clock=clock) as clone:
        reserve(clone, 2)
        reserve(clone, 3)
        reserve(ledger, 2)
        assert ledger.anchor([peer]) == 1
        with pytest.raises(PrivacyError):
            clone.anchor([peer])
        reserve(ledger, 3)
        assert ledger.anchor([peer]) == 1


def test_a_ledger_begun_anew_is_refused_by_who_knew_the_first(ledger, peer, tmp_path, identity, clock):
    reserve(ledger, 1)
    ledger.anchor([peer])
    with (
        Ledger.create(
            tmp_path / "new", identity, site="site", limits=LIMITS, approved_by="A", clock=clock
        ) as new,
        pytest.raises(PrivacyError, match="begun anew"),
    ):
        new.anchor([peer])


def test_a_lost_answer_can_be_asked_for_again(ledger, peer):
    reserve(ledger, 1)
    statement = ledger.statement().to_bytes()
    assert peer.countersign(statement) == peer.countersign(statement)


def test_a_crash_between_countersigning_and_recording_it_does_not_lock_the_ledger_out(ledger, peer):
    reserve(ledger, 1)
    peer.countersign(ledger.statement().to_bytes())  # the process dies before it records the receipt
    assert reserve(ledger, 1).resumed
    assert ledger.anchor([peer]) == 1
    reserve(ledger, 2)
    assert ledger.anchor([peer]) == 1


def test_two_processes_of_one_site_countersign_in_any_order(ledger, folder, peer, identity, clock):
    """What was anchored late is covered by what was anchored early, if it is one chain."""
    with Ledger.open(folder, identity, clock=clock) as other:
        reserve(ledger, 1)
        early = ledger.statement()
        reserve(other, 2)
        assert isinstance(
            peer.countersign(other.statement().to_bytes()), Receipt
        )  # and dies before recording it
        reserve(ledger, 3)
        assert isinstance(peer.countersign(early.to_bytes()), Held)
        assert ledger.anchor([peer]) == 1
        assert other.anchor([peer]) == 1


def test_a_peer_that_was_away_catches_up(ledger, peer, tmp_path, identity, clock):
    second = SigningIdentity.generate()
    with AuditLog.create(tmp_path / "second", second, party="second", started_by="C", clock=clock) as log:
        away = PeerAnchor(second, log.chain, [identity.identity], clock)
        reserve(ledger, 1)
        assert ledger.anchor([peer, away]) == 2
        reserve(ledger, 2)
        assert ledger.anchor([peer]) == 1
        reserve(ledger, 3)
        assert ledger.anchor([peer, away], at_least=2) == 2


def test_a_peer_cannot_stop_a_site_with_a_made_up_head(ledger, peer):
    class Liar:
        def countersign(self, statement: bytes) -> Held:
            return Held(99, "11" * 32, "22" * 64)

    reserve(ledger, 1)
    assert ledger.anchor([Liar(), peer]) == 1


def test_a_party_cannot_be_accused_with_a_head_it_never_signed(ledger, peer, identity):
    reserve(ledger, 1)
    ledger.anchor([peer])
    key = identity.identity.public_bytes.hex()
    peer._chain.append(Countersigned(party_key=key, counter=3, head="11" * 32, time="x", signature="22" * 64))
    logs = {"site": ledger.chain.entries, "peer": peer._chain.entries}
    (found,) = cross_check(logs, {"site": identity.identity, "peer": peer._signer.identity})
    assert "false accusation" in found.what


def test_a_peer_forgets_no_head_over_a_restart(ledger, folder, tmp_path, identity, clock):
    signer = SigningIdentity.generate()
    AuditLog.create(tmp_path / "peer", signer, party="peer", started_by="B", clock=clock).close()
    backup = None
    for number in (1, 2):
        with AuditLog.open(tmp_path / "peer", signer, clock=clock) as log:
            reserve(ledger, number)
            ledger.anchor([PeerAnchor(signer, log.chain, [identity.identity], clock)])
            backup = backup or copied(folder, tmp_path / "backup")
    with (
        AuditLog.open(tmp_path / "peer", signer, clock=clock) as log,
        Ledger.open(backup, identity, clock=clock) as old,
    ):
        reserve(old, 2)
        with pytest.raises(PrivacyError):
            old.anchor([PeerAnchor(signer, log.chain, [identity.identity], clock)])


def test_a_head_that_says_it_follows_a_later_one_is_not_countersigned(ledger, peer):
    """An older copy that was told what the peer holds, and signs that it follows it."""
    reserve(ledger, 1)
    old = ledger.statement()
    reserve(ledger, 2)
    late = ledger.statement()
    assert old.counter < late.counter
    assert isinstance(peer.countersign(late.to_bytes()), Receipt)
    lie = old.following(ledger.chain, late.counter, late.head)
    held = peer.countersign(lie.to_bytes())
    assert isinstance(held, Held)
    assert (held.counter, held.head) == (late.counter, late.head)


@pytest.mark.parametrize("days", [60, 2, -2, -400])
def test_a_clock_set_ahead_or_back_is_not_countersigned(ledger, peer, clock, days):
    """Ahead lies next year's budget, and back what is left of last year's."""
    honest = clock.now
    statement = ledger.statement()
    clock.now = honest - timedelta(days=days)
    with pytest.raises(PrivacyError, match="clock"):
        peer.countersign(statement.to_bytes())
    clock.now = honest
    assert isinstance(peer.countersign(statement.to_bytes()), Receipt)


def test_strangers_forgeries_and_noise_are_not_countersigned(ledger, peer, make, identity):
    statement = ledger.statement()
    with make("stranger", signer=SigningIdentity.generate()) as stranger, pytest.raises(ProtocolError):
        peer.countersign(stranger.statement().to_bytes())
    assert len(statement.to_bytes()) < 1024
    forged = dataclasses.replace(statement, counter=statement.counter + 5)
    for content in (
        forged.to_bytes(),
        b"",
        b"{}",
        b"[1]",
        b"\xff",
        statement.to_bytes() + b" ",
        b"[" * 3000,
        dataclasses.replace(statement, head="zz").to_bytes(),
        dataclasses.replace(statement, time="x").to_bytes(),
    ):
        with pytest.raises(ProtocolError):
            peer.countersign(content)
    assert not [entry for entry in peer._chain.entries if isinstance(entry.body, Countersigned)]


@pytest.mark.parametrize("time", ["2026-99-99T12:00:00Z", "0000-01-01T00:00:00Z"])
def test_a_time_that_no_clock_shows_is_refused_like_any_other_noise(ledger, peer, time):
    """No signature of the party covers the time: whoever carries a head can change it."""
    statement = dataclasses.replace(ledger.statement(), time=time)
    with pytest.raises(ProtocolError):
        peer.countersign(statement.to_bytes())


def test_a_counter_that_no_entry_has_is_refused_like_any_other_noise(ledger, peer, identity):
    counter, head = 2**31 + 1, "ab" * 32
    signature = identity.sign(Purpose.LEDGER, counter.to_bytes(8), bytes.fromhex(head)).hex()
    made = dataclasses.replace(ledger.statement(), counter=counter, head=head, signature=signature)
    with pytest.raises(ProtocolError):
        peer.countersign(made.following(ledger.chain, 0, "00" * 32).to_bytes())


def test_too_few_countersignatures_stop_the_release(ledger, peer):
    class Forger:
        def countersign(self, statement: bytes) -> Receipt:
            return Receipt(SigningIdentity.generate().identity.public_bytes.hex(), "00" * 64)

    reserve(ledger, 1)
    for anchors in ([], [Forger()], [Forger(), Forger()]):
        with pytest.raises(PrivacyError, match="0 others"):
            ledger.anchor(anchors)
    with pytest.raises(PrivacyError, match="1 others countersigned this ledger, and 2 are needed"):
        ledger.anchor([peer, Forger()], at_least=2)


def test_a_sites_own_signature_is_no_anchor(ledger, identity, tmp_path, clock):
    with AuditLog.create(tmp_path / "own", identity, party="own", started_by="A", clock=clock) as log:
        own = PeerAnchor(identity, log.chain, [identity.identity], clock)
        reserve(ledger, 1)
        with pytest.raises(PrivacyError, match="0 others"):
            ledger.anchor([own])


def test_a_sites_own_receipt_in_its_chain_counts_for_nobody(ledger, peer, identity):
    """Whoever writes a ledger can put one there; an auditor reads who else countersigned."""
    reserve(ledger, 1)
    last = ledger.chain.entries[-1]
    statement = ledger.statement()
    own = PeerAnchor(identity, peer._chain, [identity.identity])._receipt(statement)
    receipts = {own.peer_key: own.signature}
    ledger.chain.append(
        Anchored(counter=last.counter, head=last.head.hex(), time=last.time, receipts=receipts)
    )
    assert verify_anchored(ledger.chain.entries) == {last.counter: frozenset()}


def test_one_peer_asked_twice_is_one_peer(ledger, peer):
    reserve(ledger, 1)
    assert ledger.anchor([peer, peer]) == 1


def test_receipts_are_verified_against_the_chain_that_holds_them(ledger, peer):
    reserve(ledger, 1)
    counter = ledger.statement().counter
    ledger.anchor([peer])
    entries = ledger.chain.entries
    assert verify_anchored(entries) == {counter: frozenset({peer._signer.identity.public_bytes.hex()})}
    body = entries[-1].body
    for change in (
        {"head": "00" * 32},
        {"counter": 1},
        {"time": "2026-01-01T00:00:00Z"},
        {"receipts": {next(iter(body.receipts)): "00" * 64}},
        {"receipts": {"00" * 32: "00" * 64}},
    ):
        changed = body.model_copy(update=change)
        forged = dataclasses.replace(entries[-1], content=changed.to_bytes())
        with pytest.raises(CryptoError):
            verify_anchored((*entries[:-1], forged))


def test_an_owner_who_rewrites_the_ledger_contradicts_the_peers_log(ledger, peer, tmp_path, identity, clock):
    for number in (1, 2):
        reserve(ledger, number)
        ledger.anchor([peer])
    keys = {"site": identity.identity, "peer": peer._signer.identity}
    honest = {"site": ledger.chain.entries, "peer": peer._chain.entries}
    assert cross_check(honest, keys) == ()
    with Ledger.create(
        tmp_path / "new", identity, site="site", limits=LIMITS, approved_by="A", clock=clock
    ) as rewritten:
        rewritten.approve(STUDY, "pilot", [Release(TRAINING, CHARGE, 9)], approved_by="A")
        reserve(rewritten, 1)
        short = cross_check({**honest, "site": rewritten.chain.entries}, keys)
        for number in range(2, 8):
            reserve(rewritten, number)
        long = cross_check({**honest, "site": rewritten.chain.entries}, keys)
    cut = cross_check({**honest, "site": ledger.chain.entries[:-3]}, keys)
    assert any("cut off" in found.what for found in short)
    assert any("rewritten" in found.what for found in long)
    assert [found.parties for found in cut] == [("peer", "site")]
    denied = cross_check({**honest, "peer": peer._chain.entries[:1]}, keys)
    assert len(denied) == 2
    assert all("has a receipt of peer" in found.what for found in denied)


def test_a_statement_has_one_encoding_and_says_no_more_than_hashes(ledger):
    statement = ledger.statement()
    assert Statement.from_bytes(statement.to_bytes()) == statement
    assert STUDY.encode() not in statement.to_bytes()
    assert NAME.encode() not in statement.to_bytes()


def test_receipts_that_come_later_for_the_same_head_count_beside_the_earlier_ones(ledger, identity):
    head = ledger.chain.entries[-1]
    peers = [SigningIdentity.generate() for _ in range(3)]
    fields = (identity.identity.public_bytes, head.counter.to_bytes(8), head.head, head.time.encode())
    receipts = {p.identity.public_bytes.hex(): p.sign(Purpose.ANCHOR, *fields).hex() for p in peers}
    for some in (peers[:2], peers[2:]):
        keys = [peer.identity.public_bytes.hex() for peer in some]
        own = {key: receipts[key] for key in keys}
        body = Anchored(counter=head.counter, head=head.head.hex(), time=head.time, receipts=own)
        ledger.chain.append(body)
    assert verify_anchored(ledger.chain.entries) == {head.counter: frozenset(receipts)}
