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
from secure_triplay.wire import Countersignature, HeldHead
from tests.ledger.witnessing import Member

CHARGE = DpSgdCharge(noise_multiplier=4.0, sampling_rate=0.5, steps=1, unit="patient")
STUDY = "a" * 64
LIMITS = Limits(epsilon_per_study=3.0, epsilon_per_year=6.0, delta=1e-6, max_units=1000, unit="patient")


@pytest.fixture
def peer_key():
    return SigningIdentity.generate()


@pytest.fixture
def peer(tmp_path, identity, peer_key, clock):
    with AuditLog.create(tmp_path / "peer", peer_key, party="peer", started_by="B", clock=clock) as log:
        yield Member(log.chain, peer_key, [identity.identity], clock)


@pytest.fixture
def member(identity, peer_key, clock):
    """The site as a member of the study, with any copy of its ledger; another process of it, or one after a restart."""

    def of(ledger, *more):
        return Member(ledger.chain, identity, [peer_key.identity, *more], clock)

    return of


@pytest.fixture
def site(ledger, member):
    return member(ledger)


def reserve(ledger, round):
    return ledger.reserve(CHARGE, study=STUDY, round=round)


def copied(folder, to):
    """A backup: what a disk image of the closed ledger holds."""
    shutil.copytree(folder, to)
    return to


def receipts_in(ledger):
    return [entry.body for entry in ledger.chain.entries if isinstance(entry.body, Anchored)]


def test_a_restored_older_ledger_is_refused_before_it_spends(
    ledger, folder, site, peer, member, tmp_path, identity, clock
):
    assert site.paid_for(reserve(ledger, 1), peer) == 1
    backup = copied(folder, tmp_path / "backup")
    assert site.paid_for(reserve(ledger, 2), peer) == 1
    ledger.close()
    with Ledger.open(backup, identity, clock=clock) as old:  # self-consistent: it opens
        made, again = reserve(old, 2), member(old)
        with pytest.raises(PrivacyError, match="older copy, a clone"):
            again.exchange(peer)
        assert again.count_after(made.counter) == 0


def test_whoever_carries_an_older_copys_heads_cannot_say_that_they_follow(
    ledger, folder, site, peer, member, tmp_path, identity, clock
):
    site.paid_for(reserve(ledger, 1), peer)
    backup = copied(folder, tmp_path / "backup")
    reserve(ledger, 2)
    (held,) = site.heads()
    site.exchange(peer)
    ledger.close()
    with Ledger.open(backup, identity, clock=clock) as old:
        for number in (2, 3, 4):
            reserve(old, number)
        (honest,) = member(old).heads()
        assert honest.counter > held.counter
        receipts, answered = peer.answer([honest])
        assert receipts == ()
        assert [one.head for one in answered] == [held.head]
        for follows in (honest.follows, held.follows, honest.signature):
            forged = dataclasses.replace(
                honest, previous_counter=held.counter, previous_head=held.head, follows=follows
            )
            assert peer.answer([forged]) == ((), ())
            assert isinstance(peer.refused.pop(), ProtocolError)


def test_of_two_clones_only_one_goes_on(ledger, folder, site, peer, member, tmp_path, identity, clock):
    site.paid_for(reserve(ledger, 1), peer)
    with Ledger.open(copied(folder, tmp_path / "clone"), identity, clock=clock) as clone:
        reserve(clone, 2)
        reserve(clone, 3)
        assert site.paid_for(reserve(ledger, 2), peer) == 1
        with pytest.raises(PrivacyError):
            member(clone).exchange(peer)
        assert site.paid_for(reserve(ledger, 3), peer) == 1


def test_a_ledger_begun_anew_is_refused_by_who_knew_the_first(
    ledger, site, peer, member, tmp_path, identity, clock
):
    site.paid_for(reserve(ledger, 1), peer)
    with (
        Ledger.create(
            tmp_path / "new", identity, site="site", limits=LIMITS, approved_by="A", clock=clock
        ) as new,
        pytest.raises(PrivacyError, match="begun anew"),
    ):
        member(new).exchange(peer)


def test_a_lost_answer_can_be_asked_for_again(ledger, site, peer):
    reserve(ledger, 1)
    heads = site.heads()
    receipts, held = peer.answer(heads)
    assert (len(receipts), held) == (1, ())
    assert peer.answer(heads) == (receipts, held)


def test_a_crash_between_countersigning_and_recording_it_does_not_lock_the_ledger_out(
    ledger, site, peer, member
):
    made = reserve(ledger, 1)
    peer.answer(site.heads())  # the process dies before it records the receipt
    again = member(ledger)
    assert reserve(ledger, 1) == made
    assert again.paid_for(made, peer) == 1
    assert again.paid_for(reserve(ledger, 2), peer) == 1


def test_a_site_that_went_on_after_such_a_crash_is_countersigned_in_the_exchange_after(
    ledger, site, peer, member
):
    reserve(ledger, 1)
    peer.answer(site.heads())
    made, again = reserve(ledger, 2), member(ledger)
    assert again.paid_for(made, peer) == 0  # the peer says what it holds, and this chain has that
    assert again.paid_for(made, peer) == 1


def test_two_processes_of_one_site_countersign_in_any_order(
    ledger, folder, site, peer, member, identity, clock
):
    """What was anchored late is covered by what was anchored early, if it is one chain."""
    with Ledger.open(folder, identity, clock=clock) as other_ledger:
        other = member(other_ledger)
        reserve(ledger, 1)
        early = site.heads()
        reserve(other_ledger, 2)
        receipts, _ = peer.answer(other.heads())  # and dies before recording it
        assert len(receipts) == 1
        made = reserve(ledger, 3)
        receipts, held = peer.answer(early)
        assert receipts == ()
        site.take_in(receipts, held)
        assert site.paid_for(made, peer) == 1
        other.exchange(peer)
        assert other.paid_for(reserve(other_ledger, 4), peer) == 1


def test_a_peer_that_was_away_catches_up(ledger, peer, member, tmp_path, identity, clock):
    second = SigningIdentity.generate()
    with AuditLog.create(tmp_path / "second", second, party="second", started_by="C", clock=clock) as log:
        away, site = Member(log.chain, second, [identity.identity], clock), member(ledger, second.identity)
        assert site.paid_for(reserve(ledger, 1), peer, away) == 2
        assert site.paid_for(reserve(ledger, 2), peer) == 1
        assert site.paid_for(reserve(ledger, 3), peer, away) == 2


def test_a_peer_cannot_stop_a_site_with_a_made_up_head(ledger, site, peer, peer_key):
    own, key = site.key.public_bytes, peer_key.identity.public_bytes
    made = reserve(ledger, 1)
    lie = HeldHead(own, key, 99, b"\x11" * 32, b"\x22" * 64)
    site.take_in((), [lie])
    # a head that the site did sign, said to stand elsewhere
    site.take_in((), [dataclasses.replace(lie, head=made.head, signature=ledger.chain.entries[-1].signature)])
    assert site.paid_for(made, peer) == 1


def test_a_party_cannot_be_accused_with_a_head_it_never_signed(ledger, site, peer, identity):
    site.paid_for(reserve(ledger, 1), peer)
    key = identity.identity.public_bytes.hex()
    peer.chain.append(Countersigned(party_key=key, counter=3, head="11" * 32, time="x", signature="22" * 64))
    logs = {"site": ledger.chain.entries, "peer": peer.chain.entries}
    (found,) = cross_check(logs, {"site": identity.identity, "peer": peer.key})
    assert "false accusation" in found.what


def test_a_peer_forgets_no_head_over_a_restart(ledger, folder, member, tmp_path, identity, peer_key, clock):
    AuditLog.create(tmp_path / "peer", peer_key, party="peer", started_by="B", clock=clock).close()
    backup = None
    for number in (1, 2):
        with AuditLog.open(tmp_path / "peer", peer_key, clock=clock) as log:
            peer = Member(log.chain, peer_key, [identity.identity], clock)
            assert member(ledger).paid_for(reserve(ledger, number), peer) == 1
            backup = backup or copied(folder, tmp_path / "backup")
    with (
        AuditLog.open(tmp_path / "peer", peer_key, clock=clock) as log,
        Ledger.open(backup, identity, clock=clock) as old,
    ):
        reserve(old, 2)
        with pytest.raises(PrivacyError):
            member(old).exchange(Member(log.chain, peer_key, [identity.identity], clock))


def test_a_head_that_says_it_follows_a_later_one_is_not_countersigned(ledger, peer):
    """An older copy that was told what the peer holds, and signs that it follows it."""
    reserve(ledger, 1)
    old = Statement.of(ledger.chain)
    reserve(ledger, 2)
    late = Statement.of(ledger.chain)
    assert old.counter < late.counter
    assert isinstance(peer.anchor.countersign(late.to_bytes()), Receipt)
    lie = old.following(ledger.chain, late.counter, late.head)
    held = peer.anchor.countersign(lie.to_bytes())
    assert isinstance(held, Held)
    assert (held.counter, held.head) == (late.counter, late.head)


@pytest.mark.parametrize("days", [60, 2, -2, -400])
def test_a_clock_set_ahead_or_back_is_not_countersigned(ledger, peer, clock, days):
    """Ahead lies next year's budget, and back what is left of last year's."""
    honest = clock.now
    statement = Statement.of(ledger.chain)
    clock.now = honest - timedelta(days=days)
    with pytest.raises(PrivacyError, match="clock"):
        peer.anchor.countersign(statement.to_bytes())
    clock.now = honest
    assert isinstance(peer.anchor.countersign(statement.to_bytes()), Receipt)


def test_strangers_forgeries_and_noise_are_not_countersigned(ledger, peer, make, identity):
    statement = Statement.of(ledger.chain)
    with make("stranger", signer=SigningIdentity.generate()) as stranger, pytest.raises(ProtocolError):
        peer.anchor.countersign(Statement.of(stranger.chain).to_bytes())
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
            peer.anchor.countersign(content)
    assert not [entry for entry in peer.chain.entries if isinstance(entry.body, Countersigned)]


@pytest.mark.parametrize("time", ["2026-99-99T12:00:00Z", "0000-01-01T00:00:00Z"])
def test_a_time_that_no_clock_shows_is_refused_like_any_other_noise(ledger, peer, time):
    """No signature of the party covers the time: whoever carries a head can change it."""
    statement = dataclasses.replace(Statement.of(ledger.chain), time=time)
    with pytest.raises(ProtocolError):
        peer.anchor.countersign(statement.to_bytes())


def test_a_counter_that_no_entry_has_is_refused_like_any_other_noise(ledger, peer, identity):
    counter, head = 2**31 + 1, "ab" * 32
    signature = identity.sign(Purpose.LEDGER, counter.to_bytes(8), bytes.fromhex(head)).hex()
    made = dataclasses.replace(Statement.of(ledger.chain), counter=counter, head=head, signature=signature)
    with pytest.raises(ProtocolError):
        peer.anchor.countersign(made.following(ledger.chain, 0, "00" * 32).to_bytes())


def test_a_forged_receipt_counts_for_nobody_and_writes_nothing(ledger, site, peer):
    made = reserve(ledger, 1)
    ((receipt,), _) = peer.answer(site.heads())
    stranger = SigningIdentity.generate().identity.public_bytes
    forged = [
        dataclasses.replace(receipt, peer_key=stranger),
        dataclasses.replace(receipt, signature=bytes(64)),
        dataclasses.replace(receipt, counter=receipt.counter - 1),
        dataclasses.replace(receipt, counter=99),
        dataclasses.replace(receipt, party_key=stranger),
    ]
    for some in ([], forged[:1], forged):
        site.take_in(some, ())
        assert site.count_after(made.counter) == 0
    assert receipts_in(ledger) == []
    site.take_in([*forged, receipt], ())
    assert site.count_after(made.counter) == 1


def test_a_valid_receipt_of_a_stranger_counts_for_nobody(ledger, site, tmp_path, identity, clock):
    signer = SigningIdentity.generate()
    with AuditLog.create(tmp_path / "else", signer, party="else", started_by="C", clock=clock) as log:
        stranger = Member(log.chain, signer, [identity.identity], clock)
        assert site.paid_for(reserve(ledger, 1), stranger) == 0
    assert receipts_in(ledger) == []


def test_a_sites_own_signature_is_no_anchor(ledger, member, identity, clock):
    """One's own signature holds nobody to anything, also where the roster has the site among its members."""
    made, site = reserve(ledger, 1), member(ledger, identity.identity)
    ((head,), own) = site.heads(), identity.identity.public_bytes
    assert site.answer([head]) == ((), ())
    fields = (own, head.counter.to_bytes(8), head.head, head.time.encode())
    site.take_in([Countersignature(own, own, head.counter, identity.sign(Purpose.ANCHOR, *fields))], ())
    assert site.count_after(made.counter) == 0
    assert receipts_in(ledger) == []


def test_a_sites_own_receipt_in_its_chain_counts_for_nobody(ledger, peer, identity):
    """Whoever writes a ledger can put one there; an auditor reads who else countersigned."""
    reserve(ledger, 1)
    last = ledger.chain.entries[-1]
    own = PeerAnchor(identity, peer.chain, [identity.identity])._receipt(Statement.of(ledger.chain))
    receipts = {own.peer_key: own.signature}
    ledger.chain.append(
        Anchored(counter=last.counter, head=last.head.hex(), time=last.time, receipts=receipts)
    )
    assert verify_anchored(ledger.chain.entries) == {last.counter: frozenset()}


def test_one_peer_asked_twice_is_one_peer(ledger, site, peer):
    assert site.paid_for(reserve(ledger, 1), peer, peer) == 1


def test_receipts_are_verified_against_the_chain_that_holds_them(ledger, site, peer):
    counter = reserve(ledger, 1).counter
    site.exchange(peer)
    entries = ledger.chain.entries
    assert verify_anchored(entries) == {counter: frozenset({peer.key.public_bytes.hex()})}
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


def test_an_owner_who_rewrites_the_ledger_contradicts_the_peers_log(
    ledger, site, peer, tmp_path, identity, clock
):
    for number in (1, 2):
        assert site.paid_for(reserve(ledger, number), peer) == 1
    keys = {"site": identity.identity, "peer": peer.key}
    honest = {"site": ledger.chain.entries, "peer": peer.chain.entries}
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
    denied = cross_check({**honest, "peer": peer.chain.entries[:1]}, keys)
    assert len(denied) == 2
    assert all("has a receipt of peer" in found.what for found in denied)


def test_a_statement_has_one_encoding_and_says_no_more_than_hashes(ledger):
    statement = Statement.of(ledger.chain)
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
