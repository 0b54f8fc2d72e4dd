import copy
import json
import pickle

import pytest

from secure_triplay.crypto.identity import Identity, Purpose, SigningIdentity, transcript
from secure_triplay.errors import CryptoError

P = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, -1, P) % P


def edwards_add(a, b):
    """Affine addition on edwards25519 (RFC 8032, section 5.1.4), slow and obvious."""
    (x1, y1), (x2, y2) = a, b
    k = D * x1 * x2 * y1 * y2 % P
    x = (x1 * y2 + x2 * y1) * pow(1 + k, -1, P) % P
    y = (y1 * y2 + x1 * x2) * pow(1 - k, -1, P) % P
    return x, y


def x_of(y):
    """An x for this y, or None (RFC 8032, section 5.1.3)."""
    square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    x = pow(square, (P + 3) // 8, P)
    for candidate in (x, x * pow(2, (P - 1) // 4, P) % P):
        if candidate * candidate % P == square:
            return candidate
    return None


def small_order_encodings():
    """Every 32-byte string that decodes to a point of order 1, 2, 4 or 8: multiply random points by L."""
    points = set()
    for y in range(2, 80):
        x = x_of(y)
        if x is None:
            continue
        total, addend, scalar = (0, 1), (x, y), L
        while scalar:
            if scalar & 1:
                total = edwards_add(total, addend)
            addend, scalar = edwards_add(addend, addend), scalar >> 1
        points.add(total)
    assert len(points) == 8  # the whole torsion subgroup
    ys = {y for _, y in points}
    spellings = {z for y in ys for z in (y, y + P) if z < 2**255}
    return sorted((z | sign << 255).to_bytes(32, "little") for z in spellings for sign in (0, 1))


def test_signature_verifies_for_what_was_signed():
    signer = SigningIdentity.generate()
    signature = signer.sign(Purpose.UPLOAD, b"a", b"bc")
    assert signer.identity.verify(signature, Purpose.UPLOAD, b"a", b"bc") is None


@pytest.mark.parametrize(
    ("purpose", "fields"),
    [
        (Purpose.ENVELOPE, (b"a", b"bc")),
        (Purpose.UPLOAD, (b"ab", b"c")),
        (Purpose.UPLOAD, (b"abc",)),
        (Purpose.UPLOAD, (b"a", b"bc", b"")),
        (Purpose.UPLOAD, (b"a", b"bd")),
        (Purpose.UPLOAD, ()),
    ],
)
def test_signature_is_worth_nothing_for_another_purpose_or_other_fields(purpose, fields):
    signer = SigningIdentity.generate()
    signature = signer.sign(Purpose.UPLOAD, b"a", b"bc")
    with pytest.raises(CryptoError):
        signer.identity.verify(signature, purpose, *fields)


def test_signature_of_another_identity_is_refused():
    signature = SigningIdentity.generate().sign(Purpose.UPLOAD, b"a")
    with pytest.raises(CryptoError):
        SigningIdentity.generate().identity.verify(signature, Purpose.UPLOAD, b"a")


def test_every_damaged_signature_is_refused():
    signer = SigningIdentity.generate()
    good = signer.sign(Purpose.UPLOAD, b"a")
    s = int.from_bytes(good[32:], "little")
    damaged = [b"", good[:-1], good + b"\0", bytes(64), None, good[:32] + (s + L).to_bytes(32, "little")]
    damaged += [
        bytes(b ^ (1 << bit if i == at else 0) for i, b in enumerate(good))
        for at in range(64)
        for bit in (0, 7)
    ]
    for signature in damaged:
        with pytest.raises(CryptoError):
            signer.identity.verify(signature, Purpose.UPLOAD, b"a")


def test_no_identity_under_which_anyone_could_sign():
    encodings = small_order_encodings()
    assert len(encodings) == 14
    for content in encodings:
        with pytest.raises(CryptoError, match="small order"):
            Identity(content)


@pytest.mark.parametrize("content", [b"", bytes(31), bytes(33), bytearray(32), "x" * 32, None])
def test_what_is_no_key_is_no_identity(content):
    with pytest.raises(CryptoError):
        Identity(content)


def test_signing_key_survives_storage():
    signer = SigningIdentity.generate()
    again = SigningIdentity.from_private_bytes(signer.to_private_bytes())
    assert again.identity == signer.identity
    for content in (b"", bytes(31), bytes(64)):
        with pytest.raises(CryptoError):
            SigningIdentity.from_private_bytes(content)


def test_signing_key_does_not_leak_by_accident():
    signer = SigningIdentity.generate()
    secret = signer.to_private_bytes()
    for shown in (repr(signer), str(signer), f"{signer}", repr([signer])):
        assert secret.hex() not in shown
        assert repr(secret) not in shown
    for leak in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(CryptoError):
            leak(signer)
    with pytest.raises(TypeError):
        json.dumps(signer)
    assert not hasattr(signer, "__dict__")


def test_fingerprint_can_be_read_out_and_tells_identities_apart():
    one, two = SigningIdentity.generate().identity, SigningIdentity.generate().identity
    groups = one.fingerprint.split(" ")
    assert len(groups) == 8
    assert all(len(group) == 4 and int(group, 16) >= 0 for group in groups)
    assert one.fingerprint != two.fingerprint
    assert one.fingerprint == Identity(one.public_bytes).fingerprint


def test_no_two_lists_of_fields_have_one_transcript():
    lists = [
        (),
        (b"",),
        (b"", b""),
        (b"a",),
        (b"a", b""),
        (b"", b"a"),
        (b"a", b"b"),
        (b"ab",),
        (bytes(8),),
        (bytes(16),),
    ]
    seen = {transcript(label, *fields) for label in (b"x", b"xa") for fields in lists}
    assert len(seen) == 2 * len(lists)
