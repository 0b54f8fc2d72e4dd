"""The privacy loss of DP-SGD as two discrete distributions, fast enough to draw a table in a moment.

For planning only: what a run may spend is decided by `privacy.accounting`. Both compute upper bounds of the
same thing; in every setting tested this one lay above the other, by less than 1 %. Here one keeps,
besides epsilon, the whole trade-off between false alarms and hits that is left to an attacker, and families
of several units.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

Array = NDArray[np.float64]

_Z = 9.0  # standard deviations kept of each step's noise; beyond lies less than 1e-18
_TAIL = 1e-13  # mass that the window of the composed losses may leave out; it is added to delta
_POINTS = 2**16  # most grid points of one step
_FINENESS = 12.0  # grid points a standard deviation of one step's loss
_MOST_POINTS = 2**17  # of the composed losses; rare samples and little noise ask for more: coarser then
_LARGEST_LOSS = 600.0  # beyond it exponentials overflow, and nothing is protected anyway


@dataclass(frozen=True)
class Losses:
    """Losses log(with/without) of a mechanism's outcomes, with their probability under either data set.

    `present` and `absent` are the masses with and without the unit, each `(n,) float64` at `losses`;
    `escaped` is mass left out at the ends, counted against us. The pair dominates the mechanism: whatever
    separates the two data sets does no better than on this pair (Doroshenko et al. 2022; Zhu, Dong and Wang
    2022).
    """

    losses: Array
    present: Array
    absent: Array
    escaped: float

    def epsilon(self, delta: float) -> float:
        """The smallest epsilon at `delta` for adding and for removing; infinite where there is none."""
        return max(
            _epsilon(self.losses, self.present, delta - self.escaped),
            _epsilon(-self.losses[::-1], self.absent[::-1], delta - self.escaped),
        )

    def hit_rate(self, false_alarm_rate: float) -> float:
        """Largest chance to say "was there" of one who was, at that chance to say it of one who was not.

        The likelihood ratio test is the best there is (Neyman and Pearson 1933); between its steps one tosses
        a coin, hence the straight lines. This is 1 - f of f-DP (Dong, Roth and Su 2022, definition 2.1).
        """
        hits = np.concatenate([[0.0], np.cumsum(self.present[::-1])]) + self.escaped
        alarms = np.concatenate([[0.0], np.cumsum(self.absent[::-1])])
        return min(1.0, float(np.interp(false_alarm_rate, alarms, hits)))


@lru_cache(maxsize=4096)
def composed(noise_multiplier: float, sampling_rate: float, steps: int, group: int = 1) -> Losses | None:
    """`steps` Poisson-subsampled Gaussian steps, as what they say about `group` units together.

    Each of a group is sampled on its own, so a step adds between 0 and `group` bounded gradients: a mixture
    of Gaussians dominates it (Ganesh 2024, theorem 3.1). None where the noise is too small to protect.
    """
    coarser = 1.0
    while True:
        single = _one_step(noise_multiplier, sampling_rate, group, coarser)
        if single is None:
            return None
        first, spacing, present, absent, escaped = single
        index = first + np.arange(len(present))
        low, high = _window(np.asarray(index * spacing, dtype=np.float64), present, absent, steps)
        begin = max(math.floor(low / spacing), steps * first)
        end = min(math.ceil(high / spacing), steps * (first + len(present) - 1))
        size = _fast_size(end - begin + 1)
        if size <= _MOST_POINTS:
            break
        coarser *= 3
    losses = np.asarray(spacing * np.arange(begin, begin + size), dtype=np.float64)
    powers = [_power(mass, first, begin, size, steps) for mass in (present, absent)]
    # One mass follows from the other by the loss itself; the larger of the two is the one free of rounding.
    with np.errstate(over="ignore"):
        tilted = np.exp(-np.abs(losses))
    up = losses > 0
    with_it = np.where(up, powers[0], powers[1] * tilted)
    without = np.where(up, powers[0] * tilted, powers[1])
    return Losses(losses, with_it, without, steps * escaped + 2 * _TAIL)


def noise_for(epsilon: float, delta: float, sampling_rate: float, steps: int, guess: float = 1.0) -> float:
    """A noise multiplier, rounded up to four digits, at which `steps` cost at most `epsilon`; or infinity."""

    def excess(log_noise: float) -> float:
        pair = composed(math.exp(log_noise), sampling_rate, steps)
        spent = pair.epsilon(delta) if pair else math.inf
        return math.log(min(max(spent, 1e-6), 1e6) / epsilon)

    here = math.log(guess)
    at_here, slope = excess(here), -1.3
    for _ in range(40):
        if abs(at_here) < 5e-3 or here > 14:
            break
        before, at_before = here, at_here
        here += max(-1.0, min(1.0, -at_here / slope))
        at_here = excess(here)
        slope = min((at_here - at_before) / (here - before), -0.3)
    if here > 14:
        return math.inf
    # One more step along the line, a hair beyond it, is nearly always enough; what is returned was checked.
    noise = _rounded_up(math.exp(here - at_here / slope + 2e-4))
    while excess(math.log(noise)) > 0:
        noise = _rounded_up(noise * 1.001)
    return noise


def _one_step(
    noise: float, rate: float, group: int, coarser: float = 1.0
) -> tuple[int, float, Array, Array, float] | None:
    """First index, spacing, both masses and the mass left out of one step's losses on a grid.

    Each cell's two masses move to its ends so that both are kept ("connect the dots", Doroshenko et al.
    2022): that spreads the likelihood ratio, which can only help to tell the data sets apart, and leaves an
    error that falls with the square of the spacing.
    """
    times = np.arange(group + 1)
    weights = np.array([math.comb(group, j) * rate**j * (1 - rate) ** (group - j) for j in times])
    lowest, highest = (float(v) for v in _loss(np.array([-_Z * noise, group + _Z * noise]), noise, weights))
    if highest > _LARGEST_LOSS:
        return None
    x = noise * np.linspace(-6, 6, 241)
    density = np.exp(-0.5 * (x / noise) ** 2)
    loss = _loss(x, noise, weights)
    spread = math.sqrt(float(np.sum(density * loss**2) / np.sum(density)))
    spacing = coarser * max(spread / _FINENESS, (highest - lowest) / _POINTS)
    first, last = math.floor(lowest / spacing), math.ceil(highest / spacing)
    grid = np.asarray(spacing * np.arange(first, last + 1), dtype=np.float64)
    edges = _outcome(grid, noise, weights)
    absent = _between(edges / noise)
    shifted = [_between((edges - j) / noise) for j in times]
    present = np.asarray(np.tensordot(weights, np.asarray(shifted), axes=1), dtype=np.float64)
    # What lies outside the outermost edges is under 1e-18 a step (the lower edge is -inf where rate < 1).
    at_low, gap = grid[:-1], math.expm1(spacing)
    scaled, tilt = present * np.exp(-at_low), math.exp(spacing)
    low_absent = np.maximum((tilt * absent - scaled) / gap, 0)
    high_absent = np.maximum((scaled - absent) / gap, 0)
    absent = np.append(low_absent, 0) + np.insert(high_absent, 0, 0)
    present = absent * np.exp(grid)
    # Rounding leaves a sum off 1 by some 1e-12, which thousands of steps would multiply.
    return first, spacing, present / present.sum(), absent / absent.sum(), 4e-19


def _loss(outcome: Array, noise: float, weights: Array) -> Array:
    """log(density with the group / density without) at an outcome; convex and increasing."""
    times = np.arange(len(weights))[:, None]
    with np.errstate(divide="ignore"):
        terms = np.log(weights)[:, None] + (2 * times * outcome - times**2) / (2 * noise**2)
    top = terms.max(axis=0)
    return np.asarray(top + np.log(np.exp(terms - top).sum(axis=0)))


def _outcome(losses: Array, noise: float, weights: Array) -> Array:
    """The outcome of each loss; minus infinity below the smallest loss that there is."""
    floor = math.log(weights[0]) if weights[0] > 0 else -math.inf
    real = losses > floor + 1e-14
    out = np.full(losses.shape, -np.inf)
    wanted = losses[real]
    times = np.arange(1, len(weights))[:, None]
    with np.errstate(divide="ignore"):
        alone = (noise**2 * (wanted - np.log(weights[1:])[:, None]) + times**2 / 2) / times
    if len(weights) == 2:
        # log(w0 + w1 e^t) = loss solved for t; expm1 keeps the digits near loss 0, where w0 + w1 = 1
        out[real] = noise**2 * np.log((np.expm1(wanted) + weights[1]) / weights[1]) + 0.5
        return out
    # From where one term alone is as large as wanted, Newton falls onto the root from the right. With much noise that
    # is noise^2 away, further than the steps reach, while no loss of the grid lies beyond a few times _Z noise.
    x = np.minimum(alone.min(axis=0), times[-1] + 3 * _Z * noise)
    for _ in range(60):
        nudge = 1e-6 * noise
        value, ahead = _loss(x, noise, weights), _loss(x + nudge, noise, weights)
        step = (value - wanted) / np.maximum((ahead - value) / nudge, 1e-12)
        x = x - np.minimum(step, 5 * noise)
        if np.max(np.abs(step)) < 1e-9 * noise:
            break
    out[real] = x
    return out


def _between(edges: Array) -> Array:
    """Standard Gaussian mass between neighbouring edges, from whichever tail keeps the digits."""
    below, above = ndtr(edges), ndtr(-edges)
    return np.asarray(np.where(edges[:-1] > 0, above[:-1] - above[1:], below[1:] - below[:-1]))


def _window(losses: Array, present: Array, absent: Array, steps: int) -> tuple[float, float]:
    """Bounds that the composed losses leave with at most `_TAIL` mass, by Chernoff at a few exponents."""
    mean = float(present @ losses)
    spread = math.sqrt(max(float(present @ losses**2) - mean**2, 1e-300))
    need = math.log(1 / _TAIL)
    best = math.sqrt(2 * need / steps) / spread
    low, high = -math.inf, math.inf
    for exponent in best * np.array([0.1, 0.2, 0.35, 0.5, 0.7, 0.85, 1.0, 1.3]):
        up, down = _log_moment(exponent * losses, present), _log_moment(-exponent * losses, absent)
        high = min(high, (steps * up + need) / exponent)
        low = max(low, -(steps * down + need) / exponent)
    return low, high


def _log_moment(exponents: Array, mass: Array) -> float:
    top = float(exponents.max())
    return top + math.log(float(np.exp(exponents - top) @ mass))


def _power(mass: Array, first: int, begin: int, size: int, steps: int) -> Array:
    """The `steps`-fold convolution of a mass that starts at `first`, from `begin` on for `size` points."""
    folded = np.bincount((first + np.arange(len(mass))) % size, mass, size)
    around = np.fft.irfft(np.fft.rfft(folded) ** steps, size)
    return np.maximum(np.roll(around, -begin), 0)


def _epsilon(losses: Array, mass: Array, delta: float) -> float:
    """Smallest epsilon >= 0 with sum over losses above it of mass (1 - e^(epsilon - loss)) <= delta."""
    if delta <= 0:
        return math.inf
    positive = losses > 0
    losses, mass = losses[positive], mass[positive]
    if not len(losses):
        return 0.0
    tilted = np.cumsum((mass * np.exp(-losses))[::-1])[::-1]
    total = np.cumsum(mass[::-1])[::-1]
    # delta at each grid point and at 0, counting what lies strictly above it
    at = total - np.exp(np.minimum(losses, 700)) * tilted
    if total[0] - tilted[0] <= delta:
        return 0.0
    below = int(np.argmax(at <= delta))
    if at[below] > delta:
        return math.inf
    return max(0.0, math.log(max((total[below] - delta) / tilted[below], 1e-300)))


def _fast_size(least: int) -> int:
    return 1 << max(least - 1, 1).bit_length()


def _rounded_up(value: float) -> float:
    step = 10.0 ** (math.floor(math.log10(value)) - 3)
    return float(f"{math.ceil(value / step * (1 - 1e-12)) * step:.4g}")
