"""Counts of held-back records through the Gaussian mechanism, with a charge of their own.

A site's pair (right answers, records) moves by at most (k, k) when one unit comes or goes, k being the most records
of a unit that are counted: a distance of k sqrt(2). Noise of `noise_multiplier` times that is added to both, once.
Dwork et al. 2006; exact accounting of one Gaussian: Balle and Wang 2018.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from secure_triplay.privacy.mechanisms import GaussianCharge, Unit
from secure_triplay.privacy.noise import NoiseSource

_RANGE_STDS = 8.0


@dataclass(frozen=True)
class CountRule:
    """How counts are noised: public constants. `most_units` bounds the units of any site."""

    noise_multiplier: float
    records_per_unit: int
    most_units: int
    unit: Unit

    @property
    def charge(self) -> GaussianCharge:
        """What one release costs."""
        return GaussianCharge(self.noise_multiplier, unit=self.unit)

    @property
    def noise_std(self) -> float:
        """Standard deviation of the noise on each of the two counts, in records."""
        return self.noise_multiplier * self.records_per_unit * math.sqrt(2)

    @property
    def largest(self) -> float:
        """The largest noised count of a site: a public bound, far beyond what occurs."""
        return self.most_units * self.records_per_unit + _RANGE_STDS * self.noise_std


def noised_counts(correct: int, total: int, rule: CountRule, noise: NoiseSource) -> NDArray[np.float64]:
    """(right answers, records) with noise (2,) float64, within +-`rule.largest`.

    Guarantee: (epsilon, delta)-private per unit under add/remove, at the price of `rule.charge`, if at most
    `records_per_unit` records of a unit are counted. Use it once a charge.
    """
    exact = np.array([correct, total], np.float64)
    return np.clip(exact + noise.gaussian(2, rule.noise_std), -rule.largest, rule.largest)
