"""What epsilon and delta allow a test of membership, against its linear programme."""

from __future__ import annotations

import math

import pytest
from scipy.optimize import linprog

from secure_triplay.errors import PrivacyError
from secure_triplay.privacy.region import hit_rate_in_region


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


@pytest.mark.parametrize("epsilon", [800.0, 1000.0, math.inf])
def test_an_epsilon_that_bounds_nothing_leaves_every_hit(epsilon):
    assert hit_rate_in_region(0.01, epsilon, 1e-6) == 1.0


@pytest.mark.parametrize("bad", [-0.1, 1.1, math.nan])
def test_impossible_false_alarm_rates_are_refused(bad):
    with pytest.raises(PrivacyError):
        hit_rate_in_region(bad, 1, 1e-6)


@pytest.mark.parametrize(("epsilon", "delta"), [(-0.1, 1e-6), (math.nan, 1e-6), (1.0, -1e-6), (1.0, 1.1)])
def test_what_is_no_guarantee_is_refused(epsilon, delta):
    with pytest.raises(PrivacyError):
        hit_rate_in_region(0.01, epsilon, delta)
