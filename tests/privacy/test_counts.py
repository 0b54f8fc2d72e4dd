"""Noised counts: as much noise as is charged for, whatever one unit does."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from secure_triplay.config import parse_study
from secure_triplay.constants import charges_of, class_count_rule, count_rule, noise_multiplier
from secure_triplay.errors import ConfigError, PrivacyError
from secure_triplay.privacy import accounting
from secure_triplay.privacy.counts import (
    ClassCountRule,
    CountRule,
    log_shares,
    noised_class_counts,
    noised_counts,
)
from secure_triplay.privacy.mechanisms import DpSgdCharge, GaussianCharge
from secure_triplay.privacy.noise import NoiseSource


@pytest.mark.parametrize("most", [1, 3])
def test_one_unit_moves_the_counts_by_no_more_than_the_noise_is_for(most):
    rule = CountRule(noise_multiplier=2.0, records_per_unit=most, most_units=10, unit="patient")
    # Every way in which a unit's records, at most `most`, can be right or wrong.
    moves = [
        math.hypot(sum(right), len(right))
        for count in range(most + 1)
        for right in itertools.product((0, 1), repeat=count)
    ]
    assert rule.noise_std == pytest.approx(rule.noise_multiplier * max(moves))


def test_noise_has_the_standard_deviation_that_is_charged():
    rule = CountRule(noise_multiplier=5.0, records_per_unit=2, most_units=1000, unit="patient")
    drawn = np.array([noised_counts(30, 70, rule, NoiseSource()) for _ in range(4000)])
    assert drawn.std(axis=0) == pytest.approx([5 * 2 * math.sqrt(2)] * 2, rel=0.06)
    assert drawn.mean(axis=0) == pytest.approx([30, 70], abs=1.2)
    assert abs(np.corrcoef(drawn.T)[0, 1]) < 0.08
    assert rule.charge == GaussianCharge(5.0, unit="patient")


def test_training_and_published_accuracy_together_cost_the_studys_epsilon_and_no_more(demo):
    alone = noise_multiplier(parse_study(demo))
    demo["published_accuracy"] = {"noise_multiplier": 5.0}
    study = parse_study(demo)
    noise, rule, dp = noise_multiplier(study), count_rule(study), study.dp
    assert noise > alone
    training = DpSgdCharge(noise, dp.sampling_rate, study.total_steps)
    spent = accounting.epsilon([training, rule.charge], dp.delta)
    assert 0.99 * dp.epsilon < spent <= dp.epsilon
    assert accounting.epsilon([training], dp.delta) < spent


def test_an_accuracy_that_costs_more_than_the_whole_budget_is_refused(demo):
    demo["privacy"]["epsilon"] = 0.1
    demo["published_accuracy"] = {"noise_multiplier": 1.0}
    with pytest.raises(PrivacyError, match="besides the training"):
        noise_multiplier(parse_study(demo))


def test_a_study_that_does_not_ask_for_it_has_no_round_for_it(demo):
    study = parse_study(demo)
    assert count_rule(study) is None
    assert study.total_rounds == study.training.rounds
    demo["published_accuracy"] = {}
    assert parse_study(demo).total_rounds == study.training.rounds + 1


@pytest.mark.parametrize("asked", ["published_accuracy", "personal_bias"])
def test_without_privacy_there_is_nothing_to_charge(demo, asked):
    dp = demo["privacy"]
    rate, size = dp["sampling_rate"], dp["expected_batch_size"]
    demo["privacy"] = {"unsafe_dp_off": True, "sampling_rate": rate, "expected_batch_size": size}
    demo["codec"]["range"] = 0.1
    demo[asked] = {}
    with pytest.raises(ConfigError, match="charge of its own"):
        parse_study(demo)


@pytest.mark.parametrize("most", [1, 3])
def test_one_unit_moves_the_class_counts_by_no_more_than_the_noise_is_for(most):
    rule = ClassCountRule(noise_multiplier=2.0, records_per_unit=most, unit="patient")
    # Every way in which a unit's records, at most `most`, can be of three classes.
    moves = [
        math.hypot(*(classes.count(k) for k in range(3)))
        for count in range(most + 1)
        for classes in itertools.product(range(3), repeat=count)
    ]
    assert rule.noise_std == pytest.approx(rule.noise_multiplier * max(moves))
    assert rule.charge == GaussianCharge(2.0, unit="patient")


def test_each_class_count_has_noise_of_its_own_as_large_as_is_charged():
    rule = ClassCountRule(noise_multiplier=5.0, records_per_unit=2, unit="patient")
    labels = np.repeat([0, 2, 3], [40, 100, 7])
    drawn = np.array([noised_class_counts(labels, 4, rule, NoiseSource()) for _ in range(4000)])
    assert drawn.std(axis=0) == pytest.approx([10.0] * 4, rel=0.06)
    assert drawn.mean(axis=0) == pytest.approx([40, 0, 100, 7], abs=0.9)
    assert np.abs(np.corrcoef(drawn.T) - np.eye(4)).max() < 0.09


def test_class_shares_are_those_of_the_counts_and_no_class_is_ruled_out():
    shares = np.exp(log_shares(np.array([6000.0, 3000.0, 980.0, -35.0]), 20.0))
    assert shares == pytest.approx([0.6, 0.3, 0.098, 0.002])


def test_training_accuracy_and_class_counts_together_cost_the_studys_epsilon_and_no_more(demo):
    noises = [noise_multiplier(parse_study(demo))]
    for asked in ("personal_bias", "published_accuracy"):
        demo[asked] = {}
        noises.append(noise_multiplier(parse_study(demo)))
    assert noises == sorted(set(noises))  # each takes a little from the training
    study = parse_study(demo)
    training = DpSgdCharge(noises[-1], study.dp.sampling_rate, study.total_steps)
    whole = [training, count_rule(study).charge, class_count_rule(study).charge]
    assert sorted(map(repr, charges_of(study))) == sorted(map(repr, whole))
    assert 0.99 * study.dp.epsilon < accounting.epsilon(whole, study.dp.delta) <= study.dp.epsilon


def test_a_study_without_class_counts_has_the_hash_that_it_had_before_there_were_any(demo):
    study = parse_study(demo)
    assert b"personal_bias" not in study.canonical()
    demo["personal_bias"] = {}
    assert parse_study(demo).sha256 != study.sha256
    assert class_count_rule(study) is None
    assert parse_study(demo).total_rounds == study.total_rounds  # it takes no round
    plain = parse_study(demo).sha256
    demo["personal_bias"] = {
        "in_training": False
    }  # likewise for studies from before a bias could stand in training
    assert parse_study(demo).sha256 == plain
    demo["personal_bias"] = {"in_training": True}
    assert parse_study(demo).sha256 != plain
