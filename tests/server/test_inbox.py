import dataclasses
import os

import msgpack
import numpy as np
import pytest

from secure_triplay.crypto.identity import SigningIdentity
from secure_triplay.crypto.packing import pack60
from secure_triplay.crypto.parameters import MODULUS
from secure_triplay.server.inbox import Admitted, Inbox, Reason, Refusal, VerifiedUpload, looks_encrypted
from secure_triplay.wire import Behind, Declined, Done, Site, SumMessage, Upload, pack_tags


@pytest.fixture
def inbox(federation):
    return Inbox(federation.plan, 1)


def reason(inbox, content):
    """Why the inbox refuses, and that it is none the worse for it."""
    refusal = inbox.receive(content)
    assert isinstance(refusal, Refusal), "it was accepted"
    assert inbox.accepted == frozenset()
    return refusal.reason


def test_a_signed_upload_is_accepted_with_exactly_its_coefficients(federation, inbox):
    ring = federation.ring(1)
    upload = federation.upload("site-0001", ring=ring)
    verified = inbox.receive(upload.to_bytes())
    assert isinstance(verified, VerifiedUpload)
    assert (verified.c0 == ring[0]).all()
    assert (verified.tags == ring[1]).all()
    assert verified.header == upload.header
    assert inbox.after(verified).accepted == {"site-0001"}


@pytest.mark.parametrize("n_chunks", [1, 15, 16, 17, 33])
def test_uploads_of_any_number_of_chunks_come_through_whole(make_federation, n_chunks):
    federation = make_federation(1, n_chunks)
    ring = federation.ring(n_chunks)
    verified = Inbox(federation.plan, 1).receive(federation.upload("site-0000", ring=ring).to_bytes())
    assert (verified.c0 == ring[0]).all()


def test_plaintext_arrays_are_refused(inbox):
    update = np.random.default_rng(0).normal(0, 0.01, 24_576).astype(np.float32)
    for content in (
        update.tobytes(),
        update[:5000].tobytes(),
        msgpack.packb(update[:1000].tolist()),
        b"\x93NUMPY" + update.tobytes(),
    ):
        assert reason(inbox, content) in {Reason.NOT_A_MESSAGE, Reason.OVERSIZED}


def test_a_tenseal_context_with_or_without_its_secret_key_is_refused(inbox):
    tenseal = pytest.importorskip("tenseal")
    context = tenseal.context(tenseal.SCHEME_TYPE.CKKS, 4096, -1, [54, 54])
    context.global_scale = 2**20
    for content in (
        context.serialize(save_secret_key=True),
        context.serialize(),
        tenseal.ckks_vector(context, [1.0, 2.0]).serialize(),
    ):
        assert reason(inbox, content) in {Reason.NOT_A_MESSAGE, Reason.OVERSIZED}


def test_two_gigabytes_of_zeros_are_refused_before_anything_is_read(inbox, monkeypatch):
    monkeypatch.setattr(msgpack, "unpackb", lambda *a, **k: pytest.fail("parsed"))
    assert reason(inbox, bytes(2 << 30)) is Reason.OVERSIZED


@pytest.mark.parametrize(
    "content",
    [b"", b"\0", b"S3PL", bytes(61_000), b"S3PL\x02\x03\xff\xff\xff\xff", b"Traceback (most recent"],
)
def test_what_is_no_message_is_refused(inbox, content):
    assert reason(inbox, content) is Reason.NOT_A_MESSAGE


def test_truncated_extended_and_reordered_uploads_are_refused(federation, inbox):
    upload = federation.upload("site-0000")
    content = upload.to_bytes()
    for cut in (content[:-1], content[: len(content) // 2], content[:300], content[:7], content[1:]):
        assert reason(inbox, cut) is Reason.NOT_A_MESSAGE
    assert reason(inbox, content + b"\0") is Reason.NOT_A_MESSAGE
    swapped = dataclasses.replace(upload, c0=upload.c0[30720:] + upload.c0[:30720])
    assert reason(inbox, swapped.to_bytes()) is Reason.BAD_DIGEST
    another = dataclasses.replace(upload, header=dataclasses.replace(upload.header, seed=bytes(16)))
    assert reason(inbox, another.to_bytes()) is Reason.BAD_SIGNATURE


def test_a_decline_is_counted_as_one_and_other_messages_are_no_uploads(federation, inbox):
    plan = federation.plan
    upload = federation.upload("site-0000")
    total = SumMessage(plan.study, plan.epoch, 1, (upload.header,), upload.c0, upload.tags, "train")
    assert reason(inbox, Declined().to_bytes()) is Reason.DECLINED
    for message in (Done(), Behind(plan.study, plan.epoch, 1), plan, total):
        assert reason(inbox, message.to_bytes()) is Reason.NOT_AN_UPLOAD


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"study": "5b" * 32}, Reason.WRONG_STUDY),
        ({"epoch": 3}, Reason.WRONG_EPOCH),
        ({"epoch": 5}, Reason.WRONG_EPOCH),
        ({"key_id": b"j" * 32}, Reason.WRONG_KEY),
        ({"n_chunks": 1}, Reason.WRONG_SIZE),
    ],
)
def test_an_upload_of_another_plan_is_refused(federation, inbox, changed, expected):
    foreign = dataclasses.replace(federation.plan, **changed)
    assert reason(inbox, federation.upload("site-0000", plan=foreign).to_bytes()) is expected


def test_an_upload_with_more_chunks_is_refused_by_its_size(federation, inbox):
    larger = dataclasses.replace(federation.plan, n_chunks=3)
    assert reason(inbox, federation.upload("site-0000", plan=larger).to_bytes()) is Reason.OVERSIZED


@pytest.mark.parametrize("round_number", [2, 100])
def test_an_upload_of_another_round_is_refused(federation, inbox, round_number):
    """Among them every replay of an earlier round."""
    assert reason(inbox, federation.upload("site-0000", round_number).to_bytes()) is Reason.WRONG_ROUND


def test_a_replay_in_a_later_round_is_refused_even_with_its_round_rewritten(federation):
    upload = federation.upload("site-0000", 1)
    later = Inbox(federation.plan, 2)
    assert later.receive(upload.to_bytes()) == Refusal(Reason.WRONG_ROUND, "site-0000")
    rewritten = dataclasses.replace(upload, header=dataclasses.replace(upload.header, round=2))
    assert later.receive(rewritten.to_bytes()) == Refusal(Reason.BAD_SIGNATURE, "site-0000")


def test_a_second_upload_of_a_site_is_refused_whether_the_same_or_not(federation, inbox):
    content = federation.upload("site-0000").to_bytes()
    after = inbox.after(inbox.receive(content))
    assert after.receive(content) == Refusal(Reason.DUPLICATE, "site-0000")
    assert after.receive(federation.upload("site-0000").to_bytes()) == Refusal(Reason.DUPLICATE, "site-0000")


def test_unknown_and_removed_senders_are_refused(federation, inbox):
    stranger = SigningIdentity.generate()
    with_stranger = dataclasses.replace(
        federation.plan, sites=(*federation.plan.sites, Site("stranger", stranger.identity))
    )
    upload = federation.upload("stranger", plan=with_stranger, signer=stranger)
    assert inbox.receive(upload.to_bytes()) == Refusal(Reason.UNKNOWN_SITE, None)
    without = dataclasses.replace(federation.plan, sites=federation.plan.sites[1:])
    assert reason(Inbox(without, 1), federation.upload("site-0000").to_bytes()) is Reason.UNKNOWN_SITE


def test_nobody_uploads_in_anothers_name(federation, inbox):
    forged = federation.upload("site-0001")
    forged = dataclasses.replace(forged, header=dataclasses.replace(forged.header, site="site-0000"))
    assert inbox.receive(forged.to_bytes()) == Refusal(Reason.BAD_SIGNATURE, "site-0000")
    assert isinstance(inbox.receive(federation.upload("site-0000").to_bytes()), VerifiedUpload)


def test_an_upload_signed_in_another_company_of_sites_is_refused(federation, inbox):
    smaller = dataclasses.replace(federation.plan, sites=federation.plan.sites[:2])
    assert reason(inbox, federation.upload("site-0000", plan=smaller).to_bytes()) is Reason.BAD_SIGNATURE


def test_a_body_that_was_not_signed_for_is_refused(federation, inbox):
    one, two = federation.upload("site-0000"), federation.upload("site-0001")
    for mixed in (Upload(one.header, two.c0, one.tags), Upload(one.header, one.c0, two.tags)):
        assert reason(inbox, mixed.to_bytes()) is Reason.BAD_DIGEST


@pytest.mark.parametrize("value", [MODULUS, MODULUS + 1, 2**60 - 1])
def test_a_coefficient_or_tag_that_is_not_reduced_is_refused(federation, inbox, value):
    c0, tags = federation.ring(2)
    c0[1, 4095] = value
    assert (
        reason(inbox, federation.upload("site-0000", ring=(c0, tags)).to_bytes())
        is Reason.COEFFICIENT_OUT_OF_RANGE
    )
    c0, tags = federation.ring(2)
    tags[1] = value
    assert (
        reason(inbox, federation.upload("site-0000", ring=(c0, tags)).to_bytes())
        is Reason.COEFFICIENT_OUT_OF_RANGE
    )


@pytest.mark.parametrize(
    "kind", ["zeros", "floats", "doubles", "integers", "text", "image", "one chunk of two"]
)
def test_plaintext_in_a_well_signed_upload_of_the_right_size_is_refused(federation, inbox, kind):
    rng, size = np.random.default_rng(0), 2 * 30720
    plaintext = {
        "zeros": bytes(size),
        "floats": rng.normal(0, 0.01, size // 4).astype(np.float32).tobytes(),
        "doubles": rng.normal(0, 0.01, size // 8).tobytes(),
        "integers": rng.integers(0, 512, size // 8).tobytes(),
        "text": (b"accuracy 0.83 loss 0.41 records 2017 " * 2000)[:size],
        "image": rng.normal(128, 40, size).clip(0, 255).astype(np.uint8).tobytes(),
        "one chunk of two": pack60(federation.ring(3, 1)[0])
        + rng.normal(0, 1, 7680).astype(np.float32).tobytes(),
    }[kind]
    assert reason(inbox, federation.upload("site-0000", c0=plaintext).to_bytes()) is Reason.NOT_A_CIPHERTEXT


def test_no_real_ciphertext_is_taken_for_plaintext():
    """Scores of SEAL's ciphertexts stay near 255, far from the limit of 800."""
    ckks = pytest.importorskip("secure_triplay.client.ckks")
    codec = pytest.importorskip("secure_triplay.crypto.codec")
    chosen = codec.Codec.choose(n_sites=4, n_params=100_000, value_bits=9, limit=0.1)
    key = ckks.CkksSecretKey.generate(chosen.parameters)
    sealed = key.encrypt(chosen.to_slots(np.full(100_000, 255)), chosen.encode_tolerance)
    assert looks_encrypted(pack60(sealed.c0), len(sealed.c0))


def test_random_bytes_are_not_taken_for_plaintext():
    assert looks_encrypted(os.urandom(300 * 30720), 300)


def test_a_masked_round_takes_members_that_masked_with_one_another_and_nobody_else(federation):
    names, body = frozenset(federation.names[:3]), federation.ring(0)
    inbox = Inbox(federation.plan, 1, admitted=Admitted(names, b"m" * 32))

    def upload(site, members):
        return Upload.signed(
            federation.plan, federation.signers[site], round=1, site=site, c0=pack60(body[0]),
            tags=pack_tags(body[1]), seed=os.urandom(16), members=members,
        ).to_bytes()  # fmt: skip

    assert isinstance(inbox.receive(upload("site-0000", b"m" * 32)), VerifiedUpload)
    for site, members in (("site-0003", b"m" * 32), ("site-0000", b"n" * 32), ("site-0000", b"")):
        assert reason(inbox, upload(site, members)) is Reason.WRONG_MEMBERS
    assert reason(Inbox(federation.plan, 1), upload("site-0000", b"m" * 32)) is Reason.WRONG_MEMBERS


def test_every_reason_is_tested_here_or_with_the_process():
    from pathlib import Path

    here = Path(__file__).parent
    tested = (here / "test_inbox.py").read_text() + (here / "test_process.py").read_text()
    assert [each.name for each in Reason if f"Reason.{each.name}" not in tested] == []
