"""A round among sites: the right mean comes out, and nothing but the listed sites' sum is ever decrypted."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from secure_triplay.client.round import answer
from secure_triplay.config import ServerOptimiser
from secure_triplay.crypto.packing import pack60, unpack60
from secure_triplay.crypto.parameters import MODULUS
from secure_triplay.errors import CryptoError, ProtocolError, SecureTriplayError
from secure_triplay.wire import Begin, Done, SumMessage


@pytest.fixture
def no_decryption(monkeypatch):
    """Fails the test when anything is decrypted."""

    def decrypt(*args):
        pytest.fail("decrypted before it was verified")

    monkeypatch.setattr("secure_triplay.client.ckks.CkksSecretKey.decrypt", decrypt)


def test_decrypted_aggregate_equals_plaintext_fedavg_within_the_quantisers_step(federation_of, updates):
    federation = federation_of(updates)
    message = federation.summed(list(federation.uploads().values()))
    for member in federation.members.values():
        state, reply = answer(member, federation.start, message)
        assert reply == Done()
        assert np.abs(state.adapter - np.mean(updates, axis=0)).max() <= federation.codec.step


def test_weights_of_sites_are_the_public_constants_and_nothing_else(federation_of, updates):
    weights = [3.0, 1.0, 0.5]
    federation = federation_of(updates, weights=weights)
    state, _ = answer(
        federation.members["site-0"], federation.start, federation.summed(list(federation.uploads().values()))
    )
    oracle = np.average(updates, axis=0, weights=weights)
    assert np.abs(state.adapter - oracle).max() <= federation.codec.step * len(updates) * 3 / sum(weights)


def test_every_site_ends_with_the_same_adapter_bit_by_bit(federation_of, updates):
    federation = federation_of(updates, optimiser=ServerOptimiser(kind="fedadam", learning_rate=0.01))
    message = federation.summed(list(federation.uploads().values()))
    states = [answer(member, federation.start, message)[0] for member in federation.members.values()]
    assert len({state.adapter.tobytes() for state in states}) == 1


def test_two_rounds_apply_two_sums(federation_of, updates):
    federation = federation_of(updates, rounds=2)
    states, message = dict.fromkeys(federation.members, federation.start), federation.begin()
    for number in (1, 2):
        uploads = []
        for name, member in federation.members.items():
            states[name], upload = answer(member, states[name], message)
            uploads.append(upload)
        message = federation.summed(uploads, last=number == 2, round_number=number)
    final, _ = answer(federation.members["site-1"], states["site-1"], message)
    assert final.round == 2
    assert np.abs(final.adapter - 2 * np.mean(updates, axis=0)).max() <= 2 * federation.codec.step


def test_budget_is_reserved_before_training_and_settled_before_anything_leaves(federation_of, updates):
    federation = federation_of(updates)

    class Learner:
        def update(self, adapter):
            federation.booked.append(("site-0", "trained", 1))
            return updates[0]

    member = replace(federation.members["site-0"], learner=Learner())
    answer(member, federation.start, federation.begin())
    assert [what for _, what, _ in federation.booked] == ["reserve", "trained", "settle"]


@pytest.mark.parametrize("step", ["reserve", "settle"])
def test_nothing_leaves_when_the_ledger_refuses(federation_of, updates, step, monkeypatch):
    federation = federation_of(updates)
    member = federation.members["site-0"]

    def refuse(*arguments):
        raise SecureTriplayError("the budget is spent")

    monkeypatch.setattr(type(member.accounts), step, refuse)
    if step == "reserve":
        monkeypatch.setattr(
            type(member.learner), "update", lambda *arguments: pytest.fail("trained without a reservation")
        )
    with pytest.raises(SecureTriplayError, match="spent"):
        answer(member, federation.start, federation.begin())


def test_an_opened_sum_is_noted_and_a_refused_one_is_not(federation_of, updates):
    federation = federation_of(updates)
    member, message = federation.members["site-0"], federation.summed(list(federation.uploads().values()))
    federation.booked.clear()
    with pytest.raises((CryptoError, ProtocolError)):
        answer(member, federation.start, altered_c0(message))
    assert federation.booked == []
    answer(member, federation.start, message)
    assert federation.booked == [("site-0", "closed", 1)]


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
        message, survivors=(replace(first, seeds=second.seeds), replace(second, seeds=first.seeds), *rest)
    )


def tags_zeroed(message: SumMessage) -> SumMessage:
    return replace(message, tags=bytes(len(message.tags)))


@pytest.mark.parametrize(
    "tamper", [altered_c0, scaled, one_site_left_out_of_the_list, seeds_of_two_sites_swapped, tags_zeroed]
)
def test_a_sum_that_is_not_the_sum_of_the_listed_sites_is_refused_before_decryption(
    tamper, federation_of, updates, no_decryption
):
    federation = federation_of(updates, quorum=1)
    message = tamper(federation.summed(list(federation.uploads().values())))
    with pytest.raises((CryptoError, ProtocolError)):
        answer(federation.members["site-0"], federation.start, message)


def test_a_site_singled_out_is_refused_before_decryption(federation_of, updates, no_decryption):
    federation = federation_of(updates)
    message = federation.summed([federation.uploads()["site-1"]])
    with pytest.raises(ProtocolError, match="fewer"):
        answer(federation.members["site-0"], federation.start, message)


def test_a_replayed_sum_is_refused_before_decryption(federation_of, updates, monkeypatch):
    federation = federation_of(updates, rounds=2)
    member, message = (
        federation.members["site-0"],
        federation.summed(list(federation.uploads().values()), last=False),
    )
    state, _ = answer(member, federation.start, message)
    monkeypatch.setattr(
        "secure_triplay.client.ckks.CkksSecretKey.decrypt", lambda *args: pytest.fail("decrypted")
    )
    with pytest.raises(ProtocolError):
        answer(member, state, message)


def test_a_server_cannot_end_a_study_early_or_carry_on_after_its_last_round(
    federation_of, updates, no_decryption
):
    for rounds, last in ((2, True), (1, False)):
        federation = federation_of(updates, rounds=rounds)
        message = federation.summed(list(federation.uploads().values()), last=last)
        with pytest.raises(ProtocolError, match="rounds"):
            answer(federation.members["site-0"], federation.start, message)


def test_a_message_of_another_study_or_epoch_is_refused(federation_of, updates, no_decryption):
    federation = federation_of(updates)
    for foreign in (Begin("cd" * 32, 1, 1), Begin(federation.plan.study, 2, 1)):
        with pytest.raises(ProtocolError):
            answer(federation.members["site-0"], federation.start, foreign)


def test_a_round_begun_out_of_turn_is_refused(federation_of, updates):
    federation = federation_of(updates)
    with pytest.raises(ProtocolError, match="round 2"):
        answer(federation.members["site-0"], federation.start, federation.begin(2))


def test_an_update_with_nan_is_never_encoded(federation_of, updates):
    broken = updates[0].copy()
    broken[3] = np.nan
    federation = federation_of([broken, updates[1]])
    with pytest.raises(CryptoError, match="NaN"):
        answer(federation.members["site-0"], federation.start, federation.begin())
