r"""Renyi accounting of noise that sites share: Skellam, under Poisson sampling, composed with anything else.

*One sum.* Between neighbours an integer sum differs by a vector of L2 norm at most D2, and then of L1 norm at most
D1 = D2^2, since |k| <= k^2 for integers. Skellam noise of variance v in each coordinate costs, at an integer order a,

    R(a) = a D2^2 / (2 v) + min( ((2a - 1) D2^2 + 6 D1) / (4 v^2), 3 D1 / (2 v) )                       (1)

at most (Agarwal, Kairouz and Liu 2021, "The Skellam Mechanism for Differentially Private Federated Learning",
corollary 3.6, whose mu is the variance). The first term is the Gaussian's. What rounding, the order of the records and
the other records' draws decide is mixed over: at orders above 1, Renyi divergence of mixtures is at most the worst of
the parts (joint quasi-convexity; van Erven and Harremoes 2014, theorem 13).

*Sampled.* A record takes part with probability q. With Q the release without it, P with it, M = (1-q) Q + q P:

    E_Q[(M/Q)^a] = sum_l C(a, l) (1-q)^(a-l) q^l exp((l-1) R(l))                                       (2)

by the binomial theorem, for integer a: the direction D_a(M || Q), exactly. The other one, D_a(Q || M), is no larger
where an involution n maps P to Q (Mironov, Talwar and Zhang 2019, theorem 5): here n(x) = d - x, as Skellam noise is
symmetric and P is Q shifted by an integer vector d. Their proof, on integers: with N = (1-q) P + q Q, sums over x and
n(x) pair the terms, and with Q <= P at x the claim is h(Q) >= h(N) for h(x) = (x+s)^a x^(1-a) - x^a (x+s)^(1-a),
s = q (P - Q), where Q <= N. h(x) = x f(1 + s/x) with f(r) = r^a - r^(1-a), which is convex from 1 on and zero there,
so h' = f(r) - (r - 1) f'(r) <= 0. So (2) needs no factor for general mechanisms (Zhu and Wang 2019, theorem 5, has 3).

*Other orders.* log of (2) is convex in a (a cumulant generating function) and zero at 1, so between integers the chord
bounds it from above.

The conversion to (epsilon, delta) is dp-accounting's (Canonne, Kamath and Steinke 2020, proposition 12).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache

import numpy as np
from scipy.special import gammaln, logsumexp

from secure_triplay.errors import PrivacyError
from secure_triplay.privacy.mechanisms import (
    Charge,
    DpSgdCharge,
    SharedNoiseCharge,
    check_delta,
    check_epsilon,
    check_rate,
    check_steps,
)

ORDERS = (
    *(2 + n / 10 for n in range(80)),
    *(10 + n / 2 for n in range(40)),
    *range(30, 64),
    *range(64, 256, 8),
    *range(256, 1025, 64),
)
_HARDLY = 1e-4  # to which the noise for an epsilon is searched, upwards


def skellam_rdp(order: int, l2_sensitivity: float, variance: float) -> float:
    """Equation (1) with D1 = D2^2. Raises PrivacyError for an order that is not a whole number from 2."""
    if order != int(order) or order < 2:
        raise PrivacyError(f"the Skellam bound is for whole orders from 2, not {order!r}", where="accounting")
    squared = l2_sensitivity**2
    second = min((2 * order + 5) * squared / (4 * variance**2), 3 * squared / (2 * variance))
    return order * squared / (2 * variance) + second


def sampled_rdp(rdp: Callable[[int], float], order: int, rate: float) -> float:
    """Equation (2) as a divergence of integer `order`: `rdp` is that of symmetric noise at integer orders from 2."""
    if rate == 1:
        return rdp(order)
    drawn = np.arange(order + 1)
    logs = gammaln(order + 1) - gammaln(drawn + 1) - gammaln(order - drawn + 1)
    logs += (order - drawn) * math.log1p(-rate) + drawn * math.log(rate)
    logs[2:] += [(n - 1) * rdp(n) for n in range(2, order + 1)]
    return max(0.0, float(logsumexp(logs))) / (order - 1)


def shared_rdp(charge: SharedNoiseCharge, orders: Sequence[float]) -> list[float]:
    """What a charge costs at any orders above 1, by (1), (2) and chords."""

    def cumulant(order: int) -> float:
        if order == 1:
            return 0.0
        return (order - 1) * _one_sum(charge.l2_sensitivity, charge.variance, charge.sampling_rate, order)

    found = []
    for order in orders:
        below = math.floor(order)
        part = order - below
        chord = (1 - part) * cumulant(below) + (part * cumulant(below + 1) if part else 0.0)
        found.append(charge.steps * chord / (order - 1))
    return found


@lru_cache(maxsize=1 << 14)
def _one_sum(l2_sensitivity: float, variance: float, rate: float, order: int) -> float:
    return sampled_rdp(lambda n: skellam_rdp(n, l2_sensitivity, variance), order, rate)


def history_rdp(charges: Iterable[Charge], orders: Sequence[float]) -> list[float]:
    """What a history of any mechanisms costs at these orders: their sums (Mironov 2017, proposition 1)."""
    import dp_accounting  # here, as in `accounting`
    from dp_accounting.rdp.rdp_privacy_accountant import RdpAccountant

    total = np.zeros(len(orders))
    for charge, equal in Counter(charges).items():
        if isinstance(charge, SharedNoiseCharge):
            total += equal * np.asarray(shared_rdp(charge, orders))
            continue
        rate, times = (
            (charge.sampling_rate, charge.steps)
            if isinstance(charge, DpSgdCharge)
            else (1.0, charge.releases)
        )
        gaussian = dp_accounting.GaussianDpEvent(charge.noise_multiplier)
        event = gaussian if rate == 1 else dp_accounting.PoissonSampledDpEvent(rate, gaussian)
        accountant = RdpAccountant(orders)
        accountant.compose(event, times)
        total += equal * np.asarray(accountant.rdp)
    return [float(value) for value in total]


def renyi_epsilon(charges: Iterable[Charge], delta: float, orders: Sequence[float] = ORDERS) -> float:
    """Epsilon at `delta` of a history of one unit, whatever its mechanisms; an upper bound."""
    from dp_accounting.rdp.rdp_privacy_accountant import compute_epsilon

    check_delta(delta)
    return max(0.0, float(compute_epsilon(orders, history_rdp(charges, orders), delta)[0]))


@lru_cache(maxsize=256)
def shared_noise_multiplier_for(
    epsilon: float, delta: float, sampling_rate: float, steps: int, l2_sensitivity: int
) -> float:
    """A noise multiplier, rounded up to five digits, whose `steps` sums cost at most `epsilon` by `renyi_epsilon`.

    Raises PrivacyError for impossible settings.
    """
    check_epsilon(epsilon)
    check_delta(delta)
    check_rate(sampling_rate)
    check_steps(steps)

    def spent(noise: float) -> float:
        # how many honest shares make the noise does not enter its price
        return renyi_epsilon([SharedNoiseCharge(noise, l2_sensitivity, sampling_rate, steps, 1, 1)], delta)

    low, high = 1e-2, 1e2
    while spent(high) > epsilon:
        low, high = high, 10 * high
        if high > 1e7:
            raise PrivacyError(
                f"epsilon {epsilon:g} over {steps:,} steps is smaller than Renyi accounting resolves",
                where="epsilon",
                fix="choose a larger epsilon or fewer steps",
            )
    while high / low > 1 + _HARDLY:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if spent(middle) <= epsilon else (middle, high)
    digits = 10.0 ** (math.floor(math.log10(high)) - 4)
    noise = float(f"{math.ceil(high / digits) * digits:.5g}")
    return noise if spent(noise) <= epsilon else high
