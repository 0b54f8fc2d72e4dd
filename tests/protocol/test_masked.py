"""Masked rounds through the real sessions, server and disks: whoever vanishes or dies, and whatever the server asks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from federation_driver import EPOCH, STUDY, Federation, KilledError, RunError, closing

from secure_triplay.client.published import Published
from secure_triplay.crypto.masking import MaskingParameters, Revealed
from secure_triplay.crypto.masking.expand import mask_private_key, self_mask_check
from secure_triplay.crypto.packing import unpack60
from secure_triplay.errors import ConfigError
from secure_triplay.privacy.counts import CountRule
from secure_triplay.privacy.noise import NoiseSource
from secure_triplay.wire import (
    Approval,
    Behind,
    CatchUp,
    Closed,
    Declined,
    HeldShares,
    Report,
    SumMessage,
    Train,
    Unmask,
    Unmasked,
    Upload,
    Witness,
    endorse,
    mask_context,
)
from secure_triplay.wireformat import read

N = 4
MASKING = MaskingParameters.derive(N)  # one may collude, one may vanish, three make a sum


def federation_of(folder, n_sites=N, **more):
    return Federation(folder, n_sites, masking=MaskingParameters.derive(n_sites), **more)


@pytest.fixture
def federation(tmp_path):
    with closing(federation_of(tmp_path)) as made:
        yield made


def answer(federation, index, message):
    """A site's answer as a message."""
    reply = federation.ask(index, message if isinstance(message, bytes) else message.to_bytes()).reply
    return read(reply, Report, Approval, Unmasked, Behind, Declined)


def until(federation, kind, round_number):
    """Everybody answers until this exchange is due -> what the server sends in it."""
    while (federation.server.exchange.kind, federation.server.exchange.round) != (kind, round_number):
        federation.exchange()
    return federation.server.begin([i for i, site in federation.sites.items() if site.session is not None])


def is_whole(federation, rounds=3, trained=(1, 2, 3)):
    oracle = federation.oracle()[rounds].to_bytes()
    states = federation.states().values()
    assert [state.to_bytes() for state in states] == [oracle] * len(states)
    for index in federation.states():
        assert federation.sites[index].trained == list(trained)


def test_every_site_ends_with_the_state_of_the_plaintext_oracle(federation):
    federation.run()
    is_whole(federation)


def test_a_round_is_three_exchanges_and_its_keys_and_shares_ride_along(federation):
    kinds = []
    while not federation.server.finished:
        kinds.append(federation.server.exchange.kind)
        federation.exchange()
    assert kinds == ["train", "witness"] + 3 * ["train", "witness", "unmask"] + ["train"]


def test_the_masked_sum_is_opened_to_the_plain_sum_and_no_upload_alone_opens_to_an_update(federation):
    """With the key in hand: the sum less its masks is right, one upload is spread over all residues."""
    messages = until(federation, "train", 1)
    uploads = {i: Upload.from_bytes(answer(federation, i, content).upload) for i, content in messages.items()}
    me, upload = federation.sites[0].session._me, uploads[1]
    c0 = unpack60(upload.c0, 1)
    words = federation.codec.sum_from_slots(me.keys.ckks.decrypt(c0, [upload.header.seed]), 1)
    eighths = np.bincount(words >> (federation.codec.word_bits - 3), minlength=8)
    assert len(eighths) == 8
    # 4,096 uniform words; passed by chance once in a million. Those of a plain update are all in a few of the eighths.
    assert ((eighths - 512.0) ** 2 / 512.0).sum() < 42.0
    plain = federation.codec.pack(np.full(federation.codec.n_params, federation.codec.levels))
    assert np.bincount(plain >> (federation.codec.word_bits - 3), minlength=8).max() > 3000


@pytest.mark.parametrize("phase", [1, 2, 3, 4])
def test_thirty_per_cent_of_sites_vanishing_in_any_phase_leave_the_study_complete(phase, tmp_path):
    """For good, right before each exchange of the first round in turn; nobody trains anything twice."""
    with closing(federation_of(tmp_path, 7, rounds=2)) as federation:
        for _ in range(phase):
            federation.exchange()
        for index in (1, 4):
            federation.sites[index].session = None
        federation.run()
        assert len(federation.oracle()) == 3
        is_whole(federation, 2, (1, 2))


@pytest.mark.parametrize("phase", range(5))
def test_thirty_per_cent_of_replies_lost_in_any_phase_leave_the_study_complete(phase, tmp_path):
    """They have done what they were asked, and come back in the next exchange."""
    with closing(federation_of(tmp_path, 7, rounds=1)) as federation:
        for _ in range(phase):
            federation.exchange()
        lost = {1, 4}
        federation.exchange(lambda way, node, content: [] if way == "up" and node in lost else [content])
        federation.run()
        assert len(federation.oracle()) == 2
        oracle = federation.oracle()[1].to_bytes()
        assert [state.to_bytes() for state in federation.states().values()] == [oracle] * 7
        assert all(len(set(site.trained)) == len(site.trained) for site in federation.sites.values())


def test_everybody_restarted_after_every_exchange_ends_like_the_undisturbed(tmp_path):
    with closing(federation_of(tmp_path, rounds=2)) as federation:
        while not federation.server.finished:
            federation.exchange()
            for index in federation.sites:
                federation.boot(index)
        is_whole(federation, 2, (1, 2))


@pytest.mark.parametrize(
    ("kind", "number"), [("witness", 0), ("train", 1), ("witness", 1), ("unmask", 1), ("train", 2)]
)
def test_a_site_killed_at_any_step_of_any_exchange_gives_the_same_answer_after_it(kind, number, tmp_path):
    with closing(federation_of(tmp_path, 3, rounds=2)) as federation:
        messages = until(federation, kind, number)
        site, replies, steps = federation.sites[0], set(), 0
        while True:
            site.fuse.left = steps
            got = federation.ask(0, messages[0])
            site.fuse.left = None
            if got is not None:
                break
            federation.boot(0)
            steps += 1
        replies.add(got.reply)
        federation.boot(0)
        replies.add(federation.ask(0, messages[0]).reply)
        assert DECLINED not in replies
        of = [read(reply, Report, Approval, Unmasked) for reply in replies]
        assert len({(getattr(one, "upload", b""), getattr(one, "signature", b"")) for one in of}) == 1
        assert len({repr(getattr(one, "mask_keys", None)) for one in of}) == 1
        assert len({repr(getattr(one, "shares", None)) for one in of}) == 1
        assert len({repr(getattr(one, "revealed", None)) for one in of}) == 1
        assert steps > (3 if kind != "unmask" else -1)
        assert site.trained[-2:] in ([], [1], [1, 1], [1, 2]), (
            "again only where it died before anything was kept"
        )
        federation.boot_server()
        federation.run()
        assert {state.round for state in federation.states().values()} == {2}


DECLINED = Declined().to_bytes()


def test_a_server_killed_at_any_step_goes_on_with_the_same_members_sum_and_seeds(tmp_path):
    """Every other exchange it dies one step later, in a study that is long enough for each kind of exchange."""
    with closing(federation_of(tmp_path, 3, rounds=8)) as federation:
        killed = 0
        for turn in range(200):
            if federation.server.finished:
                break
            federation.server_fuse.left = None if turn % 2 else (turn // 2) % 14
            try:
                federation.exchange()
            except KilledError:
                killed += 1
                federation.boot_server()
        assert federation.server.finished
        assert killed >= 8
        is_whole(federation, 8, tuple(range(1, 9)))


def test_a_site_that_answers_after_it_was_declared_lost_is_not_unmasked(federation):
    """Its upload is late. What is revealed of it is its mask key's seed; its own mask's seed nobody asks for."""
    late = {}

    def wire(way, node, content):
        if way == "up" and node == 2:
            late[node] = content
            return []
        return [content]

    until(federation, "train", 1)
    federation.exchange(wire)
    number = federation.server.exchange.number
    federation.server.begin(federation.sites)
    assert federation.server.take(2, number - 1, late[2]) is None
    federation.exchange()
    shown = [read(content, Unmask) for content in federation.server.begin(federation.sites).values()]
    assert len(shown) == 3, "the lost one is asked for nothing"
    federation.exchange()
    closed = federation.archive.closed(1)
    assert "site-2" not in closed.total.names
    (seed,) = [one for one in closed.seeds if one.site == "site-2"]
    context = mask_context(federation.plan, MASKING, 1)
    private = mask_private_key(context, "site-2", seed.seed)
    assert private.public_key().public_bytes_raw() == seed.mask_key
    assert self_mask_check(context, "site-2", seed.seed) != seed.self_mask_check
    assert answer(federation, 2, Unmask(STUDY, EPOCH, 1, closed.approvals)) == Declined()
    federation.run()
    assert {state.to_bytes() for state in federation.states().values()} == {federation.oracle()[3].to_bytes()}


def test_no_share_is_revealed_before_a_quorum_signed_and_for_no_other_sum(federation):
    (message, *_) = until(federation, "unmask", 1).values()
    asked, total = read(message, Unmask), federation.archive.total(1)
    stranger = endorse(federation.plan, federation.sites[3].identity, "site-2", total)
    other = replace(total, tags=bytes(len(total.tags)))
    elsewhere = endorse(federation.plan, federation.sites[3].identity, "site-3", other)
    for index, approvals in enumerate(
        (asked.approvals[:2], (*asked.approvals[:2], stranger), (*asked.approvals[:2], elsewhere))
    ):
        assert answer(federation, index, Unmask(STUDY, EPOCH, 1, approvals)) == Declined()
    assert answer(federation, 3, Unmask(STUDY, EPOCH, 2, asked.approvals)) == Declined()
    revealed = answer(federation, 3, asked).revealed
    assert set(revealed.shares) == {site.name for site in federation.sites.values()}


def test_a_site_reveals_for_the_one_sum_that_it_signed(federation):
    """The server has a second sum over fewer survivors: it is not signed, and nothing is revealed for it."""
    until(federation, "train", 1)
    kept = {}
    federation.exchange(lambda way, node, content: [kept.setdefault((way, node), content)])
    from secure_triplay.server.round import Round

    current = Round.open(federation.plan, 1, 3, federation.server._masks.admitted(1))
    for index in (0, 1, 2):
        current, refusal = current.offer(read(kept["up", index], Report).upload)
        assert refusal is None
    fewer = current.close("train")
    first = federation.archive.total(1)
    assert answer(federation, 0, Witness(STUDY, EPOCH, 1, (), first)).signature
    assert answer(federation, 0, Witness(STUDY, EPOCH, 1, (), fewer)) == Declined()
    everybody = tuple(
        endorse(federation.plan, site.identity, site.name, fewer) for site in federation.sites.values()
    )
    assert answer(federation, 0, Unmask(STUDY, EPOCH, 1, everybody)) == Declined()


@pytest.mark.parametrize("bad", ["other seed", "both kinds", "swapped", "one short", "none", "other round"])
def test_wrong_seeds_open_nothing(federation, bad, monkeypatch):
    until(federation, "train", 1)
    federation.exchange(lambda way, node, content: [] if (way, node) == ("up", 3) else [content])
    (message, *_) = until(federation, "train", 2).values()
    asked = read(message, Train)
    one, two, three, lost = asked.seeds
    seeds = {
        "other seed": (replace(one, seed=bytes(16)), two, three, lost),
        "both kinds": (one, two, three, replace(lost, seed=one.seed)),
        "swapped": (replace(one, seed=two.seed), replace(two, seed=one.seed), three, lost),
        "one short": (one, two, three),
        "none": (),
        "other round": tuple(replace(each, signature=bytes(64)) for each in asked.seeds),
    }[bad]
    with monkeypatch.context() as patch:
        patch.setattr(
            "secure_triplay.client.ckks.CkksSecretKey.decrypt", lambda *args: pytest.fail("decrypted")
        )
        assert answer(federation, 0, replace(asked, seeds=seeds)) == Declined()
    assert federation.states()[0].round == 0
    assert answer(federation, 0, asked).upload
    assert federation.states()[0].round == 1


def test_a_site_that_was_away_opens_masked_sums_with_what_was_revealed(federation):
    until(federation, "witness", 1)
    federation.sites[3].session = None
    while federation.server.exchange.round < 3:
        federation.exchange()
    closed = tuple(federation.archive.closed(number) for number in (1, 2))
    federation.boot(3)
    for wrong in (Closed(closed[0].total, closed[0].approvals), replace(closed[0], seeds=closed[1].seeds)):
        assert answer(federation, 3, CatchUp(STUDY, EPOCH, (wrong,))) == Declined()
    federation.run()
    assert {state.to_bytes() for state in federation.states().values()} == {federation.oracle()[3].to_bytes()}
    assert {"catching up"} <= {event for event, _ in federation.sums.events}


def test_a_site_without_keys_in_a_round_is_no_member_of_it_and_of_the_next_one_again(federation):
    federation.sites[3].session = None
    until(federation, "train", 1)
    federation.boot(3)
    federation.run()
    assert [len(federation.archive.total(n).names) for n in (1, 2, 3)] == [3, 4, 4]
    assert federation.sites[3].trained == [2, 3]
    assert "what" in dict(federation.sites[3].notes)["waiting"]
    assert {state.to_bytes() for state in federation.states().values()} == {federation.oracle()[3].to_bytes()}


def test_no_site_is_told_of_members_without_what_they_sealed_to_it_where_a_server_forgot_its_name(federation):
    """It would mask with shares missing, and a sum of just enough sites could never be unmasked.

    The server dies once it has the keys. What names a node after that is lost, and its own shares come all the same.
    """
    federation.exchange()
    federation.boot_server()
    federation.exchange(lambda way, node, content: [] if (way, node) == ("up", 2) else [content])
    federation.exchange(lambda way, node, content: [] if (way, node) == ("up", 1) else [content])
    told: dict[int, list[HeldShares]] = {index: [] for index in range(N)}

    def watched(way, node, content):
        asked = read(content, Train, Witness, Unmask, CatchUp) if way == "down" else None
        if isinstance(asked, Train) and asked.round == 1:
            told[node] += asked.members
        return [content]

    federation.run(watched)
    assert {one.site for one in told[2]} == {"site-0", "site-2", "site-3"}
    for node in (0, 2, 3):
        assert all(one.sealed for one in told[node] if one.site != f"site-{node}")
    oracle = federation.oracle()[3].to_bytes()
    assert {state.to_bytes() for state in federation.states().values()} == {oracle}


@pytest.mark.parametrize("bad", ["altered", "swapped", "replayed", "withheld", "small order"])
def test_keys_that_a_server_meddled_with_get_no_shares(federation, bad):
    """The site goes on without a part in the round; it signs and countersigns as ever."""
    messages = until(federation, "witness", 1)
    asked = read(messages[0], Witness)
    one, two, three, four = asked.mask_keys
    before = read(until_again(federation), Witness).mask_keys
    keys = {
        "altered": (one, replace(two, mask_key=bytes([1]) * 32), three, four),
        "swapped": (one, replace(three, site="site-1"), replace(two, site="site-2"), four),
        "replayed": (one, before[1], three, four),
        "withheld": (one, two),
        "small order": (one, replace(two, seal_key=bytes(32)), three, four),
    }[bad]
    reply = answer(federation, 0, replace(asked, mask_keys=keys))
    assert reply.signature
    assert reply.shares is None
    assert answer(federation, 0, asked).shares is not None, "it has not used its keys up"
    assert answer(federation, 1, replace(asked, mask_keys=(one, three, four))).shares is None


def until_again(federation):
    """The Witness of round 0 of this very federation: keys of round 1."""
    keys = federation.sites[0].session._masks._site(1)._state["keys"]
    from secure_triplay.crypto.masking import MaskKeys

    return Witness(STUDY, EPOCH, 0, (), None, tuple(MaskKeys(*one) for one in keys)).to_bytes()


def test_the_server_passes_on_no_keys_or_shares_that_a_site_did_not_sign(federation):
    nodes = list(federation.sites)
    number = federation.server.exchange.number
    for node, content in federation.server.begin(nodes).items():
        report = answer(federation, node, content)
        if node == 3:  # somebody else's keys, and keys of small order, before its own
            forged = replace(report.mask_keys, signature=bytes(64))
            report = replace(report, mask_keys=forged)
        federation.server.take(node, number, report.to_bytes())
    federation.server.end()
    assert federation.server.exchange.kind == "witness"
    number = federation.server.exchange.number
    for node, content in federation.server.begin(nodes).items():
        asked = read(content, Witness)
        assert [keys.site for keys in asked.mask_keys] == ["site-0", "site-1", "site-2"]
        approval = answer(federation, node, content)
        if node == 0:
            flipped = {peer: bytes(len(sealed)) for peer, sealed in approval.shares.sealed.items()}
            bad = replace(approval, shares=replace(approval.shares, sealed=flipped))
            federation.server.take(1, number, replace(bad, site="site-0").to_bytes())
            federation.server.begin([0, 1, 2])
        federation.server.take(node, number, approval.to_bytes())
    events = [event for event, _ in federation.sums.events]
    assert "bad mask keys" in events
    assert "bad mask shares" in events
    federation.run()
    assert federation.archive.total(1).names == ("site-0", "site-1", "site-2")


def test_wrong_and_withheld_shares_are_made_up_for_while_the_threshold_is_met(tmp_path):
    """One of five lies about every share it reveals, and signs the lie; then two do, and the round fails."""
    for liars, completes in ((1, True), (2, False)):
        folder = tmp_path / str(liars)
        with closing(federation_of(folder, 5, rounds=1, attempts=2)) as federation:
            context = mask_context(federation.plan, federation.masking, 1)

            def wire(way, node, content, liars=liars, federation=federation, context=context):
                if way == "down" or federation.server.exchange.kind != "unmask" or node >= liars:
                    return [content]
                told = read(content, Unmasked).revealed
                lists = federation.sites[node].session._masks._site(1)
                from secure_triplay.crypto.masking.messages import lists_hash

                names = tuple(site.name for site in federation.sites.values())
                false = {peer: bytes(16) for peer in told.shares}
                signed = Revealed.signed(
                    context, told.site, lists._signer, lists_hash(context, names, names), false
                )
                return [Unmasked(STUDY, EPOCH, 1, signed).to_bytes()]

            if completes:
                federation.run(wire)
                is_whole(federation, 1, (1,))
            else:
                with pytest.raises(RunError, match="takes the masks off"):
                    federation.run(wire)
                assert {state.round for state in federation.states().values()} == {0}


def test_a_round_that_could_not_be_unmasked_is_unmasked_later_and_never_masked_anew(tmp_path):
    """Two of four are gone after the sum was signed. The server gives up, and goes on when one is back."""
    with closing(federation_of(tmp_path, rounds=1, attempts=2)) as federation:
        until(federation, "unmask", 1)
        before = [federation.sites[i].session for i in (2, 3)]
        for index in (2, 3):
            federation.sites[index].session = None
        with pytest.raises(RunError, match="takes the masks off"):
            federation.run()
        total = federation.archive.total(1)
        assert all(before)
        federation.boot(2)
        federation.boot_server()
        federation.run()
        assert federation.archive.total(1) == total
        is_whole(federation, 1, (1,))


def test_a_round_s_secrets_are_gone_once_its_sum_is_applied(federation):
    federation.run()
    for site in federation.sites.values():
        assert not list((site.folder / "state").glob("mask-*"))
        assert not (site.folder / "state" / "update").exists()
    assert not list((federation.folder / "closed").glob("*.mask-*"))


def test_failed_checks_destroy_mask_secrets_with_the_epochs_key(federation):
    asked = read(until(federation, "train", 2)[0], Train)
    state = federation.sites[0].folder / "state"
    assert list(state.glob("mask-*"))
    for _ in range(3):
        assert answer(federation, 0, replace(asked, seeds=())) == Declined()
    assert not list(state.glob("mask-*"))
    assert not (state / "keys").exists()


def test_shares_asked_for_without_a_quorum_count_as_failed_checks(federation):
    until(federation, "unmask", 1)
    federation.server.begin(federation.sites)
    state = federation.sites[0].folder / "state"
    for _ in range(3):
        assert (state / "keys").exists()
        assert answer(federation, 0, Unmask(STUDY, EPOCH, 1, ())) == Declined()
    assert not list(state.glob("mask-*"))
    assert not (state / "keys").exists()


def test_a_study_with_a_shared_key_takes_no_masked_sum_and_a_masked_one_no_plain_sum(tmp_path):
    with closing(Federation(tmp_path / "plain", 3, rounds=1)) as plain:
        while plain.server.exchange.kind != "witness" or plain.server.exchange.round < 1:
            plain.exchange()
        total = plain.archive.total(1)
        assert total.members == b""
        me = plain.sites[0].session._me
        masked = tuple(
            Upload.signed(
                plain.plan, site.identity, round=1, site=site.name, c0=total.c0, tags=total.tags,
                seed=bytes([site.index]) * 16, members=b"m" * 32,
            ).header
            for site in plain.sites.values()
        )  # fmt: skip
        forged = SumMessage(STUDY, EPOCH, 1, masked, total.c0, total.tags, total.then)
        assert answer(plain, 0, Witness(STUDY, EPOCH, 1, (), forged)) == Declined()
        assert answer(plain, 0, Unmask(STUDY, EPOCH, 1, ())) == Declined()
        with pytest.raises(ConfigError, match="is less"):
            replace(me, masking=MaskingParameters.derive(3), quorum=2)


def test_who_is_asked_to_mask_with_others_than_the_rest_is_not_in_the_sum(federation):
    """A server that shows one site another list of members cannot have its update in the sum."""
    messages = until(federation, "train", 1)
    asked = read(messages[0], Train)
    fewer = replace(asked, members=asked.members[:3])
    upload = answer(federation, 0, fewer).upload
    assert upload
    federation.server.take(
        0, federation.server.exchange.number, Report(STUDY, EPOCH, 1, (), upload).to_bytes()
    )
    assert federation.sums.service.stats().refused == {"wrong-members": 1}
    assert answer(federation, 1, replace(asked, members=(HeldShares("site-0"),))).upload == b""


def test_counts_are_published_through_masks_as_well(tmp_path):
    counts = {0: (31, 40), 1: (10, 90), 2: (0, 0), 3: (7, 7)}
    rule = CountRule(noise_multiplier=1e-3, records_per_unit=1, most_units=100, unit="record")

    def counting(index):
        return Published(rule, lambda adapter: counts[index], NoiseSource())

    with closing(federation_of(tmp_path, rounds=1, counted=counting)) as federation:
        federation.run()
        for site in federation.sites.values():
            (said,) = [fields for event, fields in site.notes if event == "published"]
            assert said["correct"] == pytest.approx(48, abs=0.3)
            assert said["total"] == pytest.approx(137, abs=0.3)


def test_a_sum_is_not_closed_before_there_are_keys_for_the_next_round(federation):
    """A site leaves out its keys while another is away: closed then, its round could never have a next one."""
    until(federation, "train", 1)

    def keyless(way, node, content):
        if way == "up" and node == 2:
            return []
        if way == "up" and node == 3 and federation.server.exchange.kind == "train":
            return [replace(read(content, Report), mask_keys=None).to_bytes()]
        return [content]

    federation.exchange(keyless)
    assert federation.archive.last is None
    federation.exchange()
    federation.run()
    is_whole(federation)
    assert federation.archive.total(1).names == tuple(site.name for site in federation.sites.values())
