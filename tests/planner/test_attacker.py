"""Ceilings against linear programmes, closed forms and a counterexample to a popular formula."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import linprog
from scipy.stats import norm

from secure_triplay.errors import PrivacyError
from secure_triplay.planner.attacker import (
    gallery_ceiling,
    group_guarantee,
    hit_rate_in_region,
    membership_ceiling,
)
from secure_triplay.planner.losses import composed


def best_hit_rate(false_alarms: float, epsilon: float, delta: float) -> float:
    """Largest P(A) where Q(A) = false alarms and the pair is (epsilon, delta) close on A and on the rest."""
    e = math.exp(epsilon)
    # One unknown, P(A); both directions on A and on its complement.
    limits = [
        (1, e * false_alarms + delta),
        (-1, delta + e * (1 - false_alarms) - 1),
        (-e, delta - false_alarms),
        (e, delta + e - (1 - false_alarms)),
    ]
    found = linprog([-1], A_ub=[[a] for a, _ in limits], b_ub=[b for _, b in limits], bounds=[(0, 1)])
    return float(found.x[0])


@pytest.mark.parametrize("epsilon", [0.0, 0.1, 1.0, 3.0, 8.0])
@pytest.mark.parametrize("false_alarms", [0.001, 0.01, 0.3])
def test_region_is_the_solution_of_its_linear_programme(epsilon, false_alarms):
    expected = best_hit_rate(false_alarms, epsilon, 1e-5)
    assert hit_rate_in_region(false_alarms, epsilon, 1e-5) == pytest.approx(expected, abs=1e-6)


def test_randomised_response_reaches_the_pure_bound():
    epsilon = math.log(3)  # truth with probability 3/4: found 3/4 at false alarms 1/4
    assert hit_rate_in_region(0.25, epsilon, 0) == pytest.approx(0.75)


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


@pytest.mark.parametrize("bad", [-0.1, 1.1, math.nan])
def test_impossible_false_alarm_rates_are_refused(bad):
    with pytest.raises(PrivacyError):
        hit_rate_in_region(bad, 1, 1e-6)


@pytest.mark.parametrize("bad", [0, -3, 2.5])
def test_impossible_galleries_are_refused(bad):
    with pytest.raises(PrivacyError):
        gallery_ceiling(bad, 1, 1e-6)
