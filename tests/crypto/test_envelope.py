import copy
import json
import pickle
from dataclasses import replace

import pytest
from cryptography.exceptions import InvalidTag

from secure_triplay.crypto.envelope import (
    OVERHEAD_BYTES,
    RECIPIENT_BYTES,
    EnvelopeContext,
    EnvelopeKey,
    EnvelopeRecipient,
    seal,
)
from secure_triplay.crypto.identity import Purpose, SigningIdentity
from secure_triplay.errors import CryptoError

SECRET = b"seventy kilobytes of key " * 2800


@pytest.fixture(scope="module")
def key():
    return EnvelopeKey.generate()


@pytest.fixture(scope="module")
def sender():
    return SigningIdentity.generate()


@pytest.fixture(scope="module")
def context(sender):
    return EnvelopeContext("ab" * 32, b"r" * 32, 3, b"k" * 32, sender.identity, "st-mary")


@pytest.fixture(scope="module")
def envelope(key, sender, context):
    return seal(SECRET, context, key.recipient, sender)


def test_recipient_opens_what_was_sealed_to_it(key, context, envelope):
    assert key.open(envelope, context) == SECRET


def test_envelope_costs_1200_bytes_and_hides_its_content(envelope):
    assert len(envelope) == len(SECRET) + OVERHEAD_BYTES == len(SECRET) + 1200
    assert SECRET[:25] not in envelope


def test_same_secret_never_gives_the_same_envelope(key, sender, context, envelope):
    assert seal(SECRET, context, key.recipient, sender)[64:] != envelope[64:]


@pytest.mark.parametrize(
    "changed",
    [
        {"study": "ac" * 32},
        {"roster_sha256": b"s" * 32},
        {"epoch": 2},
        {"epoch": 4},
        {"key_id": b"j" * 32},
        {"recipient": "st-john"},
        {"sender": SigningIdentity.generate().identity},
    ],
)
def test_envelope_of_another_context_is_refused(key, context, envelope, changed):
    with pytest.raises(CryptoError):
        key.open(envelope, replace(context, **changed))


def test_every_field_is_bound_by_hpke_too_not_by_the_signature_alone(key, sender, context, envelope):
    """Whoever signs again (the sender itself) cannot move sealed bytes into another context."""
    for changed in ({"epoch": 4}, {"recipient": "st-john"}, {"key_id": b"j" * 32}):
        other = replace(context, **changed)
        signature = sender.sign(Purpose.ENVELOPE, *other.fields(key.recipient), envelope[64:])
        with pytest.raises(CryptoError) as caught:
            key.open(signature + envelope[64:], other)
        assert isinstance(caught.value.__cause__, InvalidTag)


def test_another_sites_key_opens_nothing(context, envelope):
    with pytest.raises(CryptoError):
        EnvelopeKey.generate().open(envelope, context)


def test_half_of_the_hybrid_key_opens_nothing(key, context, envelope):
    own, other = key.to_private_bytes(), EnvelopeKey.generate().to_private_bytes()
    for mixed in (own[:64] + other[64:], other[:64] + own[64:]):
        with pytest.raises(CryptoError):
            EnvelopeKey.from_private_bytes(mixed).open(envelope, context)


def test_signature_of_another_site_is_refused(key, context, envelope):
    sham = SigningIdentity.generate()
    theirs = seal(SECRET, replace(context, sender=sham.identity), key.recipient, sham)
    for forged in (
        theirs,
        theirs[:64] + envelope[64:],
        envelope[:64] + theirs[64:],
        bytes(64) + envelope[64:],
    ):
        with pytest.raises(CryptoError):
            key.open(forged, context)


def test_cut_extended_and_flipped_envelopes_are_refused(key, sender, context):
    envelope = seal(b"short secret", context, key.recipient, sender)
    assert key.open(envelope, context) == b"short secret"
    bad = [envelope[:n] for n in range(0, len(envelope), 13)] + [
        envelope[:-1],
        envelope + b"\0",
        b"\0" + envelope,
    ]
    for at in range(0, len(envelope), 11):
        bad.append(envelope[:at] + bytes([envelope[at] ^ 0x10]) + envelope[at + 1 :])
    for content in bad:
        with pytest.raises(CryptoError):
            key.open(content, context)


def test_refusal_does_not_say_what_was_wrong(key, context, envelope):
    texts = set()
    for content, expected in (
        (envelope[:-1], context),
        (b"", context),
        (envelope, replace(context, epoch=9)),
    ):
        with pytest.raises(CryptoError) as caught:
            key.open(content, expected)
        texts.add(str(caught.value))
    assert len(texts) == 1


def test_only_the_sender_in_the_context_can_seal(key, context):
    with pytest.raises(CryptoError):
        seal(SECRET, context, key.recipient, SigningIdentity.generate())


@pytest.mark.parametrize("secret", [b"", bytes((1 << 20) + 1)])
def test_absurd_secrets_are_not_sealed(key, sender, context, secret):
    with pytest.raises(CryptoError):
        seal(secret, context, key.recipient, sender)


def test_envelope_key_survives_storage(key, context, envelope):
    stored = key.to_private_bytes()
    assert len(stored) == 96
    again = EnvelopeKey.from_private_bytes(stored)
    assert again.recipient == key.recipient
    assert again.open(envelope, context) == SECRET
    for content in (b"", stored[:-1], stored + b"\0", bytearray(stored)):
        with pytest.raises(CryptoError):
            EnvelopeKey.from_private_bytes(content)


@pytest.mark.parametrize("content", [b"", bytes(RECIPIENT_BYTES - 1), b"\xff" * RECIPIENT_BYTES, None])
def test_what_is_no_key_cannot_be_sealed_to(content):
    with pytest.raises(CryptoError):
        EnvelopeRecipient(content)


def test_recipient_with_a_degenerate_curve_point_cannot_be_sealed_to(key, sender, context):
    with pytest.raises(CryptoError):
        seal(SECRET, context, EnvelopeRecipient(key.recipient.public_bytes[:1184] + bytes(32)), sender)


def test_envelope_key_does_not_leak_by_accident(key):
    secret = key.to_private_bytes()
    for shown in (repr(key), str(key), repr({"key": key})):
        assert secret[:32].hex() not in shown
    for leak in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(CryptoError):
            leak(key)
    with pytest.raises(TypeError):
        json.dumps(key)
    assert not hasattr(key, "__dict__")
