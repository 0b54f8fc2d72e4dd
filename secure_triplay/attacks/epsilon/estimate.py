"""The noise that training really adds, measured on canaries that were once in and once out: an estimate.

Two runs, the second with exactly those canaries that the first left out. A Gaussian fitted to each side gives
the noise and the length of a canary, and their ratio the effective noise multiplier (Nasr et al. 2023,
section 5; Andrew et al. 2024). It is not a proof: it believes that the noise is Gaussian, that batches are
drawn as claimed, and that steps are independent. It sees small errors that no formal bound can see.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from secure_triplay.privacy.accounting import HOPELESS_EPSILON, epsilon
from secure_triplay.privacy.mechanisms import DpSgd, DpSgdCharge

_USUAL, _ALARM = 1.96, 4.0  # standard errors: of the interval shown, and before it counts against the claim
_TINY = 0.02  # noise multiplier below which nobody is protected, and no accountant is asked


@dataclass(frozen=True)
class Estimate:
    """Effective noise multiplier and its epsilon, with 95 % intervals; `at_least` is four errors below."""

    noise_multiplier: float
    epsilon: float
    interval: tuple[float, float]
    at_least: float
    observations: int


def estimate(
    seen: tuple[NDArray[np.float64], NDArray[np.float64]], first: NDArray[np.bool_], rule: DpSgd, delta: float
) -> Estimate:
    """From two runs' observations (rounds, m) in clip norms; `first` (m,) were in the first and not the second.

    A canary that is drawn moves its coordinate by its length, so that the mean difference is length times
    steps times sampling rate. Whatever else shakes the coordinate counts as noise, in the study's favour.
    """
    with_it = np.concatenate([seen[0][:, first].ravel(), seen[1][:, ~first].ravel()])
    without = np.concatenate([seen[0][:, ~first].ravel(), seen[1][:, first].ravel()])
    shift = float(with_it.mean() - without.mean())
    length = max(shift, 1e-9) / (rule.steps * rule.sampling_rate)
    noise = float(without.std()) / math.sqrt(rule.steps) / length
    error_of_shift = math.sqrt(with_it.var() / len(with_it) + without.var() / len(without)) / max(shift, 1e-9)
    error = math.hypot(error_of_shift, 1 / math.sqrt(2 * len(without)))
    rounds = len(seen[0])

    def spent(errors: float) -> float:
        effective = noise * math.exp(-errors * error)
        if effective < _TINY:
            return HOPELESS_EPSILON
        charge = DpSgdCharge(effective, rule.sampling_rate, rule.steps * rounds)
        return min(HOPELESS_EPSILON, epsilon([charge], delta))

    return Estimate(
        noise, spent(0), (spent(-_USUAL), spent(_USUAL)), spent(-_ALARM), len(with_it) + len(without)
    )
