"""A budget is charged before it is spent, once, and never more than there is."""

from __future__ import annotations

import dataclasses
import hashlib
import multiprocessing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from secure_triplay.crypto.identity import SigningIdentity
from secure_triplay.errors import CryptoError, PrivacyError, RunError
from secure_triplay.ledger import budget
from secure_triplay.ledger.budget import Limits, Spend, Unprotected
from secure_triplay.ledger.entries import Anchored, Decided
from secure_triplay.ledger.ledger import NAME, TRAINING, Ledger, Release
from secure_triplay.privacy import accounting
from secure_triplay.privacy.mechanisms import DpSgdCharge, GaussianCharge

CHARGE = DpSgdCharge(noise_multiplier=4.0, sampling_rate=0.5, steps=1, unit="patient")
STUDY, OTHER = "a" * 64, "b" * 64
LIMITS = Limits(epsilon_per_study=3.0, epsilon_per_year=6.0, delta=1e-6, max_units=1000, unit="patient")
ROUNDS = 10


def reserve(ledger, round=1, study=STUDY, **more):
    return ledger.reserve(CHARGE, study=study, round=round, **more)


def tighten(ledger, **smaller):
    """Smaller limits, put in force by a person after studies were approved: these no longer fit as a whole."""
    limits = dataclasses.replace(LIMITS, **smaller)
    ledger.adopt(limits, approved_by="Dr. Officer")
    return limits


def rounds_that_fit(ledger):
    books = ledger.books
    return budget.rounds_that_fit(books.limits, books.spends, Spend(STUDY, 2026, CHARGE), ROUNDS)


def test_a_reservation_is_on_disk_before_it_is_returned(ledger, folder, identity):
    made = reserve(ledger)
    with Ledger.open(folder, None) as other:
        assert other.books.reservations[made.counter].spend.charge == CHARGE


def test_a_retry_of_a_round_is_charged_once(ledger, folder, identity):
    first = reserve(ledger)
    ledger.close()
    with Ledger.open(folder, identity, clock=ledger.chain._clock) as again:
        second = reserve(again)
        assert second == first
        assert len(again.books.spends) == 1


def test_one_charge_pays_for_one_release(ledger):
    made = reserve(ledger)
    ledger.settle(made, b"upload")
    ledger.settle(made, b"upload")  # the same message sent again
    with pytest.raises(PrivacyError, match="second release"):
        ledger.settle(made, b"trained again with other noise")
    with pytest.raises(PrivacyError, match="second release") as caught:
        reserve(ledger)
    assert (
        "restore the site's folder" in caught.value.fix
    )  # what a person can do: no command reserves an attempt
    assert "attempt" not in caught.value.fix
    assert reserve(ledger, attempt=2).counter != made.counter
    assert len(ledger.books.spends) == 2


def test_a_round_that_would_exceed_is_refused_before_it_and_the_refusal_is_recorded(make):
    limit = accounting.epsilon([CHARGE] * 4, LIMITS.delta) + 1e-6
    with make() as ledger:
        tighten(ledger, epsilon_per_study=limit)
        assert rounds_that_fit(ledger) == 4
        for number in range(1, 5):
            reserve(ledger, number)
        for _ in range(3):
            with pytest.raises(PrivacyError, match="4 of 10 were charged, and 0 more fit"):
                reserve(ledger, 5)
        assert len(ledger.books.spends) == 4
        assert len(ledger.books.refusals) == 1  # asking again and again fills no disk
        assert rounds_that_fit(ledger) == 0


def test_a_study_that_does_not_fit_is_not_approved_and_says_how_many_rounds_do(make):
    limit = accounting.epsilon([CHARGE] * 4, LIMITS.delta) + 1e-6
    with make() as ledger:
        tighten(ledger, epsilon_per_study=limit)
        with pytest.raises(PrivacyError, match=f"4 of its 7 x {TRAINING} fit"):
            ledger.approve(OTHER, "main", [Release(TRAINING, CHARGE, 7)], approved_by="A")
        assert OTHER not in ledger.books.approvals


def test_nothing_is_charged_that_no_approved_study_planned(ledger):
    for charge, more in [
        (CHARGE, {"study": OTHER, "round": 1}),
        (CHARGE, {"study": STUDY, "round": ROUNDS + 1}),
        (CHARGE, {"study": STUDY, "round": 0}),
        (CHARGE, {"study": STUDY, "round": 1, "what": "class counts"}),
        (dataclasses.replace(CHARGE, noise_multiplier=3.9), {"study": STUDY, "round": 1}),
    ]:
        with pytest.raises(PrivacyError):
            ledger.reserve(charge, **more)
    assert not ledger.books.spends


def test_the_parameters_of_a_study_do_not_change_once_approved(ledger):
    ledger.approve(STUDY, "pilot", [Release(TRAINING, CHARGE, ROUNDS)], approved_by="somebody else")
    with pytest.raises(PrivacyError, match="other noise"):
        ledger.approve(STUDY, "pilot", [Release(TRAINING, CHARGE, ROUNDS + 1)], approved_by="Dr. Officer")


def test_different_mechanisms_of_one_study_compose_as_one_history(make):
    counts = GaussianCharge(noise_multiplier=20.0, unit="patient")
    together = accounting.epsilon([CHARGE] * 3 + [counts], LIMITS.delta)
    with make() as ledger:
        ledger.approve(
            OTHER, "main", [Release(TRAINING, CHARGE, 3), Release("class counts", counts, 1)], approved_by="A"
        )
        for number in (1, 2, 3):
            reserve(ledger, number, study=OTHER)
        ledger.reserve(counts, study=OTHER, round=1, what="class counts")
        assert budget.figures(ledger.books.spends, LIMITS.delta).deciding == together


def test_several_studies_are_decided_by_the_adaptive_filter_and_it_never_flatters(make):
    alone = budget.figures([Spend(STUDY, 2026, CHARGE)] * 6, LIMITS.delta)
    both = budget.figures([Spend(STUDY, 2026, CHARGE)] * 3 + [Spend(OTHER, 2026, CHARGE)] * 3, LIMITS.delta)
    assert alone.deciding == alone.pld == both.pld
    assert both.deciding == both.filtered > both.pld
    with make() as ledger:
        ledger.approve(OTHER, "main", [Release(TRAINING, CHARGE, 3)], approved_by="A")
        tighten(ledger, epsilon_per_year=(both.pld + both.filtered) / 2, epsilon_per_study=1.5)
        for number in (1, 2, 3):
            reserve(ledger, number)
        reserve(ledger, 1, study=OTHER)
        reserve(ledger, 2, study=OTHER)
        with pytest.raises(PrivacyError, match="the year 2026"):  # by PLD alone, it would fit
            reserve(ledger, 3, study=OTHER)


def test_the_filter_is_the_best_single_order_at_its_share_of_delta():
    def oracle(
        noise, times, delta
    ):  # the Gaussian mechanism: alpha / (2 noise^2), Mironov 2017, proposition 3 and 7
        each = delta / len(budget.FILTER_ORDERS)
        from math import log

        return min(times * a / (2 * noise**2) + log(1 / each) / (a - 1) for a in budget.FILTER_ORDERS)

    for noise, times in ((5.0, 1), (5.0, 10), (20.0, 100)):
        ours = budget.filter_epsilon([GaussianCharge(noise, times)], 1e-6)
        assert (
            0.6 * oracle(noise, times, 1e-6) < ours <= oracle(noise, times, 1e-6)
        )  # a sharper conversion than 2017's
        assert ours >= accounting.epsilon([GaussianCharge(noise, times)], 1e-6)


def test_a_new_year_opens_its_budget_and_a_clock_set_back_opens_none(make, clock):
    limit = accounting.epsilon([CHARGE] * 2, LIMITS.delta) + 1e-6
    with make() as ledger:
        ledger.approve(OTHER, "main", [Release(TRAINING, CHARGE, 4)], approved_by="A")
        tighten(ledger, epsilon_per_study=limit, epsilon_per_year=limit)
        reserve(ledger, 1)
        reserve(ledger, 2)
        with pytest.raises(PrivacyError):
            reserve(ledger, 1, study=OTHER)
        clock.now = datetime(2025, 12, 31, tzinfo=UTC)
        with pytest.raises(PrivacyError, match="set the clock right"):
            reserve(ledger, 1, study=OTHER)
        clock.now = datetime(2027, 1, 1, tzinfo=UTC)
        reserve(ledger, 1, study=OTHER)
        clock.now = datetime(2026, 12, 31, tzinfo=UTC)
        with pytest.raises(PrivacyError, match="closed year"):
            reserve(ledger, 2, study=OTHER)


def test_a_clock_set_back_within_a_year_leaves_the_chain_in_order(ledger, clock):
    reserve(ledger, 1)
    clock.now = datetime(2026, 1, 1, tzinfo=UTC)
    reserve(ledger, 2)
    times = [entry.time for entry in ledger.chain.entries]
    assert times == sorted(times)


def _spend_all(folder, secret, study, results):
    taken = 0
    with Ledger.open(folder, SigningIdentity.from_private_bytes(secret)) as ledger:
        for number in range(1, ROUNDS + 1):
            try:
                reserve(ledger, number, study=study)
                taken += 1
            except PrivacyError:
                break
    results.put(taken)


@pytest.mark.parametrize("studies", [(STUDY, STUDY), (STUDY, OTHER)])
def test_two_processes_at_once_never_spend_more_than_the_budget(tmp_path, identity, studies):
    with Ledger.create(tmp_path / "site", identity, site="site", limits=LIMITS, approved_by="A") as ledger:
        for study in set(studies):
            ledger.approve(study, "s", [Release(TRAINING, CHARGE, ROUNDS)], approved_by="A")
        limits = tighten(ledger, epsilon_per_study=2.0, epsilon_per_year=2.0)
    fork = multiprocessing.get_context("fork")
    results = fork.Queue()
    arguments = [(tmp_path / "site", identity.to_private_bytes(), study, results) for study in studies]
    processes = [fork.Process(target=_spend_all, args=each) for each in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    with Ledger.open(tmp_path / "site", None) as ledger:
        spends = ledger.books.spends
    taken = [results.get(timeout=5) for _ in processes]
    assert budget.figures(spends, limits.delta).deciding <= 2.0
    if studies[0] != studies[1]:
        assert sum(taken) == len(spends)  # nobody went on with a charge that is not in the ledger
        more = (*spends, Spend(OTHER, 2026, CHARGE))
        assert budget.figures(more, limits.delta).deciding > 2.0
    else:
        assert len(spends) == max(taken)


def test_of_two_copies_of_one_worker_only_one_releases(ledger, folder, identity, clock):
    with Ledger.open(folder, identity, clock=clock) as clone:
        first, second = reserve(ledger), reserve(clone)
        assert first == second
        clone.settle(second, b"one")
        with pytest.raises(PrivacyError, match="second release"):
            ledger.settle(first, b"other")


def test_a_charge_of_another_unit_is_refused_and_a_unit_never_changes(ledger):
    per_record = dataclasses.replace(CHARGE, unit="record")
    with pytest.raises(PrivacyError, match="per patient"):
        ledger.approve(OTHER, "main", [Release(TRAINING, per_record, 1)], approved_by="A")
    with pytest.raises(PrivacyError, match="ledger of its own"):
        ledger.adopt(dataclasses.replace(LIMITS, unit="record"), approved_by="A")


def test_a_release_without_protection_makes_every_figure_infinite_and_needs_an_unsafe_policy(make):
    with make() as ledger:
        with pytest.raises(PrivacyError, match="no bound at all"):
            ledger.approve(OTHER, "open", [Release(TRAINING, Unprotected(), 1)], approved_by="A")
        ledger.adopt(dataclasses.replace(LIMITS, unsafe_unlimited=True), approved_by="A")
        ledger.approve(OTHER, "open", [Release(TRAINING, Unprotected(), 1)], approved_by="A")
        ledger.reserve(Unprotected(), study=OTHER, round=1)
        ledger.adopt(LIMITS, approved_by="A")
        assert budget.figures(ledger.books.spends, LIMITS.delta).deciding == float("inf")
        with pytest.raises(PrivacyError):
            reserve(ledger, 1)


def test_a_missing_ledger_is_refused_with_the_command_that_a_person_runs(ledger, folder, identity, tmp_path):
    with pytest.raises(RunError, match="budget start"):
        Ledger.open(tmp_path / "never", identity)
    assert not (tmp_path / "never").exists()
    ledger.close()
    (folder / NAME).unlink()
    with pytest.raises(RunError, match="--replaces"):
        Ledger.open(folder, identity)
    with pytest.raises(RunError, match="--replaces"):
        Ledger.create(folder, identity, site="site", limits=LIMITS, approved_by="A")
    with Ledger.create(
        folder, identity, site="site", limits=LIMITS, approved_by="A", replaces="disk died"
    ) as new:
        assert new.books.opened.replaces == "disk died"


def test_a_ledger_is_never_overwritten_by_a_new_one(ledger, folder, identity):
    before = (folder / NAME).read_bytes()
    with pytest.raises(RunError, match="already"):
        Ledger.create(folder, identity, site="site", limits=LIMITS, approved_by="A", replaces="x")
    assert (folder / NAME).read_bytes() == before
    assert not list(folder.glob("*.new*"))


def test_two_people_who_start_a_ledger_at_once_get_one(ledger, folder, identity, monkeypatch):
    before = (folder / NAME).read_bytes()
    monkeypatch.setattr(Path, "exists", lambda path, **_: False)  # the other one comes after the look
    with pytest.raises(RunError):
        Ledger.create(folder, identity, site="site", limits=LIMITS, approved_by="B")
    assert (folder / NAME).read_bytes() == before


def test_the_ledger_of_another_key_is_refused_in_words(ledger, folder):
    with pytest.raises(CryptoError, match="belongs to the key"):
        Ledger.open(folder, SigningIdentity.generate())


def test_charges_and_releases_are_never_written_by_hand(ledger):
    ledger.settle(reserve(ledger), b"bytes")
    receipt = Anchored(counter=1, head="a" * 64, time="x", receipts={})
    bodies = {body.kind: body for body in (*(entry.body for entry in ledger.chain.entries), receipt)}
    assert set(bodies) == {"opened", "policy adopted", "study approved", "reserved", "settled", "anchored"}
    before = len(ledger.chain.entries)
    for body in bodies.values():
        with pytest.raises(PrivacyError, match="by hand"):
            ledger.record(body)
    assert len(ledger.chain.entries) == before
    assert ledger.record(Decided(what="a member left", by="Dr. Officer")).counter == before + 1


def test_nothing_is_settled_in_a_ledger_that_was_replaced_under_the_running_study(ledger, make):
    """The other ledger has a charge at the very same place, of another release."""
    made = reserve(ledger, 1)
    with make("other") as other:
        there = reserve(other, 2)
        assert there.counter == made.counter
        with pytest.raises(PrivacyError, match="replaced under the running study"):
            other.settle(made, b"bytes")
        assert other.books.reservations[there.counter].released_sha256 is None


def test_the_settled_hash_is_of_what_leaves(ledger):
    made = reserve(ledger)
    ledger.settle(made, b"bytes")
    assert ledger.books.reservations[made.counter].released_sha256 == hashlib.sha256(b"bytes").hexdigest()


@pytest.mark.parametrize(
    "change",
    [
        {"epsilon_per_study": 0},
        {"epsilon_per_year": float("nan")},
        {"epsilon_per_study": -1.0},
        {"delta": 0.0},
        {"delta": 1e-3},
        {"delta": 1.0},
        {"max_units": 0},
        {"unit": "image"},
        {"epsilon_per_study": 9.0},
        {"epsilon_overall": 0.0},
    ],
)
def test_impossible_limits_get_a_sentence_that_says_what_to_do(change):
    with pytest.raises(PrivacyError) as caught:
        Limits(**{**dataclasses.asdict(LIMITS), **change})
    assert caught.value.what
    assert caught.value.fix


def test_impossible_rounds_get_a_sentence_that_says_what_to_do(ledger):
    for times in (0, -1):
        with pytest.raises(PrivacyError) as caught:
            ledger.approve(OTHER, "main", [Release(TRAINING, CHARGE, times)], approved_by="A")
        assert caught.value.fix
    for number in (-1, 0):
        with pytest.raises(PrivacyError):
            reserve(ledger, number)


def test_twenty_equal_rounds_are_one_composition(make, monkeypatch):
    with make(rounds=20) as ledger:
        budget._figures.cache_clear()
        calls = []
        real = accounting.epsilon
        monkeypatch.setattr(
            accounting, "epsilon", lambda charges, delta: calls.append(1) or real(charges, delta)
        )
        for number in range(1, 11):
            reserve(ledger, number)
        assert len(calls) <= 1


def test_a_charge_is_spelled_in_one_way():
    for charge in (CHARGE, GaussianCharge(3.0), Unprotected("patient"), DpSgdCharge(1.0, 1.0, 2)):
        assert budget.charge_from_fields(budget.charge_to_fields(charge)) == charge
    for fields in ({}, {"mechanism": "laplace"}, {"mechanism": "gaussian", "noise_multiplier": 3.0}):
        with pytest.raises(PrivacyError):
            budget.charge_from_fields(fields)
