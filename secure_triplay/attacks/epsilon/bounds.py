"""From right guesses to a lower bound on epsilon: two published tests, each on counts fixed beforehand.

An auditor puts each of `canaries` records in or leaves it out by a fair coin, sees what training releases,
and names `guesses` canaries as "was in". How many of these may be right by chance is bounded by privacy
(Steinke, Nasr and Jagielski 2023, theorem 5.2; Mahloujifar, Melis and Chaudhuri 2024, theorem 9).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom, norm

from secure_triplay.errors import PrivacyError
from secure_triplay.planner.losses import composed
from secure_triplay.privacy.accounting import epsilon
from secure_triplay.privacy.mechanisms import DpSgdCharge, GaussianCharge

Inverse = Callable[[float], float]
"""The smallest false alarm rate at which a test may reach a given hit rate."""

_FINEST = 200  # grid points of the noise multiplier to a factor e: half a per cent each
_LOWEST, _HIGHEST = 0.05, 60.0


@dataclass(frozen=True)
class Guesses:
    """What an auditor got right: `correct` of `made`, out of `canaries` of which each was in by a fair coin.

    Raises PrivacyError for counts that contradict one another.
    """

    canaries: int
    made: int
    correct: int

    def __post_init__(self) -> None:
        if not 0 <= self.correct <= self.made <= self.canaries or self.made < 1:
            raise PrivacyError(
                f"{self.correct} right of {self.made} guesses on {self.canaries} canaries is impossible",
                where="audit",
                fix="count the guesses again",
            )


@dataclass(frozen=True)
class SubsampledGaussian:
    """Trade-off curves of `steps` Poisson-subsampled Gaussian steps, one for each noise multiplier.

    The very mechanism that a study claims, with the noise left open.
    """

    sampling_rate: float
    steps: int

    def inverse(self, noise: float) -> Inverse | None:
        """None where the noise is too small for any curve to be computed; then nothing is refuted."""
        return _subsampled_inverse(noise, self.sampling_rate, self.steps)

    def epsilon(self, noise: float, delta: float) -> float:
        """By the authoritative accountant."""
        return epsilon([DpSgdCharge(noise, self.sampling_rate, self.steps)], delta)


@dataclass(frozen=True)
class Gaussian:
    """Trade-off curves of one Gaussian mechanism (Dong, Roth and Su 2022): what the paper's own audits take."""

    def inverse(self, noise: float) -> Inverse | None:
        """Phi(Phi^-1(hits) - 1/noise)."""
        return lambda hits: float(norm.cdf(norm.ppf(min(hits, 1.0)) - 1 / noise))

    def epsilon(self, noise: float, delta: float) -> float:
        """By the authoritative accountant."""
        return epsilon([GaussianCharge(noise)], delta)


Family = SubsampledGaussian | Gaussian


def steinke_p_value(found: Guesses, epsilon: float, delta: float) -> float:
    """Chance of so many right guesses, at most, where (epsilon, delta) holds (Steinke 2023, theorem 5.2).

    Each guess is right with probability e^eps / (1 + e^eps) at most, independently, but for what delta adds.
    """
    right = 1 / (1 + math.exp(-epsilon))
    tail = float(binom.sf(found.correct - 1, found.made, right))
    fewer = np.arange(1, found.correct + 1)
    between = binom.sf(found.correct - fewer - 1, found.made, right) - tail
    worst = float(np.max(between / fewer, initial=0.0))
    return min(1.0, tail + 2 * found.canaries * delta * worst)


@lru_cache(maxsize=1024)
def steinke_bound(found: Guesses, delta: float, significance: float) -> float:
    """The largest epsilon that these guesses refute at `delta`; 0 where they refute none."""
    if steinke_p_value(found, 0.0, delta) > significance:
        return 0.0
    low, high = 0.0, 30.0
    while high - low > 1e-4:
        middle = (low + high) / 2
        if steinke_p_value(found, middle, delta) <= significance:
            low = middle
        else:
            high = middle
    return low


def fdp_refuted(inverse: Inverse, found: Guesses, significance: float) -> bool:
    """Whether a trade-off curve allows so many right guesses with probability below `significance`.

    Let p_l be the chance of exactly l right of n guesses on m canaries, r_j = sum over l >= j of l p_l / m
    and h_j = sum over l >= j of (n - l) p_l / m. The curve demands r_j <= hits(h_{j-1}) for every j, and all
    p_l together give r_0 + h_0 = n / m. The least mass that a tail of `significance` at `correct` drags
    along is followed downwards; more of it than n / m is a contradiction. For guesses "was in" alone, only
    the curve of "in" against "out" is needed.
    """
    m, n = found.canaries, found.made
    right = significance * found.correct / m
    wrong = significance * (n - found.correct) / m
    for i in range(found.correct - 1, -1, -1):
        needed = inverse(right)
        if needed <= wrong:  # then no mass is needed here, nor anywhere below
            break
        right, wrong = right + i / (n - i) * (needed - wrong), needed
        if right + wrong > n / m:
            return True
    return right + wrong > n / m


@lru_cache(maxsize=1024)
def fdp_bound(family: Family, found: Guesses, delta: float, significance: float) -> float:
    """Epsilon at `delta` of the least private curve of a family that the guesses refute; 0 for none.

    A lower bound on the epsilon of a mechanism whose curve is of that family.
    """

    def refuted(index: int) -> bool:
        inverse = family.inverse(_noise_at(index))
        return inverse is not None and fdp_refuted(inverse, found, significance)

    low, high = 0, math.ceil(math.log(_HIGHEST / _LOWEST) * _FINEST)
    if not refuted(high):
        return 0.0
    while high - low > 1:  # more noise is refuted more easily
        middle = (low + high) // 2
        if refuted(middle):
            high = middle
        else:
            low = middle
    return family.epsilon(_noise_at(high), delta)


def _noise_at(index: int) -> float:
    return _LOWEST * math.exp(index / _FINEST)


@lru_cache(maxsize=512)
def _subsampled_inverse(noise: float, rate: float, steps: int) -> Inverse | None:
    pair = composed(noise, rate, steps)
    if pair is None:
        return None
    hits: NDArray[np.float64] = np.cumsum(pair.present[::-1]) + pair.escaped
    alarms: NDArray[np.float64] = np.cumsum(pair.absent[::-1])
    keep = np.concatenate([[True], np.diff(hits) > 0])
    reach, cost = np.append(0.0, hits[keep]), np.append(0.0, alarms[keep])
    # What escaped the grid costs no false alarm: against us.
    reach = np.insert(reach, 1, pair.escaped)
    cost = np.insert(cost, 1, 0.0)
    return lambda wanted: float(np.interp(min(wanted, 1.0), reach, cost))
