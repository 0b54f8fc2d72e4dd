import copy
import json
import pickle

import numpy as np
import pytest

from secure_triplay.client.tag import TagKey
from secure_triplay.crypto.packing import add_mod
from secure_triplay.crypto.parameters import DEGREE, MODULUS
from secure_triplay.errors import CryptoError

SITES = ("north", "south", "east")
WHEN = {"epoch": 3, "round_number": 7}


@pytest.fixture(scope="module")
def key():
    return TagKey(bytes(range(32)))


def chunks(seed, n_chunks=3):
    return np.random.default_rng(seed).integers(0, MODULUS, (n_chunks, DEGREE), np.uint64)


def summed(key, sites=SITES, **when):
    """What an honest server makes of the sites' uploads, without any key."""
    total_c0, total_tags = np.zeros((3, DEGREE), np.uint64), np.zeros(3, np.uint64)
    for number, site in enumerate(sites):
        c0 = chunks(number)
        add_mod(total_c0, c0)
        add_mod(total_tags, key.tag(c0, **{**WHEN, **when}, site=site))
    return total_c0, total_tags


def big_integer_products(key, c0):
    """<k, c0> by Python integers, from nothing but the key's limbs."""
    k = [sum(int(limb) << (20 * i) for i, limb in enumerate(row)) for row in key._limbs]
    return [sum(a * int(b) for a, b in zip(k, row, strict=True)) % MODULUS for row in c0]


@pytest.mark.parametrize("fill", ["random", "largest", "ones", "zero"])
def test_inner_products_are_exact(key, fill):
    c0 = {
        "random": chunks(0, 19),
        "largest": np.full((2, DEGREE), MODULUS - 1, np.uint64),
        "ones": np.full((2, DEGREE), 2**59 - 1, np.uint64),
        "zero": np.zeros((2, DEGREE), np.uint64),
    }[fill]
    assert key._inner_products(c0) == big_integer_products(key, c0)


def test_inner_product_is_exact_for_the_largest_key():
    key = TagKey(bytes(32))
    key._limbs[:] = 2**20 - 1
    c0 = np.full((1, DEGREE), MODULUS - 1, np.uint64)
    c0[0, ::2] = 2**60 - 2**20 if MODULUS > 2**60 - 2**20 else MODULUS - 2
    assert key._inner_products(c0) == big_integer_products(key, c0)


def test_key_is_reduced_and_not_constant(key):
    k = [sum(int(limb) << (20 * i) for i, limb in enumerate(row)) for row in key._limbs]
    assert len(set(k)) == DEGREE
    assert max(k) < MODULUS
    assert max(k) > 0.99 * MODULUS


def test_sum_of_tags_verifies_the_sum_of_ciphertexts(key):
    assert key.verify_sum(*summed(key), **WHEN, sites=SITES) is None
    assert key.verify_sum(*summed(key), **WHEN, sites=SITES[::-1]) is None


def alterations(key):
    c0, tags = summed(key)
    bit, moved, scaled, other_tag = c0.copy(), c0[::-1].copy(), c0.copy(), tags.copy()
    bit[1, 17] ^= np.uint64(1)
    add_mod(scaled, c0)
    scaled_tags = tags.copy()
    add_mod(scaled_tags, tags)
    other_tag[2] = (int(other_tag[2]) + 1) % MODULUS
    good = {**WHEN, "sites": SITES}
    return {
        "one bit": (bit, tags, good),
        "chunks in another order": (moved, tags, good),
        "chunks and tags in another order": (moved, tags[::-1].copy(), good),
        "scaled": (scaled, scaled_tags, good),
        "another tag": (c0, other_tag, good),
        "earlier round": (c0, tags, {**good, "round_number": 6}),
        "another epoch": (c0, tags, {**good, "epoch": 4}),
        "site missing from the sum": (c0, tags, {**good, "sites": (*SITES, "west")}),
        "site missing from the list": (c0, tags, {**good, "sites": SITES[:2]}),
        "another site": (c0, tags, {**good, "sites": (*SITES[:2], "west")}),
        "a site twice": (c0, tags, {**good, "sites": (*SITES, SITES[0])}),
        "no site": (np.zeros_like(c0), np.zeros_like(tags), {**good, "sites": ()}),
        "nothing at all": (c0[:0], tags[:0], good),
        "fewer tags": (c0, tags[:2], good),
        "fewer chunks": (c0[:2], tags, good),
        "first chunk only": (c0[:1], tags, good),
        "not reduced": (c0 + np.uint64(MODULUS), tags, good),
        "tag not reduced": (c0, tags + np.uint64(MODULUS), good),
        "other type": (c0.astype(np.float64), tags, good),
        "one-dimensional": (c0[0], tags, good),
    }


def test_anything_but_the_honest_sum_is_refused_with_one_message(key):
    messages = set()
    for c0, tags, when in alterations(key).values():
        with pytest.raises(CryptoError) as refusal:
            key.verify_sum(c0, tags, **when)
        messages.add(str(refusal.value))
        assert refusal.value.__cause__ is None
    assert len(messages) == 1


def test_another_key_does_not_verify(key):
    with pytest.raises(CryptoError):
        TagKey.generate().verify_sum(*summed(key), **WHEN, sites=SITES)


def test_tags_of_the_same_ciphertext_differ_by_epoch_round_site_and_chunk(key):
    same = np.repeat(chunks(0, 1), 4, axis=0)
    tags = [
        key.tag(same, epoch=e, round_number=r, site=s) for e in (1, 2) for r in (1, 2) for s in ("a", "b")
    ]
    assert len(set(np.concatenate(tags).tolist())) == 32


def test_pads_are_those_of_hmac_sha256(key):
    import hashlib
    import hmac
    import struct

    zero = np.zeros((2, DEGREE), np.uint64)
    expected = [
        int.from_bytes(
            hmac.new(key._prf_key, struct.pack(">QQQ", 3, 7, i) + b"north", hashlib.sha256).digest(), "big"
        )
        % MODULUS
        for i in range(2)
    ]
    assert key.tag(zero, **WHEN, site="north").tolist() == expected


def test_key_survives_its_envelope_and_nothing_else(key):
    again = TagKey.from_envelope_bytes(key.to_envelope_bytes())
    again.verify_sum(*summed(key), **WHEN, sites=SITES)
    for bad in (b"", bytes(31), bytes(33)):
        with pytest.raises(CryptoError):
            TagKey.from_envelope_bytes(bad)


def test_secret_has_no_repr_pickle_copy_or_json(key):
    assert repr(key) == str(key) == "<TagKey>"
    for leak in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(CryptoError):
            leak(key)
    with pytest.raises(TypeError):
        json.dumps(key)
    with pytest.raises(TypeError):
        vars(key)


def test_tag_of_a_malformed_ciphertext_is_refused(key):
    for bad in (
        np.zeros((1, DEGREE - 1), np.uint64),
        np.full((1, DEGREE), MODULUS, np.uint64),
        np.zeros((1, DEGREE)),
    ):
        with pytest.raises(CryptoError):
            key.tag(bad, **WHEN, site="north")
