"""What a site does and refuses to do, whatever the server asks and whenever its process dies."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
from federation_driver import EPOCH, STUDY, Federation, FusedVault, closing

from secure_triplay.client.session import MAX_FAILURES
from secure_triplay.crypto.identity import Purpose, SigningIdentity
from secure_triplay.errors import ConfigError, CryptoError, PrivacyError, RunError
from secure_triplay.ledger.entries import Anchored, Countersigned, Reserved, Settled
from secure_triplay.server.round import Round
from secure_triplay.wire import (
    MAX_HEADS,
    Approval,
    Behind,
    CatchUp,
    Closed,
    Countersignature,
    Declined,
    Done,
    Endorsement,
    Report,
    SumMessage,
    Train,
    Witness,
    endorse,
)
from secure_triplay.wireformat import read

DECLINED = Declined().to_bytes()


@pytest.fixture
def federation(tmp_path):
    with closing(Federation(tmp_path, 4, rounds=3, quorum=3)) as made:
        yield made


def ask(federation, index, message):
    """A site's answer as a message."""
    answer = federation.ask(index, message.to_bytes())
    return read(answer.reply, Report, Approval, Behind, Declined, Done)


def kinds(federation, index, kind):
    return [
        entry.body for entry in federation.sites[index].ledger.chain.entries if isinstance(entry.body, kind)
    ]


def first_exchange(federation):
    """Round 0: every site has reserved round 1, and its peers have countersigned. The messages of round 1."""
    federation.exchange()
    federation.exchange()
    return federation.server.begin(federation.sites)


def uploads_of_round_1(federation):
    messages = first_exchange(federation)
    return {
        index: read(federation.ask(index, content).reply, Report).upload
        for index, content in messages.items()
    }


def summed(federation, uploads) -> SumMessage:
    current = Round.open(federation.plan, 1, len(uploads))
    for upload in uploads:
        current, refusal = current.offer(upload)
        assert refusal is None
    return current.close("train")


def witness(total, heads=()):
    return Witness(STUDY, EPOCH, total.round, heads, total)


def signed_by(federation, total, *indices):
    sites = [federation.sites[index] for index in indices]
    return tuple(endorse(federation.plan, site.identity, site.name, total) for site in sites)


def test_every_site_ends_with_the_state_of_the_plaintext_oracle(federation):
    federation.run()
    oracle = federation.oracle()[-1].to_bytes()
    assert [state.to_bytes() for state in federation.states().values()] == [oracle] * 4
    assert [site.trained for site in federation.sites.values()] == [[1, 2, 3]] * 4


def test_a_site_signs_at_most_one_sum_of_a_round_even_after_a_restart(federation):
    uploads = list(uploads_of_round_1(federation).values())
    one, other = summed(federation, uploads), summed(federation, uploads[:3])
    first = ask(federation, 0, witness(one))
    assert first.signature
    assert ask(federation, 0, witness(one)).signature == first.signature
    assert ask(federation, 0, witness(other)) == Declined()
    federation.boot(0)
    assert ask(federation, 0, witness(other)) == Declined()
    assert ask(federation, 0, witness(one)).signature == first.signature
    assert any("two sums" in str(fields.get("what")) for _, fields in federation.sites[0].notes)


def test_nothing_is_decrypted_before_a_quorum_signed(federation, monkeypatch):
    total = summed(federation, list(uploads_of_round_1(federation).values()))
    assert ask(federation, 0, witness(total)).signature
    monkeypatch.setattr(
        "secure_triplay.client.ckks.CkksSecretKey.decrypt", lambda *args: pytest.fail("decrypted")
    )
    two = signed_by(federation, total, 0, 1)
    assert ask(federation, 0, Train(STUDY, EPOCH, 2, two)) == Declined()
    assert ask(federation, 0, Train(STUDY, EPOCH, 2, (*two, two[0]))) == Declined()
    assert federation.states()[0].round == 0


def test_a_sum_that_this_site_never_saw_is_not_opened_but_asked_for(federation):
    total = summed(federation, list(uploads_of_round_1(federation).values()))
    approvals = signed_by(federation, total, 1, 2, 3)
    assert ask(federation, 0, Train(STUDY, EPOCH, 2, approvals)) == Behind(STUDY, EPOCH, 0)


def test_no_training_without_a_countersigned_reservation(federation):
    site = federation.sites[0]
    assert ask(federation, 0, Train(STUDY, EPOCH, 0)).upload == b""
    (reserved,) = [e for e in site.ledger.chain.entries if isinstance(e.body, Reserved)]
    own, stranger = site.identity, SigningIdentity.generate()
    peer = federation.sites[1]
    head = ask(federation, 0, Train(STUDY, EPOCH, 1)).heads[0]
    report = ask(federation, 1, Witness(STUDY, EPOCH, 1, (head,)))
    (receipt,) = report.receipts
    assert receipt.counter >= reserved.counter
    forged = (
        replace(receipt, peer_key=own.identity.public_bytes),
        replace(receipt, peer_key=stranger.identity.public_bytes),
        replace(receipt, peer_key=federation.sites[2].identity.identity.public_bytes),
        replace(receipt, counter=reserved.counter),
        replace(receipt, counter=99),
        replace(receipt, party_key=peer.identity.identity.public_bytes),
        Countersignature(receipt.party_key, receipt.peer_key, receipt.counter, bytes(64)),
    )
    assert ask(federation, 0, Train(STUDY, EPOCH, 1, (), forged)).upload == b""
    assert site.trained == []
    assert kinds(federation, 0, Anchored) == []
    assert ask(federation, 0, Train(STUDY, EPOCH, 1, (), (receipt,))).upload
    assert site.trained == [1]


def test_a_receipt_from_before_the_reservation_pays_for_nothing(federation):
    first_exchange(federation)
    site = federation.sites[0]
    old = site.ledger.chain.entries[2]  # the study's approval, which came before the charge
    statement = (site.identity.identity.public_bytes, old.counter.to_bytes(8), old.head, old.time.encode())
    peer = federation.sites[1].identity
    from secure_triplay.crypto.identity import Purpose

    receipt = Countersignature(
        statement[0], peer.identity.public_bytes, old.counter, peer.sign(Purpose.ANCHOR, *statement)
    )
    assert ask(federation, 0, Train(STUDY, EPOCH, 1, (), (receipt,))).upload == b""
    assert site.trained == []
    assert [body.counter for body in kinds(federation, 0, Anchored)] == [old.counter]


def test_a_retry_sends_the_same_bytes(federation):
    messages = first_exchange(federation)
    first = read(federation.ask(0, messages[0]).reply, Report).upload
    again = read(federation.ask(0, messages[0]).reply, Report).upload
    federation.boot(0)
    restarted = read(federation.ask(0, messages[0]).reply, Report).upload
    assert first == again == restarted != b""
    assert federation.sites[0].trained == [1]
    assert len(kinds(federation, 0, Settled)) == 1


def test_an_upload_that_was_lost_with_the_state_is_not_trained_again(federation):
    messages = first_exchange(federation)
    assert read(federation.ask(0, messages[0]).reply, Report).upload
    (federation.sites[0].folder / "state" / "upload").unlink()
    federation.boot(0)
    assert federation.ask(0, messages[0]).reply == DECLINED
    assert federation.sites[0].trained == [1]


def test_a_killed_site_trains_again_only_what_never_left_it(federation):
    """Dies at each step of its second exchange in turn; its upload of round 1 is always the same one."""
    messages = first_exchange(federation)
    seen, steps = set(), 0
    while True:
        federation.sites[0].fuse.left = steps
        answer = federation.ask(0, messages[0])
        if answer is not None:
            break
        federation.sites[0].fuse.left = None
        federation.boot(0)
        steps += 1
    seen.add(read(answer.reply, Report).upload)
    assert steps > 5
    federation.boot(0)
    federation.sites[0].fuse.left = None
    seen.add(read(federation.ask(0, messages[0]).reply, Report).upload)
    assert len(seen) == 1
    assert len([body for body in kinds(federation, 0, Reserved) if body.round == 1]) == 1
    assert len(kinds(federation, 0, Settled)) == 1


def test_a_site_that_was_away_catches_up_to_the_undisturbed_state(federation):
    federation.exchange()
    federation.exchange()
    federation.sites[3].session = None
    for _ in range(4):
        federation.exchange()
    assert federation.server.exchange.round == 3
    federation.boot(3)
    federation.run()
    oracle = federation.oracle()
    assert federation.states()[3].to_bytes() == oracle[3].to_bytes()
    assert [len(federation.archive.total(n).survivors) for n in (1, 2)] == [3, 3]
    assert {"catching up"} <= {event for event, _ in federation.sums.events}


@pytest.mark.parametrize("bad", ["approvals", "sum", "order"])
def test_what_a_site_catches_up_with_is_checked_like_any_sum(federation, bad, monkeypatch):
    federation.sites[3].session = None
    while federation.server.exchange.round < 3:
        federation.exchange()
    first, second = (federation.archive.closed(number) for number in (1, 2))
    if bad == "approvals":
        first = Closed(first.total, first.approvals[:2])
    elif bad == "sum":
        first = Closed(replace(first.total, tags=bytes(len(first.total.tags))), first.approvals)
    else:
        first = second
    federation.boot(3)
    monkeypatch.setattr(
        "secure_triplay.client.ckks.CkksSecretKey.decrypt", lambda *args: pytest.fail("decrypted")
    )
    assert ask(federation, 3, CatchUp(STUDY, EPOCH, (first, second))) == Declined()
    assert federation.states()[3].round == 0


def test_a_round_that_a_site_caught_up_with_has_no_second_sum_there(federation):
    """It signed none of it, and opened one: the other would have updates enter two sums all the same."""
    uploads = list(uploads_of_round_1(federation).values())
    one, other = summed(federation, uploads), summed(federation, uploads[1:])
    opened = Closed(one, signed_by(federation, one, 1, 2, 3))
    assert ask(federation, 0, CatchUp(STUDY, EPOCH, (opened,))) == Behind(STUDY, EPOCH, 1)
    for restart in (False, True):
        if restart:
            federation.boot(0)
        assert ask(federation, 0, witness(other)) == Declined()
        assert ask(federation, 0, witness(one)).signature


def test_a_site_that_signed_one_sum_opens_no_other_that_a_quorum_signed(federation, monkeypatch):
    uploads = list(uploads_of_round_1(federation).values())
    one, other = summed(federation, uploads), summed(federation, uploads[:3])
    assert ask(federation, 0, witness(one)).signature
    federation.boot(0)
    with monkeypatch.context() as patch:
        patch.setattr(
            "secure_triplay.client.ckks.CkksSecretKey.decrypt", lambda *args: pytest.fail("decrypted")
        )
        closed = Closed(other, signed_by(federation, other, 1, 2, 3))
        assert ask(federation, 0, CatchUp(STUDY, EPOCH, (closed,))) == Declined()
    assert federation.states()[0].round == 0
    closed = Closed(one, signed_by(federation, one, 1, 2, 3))
    assert ask(federation, 0, CatchUp(STUDY, EPOCH, (closed,))) == Behind(STUDY, EPOCH, 1)


def test_everybody_may_lose_all_memory_whenever_a_round_was_closed(tmp_path):
    with closing(Federation(tmp_path, 3, rounds=2)) as federation:
        while not federation.server.finished:
            federation.exchange()
            for index in federation.sites:
                federation.boot(index)
            now = federation.server.exchange
            if (now.kind, now.round) == ("witness", federation.archive.last):
                federation.boot_server()
                federation.exchange()
        oracle = federation.oracle()[-1].to_bytes()
        assert [state.to_bytes() for state in federation.states().values()] == [oracle] * 3
        assert [site.trained for site in federation.sites.values()] == [[1, 2]] * 3


def test_sites_that_are_restarted_after_every_exchange_end_like_undisturbed_ones(tmp_path):
    with closing(Federation(tmp_path, 3, rounds=2)) as federation:
        while not federation.server.finished:
            federation.exchange()
            for index in federation.sites:
                federation.boot(index)
        oracle = federation.oracle()[-1].to_bytes()
        assert [state.to_bytes() for state in federation.states().values()] == [oracle] * 3
        assert [site.trained for site in federation.sites.values()] == [[1, 2]] * 3


@pytest.mark.parametrize("phase", [0, 2, 3, 6])
def test_thirty_per_cent_of_sites_vanishing_in_any_phase_leave_the_study_complete(phase, tmp_path):
    with closing(Federation(tmp_path, 7, rounds=2, quorum=5)) as federation:
        for _ in range(phase):
            if not federation.server.finished:
                federation.exchange()
        for index in (1, 4):
            federation.sites[index].session = None
        federation.run()
        oracle = federation.oracle()[-1].to_bytes()
        assert len(federation.oracle()) == 3
        assert [state.to_bytes() for state in federation.states().values()] == [oracle] * 5


def test_failed_checks_destroy_the_epochs_key_and_nothing_else_is_said(federation):
    good = summed(federation, list(uploads_of_round_1(federation).values()))
    forged = replace(good, tags=bytes(len(good.tags)))
    keys = federation.sites[0].folder / "state" / "keys"
    for _ in range(MAX_FAILURES):
        assert keys.exists()
        assert federation.ask(0, witness(forged).to_bytes()).reply == DECLINED
        if keys.exists():
            federation.boot(0)  # a restart does not forget what failed
    assert not keys.exists()
    assert federation.ask(0, witness(good).to_bytes()).reply == DECLINED
    assert federation.ask(0, Train(STUDY, EPOCH, 1).to_bytes()).reply == DECLINED
    assert ask(federation, 1, witness(good)).signature


@pytest.mark.parametrize("way", ["opening", "catching up"])
def test_a_sum_that_fails_its_checks_counts_whichever_way_it_came(federation, way):
    good = summed(federation, list(uploads_of_round_1(federation).values()))
    assert ask(federation, 0, witness(good)).signature
    few = signed_by(federation, good, 0, 1)
    bad = Train(STUDY, EPOCH, 2, few) if way == "opening" else CatchUp(STUDY, EPOCH, (Closed(good, few),))
    keys = federation.sites[0].folder / "state" / "keys"
    for _ in range(MAX_FAILURES):
        assert keys.exists()
        assert ask(federation, 0, bad) == Declined()
    assert not keys.exists()


def test_a_policy_that_refuses_trains_nothing_and_tells_the_server_no_reason(federation):
    messages = first_exchange(federation)
    federation.sites[0].reasons = ["outside the allowed hours"]
    answer = federation.ask(0, messages[0])
    assert answer.reply == DECLINED
    assert "allowed hours" in answer.refused.what
    assert federation.sites[0].trained == []
    federation.sites[0].reasons = []
    assert read(federation.ask(0, messages[0]).reply, Report).upload


def test_a_site_with_an_older_copy_of_its_ledger_trains_no_more(federation, tmp_path):
    site = federation.sites[0]
    federation.exchange()
    site.ledger.close()
    shutil.copytree(site.folder / "ledger", tmp_path / "backup")
    federation.boot(0)
    for _ in range(4):
        federation.exchange()
    assert site.trained == [1, 2][: len(site.trained)]
    trained = list(site.trained)
    site.ledger.close()
    shutil.rmtree(site.folder / "ledger")
    shutil.copytree(tmp_path / "backup", site.folder / "ledger")
    shutil.rmtree(site.folder / "state", ignore_errors=False)
    shutil.copytree(federation.sites[1].folder / "state", site.folder / "state")
    site.storage_key = federation.sites[1].storage_key
    federation.boot(0)
    federation.run()
    assert site.trained == trained
    assert any("older copy" in str(fields.get("what")) for _, fields in site.notes)


def test_a_site_is_countersigned_by_its_peers_and_countersigns_them(federation):
    federation.run()
    for index in federation.sites:
        last = kinds(federation, index, Reserved)[-1]
        assert last.round == 3
        assert len(kinds(federation, index, Anchored)) == 4
        assert all(len(body.receipts) == 3 for body in kinds(federation, index, Anchored))
        assert len(kinds(federation, index, Countersigned)) == 12


def test_a_message_of_another_study_or_epoch_or_out_of_turn_is_refused(federation):
    first_exchange(federation)
    for foreign in (Train("cd" * 32, 1, 1), Train(STUDY, 2, 1), Train(STUDY, 1, 9), Behind(STUDY, 1, 0)):
        assert ask(federation, 0, foreign) == Declined()
    federation.boot_server()
    federation.run()
    for stale in (Train(STUDY, EPOCH, 0), Train(STUDY, EPOCH, 2)):
        assert ask(federation, 0, stale) == Declined()
    assert ask(federation, 0, Train(STUDY, EPOCH, 4)) == Done()


def test_a_quorum_of_half_or_less_is_refused(tmp_path):
    for n_sites, quorum in ((4, 2), (5, 2), (2, 1)):
        with pytest.raises(ConfigError, match="two different sums"):
            Federation(tmp_path / f"{n_sites}", n_sites, quorum=quorum)


def test_a_server_that_died_after_it_closed_a_round_sends_the_same_sum_again(federation):
    from federation_driver import KilledError

    federation.exchange()
    federation.exchange()
    federation.server_fuse.left = 5  # four replies, then right after the sum is on disk
    with pytest.raises(KilledError):
        federation.exchange()
    assert federation.archive.last == 1
    before = federation.archive.total(1)
    federation.boot_server()
    assert federation.server.exchange.kind == "witness"
    shown = [read(content, Witness).total for content in federation.server.begin(federation.sites).values()]
    assert shown == [before] * 4
    with pytest.raises(RunError, match="closed before"):
        federation.sums.open(1)
    federation.boot_server()
    federation.run()
    assert federation.archive.total(1) == before


def test_a_server_opens_no_second_sum_over_a_closed_round(federation):
    uploads = list(uploads_of_round_1(federation).values())
    federation.archive.save_sum(summed(federation, uploads))
    federation.archive.save_sum(summed(federation, uploads))
    with pytest.raises(RunError, match="another sum"):
        federation.archive.save_sum(summed(federation, uploads[:3]))


def test_a_round_below_its_quorum_is_declared_failed_and_tried_again_with_the_same_uploads(federation):
    federation.exchange()
    federation.exchange()
    away = {2, 3}
    federation.exchange(lambda direction, node, content: [] if node in away else [content])
    assert (federation.server.exchange.kind, federation.archive.last) == ("witness", None)
    sent = {site.name: list(site.trained) for site in federation.sites.values()}
    federation.exchange()
    federation.exchange()
    assert federation.archive.last == 1
    assert len(federation.archive.total(1).survivors) == 4
    assert sent["site-0"] == federation.sites[0].trained == [1]


def test_a_late_reply_is_refused_and_counted(federation):
    messages = federation.server.begin(federation.sites)
    number = federation.server.exchange.number
    replies = {index: federation.ask(index, content).reply for index, content in messages.items()}
    federation.server.end()
    federation.server.begin(federation.sites)
    assert federation.server.take(0, number, replies[0]) is None
    assert not federation.server.settled
    assert federation.sums.service.stats().refused == {"late": 1}


def test_a_signature_under_another_sum_or_by_a_stranger_makes_no_quorum(federation):
    for _ in range(3):
        federation.exchange()
    total = federation.archive.total(1)
    federation.server.begin(federation.sites)
    number = federation.server.exchange.number
    stranger = SigningIdentity.generate()
    other = replace(total, tags=bytes(len(total.tags)))
    for index, one in enumerate(
        [
            endorse(federation.plan, stranger, "site-0", total),
            endorse(federation.plan, federation.sites[1].identity, "site-1", other),
            Endorsement("nobody", bytes(64)),
            endorse(federation.plan, federation.sites[3].identity, "site-3", total),
        ]
    ):
        reply = Approval(STUDY, EPOCH, 1, one.site, one.signature)
        federation.server.take(index, number, reply.to_bytes())
    federation.server.end()
    assert federation.server.exchange.kind == "witness"
    assert federation.server.exchange.attempt == 2


def test_state_at_rest_shows_neither_adapter_nor_key(federation):
    federation.run()
    site = federation.sites[0]
    state = federation.states()[0]
    rows = [
        state.adapter[i : i + 8].astype(kind).tobytes() for i in range(0, 400, 8) for kind in ("<f8", "<f4")
    ]
    content = b"".join(path.read_bytes() for path in site.folder.rglob("*") if path.is_file())
    assert not [row for row in rows if row in content]
    opened = federation.vault(site).load("state")
    assert [row for row in rows if row in opened], "the search can find"


def test_a_spent_budget_ends_a_sites_part_and_is_said_to_its_operator_alone(federation, monkeypatch):
    first_exchange(federation)
    accounts = federation.sites[0].session._me.accounts

    def refuse(number):
        raise PrivacyError("the budget is spent")

    monkeypatch.setattr(type(accounts), "reserve", lambda self, number: refuse(number))
    report = ask(federation, 0, Train(STUDY, EPOCH, 1))
    assert isinstance(report, Report)
    assert ("refused", {"round": 2, "what": "the budget is spent"}) in federation.sites[0].notes


def test_a_damaged_state_is_an_error_and_no_new_beginning(federation):
    federation.run()
    path = federation.sites[0].folder / "state" / "state"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CryptoError, match="damaged"):
        federation.boot(0)


def test_no_signature_leaves_that_a_full_disk_kept_from_being_noted(federation, monkeypatch):
    """Asked again once there is room: what was not on disk the first time is written before anything leaves."""
    uploads = list(uploads_of_round_1(federation).values())
    one, other = summed(federation, uploads), summed(federation, uploads[:3])
    save = FusedVault.save

    def full(vault, name, content):
        if name == "signed":
            raise RunError("no space left on device")
        save(vault, name, content)

    with monkeypatch.context() as patch:
        patch.setattr(FusedVault, "save", full)
        assert ask(federation, 0, witness(one)) == Declined()
    assert ask(federation, 0, witness(one)).signature
    federation.boot(0)
    assert ask(federation, 0, witness(other)) == Declined()


def test_no_site_is_kept_from_training_by_whoever_shows_an_older_head_of_its_ledger(federation):
    """Heads go to peers. One of these gives an old one back in the place of its own, and answers last."""
    seen = {}

    def wire(way, node, content):
        if way == "down" and federation.server.exchange.kind == "witness":
            for head in read(content, Witness).heads:
                if head.party_key == federation.sites[0].identity.identity.public_bytes:
                    seen.setdefault("head", head)
        if (way, node, federation.server.exchange.kind) == ("up", 3, "train") and seen:
            return [Report(STUDY, EPOCH, federation.server.exchange.round, (seen["head"],)).to_bytes()]
        return [content]

    while federation.archive.last != 3:
        federation.exchange(wire)
    assert [site.trained for site in federation.sites.values()][:3] == [[1, 2, 3]] * 3


def test_no_site_is_kept_from_training_by_a_peer_with_as_many_heads_as_a_message_holds(federation):
    def wire(way, node, content):
        if (way, node) != ("up", 0):
            return [content]
        if federation.server.exchange.kind == "witness":
            return [replace(read(content, Approval), receipts=()).to_bytes()]
        report, signer = read(content, Report), federation.sites[0].identity
        head, heads = report.heads[0], []
        for number in range(MAX_HEADS):
            before = bytes([number]) * 32
            own = head.counter.to_bytes(8), head.head, (1).to_bytes(8), before
            follows = signer.sign(Purpose.LEDGER_FOLLOWS, *own)
            heads.append(replace(head, previous_counter=1, previous_head=before, follows=follows))
        return [replace(report, heads=tuple(heads)).to_bytes()]

    while federation.archive.last != 3:
        federation.exchange(wire)
    assert [site.trained for site in federation.sites.values()][1:] == [[1, 2, 3]] * 3
