"""A round among sites: the right mean comes out, and nothing but the listed sites' sum is ever decrypted."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest

from secure_triplay.client.round import approve, approved, make_upload, verify_sum
from secure_triplay.config import ServerOptimiser
from secure_triplay.crypto.packing import pack60, unpack60
from secure_triplay.crypto.parameters import MODULUS
from secure_triplay.errors import ConfigError, CryptoError, ProtocolError
from secure_triplay.wire import Endorsement, SumMessage, Upload


@pytest.fixture
def no_decryption(monkeypatch):
    """Fails the test when anything is decrypted."""

    def decrypt(*args):
        pytest.fail("decrypted before it was verified")

    monkeypatch.setattr("secure_triplay.client.ckks.CkksSecretKey.decrypt", decrypt)


def test_decrypted_aggregate_equals_plaintext_fedavg_within_the_quantisers_step(federation_of, updates):
    federation = federation_of(updates)
    message = federation.summed(list(federation.uploads().values()))
    for name in federation.members:
        state = federation.opened(name, federation.start, message)
        assert np.abs(state.adapter - np.mean(updates, axis=0)).max() <= federation.codec.step


def test_weights_of_sites_are_the_public_constants_and_nothing_else(federation_of, updates):
    weights = [3.0, 1.0, 0.5]
    federation = federation_of(updates, weights=weights)
    message = federation.summed(list(federation.uploads().values()))
    state = federation.opened("site-0", federation.start, message)
    oracle = np.average(updates, axis=0, weights=weights)
    assert np.abs(state.adapter - oracle).max() <= federation.codec.step * len(updates) * 3 / sum(weights)


def test_every_site_ends_with_the_same_adapter_bit_by_bit(federation_of, updates):
    federation = federation_of(updates, optimiser=ServerOptimiser(kind="fedadam", learning_rate=0.01))
    message = federation.summed(list(federation.uploads().values()))
    states = [federation.opened(name, federation.start, message) for name in federation.members]
    assert len({state.adapter.tobytes() for state in states}) == 1


def test_two_rounds_apply_two_sums(federation_of, updates):
    federation = federation_of(updates, rounds=2)
    state = federation.start
    for number in (1, 2):
        uploads = [Upload.from_bytes(make_upload(each, state)) for each in federation.members.values()]
        message = federation.summed(uploads, last=number == 2, round_number=number)
        state = federation.opened("site-1", state, message)
    assert state.round == 2
    assert np.abs(state.adapter - 2 * np.mean(updates, axis=0)).max() <= 2 * federation.codec.step


@pytest.mark.parametrize("count", [0, 1])
def test_nothing_is_decrypted_before_a_quorum_signed(federation_of, updates, no_decryption, count):
    federation = federation_of(updates, quorum=2)
    me = federation.members["site-0"]
    message = federation.summed(list(federation.uploads().values()))
    verified = verify_sum(me, message, 1)
    signed = [approve(each, verified) for each in federation.members.values()][:count]
    with pytest.raises(CryptoError, match=f"{count} sites signed"):
        approved(me, verified, signed * 2)  # one site twice is one site


def test_a_signature_counts_for_one_sum_one_round_and_one_site(federation_of, updates, no_decryption):
    federation = federation_of(updates, quorum=2, rounds=2)
    me, uploads = federation.members["site-0"], list(federation.uploads().values())
    message, other = federation.summed(uploads, last=False), federation.summed(uploads[:2], last=False)
    verified = verify_sum(me, message, 1)
    good = [approve(each, verified) for each in federation.members.values()]
    assert approved(me, verified, good).verified is verified
    for bad in (
        approve(federation.members["site-1"], verify_sum(me, other, 1)),
        replace(good[1], site="site-2"),
        Endorsement("site-1", os.urandom(64)),
        Endorsement("nobody", good[1].signature),
    ):
        with pytest.raises((CryptoError, ProtocolError)):
            approved(me, verified, [good[0], bad])


@pytest.mark.parametrize(("n_sites", "quorum"), [(2, 1), (3, 1), (4, 2), (4, 0), (4, 5), (10, 5)])
def test_a_quorum_of_half_or_less_is_refused(federation_of, updates, n_sites, quorum):
    with pytest.raises(ConfigError, match="quorum"):
        replace(federation_of((updates * 4)[:n_sites]).members["site-0"], quorum=quorum)


def altered_c0(message: SumMessage) -> SumMessage:
    c0 = unpack60(message.c0, message.n_chunks).copy()
    c0[0, 7] = (int(c0[0, 7]) + 1) % MODULUS
    return replace(message, c0=pack60(c0))


def scaled(message: SumMessage) -> SumMessage:
    c0 = unpack60(message.c0, message.n_chunks)
    doubled = [[2 * int(value) % MODULUS for value in row] for row in c0]
    return replace(message, c0=pack60(np.array(doubled, np.uint64)))


def one_site_left_out_of_the_list(message: SumMessage) -> SumMessage:
    return replace(message, survivors=message.survivors[:-1])


def seeds_of_two_sites_swapped(message: SumMessage) -> SumMessage:
    first, second, *rest = message.survivors
    return replace(
        message, survivors=(replace(first, seed=second.seed), replace(second, seed=first.seed), *rest)
    )


def tags_zeroed(message: SumMessage) -> SumMessage:
    return replace(message, tags=bytes(len(message.tags)))


@pytest.mark.parametrize(
    "tamper", [altered_c0, scaled, one_site_left_out_of_the_list, seeds_of_two_sites_swapped, tags_zeroed]
)
def test_a_sum_that_is_not_the_sum_of_the_listed_sites_is_refused_before_it_is_signed(
    tamper, federation_of, updates, no_decryption
):
    federation = federation_of(updates, quorum=2)
    message = tamper(federation.summed(list(federation.uploads().values())))
    with pytest.raises((CryptoError, ProtocolError)):
        verify_sum(federation.members["site-0"], message, 1)


def test_a_site_singled_out_is_refused_before_it_is_signed(federation_of, updates):
    federation = federation_of(updates)
    message = federation.summed([federation.uploads()["site-1"]])
    with pytest.raises(ProtocolError, match="fewer"):
        verify_sum(federation.members["site-0"], message, 1)


def test_a_sum_of_another_round_is_refused(federation_of, updates):
    federation = federation_of(updates, rounds=3)
    message = federation.summed(list(federation.uploads().values()), last=False)
    with pytest.raises(ProtocolError):
        verify_sum(federation.members["site-0"], message, 2)


def test_a_server_cannot_end_a_study_early_or_carry_on_after_its_last_round(federation_of, updates):
    for rounds, last in ((2, True), (1, False)):
        federation = federation_of(updates, rounds=rounds)
        message = federation.summed(list(federation.uploads().values()), last=last)
        with pytest.raises(ProtocolError, match="rounds"):
            verify_sum(federation.members["site-0"], message, 1)


def test_an_update_with_nan_is_never_encoded(federation_of, updates):
    broken = updates[0].copy()
    broken[3] = np.nan
    federation = federation_of([broken, updates[1]])
    with pytest.raises(CryptoError, match="NaN"):
        make_upload(federation.members["site-0"], federation.start)
