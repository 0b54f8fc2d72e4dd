"""From many trials to one finding: means with their 95 % intervals, and what they mean in each arm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from scipy import stats

from secure_triplay.attacks.finding import Arm, Finding, Verdict

GAIN = "gain over the mean image, dB PSNR"
NO_BETTER = "no better than the mean of the public images"


def mean_interval(values: Sequence[float]) -> tuple[float, tuple[float, float]]:
    """The mean, and its 95 % interval by Student's t."""
    found = np.asarray(values, np.float64)
    mean = float(found.mean())
    spread = float(found.std(ddof=1)) if len(found) > 1 else 0.0
    if spread == 0.0:
        return mean, (mean, mean)
    half = float(stats.t.ppf(0.975, len(found) - 1)) * spread / len(found) ** 0.5
    return mean, (mean - half, mean + half)


def rate_interval(hits: int, tries: int) -> tuple[float, float]:
    """The exact 95 % interval of a rate (Clopper and Pearson 1934)."""
    low = float(stats.beta.ppf(0.025, hits, tries - hits + 1)) if hits else 0.0
    high = float(stats.beta.ppf(0.975, hits + 1, tries - hits)) if hits < tries else 1.0
    return low, high


def gain_finding(
    attack: str,
    arm: Arm,
    adapter: Literal["lora", "ffa", "none"],
    gains: Sequence[float],
    *,
    note: str = "",
    pictures: tuple[str, ...] = (),
    figures: Mapping[str, float | int] | None = None,
    protected: bool | None = None,
    metric: str = GAIN,
    bound_is: str = NO_BETTER,
) -> Finding:
    """A finding from decibels gained over the baseline, one number an image.

    An arm with a defence (or `protected`) is bounded by nothing gained; without one a gain is as stated.
    """
    value, interval = mean_interval(gains)
    guarded = arm is not Arm.NOTHING if protected is None else protected
    leaks = interval[0] > 0
    verdict = Verdict.NOTHING_FOUND
    if leaks:
        verdict = Verdict.LEAKS if guarded else Verdict.LEAKS_AS_STATED
    return Finding(
        attack=attack,
        arm=arm,
        adapter=adapter,
        metric=metric,
        value=value,
        verdict=verdict,
        interval=interval,
        bound=0.0 if guarded else None,
        bound_is=bound_is if guarded else "",
        note=note,
        pictures=pictures,
        figures=figures or {},
    )
