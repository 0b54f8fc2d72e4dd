"""Ceilings against closed forms, the best possible picker and a counterexample to a popular formula."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import norm

from secure_triplay.errors import PrivacyError
from secure_triplay.planner.attacker import (
    gallery_ceiling,
    group_guarantee,
    membership_ceiling,
)
from secure_triplay.planner.losses import composed


def test_exact_ceiling_never_exceeds_what_epsilon_and_delta_allow():
    for noise, rate, steps in [(0.97, 0.25, 16), (2.0, 1.0, 4), (5.0, 0.1, 100)]:
        losses = composed(noise, rate, steps)
        epsilon = losses.epsilon(1e-6)
        for false_alarms in (0.1, 0.01, 0.001):
            ceiling = membership_ceiling(false_alarms, epsilon, 1e-6, losses)
            assert false_alarms <= ceiling.exact <= ceiling.region + 1e-9
            assert ceiling.tight == ceiling.exact


def test_gallery_ceiling_holds_against_the_best_possible_picker():
    """Each of m records shifts its own coordinate; the arg-max, which is the Bayes rule, stays below."""
    mu, size, trials = 2.0, 20, 200_000
    random = np.random.default_rng(3)
    seen = random.standard_normal((trials, size))
    seen[:, 0] += mu
    picked = np.mean(seen.argmax(axis=1) == 0)
    losses = composed(1 / mu, 1.0, 1)
    ceiling = gallery_ceiling(size, losses.epsilon(1e-6), 1e-6, losses).tight
    assert picked <= ceiling
    assert ceiling == pytest.approx(norm.cdf(norm.ppf(1 / size) + mu), rel=0.01)


def test_the_popular_posterior_formula_is_too_small_under_adding_and_removing():
    """Two records, pure epsilon 1: a mechanism that beats e^eps/(e^eps + m - 1) and meets our ceiling."""
    epsilon, size = 1.0, 2
    absent = np.array([0.5, 0.5])
    low = math.exp(-epsilon) / 2
    present = [np.array([1 - low, low]), np.array([low, 1 - low])]
    for with_it in present:  # it is pure-epsilon private under add/remove
        assert np.all(with_it <= math.exp(epsilon) * absent + 1e-12)
        assert np.all(absent <= math.exp(epsilon) * with_it + 1e-12)
    picked = (present[0][0] + present[1][1]) / 2
    assert picked > math.exp(epsilon) / (math.exp(epsilon) + size - 1)
    assert picked == pytest.approx(gallery_ceiling(size, epsilon, 0).tight)


def test_group_rule_is_the_sum_over_a_chain_of_neighbours():
    epsilon, delta = 0.7, 1e-6
    chained = sum(delta * math.exp(i * epsilon) for i in range(3))
    assert group_guarantee(epsilon, delta, 3) == pytest.approx((2.1, chained))
    assert group_guarantee(1.3, delta, 1) == pytest.approx((1.3, delta))


@pytest.mark.parametrize("bad", [0, -3, 2.5])
def test_impossible_galleries_are_refused(bad):
    with pytest.raises(PrivacyError):
        gallery_ceiling(bad, 1, 1e-6)
