"""Epsilon against published figures, closed forms, brute-force integrals, and a second accountant."""

from __future__ import annotations

import math
import subprocess
import sys

import dp_accounting
import numpy as np
import pytest
from dp_accounting.rdp.rdp_privacy_accountant import RdpAccountant
from scipy import integrate, optimize, special, stats

from secure_triplay.errors import PrivacyError
from secure_triplay.privacy import accounting
from secure_triplay.privacy.accounting import epsilon, epsilon_prv_check, noise_multiplier_for
from secure_triplay.privacy.mechanisms import (
    DpSgd,
    DpSgdCharge,
    GaussianCharge,
    SharedNoiseCharge,
    check_delta,
)

RULE = DpSgd(
    noise_multiplier=1.0,
    l2_clip_norm=0.1,
    sampling_rate=0.1,
    expected_batch_size=50.0,
    steps=3,
    learning_rate=1.0,
)


def exact_gaussian_epsilon(mu: float, delta: float) -> float:
    """Balle and Wang 2018, theorem 8, solved by brute force."""

    def gap(eps: float) -> float:
        return (
            stats.norm.cdf(mu / 2 - eps / mu) - math.exp(eps + stats.norm.logcdf(-mu / 2 - eps / mu)) - delta
        )

    return optimize.brentq(gap, 0, 1000)


def exact_delta_of_one_step(sigma: float, rate: float, eps: float) -> float:
    """Hockey-stick divergence of one subsampled Gaussian, integrated; the worse of both directions."""

    def without(x: float) -> float:
        return stats.norm.pdf(x, 0, sigma)

    def with_it(x: float) -> float:
        return (1 - rate) * stats.norm.pdf(x, 0, sigma) + rate * stats.norm.pdf(x, 1, sigma)

    def divergence(p, q) -> float:
        grid = np.linspace(-12 * sigma, 1 + 12 * sigma, 400_001)
        return integrate.trapezoid(np.maximum(p(grid) - math.exp(eps) * q(grid), 0), grid)

    return max(divergence(with_it, without), divergence(without, with_it))


@pytest.mark.parametrize(
    ("sigma", "rate", "steps", "published"),
    [
        (4.0, 0.01, 10_000, 1.26),  # Abadi et al. 2016, section 3.2 (moments accountant)
        (1.12, 256 / 60_000, 14_062, 2.92),  # TensorFlow Privacy, MNIST tutorial: 60 epochs
        (0.6, 256 / 60_000, 7_031, 9.74),  # same: 30 epochs
        (1.2, 256 / 60_000, 2_344, 1.20),  # same: 10 epochs
        (1.3, 256 / 60_000, 4_688, 1.34),  # Bu et al. 2020, figure 4: 20 epochs
        (0.7, 256 / 60_000, 16_406, 8.68),  # same: 70 epochs
    ],
)
def test_classic_mnist_settings_cost_a_little_less_than_was_published(sigma, rate, steps, published):
    """Published are Renyi upper bounds at delta 1e-5; a tight accountant lies a little below them."""
    ours = epsilon([DpSgdCharge(sigma, rate, steps)], 1e-5)
    assert 0.6 * published < ours < published


@pytest.mark.parametrize(("sigma", "steps", "delta"), [(1.0, 1, 1e-5), (4.5, 40, 1e-7), (30.0, 1000, 1e-10)])
def test_full_batches_cost_what_the_gaussian_mechanism_costs_exactly(sigma, steps, delta):
    exact = exact_gaussian_epsilon(math.sqrt(steps) / sigma, delta)
    assert epsilon([DpSgdCharge(sigma, 1.0, steps)], delta) == pytest.approx(exact, rel=5e-4)
    assert epsilon([GaussianCharge(sigma, steps)], delta) == pytest.approx(exact, rel=5e-4)


@pytest.mark.parametrize(("sigma", "rate"), [(0.7, 0.01), (1.0, 0.25), (2.0, 0.5)])
def test_one_sampled_step_costs_what_its_definition_says(sigma, rate):
    ours = epsilon([DpSgdCharge(sigma, rate, 1)], 1e-5)
    assert exact_delta_of_one_step(sigma, rate, ours) <= 1e-5 * (1 + 1e-6)
    assert exact_delta_of_one_step(sigma, rate, ours * 0.997) > 1e-5


def exact_delta_of_few_steps(sigma: float, rate: float, steps: int, eps: float, points: int) -> float:
    """Hockey-stick divergence of all steps' outcomes together, on a grid over every one of them.

    The outcomes of different steps are independent, so their density is the product. No losses, no
    convolution, no Fourier transform: nothing that the accountants do.
    """
    grid = np.linspace(-9 * sigma, 1 + 9 * sigma, points)
    cell = grid[1] - grid[0]
    absent = stats.norm.pdf(grid, 0, sigma) * cell
    present = (1 - rate) * absent + rate * stats.norm.pdf(grid, 1, sigma) * cell
    without, with_it = np.ones(1), np.ones(1)
    for _ in range(steps):
        without = np.multiply.outer(without, absent).reshape(-1)
        with_it = np.multiply.outer(with_it, present).reshape(-1)
    return max(
        np.maximum(with_it - math.exp(eps) * without, 0).sum(),
        np.maximum(without - math.exp(eps) * with_it, 0).sum(),
    )


@pytest.mark.parametrize(("sigma", "rate"), [(0.8, 0.05), (1.2, 0.5), (2.0, 1.0)])
@pytest.mark.parametrize(("steps", "points"), [(2, 1500), (3, 180)])
def test_a_few_sampled_steps_cost_what_their_definition_says(sigma, rate, steps, points):
    ours = epsilon([DpSgdCharge(sigma, rate, steps)], 1e-4)
    assert exact_delta_of_few_steps(sigma, rate, steps, ours, points) <= 1e-4 * (1 + 5e-3)
    assert exact_delta_of_few_steps(sigma, rate, steps, ours * 0.99, points) > 1e-4


def renyi_epsilon(sigma: float, rate: float, steps: int, delta: float) -> float:
    """Mironov, Talwar and Zhang 2019, section 3.3: the binomial sum at whole orders, and the classic conversion."""
    best = math.inf
    for order in range(2, 200):
        terms = [
            special.gammaln(order + 1)
            - special.gammaln(k + 1)
            - special.gammaln(order - k + 1)
            + special.xlogy(order - k, 1 - rate)
            + k * math.log(rate)
            + (k * k - k) / (2 * sigma**2)
            for k in range(order + 1)
        ]
        best = min(best, (steps * special.logsumexp(terms) + math.log(1 / delta)) / (order - 1))
    return best


@pytest.mark.parametrize(
    ("sigma", "rate", "steps", "delta"),
    [
        (0.97362, 0.25, 16, 5e-6),  # the demo
        (1.1942, 0.5, 12, 5e-5),  # blood cells
        (1.1, 256 / 60_000, 14_062, 1e-5),
        (4.0, 0.01, 10_000, 1e-5),
        (20.0, 0.1, 500, 1e-6),
    ],
)
def test_a_third_accountant_lies_above_and_not_far(sigma, rate, steps, delta):
    """Renyi accounting is an upper bound that is never tight; far apart, one of the two would be wrong."""
    ours, third = epsilon([DpSgdCharge(sigma, rate, steps)], delta), renyi_epsilon(sigma, rate, steps, delta)
    assert 0.7 * third < ours < third
    theirs = RdpAccountant().compose(dp_event(sigma, rate, steps)).get_epsilon(delta)
    assert 0.75 * theirs < ours < theirs <= third * (1 + 1e-9)


def dp_event(sigma: float, rate: float, steps: int):
    step = dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(sigma))
    return dp_accounting.SelfComposedDpEvent(step, steps)


def test_unlike_mechanisms_compose_as_one_history_not_epsilon_by_epsilon():
    history = [GaussianCharge(3.0, 2), GaussianCharge(10.0, 5), DpSgdCharge(6.0, 1.0, 4)]
    mu = math.sqrt(2 / 9 + 5 / 100 + 4 / 36)
    assert epsilon(history, 1e-6) == pytest.approx(exact_gaussian_epsilon(mu, 1e-6), rel=5e-4)
    assert epsilon(history, 1e-6) < sum(epsilon([charge], 1e-6) for charge in history)


def test_rounds_cost_together_what_one_long_round_costs():
    """An accountant that starts anew each round would give the price of one."""
    rounds = [DpSgdCharge(1.3, 0.25, 1)] * 20
    assert epsilon(rounds, 1e-6) == epsilon([DpSgdCharge(1.3, 0.25, 20)], 1e-6)
    assert epsilon(rounds, 1e-6) > 2 * epsilon(rounds[:1], 1e-6)


def test_every_charge_raises_epsilon_and_order_does_not_matter():
    first, second = DpSgdCharge(1.5, 0.2, 10), DpSgdCharge(2.5, 0.3, 10)
    both = epsilon([first, second], 1e-6)
    assert both > max(epsilon([first], 1e-6), epsilon([second], 1e-6))
    assert both == epsilon([second, first], 1e-6)
    assert epsilon([], 1e-6) == 0


@pytest.mark.parametrize(
    "history",
    [
        [DpSgdCharge(1.1, 256 / 60_000, 14_062)],
        [DpSgdCharge(1.5, 0.3, 40)],
        [DpSgdCharge(0.5, 0.001, 60)],
        [DpSgdCharge(50.0, 0.01, 1000)],
        [DpSgdCharge(1.3, 0.25, 20), DpSgdCharge(2.0, 0.1, 100), GaussianCharge(20.0)],
        [DpSgdCharge(20.0, 1.0, 40)],
    ],
)
def test_two_independent_accountants_agree(history):
    ours, second = epsilon(history, 1e-6), epsilon_prv_check(history, 1e-6)
    assert abs(ours - second) <= max(0.01, 0.01 * ours)
    assert second != ours


@pytest.mark.parametrize("factor", [0.97, 1.03])
def test_accountants_that_disagree_stop_the_release(monkeypatch, factor):
    history = [DpSgdCharge(1.5, 0.3, 40)]
    figure = epsilon(history, 1e-6)
    monkeypatch.setattr(accounting, "_prv_epsilon", lambda *args: figure * factor)
    with pytest.raises(PrivacyError, match="disagree"):
        epsilon_prv_check(history, 1e-6)


def test_second_accountant_that_fails_stops_the_release(monkeypatch):
    from opacus.accountants import PRVAccountant

    def fail(*args, **kwargs):
        raise RuntimeError("no figure")

    monkeypatch.setattr(PRVAccountant, "get_epsilon", fail)
    with pytest.raises(PrivacyError, match="second accountant"):
        epsilon_prv_check([DpSgdCharge(1.51, 0.3, 40)], 1e-6)


@pytest.mark.parametrize(
    ("target", "delta", "rate", "steps"),
    [
        (8.0, 1e-5 / 3, 0.25, 20),
        (8.0, 1e-6, 0.3, 40),
        (1.0, 1e-6, 0.01, 1000),
        (0.05, 1e-6, 0.1, 40),
        (50.0, 1e-6, 0.2, 40),
        (8.0, 1e-7, 1.0, 40),
        (2.5, 1e-5, 256 / 60_000, 14_062),
    ],
)
def test_noise_for_a_target_never_exceeds_it_and_wastes_little(target, delta, rate, steps):
    noise = noise_multiplier_for(target, delta, rate, steps)
    spent = epsilon([DpSgdCharge(noise, rate, steps)], delta)
    assert 0.998 * target <= spent <= target


def test_next_to_no_noise_costs_infinity_at_once():
    assert epsilon([DpSgdCharge(1e-6, 0.5, 20)], 1e-6) == math.inf
    assert epsilon_prv_check([DpSgdCharge(1e-6, 0.5, 20)], 1e-6) == math.inf


IMPOSSIBLE = {
    "epsilon zero": lambda: noise_multiplier_for(0.0, 1e-6, 0.1, 10),
    "epsilon negative": lambda: noise_multiplier_for(-1.0, 1e-6, 0.1, 10),
    "epsilon not a number": lambda: noise_multiplier_for(math.nan, 1e-6, 0.1, 10),
    "epsilon absurd": lambda: noise_multiplier_for(1e6, 1e-6, 0.1, 10),
    "delta zero": lambda: noise_multiplier_for(8.0, 0.0, 0.1, 10),
    "delta one": lambda: epsilon([DpSgdCharge(1.0, 0.1, 1)], 1.0),
    "delta below what can be computed": lambda: epsilon([DpSgdCharge(1.0, 0.1, 1)], 1e-12),
    "rate zero": lambda: noise_multiplier_for(8.0, 1e-6, 0.0, 10),
    "rate above one": lambda: noise_multiplier_for(8.0, 1e-6, 1.01, 10),
    "no steps": lambda: noise_multiplier_for(8.0, 1e-6, 0.1, 0),
    "half a step": lambda: DpSgdCharge(1.0, 0.1, 1.5),
    "steps a boolean": lambda: DpSgdCharge(1.0, 0.1, True),
    "no noise": lambda: DpSgdCharge(0.0, 0.1, 1),
    "infinite noise": lambda: DpSgdCharge(math.inf, 0.1, 1),
    "negative rate": lambda: DpSgdCharge(1.0, -0.1, 1),
    "no release": lambda: GaussianCharge(1.0, 0),
    "unknown unit": lambda: DpSgdCharge(1.0, 0.1, 1, unit="household"),
    "replace-one relation": lambda: GaussianCharge(1.0, neighbouring="replace"),
    "rule without noise": lambda: DpSgd(0.0, 0.1, 0.1, 50.0, 3, 1.0),
    "rule without clipping": lambda: DpSgd(1.0, math.inf, 0.1, 50.0, 3, 1.0),
    "rule with no normaliser": lambda: DpSgd(1.0, 0.1, 0.1, 0.0, 3, 1.0),
    "rule with no memory": lambda: DpSgd(1.0, 0.1, 0.1, 50.0, 3, 1.0, physical_batch_size=0),
    "delta zero for the records": lambda: check_delta(0.0, 1000),
    "delta too large for the records": lambda: check_delta(1.1e-5, 1000),
    "no records at most": lambda: check_delta(1e-6, 0),
    "records and patients in one history": lambda: epsilon(
        [DpSgdCharge(1.0, 0.1, 1), DpSgdCharge(1.0, 0.1, 1, unit="patient")], 1e-6
    ),
}


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_impossible_settings_get_a_sentence_and_a_way_out(case):
    with pytest.raises(PrivacyError) as caught:
        IMPOSSIBLE[case]()
    assert len(caught.value.what) > 10
    assert len(caught.value.fix) > 5


def test_delta_is_at_most_one_hundredth_of_a_record():
    check_delta(1e-5, 1000)
    check_delta(1 / (100 * 3000), 3000)


def test_a_rule_charges_its_public_constants():
    assert RULE.charge == DpSgdCharge(noise_multiplier=1.0, sampling_rate=0.1, steps=3)
    assert RULE.noise_std == pytest.approx(0.1)


def test_planning_a_budget_needs_no_torch():
    code = (
        "import sys; from secure_triplay.privacy.accounting import noise_multiplier_for as f;"
        "f(8.0, 1e-6, 0.3, 40); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=120).returncode == 0


@pytest.mark.parametrize("module", ["cli.budget", "cli.site", "ledger.ledger", "privacy.renyi"])
def test_a_command_that_computes_no_epsilon_does_not_wait_for_the_accountant(module, fresh_imports):
    assert not {"dp_accounting", "scipy.stats"} & fresh_imports(f"secure_triplay.{module}")


_HUGE = 10**400
_SHARED = {
    "noise_multiplier": 1.0,
    "l2_sensitivity": 10,
    "sampling_rate": 0.1,
    "steps": 1,
    "honest_shares": 1,
    "colluders": 1,
}


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        (DpSgdCharge, {"noise_multiplier": 1e-300, "sampling_rate": 0.1, "steps": 1}),
        (DpSgdCharge, {"noise_multiplier": 1e300, "sampling_rate": 0.1, "steps": 1}),
        (DpSgdCharge, {"noise_multiplier": 10**30, "sampling_rate": 0.1, "steps": 1}),
        (DpSgdCharge, {"noise_multiplier": 1.0, "sampling_rate": 1e-300, "steps": 1}),
        (DpSgdCharge, {"noise_multiplier": 1e4, "sampling_rate": 0.1, "steps": 10**9}),
        (DpSgdCharge, {"noise_multiplier": 1.0, "sampling_rate": 0.1, "steps": _HUGE}),
        (GaussianCharge, {"noise_multiplier": _HUGE}),
        (GaussianCharge, {"noise_multiplier": 1.0, "releases": _HUGE}),
        (SharedNoiseCharge, _SHARED | {"noise_multiplier": 1e154}),
        (SharedNoiseCharge, _SHARED | {"l2_sensitivity": 10**200}),
        (SharedNoiseCharge, _SHARED | {"steps": _HUGE}),
    ],
)
def test_what_no_accountant_computes_is_refused_in_words_and_at_once(kind, given):
    with pytest.raises(PrivacyError):
        epsilon([kind(**given)], 1e-6)


def test_a_study_of_more_steps_than_are_accounted_for_is_refused_at_once():
    for steps in (10**9, _HUGE):
        with pytest.raises(PrivacyError, match="steps are impossible"):
            noise_multiplier_for(8.0, 1e-6, 0.5, steps)
    with pytest.raises(PrivacyError, match="smaller than the accountants compute"):
        noise_multiplier_for(8.0, 1e-6, 1e-300, 30)
