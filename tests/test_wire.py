import dataclasses
import inspect
import os

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secure_triplay import wire, wireformat
from secure_triplay.crypto.identity import SigningIdentity
from secure_triplay.crypto.masking import MaskKeys, Revealed, SealedShares
from secure_triplay.crypto.parameters import MODULUS
from secure_triplay.errors import CryptoError, ProtocolError
from secure_triplay.wire import (
    Approval,
    Behind,
    CatchUp,
    Closed,
    Countersignature,
    Declined,
    Done,
    Endorsement,
    HeldHead,
    HeldShares,
    LedgerHead,
    MemberSeed,
    Report,
    SessionPlan,
    SignedHeader,
    Site,
    SumMessage,
    Train,
    Unmask,
    Unmasked,
    Upload,
    Witness,
)
from secure_triplay.wireformat import Message, read

STUDY = "5a" * 32
NAMES = ("east", "north", "west")
SIGNERS = {name: SigningIdentity.generate() for name in NAMES}
MESSAGES = (
    SessionPlan,
    Behind,
    Upload,
    SumMessage,
    Declined,
    Done,
    Train,
    Report,
    Witness,
    Approval,
    CatchUp,
    Unmask,
    Unmasked,
)


def make_plan(n_chunks=2, names=NAMES, **fields):
    sites = tuple(Site(name, SIGNERS[name].identity) for name in names)
    return SessionPlan(
        **{"study": STUDY, "key_id": b"k" * 32, "epoch": 4, "n_chunks": n_chunks, "sites": sites} | fields
    )


def make_upload(plan, site="north", round=3):
    n = plan.n_chunks
    return Upload.signed(
        plan,
        SIGNERS[site],
        round=round,
        site=site,
        c0=os.urandom(30720 * n),
        tags=bytes(8 * n),
        seed=os.urandom(16),
    )


def make_sum(plan, names=NAMES, then="train", round=3):
    headers = tuple(make_upload(plan, name, round).header for name in names)
    return SumMessage(
        plan.study,
        plan.epoch,
        round,
        headers,
        os.urandom(30720 * plan.n_chunks),
        bytes(8 * plan.n_chunks),
        then,
    )


PLAN = make_plan()
UPLOAD = make_upload(PLAN)
SUM = make_sum(PLAN)
KEYS = [SIGNERS[name].identity.public_bytes for name in NAMES]
HEAD = LedgerHead(KEYS[0], 9, b"h" * 32, "2026-11-23T12:00:00Z", b"s" * 64, 7, b"p" * 32, b"f" * 64)
RECEIPT = Countersignature(KEYS[0], KEYS[1], 9, b"r" * 64)
HELD = HeldHead(KEYS[0], KEYS[2], 5, b"h" * 32, b"s" * 64)
SIGNED = (Endorsement("east", b"e" * 64), Endorsement("west", b"w" * 64))
MASK_KEYS = tuple(MaskKeys(name, b"c" * 32, b"s" * 32, b"b" * 32, b"k" * 64) for name in NAMES)
SEEDS = tuple(MemberSeed.of(keys, b"t" * 16) for keys in MASK_KEYS)
MEMBERS = (HeldShares("east"), HeldShares("north", b"m" * 48), HeldShares("west", b"n" * 48))
SHARES = SealedShares("east", {"north": b"m" * 48, "west": b"n" * 48}, b"s" * 64)
REVEALED = Revealed("east", dict.fromkeys(NAMES, b"r" * 16), b"s" * 64)
CLOSED = (Closed(SUM, SIGNED), Closed(make_sum(PLAN, round=4), (), SEEDS))
EXAMPLES = (
    PLAN,
    Behind(STUDY, 4, 1),
    UPLOAD,
    SUM,
    Declined(),
    Done(),
    Train(STUDY, 4, 0),
    Train(STUDY, 4, 3, SIGNED, (RECEIPT,), (HELD,)),
    Train(STUDY, 4, 3, SIGNED, (RECEIPT,), (HELD,), SEEDS, MEMBERS),
    Report(STUDY, 4, 3, (HEAD,)),
    Report(STUDY, 4, 3, (HEAD,), UPLOAD.to_bytes(), MASK_KEYS[0]),
    Report(STUDY, 4, 3, (HEAD, dataclasses.replace(HEAD, previous_counter=2)), UPLOAD.to_bytes()),
    Witness(STUDY, 4, 3, (HEAD,)),
    Witness(STUDY, 4, 3, (HEAD,), SUM),
    Witness(STUDY, 4, 3, (HEAD,), SUM, MASK_KEYS),
    Approval(STUDY, 4, 3, "east", b""),
    Approval(STUDY, 4, 3, "east", b"e" * 64, (RECEIPT,), (HELD,)),
    Approval(STUDY, 4, 3, "east", b"e" * 64, (RECEIPT,), (HELD,), SHARES),
    CatchUp(STUDY, 4, CLOSED),
    Unmask(STUDY, 4, 3, SIGNED),
    Unmasked(STUDY, 4, 3, REVEALED),
)


def framed(kind, head, body=b""):
    """The frame by hand: magic, version, kind, length of head, head, body."""
    packed = head if isinstance(head, bytes) else msgpack.packb(head)
    return b"S3PL" + bytes([wireformat.VERSION, kind]) + len(packed).to_bytes(4, "big") + packed + body


def is_refused(content, message_type):
    """Whether bytes are refused as a message, or by what a receiver of an upload or a sum checks next."""
    try:
        message = message_type.from_bytes(content)
        if isinstance(message, Upload):
            message.header.verify(PLAN)
            message.check_body()
        if isinstance(message, SumMessage):
            message.verify(PLAN, 3)
    except (ProtocolError, CryptoError):
        return True
    return False


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda message: type(message).__name__)
def test_message_comes_back_from_its_bytes(message):
    assert type(message).from_bytes(message.to_bytes()) == message
    assert type(message).from_bytes(message.to_bytes()).to_bytes() == message.to_bytes()


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda message: type(message).__name__)
def test_every_truncation_and_extension_is_refused(message):
    content = message.to_bytes()
    lengths = {*range(min(len(content), 700)), *range(700, len(content), 997), len(content) - 1}
    for length in sorted(lengths - {len(content)}):
        with pytest.raises(ProtocolError):
            type(message).from_bytes(content[:length])
    for more in (b"\0", b"S3PL", content):
        with pytest.raises(ProtocolError):
            type(message).from_bytes(content + more)


@pytest.mark.parametrize("message", [UPLOAD, SUM], ids=["Upload", "head of SumMessage"])
def test_every_flipped_bit_is_refused(message):
    """Of an upload everything is signed; of a sum the survivors are, and its body is covered by the tags."""
    content = message.to_bytes()
    head_end = 10 + int.from_bytes(content[6:10], "big")
    positions = [*range(0, head_end, 5)]
    if message is UPLOAD:
        positions = [*range(head_end), *range(head_end, len(content), 1511), len(content) - 1]
    unseen = []
    for at in positions:
        for bit in range(8):
            flipped = bytearray(content)
            flipped[at] ^= 1 << bit
            if not is_refused(bytes(flipped), type(message)):
                unseen.append((at, bit))
    assert not unseen


def test_bytes_of_one_kind_are_no_other_kind():
    for message in EXAMPLES:
        for other in set(MESSAGES) - {type(message)}:
            with pytest.raises(ProtocolError):
                other.from_bytes(message.to_bytes())
    assert Declined() != Done()


def test_a_head_has_one_encoding():
    """msgpack can spell a number in several lengths; only the shortest one is this message."""
    good = msgpack.packb([STUDY, 4, 1])
    assert Behind.from_bytes(framed(2, good)) == Behind(STUDY, 4, 1)
    for spelling in (
        b"\xcc\x01",
        b"\xcd\x00\x01",
        b"\xce\x00\x00\x00\x01",
        b"\xd0\x01",
        b"\xd3" + bytes(7) + b"\x01",
    ):
        assert msgpack.unpackb(good[:-1] + spelling) == [STUDY, 4, 1]
        with pytest.raises(ProtocolError):
            Behind.from_bytes(framed(2, good[:-1] + spelling))
    with pytest.raises(ProtocolError):
        Behind.from_bytes(framed(2, b"\xdc\x00\x03" + good[1:]))


NO_BEHIND = [
    # another shape
    [STUDY, 4], [STUDY, 4, 1, 1], [], [[STUDY, 4, 1]], {"study": STUDY, "epoch": 4, "round": 1}, None, 7,
    # another type
    [STUDY, 4, True], [STUDY, 4.0, 1], [STUDY, 4, 1.0], [STUDY, "4", 1], [STUDY, 4, None],
    [STUDY.encode(), 4, 1],
    [STUDY, msgpack.ExtType(5, b"xx"), 1], [STUDY, msgpack.Timestamp(1), 1], [bytes.fromhex(STUDY), 4, 1],
    # out of bounds
    [STUDY, 4, -1], [STUDY, -1, 1], [STUDY, 4, 1 << 32], [STUDY.upper(), 4, 1], [STUDY + "\n", 4, 1],
    ["g" * 64, 4, 1], [STUDY[:-1], 4, 1],
    # no msgpack, or msgpack that claims more than is there
    b"", b"\xc1", b"\xff" * 40, b"\x93", b"\xdd\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff",
    b"\x91" * 100_000,
    b"\xd9\x02\xff\xfe", b"\xd7\xff" + b"\xff" * 8, b"\x81\x91\x01\x02",
]  # fmt: skip


@pytest.mark.parametrize("head", NO_BEHIND, ids=lambda head: repr(head)[:30])
def test_wrong_types_counts_and_values_are_refused(head):
    with pytest.raises(ProtocolError):
        Behind.from_bytes(framed(2, head))


@given(st.binary(max_size=300))
@settings(max_examples=150, deadline=None)
def test_any_bytes_as_a_head_give_a_protocol_error_and_nothing_else(head):
    for message_type in MESSAGES:
        for content in (head, framed(message_type.kind, head)):
            try:
                message = message_type.from_bytes(content)
            except ProtocolError:
                continue
            assert message.to_bytes() == content


@pytest.mark.parametrize("content", [None, "S3PL", bytearray(b"S3PL"), memoryview(b"S3PL"), 5])
def test_what_is_not_bytes_is_refused(content):
    with pytest.raises(ProtocolError):
        Behind.from_bytes(content)


def test_nothing_above_the_bound_is_parsed(monkeypatch):
    monkeypatch.setattr(msgpack, "unpackb", lambda *a, **k: pytest.fail("parsed"))
    with pytest.raises(ProtocolError):
        Upload.from_bytes(UPLOAD.to_bytes(), max_bytes=len(UPLOAD.to_bytes()) - 1)
    with pytest.raises(ProtocolError):
        Upload.from_bytes(bytes(wireformat.MAX_MESSAGE_BYTES + 1))


def test_plan_bounds_its_uploads_and_sums():
    plan = make_plan(
        3,
        key_id=b"\xff" * 32,
        epoch=wireformat.MAX_NUMBER,
        sites=(Site("a" * 48, SIGNERS["east"].identity), Site("b" * 48, SIGNERS["west"].identity)),
    )
    uploads = [
        Upload.signed(
            plan,
            SIGNERS[name],
            round=wireformat.MAX_NUMBER,
            site=letter * 48,
            c0=bytes(3 * 30720),
            tags=bytes(24),
            seed=os.urandom(16),
        )
        for letter, name in (("a", "east"), ("b", "west"))
    ]
    assert all(len(upload.to_bytes()) <= plan.max_upload_bytes for upload in uploads)
    total = SumMessage(
        plan.study,
        plan.epoch,
        wireformat.MAX_NUMBER,
        tuple(u.header for u in uploads),
        bytes(3 * 30720),
        bytes(24),
        "finish",
    )
    assert len(total.to_bytes()) <= plan.max_sum_bytes


def test_upload_costs_next_to_nothing_beyond_its_ciphertexts():
    for n_chunks in (1, 9, 100):
        plan = make_plan(n_chunks)
        assert len(make_upload(plan).to_bytes()) <= n_chunks * (30720 + 8) + 360


def test_no_message_has_room_for_text():
    """Every string of every message is one of five, and each has a closed alphabet and length."""
    parts = (
        Site,
        SignedHeader,
        Endorsement,
        LedgerHead,
        Countersignature,
        HeldHead,
        Closed,
        HeldShares,
        MemberSeed,
    )
    names = {part.__name__ for part in parts}
    # Names of sites and bytes of fixed length; see the test of what masks carry.
    masks = {"MaskKeys", "SealedShares", "Revealed"}
    no_text = {"int", "bytes", "Identity", "SumMessage", "SumMessage | None"} | names | masks
    no_text |= {f"tuple[{name}, ...]" for name in names | masks} | {f"{name} | None" for name in masks}
    strings = {
        (kind.__name__, field.name)
        for kind in (*MESSAGES, *parts)
        for field in dataclasses.fields(kind)
        if field.type not in no_text
    }
    studies = {"SessionPlan", "Behind", "SumMessage", "Train", "Report", "Witness", "Approval", "CatchUp"}
    studies |= {"Unmask", "Unmasked"}
    assert strings == {(name, "study") for name in (*studies, "SignedHeader")} | {
        ("Site", "name"), ("SignedHeader", "site"), ("Endorsement", "site"), ("Approval", "site"),
        ("SumMessage", "then"), ("LedgerHead", "time"), ("HeldShares", "site"), ("MemberSeed", "site"),
    }  # fmt: skip
    for text in ("Accuracy 0.8", "a b", "", "a" * 49, "A", "-a", "a\n", "é", "a_b"):
        for value, field in (
            (UPLOAD.header, "site"),
            (PLAN.sites[0], "name"),
            (SUM, "then"),
            (PLAN, "study"),
            (SIGNED[0], "site"),
            (HEAD, "time"),
            *((message, "study") for message in EXAMPLES if hasattr(message, "study")),
        ):
            with pytest.raises(ProtocolError):
                dataclasses.replace(value, **{field: text})


@pytest.mark.parametrize("bad", ["a b", "", "a" * 49, "Accuracy 0.8", 7, None, b"east"])
def test_what_masks_carry_is_names_in_order_and_bytes_of_fixed_length(bad):
    keys = dataclasses.replace(MASK_KEYS[0], site=bad)
    for make in (
        lambda: Report(STUDY, 4, 3, (), b"", keys),
        lambda: Witness(STUDY, 4, 3, (), None, (keys,)),
        lambda: dataclasses.replace(SEEDS[0], site=bad),
        lambda: dataclasses.replace(MEMBERS[0], site=bad),
        lambda: dataclasses.replace(SEEDS[0], seed=bad),
        lambda: dataclasses.replace(MEMBERS[0], sealed=bad or "x"),
    ):
        with pytest.raises(ProtocolError):
            make()
    for shares in ([bad, b"s" * 64, []], ["east", bad, []], ["east", b"s" * 64, [[bad, b"m" * 48]]]):
        with pytest.raises(ProtocolError):
            Approval.from_bytes(framed(10, [STUDY, 4, 3, "east", b"", [], [], shares]))
        with pytest.raises(ProtocolError):
            Unmasked.from_bytes(framed(13, [STUDY, 4, 3, shares]))


def test_nobody_stands_twice_or_out_of_order_in_what_masks_carry():
    for make in (
        lambda swapped: Witness(STUDY, 4, 3, (), None, tuple(MASK_KEYS[i] for i in swapped)),
        lambda swapped: Train(STUDY, 4, 3, (), (), (), tuple(SEEDS[i] for i in swapped)),
        lambda swapped: Train(STUDY, 4, 3, (), (), (), (), tuple(MEMBERS[i] for i in swapped)),
        lambda swapped: CatchUp(STUDY, 4, (Closed(SUM, (), tuple(SEEDS[i] for i in swapped)),)),
    ):
        make((0, 1, 2))
        for swapped in ((1, 0, 2), (0, 0, 1)):
            with pytest.raises(ProtocolError):
                make(swapped)
    with pytest.raises(ProtocolError, match="another site"):
        Approval(STUDY, 4, 3, "west", b"", (), (), SHARES)
    with pytest.raises(ProtocolError):
        Report.from_bytes(
            framed(8, [STUDY, 4, 3, [], 0, [list(dataclasses.astuple(k)) for k in MASK_KEYS[:2]]])
        )


def test_a_sum_over_sites_that_masked_with_different_members_is_no_sum():
    plan = make_plan()
    headers = [
        Upload.signed(
            plan, SIGNERS[name], round=3, site=name, c0=bytes(61440), tags=bytes(16), seed=os.urandom(16),
            members=members,
        ).header
        for name, members in (("east", b"m" * 32), ("north", b"m" * 32), ("west", b"n" * 32))
    ]  # fmt: skip
    body = bytes(61440), bytes(16), "train"
    total = SumMessage(STUDY, 4, 3, tuple(headers[:2]), *body)
    total.verify(plan, 3)
    assert (total.names, total.members) == (("east", "north"), b"m" * 32)
    with pytest.raises(ProtocolError, match="one round"):
        SumMessage(STUDY, 4, 3, tuple(headers), *body)
    for members in (b"m" * 31, "m" * 32, None):
        with pytest.raises(ProtocolError):
            dataclasses.replace(headers[0], members=members)


BETWEEN_EPOCHS = {
    *("Summon", "Offer", "MakeKeys", "Sealed", "Deliver", "Opened"),
    *("StateWanted", "StateOffered", "StateGiven"),
}


def test_the_set_of_messages_is_closed():
    """Those of a round stand in `wire`; those between key epochs beside the ceremony that needs them."""

    def below(kind):
        return {kind} | {deeper for sub in kind.__subclasses__() for deeper in below(sub)}

    from secure_triplay.federation import ceremony, handover

    concrete = {kind for kind in below(Message) if "kind" in vars(kind)}
    apart = {kind for kind in concrete if inspect.getmodule(kind) in (ceremony, handover)}
    assert concrete - apart == set(MESSAGES)
    assert {kind.__name__ for kind in apart} == BETWEEN_EPOCHS
    assert len({kind.kind for kind in concrete}) == len(concrete)
    inside = {inspect.getmodule(kind).__name__ for kind in set(MESSAGES)}
    assert all(name.startswith("secure_triplay.wire.") for name in inside)


def test_declined_and_done_are_always_the_same_bytes():
    assert Declined().to_bytes() == framed(5, [])
    assert Done().to_bytes() == framed(6, [])
    for kind in (5, 6):
        for content in (framed(kind, ["reason"]), framed(kind, [], b"reason"), framed(kind, {})):
            with pytest.raises(ProtocolError):
                read(content, Declined, Done)


def test_read_gives_only_what_is_expected():
    assert read(SUM.to_bytes(), Behind, SumMessage) == SUM
    for content in (UPLOAD.to_bytes(), b"", b"S3PL\x02", bytes(100)):
        with pytest.raises(ProtocolError):
            read(content, Behind, SumMessage)


def test_plan_lists_every_name_and_identity_once():
    east = SIGNERS["east"].identity
    for sites in (
        (Site("a", east), Site("b", east)),
        (Site("a", east), Site("a", SIGNERS["west"].identity)),
        (),
        None,
        [Site("a", east)],
        ("a",),
    ):
        with pytest.raises(ProtocolError):
            make_plan(sites=sites)


@pytest.mark.parametrize(
    "fields",
    [
        {"n_chunks": 0},
        {"n_chunks": 4097},
        {"key_id": b"k" * 31},
        {"epoch": -1},
        {"epoch": True},
        {"study": "demo"},
    ],
)
def test_plan_with_impossible_values_is_refused(fields):
    with pytest.raises(ProtocolError):
        make_plan(**fields)


def test_plan_with_an_identity_of_small_order_is_refused():
    head = [STUDY, b"k" * 32, 4, 1, [["east", bytes(32)]]]
    with pytest.raises(ProtocolError):
        SessionPlan.from_bytes(framed(1, head))


def test_a_plans_hash_changes_with_every_member_their_order_and_the_epoch():
    plans = [
        PLAN,
        make_plan(names=NAMES[:2]),
        make_plan(names=NAMES[::-1]),
        make_plan(sites=(Site("east", SigningIdentity.generate().identity), *PLAN.sites[1:])),
        make_plan(epoch=5),
    ]
    assert len({plan.sha256 for plan in plans}) == len(plans)


def test_header_is_verified_without_the_upload_it_belongs_to():
    relayed = SumMessage.from_bytes(SUM.to_bytes())
    assert relayed.verify(PLAN, 3, fewest=3) is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("round", 2),
        ("site", "west"),
        ("seed", bytes(range(16))),
        ("body_sha256", bytes(32)),
        ("members", bytes(32)),
        ("signature", bytes(64)),
    ],
)
def test_header_with_a_changed_field_is_refused(field, value):
    header = dataclasses.replace(UPLOAD.header, **{field: value})
    with pytest.raises(CryptoError):
        header.verify(PLAN)


@pytest.mark.parametrize(
    "plan",
    [
        make_plan(epoch=5),
        make_plan(key_id=b"j" * 32),
        make_plan(study="5b" * 32),
        make_plan(n_chunks=1),
        make_plan(names=("east", "west")),
        make_plan(names=("north", "east")),
    ],
)
def test_header_counts_only_for_the_plan_it_was_signed_for(plan):
    """Also where only the roster differs: a site cannot be counted in a company that it was not told of."""
    with pytest.raises((ProtocolError, CryptoError)):
        UPLOAD.header.verify(plan)


def test_site_signs_only_under_its_own_name_and_for_its_own_plan():
    body = {"c0": bytes(61440), "tags": bytes(16), "seed": os.urandom(16)}
    for signer, site in ((SIGNERS["east"], "north"), (SIGNERS["east"], "nowhere")):
        with pytest.raises(ProtocolError):
            Upload.signed(PLAN, signer, round=1, site=site, **body)
    for wrong in ({"c0": bytes(30720)}, {"tags": b""}, {"seed": os.urandom(64)}, {"seed": os.urandom(15)}):
        with pytest.raises(ProtocolError):
            Upload.signed(PLAN, SIGNERS["east"], round=1, site="east", **(body | wrong))


@pytest.mark.parametrize("n_chunks", [0, -1, 1, 3, wireformat.MAX_CHUNKS + 1, True, 2.0, None, b"2"])
def test_an_upload_has_as_many_chunks_as_its_header_says(n_chunks):
    with pytest.raises(ProtocolError):
        dataclasses.replace(UPLOAD, header=dataclasses.replace(UPLOAD.header, n_chunks=n_chunks))


def test_body_other_than_signed_is_refused():
    assert UPLOAD.check_body() is None
    for changed in ({"c0": bytes(61440)}, {"tags": b"\1" + UPLOAD.tags[1:]}):
        with pytest.raises(CryptoError):
            dataclasses.replace(UPLOAD, **changed).check_body()


def test_sum_lists_each_survivor_once_and_in_one_order():
    east, north, west = SUM.survivors
    for survivors in ((), (north, east), (east, east, west), [east], (east, north, east), None, ("east",)):
        with pytest.raises(ProtocolError):
            dataclasses.replace(SUM, survivors=survivors)


def test_sum_of_several_rounds_keys_or_sizes_is_refused():
    east, north, _ = SUM.survivors
    for other in (
        make_upload(PLAN, "north", 2),
        make_upload(make_plan(epoch=3), "north"),
        make_upload(make_plan(key_id=b"j" * 32), "north"),
        make_upload(make_plan(1), "north"),
    ):
        with pytest.raises(ProtocolError):
            dataclasses.replace(SUM, survivors=(east, other.header))
    assert dataclasses.replace(SUM, survivors=(east, north)).verify(PLAN, 3) is None


def test_sum_of_another_round_or_of_too_few_sites_is_refused():
    with pytest.raises(ProtocolError):
        SUM.verify(PLAN, 4)
    with pytest.raises(ProtocolError):
        SUM.verify(PLAN, 3, fewest=4)
    with pytest.raises(ProtocolError):
        SUM.verify(make_plan(epoch=5), 3)


def test_sum_with_a_survivor_that_did_not_sign_is_refused():
    forged = dataclasses.replace(SUM.survivors[1], seed=os.urandom(16))
    with pytest.raises(CryptoError):
        dataclasses.replace(SUM, survivors=(SUM.survivors[0], forged)).verify(PLAN, 3)


def test_hash_of_a_sum_covers_all_of_it():
    variants = [
        SUM,
        dataclasses.replace(SUM, then="finish"),
        dataclasses.replace(SUM, c0=bytes(61440)),
        dataclasses.replace(SUM, tags=b"\1" * 16),
        dataclasses.replace(SUM, survivors=SUM.survivors[:2]),
    ]
    assert len({each.sha256 for each in variants}) == len(variants)


def test_tags_come_back_and_stay_below_the_modulus():
    tags = np.array([0, 1, MODULUS - 1], np.uint64)
    assert (wire.unpack_tags(wire.pack_tags(tags)) == tags).all()
    assert wire.pack_tags(tags)[8:16] == b"\1" + bytes(7)
    for value in (MODULUS, 2**64 - 1):
        with pytest.raises(CryptoError):
            wire.unpack_tags(value.to_bytes(8, "little"))
