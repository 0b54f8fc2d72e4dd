"""Counts of a site's records through the Gaussian mechanism, each with a charge of its own.

k is the most records of a unit that are counted: 1 where the unit is the record, and then every record is counted,
whoever else's image it is, so that none comes in when another one goes. When one unit comes or goes,

    right answers and records    move by at most k each: a distance of k sqrt(2)
    records of each class        move by numbers that sum to k at most: a distance of k

Noise of `noise_multiplier` times that distance is added to each count, once. Dwork et al. 2006; exact accounting of one
Gaussian: Balle and Wang 2018.
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
    """How right answers are counted: public constants. `most_units` bounds the units of any site."""

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


@dataclass(frozen=True)
class ClassCountRule:
    """How a site's classes are counted: public constants."""

    noise_multiplier: float
    records_per_unit: int
    unit: Unit

    @property
    def charge(self) -> GaussianCharge:
        """What one count of all classes costs."""
        return GaussianCharge(self.noise_multiplier, unit=self.unit)

    @property
    def noise_std(self) -> float:
        """Standard deviation of the noise on each class' count, in records."""
        return self.noise_multiplier * self.records_per_unit


AnyCountRule = CountRule | ClassCountRule


def noised_class_counts(
    labels: NDArray[np.int64], n_classes: int, rule: ClassCountRule, noise: NoiseSource
) -> NDArray[np.float64]:
    """Records (n_classes,) of each class among `labels` (n,), with noise.

    Guarantee: (epsilon, delta)-private per unit under add/remove, at the price of `rule.charge`, if `labels` hold at
    most `records_per_unit` records of a unit. Use it once a charge.
    """
    counts = np.bincount(labels, minlength=n_classes).astype(np.float64)
    return counts + noise.gaussian(n_classes, rule.noise_std)


def log_shares(counts: NDArray[np.float64], noise_std: float) -> NDArray[np.float32]:
    """Logarithms (n_classes,) of the class shares that noised counts (n_classes,) tell; post-processing.

    A count below the noise tells nothing, and is raised to its level.
    """
    raised = np.maximum(counts, noise_std)
    shares: NDArray[np.float32] = np.log(raised / raised.sum()).astype(np.float32)
    return shares
