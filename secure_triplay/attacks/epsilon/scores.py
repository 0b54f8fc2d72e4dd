"""How strongly what was released says that a canary was in, and the ideal mechanism to hold it against."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp
from scipy.stats import binom

from secure_triplay.attacks.epsilon.bounds import Guesses
from secure_triplay.privacy.mechanisms import DpSgd

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


def likelihood_ratios(seen: Array, rule: DpSgd) -> Array:
    """log(in/out) of each canary (m,), from its coordinate of each round's update (rounds, m) in clip norms.

    The best there is for an orthogonal canary (Neyman and Pearson 1933): in a round of s steps it was drawn j
    times, j binomial, and moved the coordinate by j, under noise of variance s sigma^2.
    """
    times = np.arange(rule.steps + 1)
    drawn = binom.logpmf(times, rule.steps, rule.sampling_rate)
    variance = rule.steps * rule.noise_multiplier**2
    terms = drawn[:, None, None] + (2 * times[:, None, None] * seen - times[:, None, None] ** 2) / (
        2 * variance
    )
    ratios: Array = logsumexp(terms, axis=0).sum(axis=0)
    return ratios


def guess(ratios: Array, included: Mask, made: int) -> Guesses:
    """Name the `made` canaries with the largest scores as "was in", and count how many were."""
    named = np.argsort(-ratios, kind="stable")[:made]
    return Guesses(len(ratios), made, int(included[named].sum()))


def ideal(rule: DpSgd, rounds: int, canaries: int, rng: np.random.Generator) -> tuple[Array, Mask]:
    """What the mechanism on paper shows (rounds, m), and who was in: nothing but sampling and noise."""
    included = rng.random(canaries) < 0.5
    drawn = rng.binomial(rule.steps, rule.sampling_rate, (rounds, canaries)) * included
    std = rule.noise_multiplier * np.sqrt(rule.steps)
    return drawn + rng.normal(0, std, (rounds, canaries)), included


def roc(ratios: Array, included: Mask) -> tuple[Array, Array]:
    """False and true positive rates (m + 1,) at every threshold."""
    order = np.argsort(-ratios, kind="stable")
    hits, alarms = np.cumsum(included[order]), np.cumsum(~included[order])
    return np.append(0.0, alarms / max(1, alarms[-1])), np.append(0.0, hits / max(1, hits[-1]))
