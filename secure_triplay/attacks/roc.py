"""How well scores tell members from others: ROC figures with their 95 % intervals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from secure_triplay.attacks.finding import Curve
from secure_triplay.attacks.scoring import rate_interval

Array = NDArray[np.float64]
_RESAMPLES = 200
_POINTS = 120


@dataclass(frozen=True)
class Rate:
    """A true positive rate at a false positive rate, with its 95 % Clopper-Pearson interval."""

    value: float
    interval: tuple[float, float]


def area(members: Array, others: Array) -> float:
    """Chance that a member (n,) scores above an outsider (m,), ties by half (Mann and Whitney 1947)."""
    n, m = len(members), len(others)
    ranks = rankdata(np.concatenate([members, others]))
    return float((ranks[:n].sum() - n * (n + 1) / 2) / (n * m))


def area_interval(members: Array, others: Array, rng: np.random.Generator) -> tuple[float, float]:
    """95 % bootstrap interval of `area`."""
    areas = [
        area(rng.choice(members, len(members)), rng.choice(others, len(others))) for _ in range(_RESAMPLES)
    ]
    low, high = np.quantile(areas, (0.025, 0.975))
    return float(low), float(high)


def hit_rate(members: Array, others: Array, false_alarm_rate: float) -> Rate:
    """Share of members above the threshold that at most that share of outsiders passes.

    The interval takes the threshold as given and scores as independent.
    """
    allowed = int(np.floor(false_alarm_rate * len(others)))
    threshold = np.sort(others)[::-1][min(allowed, len(others) - 1)]
    hits = int((members > threshold).sum())
    return Rate(hits / len(members), rate_interval(hits, len(members)))


def curve(members: Array, others: Array) -> Curve:
    """The ROC curve at about a hundred points, denser towards small false positive rates."""
    order = np.argsort(-np.concatenate([members, others]), kind="stable")
    is_member = order < len(members)
    tpr = np.cumsum(is_member) / len(members)
    fpr = np.cumsum(~is_member) / len(others)
    kept = np.unique(np.searchsorted(fpr, np.geomspace(1 / len(others), 1, _POINTS)).clip(max=len(fpr) - 1))
    return Curve(tuple(round(float(v), 6) for v in fpr[kept]), tuple(round(float(v), 6) for v in tpr[kept]))
