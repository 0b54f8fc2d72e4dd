"""Renyi figures of shared noise lie above exact divergences, and meet the Gaussian's where they should."""

from __future__ import annotations

import math

import dp_accounting
import numpy as np
import pytest
from dp_accounting.rdp import RdpAccountant
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.special import logsumexp

from secure_triplay.errors import PrivacyError
from secure_triplay.privacy.accounting import accountant_of, epsilon, epsilon_prv_check
from secure_triplay.privacy.mechanisms import DpSgdCharge, GaussianCharge, SharedNoiseCharge
from secure_triplay.privacy.renyi import (
    ORDERS,
    history_rdp,
    renyi_epsilon,
    sampled_rdp,
    shared_noise_multiplier_for,
    shared_rdp,
    skellam_rdp,
)


def shared(noise=1.0, longest=1045, rate=0.25, steps=16, **more) -> SharedNoiseCharge:
    return SharedNoiseCharge(noise, longest, rate, steps, **({"honest_shares": 2, "colluders": 1} | more))


def log_skellam(variance: float, shift: int, reach: int) -> np.ndarray:
    """Log probabilities of Skellam noise moved by `shift`, on -reach .. reach."""
    return stats.skellam.logpmf(np.arange(-reach, reach + 1) - shift, variance / 2, variance / 2)


def divergence(first: np.ndarray, second: np.ndarray, order: float) -> float:
    """Renyi divergence of two distributions on the same points, from its definition."""
    kept = np.isfinite(first) & np.isfinite(second)
    return float(logsumexp(order * first[kept] + (1 - order) * second[kept])) / (order - 1)


def mixed(with_it: np.ndarray, without: np.ndarray, rate: float) -> np.ndarray:
    return np.logaddexp(math.log(rate) + with_it, math.log1p(-rate) + without)


def reach_of(variance: float, shift: int) -> int:
    return shift * 6 + math.ceil(12 * math.sqrt(variance)) + 30


@pytest.mark.parametrize("variance", [1.5, 4.0, 30.0, 400.0])
@pytest.mark.parametrize("shift", [1, 2, 5])
@pytest.mark.parametrize("order", [2, 3, 8])
def test_the_bound_lies_above_the_exact_divergence_of_skellam_noise(variance, shift, order):
    reach = reach_of(variance, shift) * (order if variance < 10 else 1)
    exact = divergence(log_skellam(variance, shift, reach), log_skellam(variance, 0, reach), order)
    assert exact <= skellam_rdp(order, shift, variance)
    if variance >= 30 * shift:
        assert skellam_rdp(order, shift, variance) < 1.25 * exact


@pytest.mark.parametrize("bits", [3, 4, 6])
def test_wrapping_modulo_a_power_of_two_costs_no_privacy(bits):
    """The divergence of the wrapped noise, exactly, at most that of the noise itself."""
    variance, shift, order, size = 6.0, 3, 4, 1 << bits
    points = np.arange(-400, 401)
    wrapped = []
    for moved in (shift, 0):
        density = np.exp(log_skellam(variance, moved, 400))
        wrapped.append(np.log(np.bincount(points % size, weights=density, minlength=size)))
    unwrapped = divergence(log_skellam(variance, shift, 400), log_skellam(variance, 0, 400), order)
    assert divergence(*wrapped, order) <= unwrapped * (1 + 1e-9) <= skellam_rdp(order, shift, variance)


@pytest.mark.parametrize("rate", [0.01, 0.25, 0.7])
@pytest.mark.parametrize(("variance", "shift"), [(4.0, 1), (30.0, 5), (400.0, 25)])
@pytest.mark.parametrize("order", [2, 3, 5, 9])
def test_sampling_amplifies_as_stated_in_both_directions(rate, variance, shift, order):
    """(2) is exact for "one more" and above "one less", with exact divergences put in."""
    reach = reach_of(variance, shift) * 3
    with_it, without = log_skellam(variance, shift, reach), log_skellam(variance, 0, reach)
    stated = sampled_rdp(lambda n: divergence(with_it, without, n), order, rate)
    more = divergence(mixed(with_it, without, rate), without, order)
    less = divergence(without, mixed(with_it, without, rate), order)
    assert stated == pytest.approx(more, rel=1e-6, abs=1e-9)
    assert less <= more * (1 + 1e-9)


@pytest.mark.parametrize("order", [2.3, 2.5, 4.9, 7.5])
def test_orders_between_whole_ones_are_bounded_by_the_chord(order):
    rate, longest, noise = 0.25, 5, 2.0
    variance = (longest * noise) ** 2
    reach = reach_of(variance, longest) * 2
    with_it, without = log_skellam(variance, longest, reach), log_skellam(variance, 0, reach)
    exact = max(
        divergence(mixed(with_it, without, rate), without, order),
        divergence(without, mixed(with_it, without, rate), order),
    )
    (stated,) = shared_rdp(shared(noise, longest, rate, 1), [order])
    assert exact <= stated < 1.2 * exact


def gaussian_rdp(noise: float, rate: float, orders) -> np.ndarray:
    event = dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(noise))
    return RdpAccountant(orders).compose(event).rdp


@pytest.mark.parametrize("rate", [0.001, 0.25, 0.9])
@pytest.mark.parametrize("noise", [0.8, 4.0])
def test_amplification_of_gaussian_noise_is_dp_accountings_and_below_the_general_bound(rate, noise):
    orders = [2, 3, 5, 17, 64]
    theirs = gaussian_rdp(noise, rate, orders)
    for order, other in zip(orders, theirs, strict=True):
        ours = sampled_rdp(lambda n: n / (2 * noise**2), order, rate)
        assert ours == pytest.approx(other, rel=1e-8, abs=1e-12)
        assert ours <= zhu_wang(lambda n: n / (2 * noise**2), order, rate) * (1 + 1e-9) + 1e-12


def zhu_wang(rdp, order: int, rate: float) -> float:
    """Zhu and Wang 2019, theorem 5: for any mechanism, with its factor of three."""
    logs = [(order - 1) * math.log1p(-rate) + math.log(order * rate - rate + 1)]
    for n in range(2, order + 1):
        drawn = math.log(math.comb(order, n)) + (order - n) * math.log1p(-rate) + n * math.log(rate)
        logs.append(drawn + (n - 1) * rdp(n) + (math.log(3) if n > 2 else 0))
    return float(logsumexp(logs)) / (order - 1)


def test_with_fine_grids_the_price_approaches_the_gaussians_from_above():
    orders = [2, 4, 8, 16]
    theirs = gaussian_rdp(1.3, 0.25, orders)
    gaps = []
    for longest in (4, 16, 64, 1045):
        ours = np.asarray(shared_rdp(shared(1.3, longest, 0.25, 1), orders))
        assert (ours >= theirs).all()
        gaps.append(float((ours / theirs - 1).max()))
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < 1e-4


@pytest.mark.parametrize("target", [0.5, 1.0, 8.0])
def test_noise_for_a_target_never_exceeds_it_and_wastes_little(target):
    noise = shared_noise_multiplier_for(target, 5e-6, 0.25, 16, 1045)
    assert 0.995 * target < epsilon([shared(noise)], 5e-6) <= target
    # Renyi's price is above that of the best accountant for Gaussian noise, and not far
    gaussian = epsilon([DpSgdCharge(noise, 0.25, 16)], 5e-6)
    assert gaussian <= epsilon([shared(noise)], 5e-6) < 1.2 * gaussian


@settings(max_examples=20, deadline=None)
@given(
    noise=st.floats(0.5, 20), more=st.floats(1.0001, 3), rate=st.floats(0.001, 1), steps=st.integers(1, 500)
)
def test_more_noise_fewer_steps_and_smaller_samples_never_cost_more(noise, more, rate, steps):
    figure = renyi_epsilon([shared(noise, 333, rate, steps)], 1e-6)
    assert renyi_epsilon([shared(noise * more, 333, rate, steps)], 1e-6) <= figure
    assert renyi_epsilon([shared(noise, 333, rate, steps + 1)], 1e-6) >= figure
    assert renyi_epsilon([shared(noise, 333, rate / 2, steps)], 1e-6) <= figure * (1 + 1e-9)


def test_unlike_mechanisms_compose_to_the_sum_of_their_divergences():
    rest = [DpSgdCharge(1.3, 0.25, 20), GaussianCharge(5.0, 2)]
    event = dp_accounting.ComposedDpEvent(
        [
            dp_accounting.SelfComposedDpEvent(
                dp_accounting.PoissonSampledDpEvent(0.25, dp_accounting.GaussianDpEvent(1.3)), 20
            ),
            dp_accounting.SelfComposedDpEvent(dp_accounting.GaussianDpEvent(5.0), 2),
        ]
    )
    theirs = RdpAccountant(ORDERS).compose(event).rdp
    assert history_rdp(rest, ORDERS) == pytest.approx(theirs)
    both = history_rdp([*rest, shared()], ORDERS)
    assert both == pytest.approx(theirs + np.asarray(shared_rdp(shared(), ORDERS)))
    assert epsilon([*rest, shared()], 1e-6) > max(epsilon(rest, 1e-6), epsilon([shared()], 1e-6))
    assert epsilon([shared(steps=4)] * 4, 1e-6) == pytest.approx(epsilon([shared()], 1e-6))
    assert "Renyi" in accountant_of([*rest, shared()])
    assert "PLD" in accountant_of(rest)


def test_a_history_of_next_to_no_noise_is_without_bound():
    assert epsilon([shared(0.01)], 1e-6) == math.inf


BAD = {
    "half an order": lambda: skellam_rdp(2.5, 1, 1.0),
    "order one": lambda: skellam_rdp(1, 1, 1.0),
    "no noise": lambda: shared(0.0),
    "noise that is no number": lambda: shared(math.nan),
    "a rate above one": lambda: shared(rate=1.1),
    "half a step": lambda: shared(steps=0.5),
    "no honest share": lambda: shared(honest_shares=0),
    "no colluder": lambda: shared(colluders=0),
    "a sensitivity that is no whole number": lambda: shared(longest=1.5),
    "another unit": lambda: shared(unit="household"),
    "two units": lambda: epsilon([shared(), GaussianCharge(1.0, unit="patient")], 1e-6),
    "no delta": lambda: renyi_epsilon([shared()], 0.0),
    "an epsilon of zero": lambda: shared_noise_multiplier_for(0.0, 1e-6, 0.5, 3, 100),
    "an epsilon below what can be resolved": lambda: shared_noise_multiplier_for(1e-3, 1e-10, 1.0, 3, 100),
    "the second accountant": lambda: epsilon_prv_check([shared()], 1e-6),
}


@pytest.mark.parametrize("bad", BAD)
def test_what_has_no_price_is_refused(bad):
    with pytest.raises(PrivacyError):
        BAD[bad]()
