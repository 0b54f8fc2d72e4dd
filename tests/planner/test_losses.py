"""The planning accountant against closed forms, the authoritative accountant, and brute force."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.stats import norm

from secure_triplay.planner.losses import Losses, composed, noise_for
from secure_triplay.privacy.accounting import epsilon as authoritative
from secure_triplay.privacy.mechanisms import DpSgdCharge

SETTINGS = [
    # noise, rate, steps
    (0.9736, 0.25, 16),
    (0.80, 0.05, 200),
    (3.36, 0.1, 500),
    (1.0, 0.001, 3000),
    (0.6, 0.001, 1000),
    (10.0, 0.25, 20),
    (2.0, 1.0, 10),
    (0.5, 0.02, 5),
]


def gaussian_delta(mu: float, epsilon: float) -> float:
    """Balle and Wang (2018), theorem 5."""
    return norm.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * norm.cdf(-mu / 2 - epsilon / mu)


@pytest.mark.parametrize(("noise", "rate", "steps"), SETTINGS)
def test_planned_epsilon_is_never_below_the_authoritative_and_less_than_one_percent_above(noise, rate, steps):
    planned = composed(noise, rate, steps).epsilon(5e-6)
    decided = authoritative([DpSgdCharge(noise, rate, steps)], 5e-6)
    # Two parts in 10,000: both are upper bounds, and neither grid is the finer one everywhere.
    assert decided * (1 - 2e-4) <= planned <= decided * 1.01


@pytest.mark.parametrize("mu", [0.3, 1.0, 2.5])
def test_hit_rate_of_the_gaussian_mechanism_is_its_closed_form(mu):
    steps = 16
    pair = composed(math.sqrt(steps) / mu, 1.0, steps)
    for false_alarms in (0.1, 0.01, 0.001, 1e-4):
        exact = norm.cdf(norm.ppf(false_alarms) + mu)  # Dong, Roth and Su (2022), equation 6
        assert exact * (1 - 1e-9) <= pair.hit_rate(false_alarms) <= exact * 1.01


@pytest.mark.parametrize(("noise", "rate", "steps"), SETTINGS[:3])
def test_epsilon_counts_adding_as_well_as_removing(noise, rate, steps):
    """With the two data sets exchanged, the larger of both directions stays what it is."""
    pair = composed(noise, rate, steps)
    swapped = Losses(-pair.losses[::-1], pair.absent[::-1], pair.present[::-1], pair.escaped)
    assert swapped.epsilon(5e-6) == pytest.approx(pair.epsilon(5e-6), rel=1e-9)


@pytest.mark.parametrize("mu", [0.5, 2.0])
def test_epsilon_of_the_gaussian_mechanism_is_its_closed_form(mu):
    found = composed(3 / mu, 1.0, 9).epsilon(1e-6)
    assert gaussian_delta(mu, found) <= 1e-6 <= gaussian_delta(mu, found * 0.998)


def test_hit_rate_under_sampling_holds_against_simulated_attackers():
    """The likelihood ratio test on 400,000 simulated trainings with the record, and as many without."""
    noise, rate, steps, trials = 1.0, 0.3, 3, 400_000
    random = np.random.default_rng(7)

    def scores(present: bool) -> np.ndarray:
        sampled = random.random((trials, steps)) < rate if present else np.zeros((trials, steps))
        seen = sampled + noise * random.standard_normal((trials, steps))
        return np.log1p(rate * np.expm1((2 * seen - 1) / (2 * noise**2))).sum(axis=1)

    without, with_it = scores(False), scores(True)
    pair = composed(noise, rate, steps)
    for false_alarms in (0.1, 0.01, 0.001):
        threshold = np.quantile(without, 1 - false_alarms)
        found, alarms = np.mean(with_it > threshold), np.mean(without > threshold)
        found_std, alarms_std = (math.sqrt(rate / trials) for rate in (found, alarms))
        # The best test meets the ceiling, up to four standard deviations of either estimate.
        assert found - 4 * found_std <= pair.hit_rate(alarms + 4 * alarms_std)
        assert found + 4 * found_std >= pair.hit_rate(alarms - 4 * alarms_std)


def test_composition_is_that_of_every_pair_of_outcomes():
    """Two steps by brute force over the outcomes of one-step masses."""
    one, two = composed(1.5, 0.4, 1), composed(1.5, 0.4, 2)
    keep = np.flatnonzero(one.absent + one.present > 1e-12)[::3]
    scale = one.present[keep].sum()
    losses, mass = one.losses[keep], one.present[keep] / scale
    sums = [(a + b, p * q) for (a, p), (b, q) in itertools.product(zip(losses, mass, strict=True), repeat=2)]
    mean = sum(total * weight for total, weight in sums)
    assert mean == pytest.approx(float(two.losses @ two.present), rel=0.02)


@pytest.mark.parametrize("members", [1, 2, 4])
def test_a_family_in_every_step_costs_what_one_member_with_all_their_weight_does(members):
    """At rate 1 a family of k is one record with k times the clip norm: a closed form."""
    found = composed(8.0, 1.0, 9, members).epsilon(1e-6)
    mu = members * 3 / 8
    assert gaussian_delta(mu, found) <= 1e-6 <= gaussian_delta(mu, found * 0.998)


def test_a_sampled_family_costs_no_less_than_brute_force_over_its_mixture():
    """One step for three members: delta by numerical integration of the mixture of Gaussians."""
    noise, rate, members = 1.2, 0.3, 3
    x = np.linspace(-12, 16, 400_001)
    weights = [math.comb(members, j) * rate**j * (1 - rate) ** (members - j) for j in range(members + 1)]
    present = sum(w * norm.pdf(x, j, noise) for j, w in enumerate(weights))
    absent = norm.pdf(x, 0, noise)
    found = composed(noise, rate, 1, members).epsilon(1e-5)
    dx = x[1] - x[0]

    def delta(epsilon: float) -> float:
        there = np.maximum(present - math.exp(epsilon) * absent, 0).sum() * dx
        back = np.maximum(absent - math.exp(epsilon) * present, 0).sum() * dx
        return max(there, back)

    assert delta(found) <= 1e-5 * (1 + 1e-3)
    assert delta(0.99 * found) > 1e-5


@pytest.mark.parametrize(("target", "rate", "steps"), [(8, 0.25, 20), (0.5, 0.05, 100), (3, 1.0, 5)])
def test_noise_for_a_target_keeps_it_and_wastes_less_than_one_percent(target, rate, steps):
    noise = noise_for(target, 1e-6, rate, steps)
    spent = authoritative([DpSgdCharge(noise, rate, steps)], 1e-6)
    assert 0.99 * target <= spent <= target * (1 + 2e-4)


def test_too_little_noise_is_no_protection_rather_than_a_wrong_figure():
    assert composed(0.01, 0.5, 10) is None


@pytest.mark.parametrize("noise", [450.0, 700.0, 10_000.0])
@pytest.mark.parametrize("group", [2, 3, 4])
def test_groups_have_their_epsilon_under_any_noise_that_an_epsilon_asks_for(noise, group):
    """The root of a group's loss lies some noises away, and where one term stands alone, noise^2 away."""
    alone = composed(noise, 0.5, 30).epsilon(5e-6)
    assert group * alone <= composed(noise, 0.5, 30, group).epsilon(5e-6) <= 2 * group * alone
