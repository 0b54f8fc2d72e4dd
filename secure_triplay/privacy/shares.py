r"""Noise that sites share: the rule of one round, what it costs, and how many bits its sum needs.

    each site  draws a Poisson sample, rounds each record's clipped gradient to a grid, adds them up, and a share
    together   the sum of all integers modulo 2^W is unmasked; noise of `honest_shares` sites is enough

*Sensitivity, after rounding.* A clipped gradient is at most `clip_steps` = K grid steps long. Each coordinate is
rounded up or down at random, which makes it longer by sqrt(d) at most, and seldom by much: with probability 1 - b

    |round(x)|^2 <= K^2 + d/4 + sqrt(2 ln(1/b)) (K + sqrt(d)/2)                                        (1)

(Kairouz, Liu and Steinke 2021, proposition 26). Nothing rests on that probability: a rounded vector longer than D,
which is K and a stated share of it, is rounded toward zero instead, which makes no coordinate longer, and norms are
taken of the integers (`summing`). So a record moves the sum by at most D, in exact arithmetic, whatever floating point
did before. That share is what rounding costs in noise; (1) only says how fine the grid has to be for the second
rounding to happen once in a million records. Records are rounded one by one, not their sum: sums of integers are exact,
and in a sum of floats a record moves the others' rounding too.

*Shares.* A sum is over t sites or more (the masks' threshold), and up to c of them tell the adversary theirs. So m =
t - c shares at least are unknown to it, each of variance V / m, and sums of Skellam noise are Skellam. More sites than
t add noise that is not counted. c is at least 1, since every site knows its own share.

*Wrap-around.* Words are added modulo 2^W, noise and all, and nothing is clipped after the noise. Reduction commutes
with addition, so what is unmasked is a function of the noised integer sum, and cannot tell more than it does: wrapping
costs no privacy, at any V and W. What it would harm is the model. `bits` is so large that this happens in a whole study
with probability 2^-40 at most: with N records a site at most, of which k or more are drawn with probability
exp(-N KL(k/N || q)) at most (Hoeffding 1963, theorem 1), n sites, and Skellam noise of variance v in all,

    |sum| <= n k D,      P(|noise| > s) <= 2 exp(sqrt(v^2 + s^2) - v - s asinh(s / v)),                 (2)

the latter from E exp(t noise) = exp(v (cosh t - 1)) at sinh t = s / v.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from secure_triplay.errors import ConfigError, PrivacyError
from secure_triplay.privacy.mechanisms import SharedNoiseCharge
from secure_triplay.privacy.noise import LARGEST_SKELLAM_VARIANCE

WRAP_BITS = 40
_TRIES = 2 * math.log(1e6)  # 2 ln(1/b)


@dataclass(frozen=True)
class ShareRule:
    """How one site makes its part of one round's sum: public constants, the same at every site.

    `noise_multiplier` is that of the whole sum, as far as it is counted. Raises PrivacyError for what protects nobody.
    """

    noise_multiplier: float
    l2_clip_norm: float
    clip_steps: int
    l2_sensitivity: int
    sampling_rate: float
    expected_batch_size: float
    learning_rate: float
    physical_batch_size: int
    honest_shares: int
    colluders: int

    def __post_init__(self) -> None:
        for name in (
            "honest_shares",
            "l2_clip_norm",
            "expected_batch_size",
            "learning_rate",
            "clip_steps",
            "physical_batch_size",
        ):
            if not 0 < getattr(self, name) < math.inf:
                raise PrivacyError(
                    f"{name} is {getattr(self, name)!r}",
                    where=name,
                    fix="give a positive number, the same everywhere",
                )
        if self.l2_sensitivity < self.clip_steps:
            raise PrivacyError(
                f"no rounded gradient is longer than {self.l2_sensitivity}, and clipped ones are {self.clip_steps}",
                where="l2_sensitivity",
                fix="leave room for rounding",
            )
        _ = self.charge  # checks what it is made of
        if self.share_variance > LARGEST_SKELLAM_VARIANCE:
            raise PrivacyError(
                f"a site's share of the noise has variance 2^{math.log2(self.share_variance):.1f} in grid steps, "
                f"and is drawn rightly up to 2^{math.log2(LARGEST_SKELLAM_VARIANCE):g}",
                where="privacy.noise.clip_steps",
                fix="take a coarser grid (fewer `clip_steps`) or a larger epsilon",
            )

    @property
    def grid_step(self) -> float:
        """Gradient of one step of the integer grid."""
        return self.l2_clip_norm / self.clip_steps

    @property
    def share_variance(self) -> float:
        """Variance of one site's noise in each coordinate, in squared steps of the grid: V / m."""
        return self.charge.variance / self.honest_shares

    @property
    def update_step(self) -> float:
        """Update of one step of the grid: a step of SGD on the sum over the expected batch."""
        return self.learning_rate * self.grid_step / self.expected_batch_size

    @property
    def charge(self) -> SharedNoiseCharge:
        """What one round costs a site, whoever was drawn."""
        return self.charged_for(self.honest_shares)

    def charged_for(self, honest_shares: int) -> SharedNoiseCharge:
        """What one round costs against an adversary that leaves so many shares unknown, of the same variance each."""
        noise = self.noise_multiplier * math.sqrt(honest_shares / self.honest_shares)
        return SharedNoiseCharge(
            noise, self.l2_sensitivity, self.sampling_rate, 1, honest_shares, self.colluders
        )

    def bits(self, *, n_sites: int, n_params: int, rounds: int, most_units: int) -> int:
        """Bits of a coordinate of the sum such that none of a study wraps, except with probability 2^-40: (2).

        Raises ConfigError where the grid is too coarse for so many coordinates.
        """
        self._require_fine_grid(n_params)
        drawn = _most_drawn(most_units, self.sampling_rate, n_sites * rounds)
        largest = n_sites * drawn * self.l2_sensitivity
        largest += _largest_noise(n_sites * self.share_variance, n_params * rounds)
        return largest.bit_length() + 1

    def _require_fine_grid(self, n_params: int) -> None:
        """Equation (1) at b = 10^-6."""

        def typical(steps: int) -> float:
            square = steps**2 + n_params / 4 + math.sqrt(_TRIES) * (steps + math.sqrt(n_params) / 2)
            return math.sqrt(square) / steps

        allowed, steps = self.l2_sensitivity / self.clip_steps, self.clip_steps
        while typical(steps) > allowed:
            steps = math.ceil(1.05 * steps)
        if steps > self.clip_steps:
            longer = 100 * (typical(self.clip_steps) - 1)
            raise ConfigError(
                f"a grid of {self.clip_steps} steps in the clipping norm is too coarse for {n_params:,} values: "
                f"rounding makes gradients longer by {longer:.2g} %",
                where="privacy.noise.clip_steps",
                fix=f"choose {steps}, or allow a larger privacy.noise.rounding_cost",
            )


def holds_against(honest_shares: int, colluders: int) -> str:
    """Against whom a guarantee from shared noise holds, and on what it rests; for people."""
    c, m = colluders, honest_shares
    return (
        f"The noise is shared between sites. This guarantee holds against the server, every site and whoever gets "
        f"the adapter, as long as no more than {c} site{'s' * (c != 1)} collude{'s' * (c == 1)}, with the server or "
        f"without: no sum over fewer than {m + c} sites is unmasked, each site knows its own share of the noise, and "
        f"the {m} shares that are left, one's own among them, are enough. So it rests on the masks, and on the honesty "
        f"of other sites, which noise of a site's own does not."
    )


def _most_drawn(units: int, rate: float, times: int) -> int:
    """The fewest of `units` that `times` Poisson samples exceed with probability 2^-41 at most, all together."""
    allowed = -(WRAP_BITS + 1) * math.log(2) - math.log(times)
    low, high = math.floor(units * rate), units  # `units` are never exceeded
    while high - low > 1:
        middle = (low + high) // 2
        share = middle / units
        divergence = share * math.log(share / rate) + (1 - share) * math.log((1 - share) / (1 - rate))
        low, high = (low, middle) if -units * divergence <= allowed else (middle, high)
    return high


def _largest_noise(variance: float, times: int) -> int:
    """A bound that `times` Skellam variables exceed with probability 2^-41 at most, all together."""
    allowed = -(WRAP_BITS + 2) * math.log(2) - math.log(times)

    def log_tail(size: float) -> float:
        # sqrt(v^2 + s^2) - v without cancellation
        root = size**2 / (math.hypot(variance, size) + variance)
        return root - size * math.asinh(size / variance)

    size = 1
    while log_tail(size) > allowed:
        size = max(size + 1, math.ceil(size * 1.01))
    return size
