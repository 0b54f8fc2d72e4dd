"""From charges to epsilon, by two independent accountants, and from epsilon to the noise that gives it.

dp-accounting's privacy loss distributions (Koskela et al. 2020; Doroshenko et al. 2022) are authoritative:
they compose a whole history of unlike mechanisms and round against us. Opacus' PRV (Gopi, Lee and
Wutschitz 2021) is other code by other people, discretised otherwise, and has to come to the same figure.

Epsilon is per unit *per site*: a patient known to k sites composes k budgets.

dp-accounting is imported where a function needs it: it takes half a second, and most commands compute nothing.
"""

from __future__ import annotations

import math
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

from secure_triplay.errors import PrivacyError
from secure_triplay.privacy.mechanisms import (
    Charge,
    DpSgdCharge,
    GaussianCharge,
    SharedNoiseCharge,
    check_delta,
    check_epsilon,
    check_rate,
    check_steps,
)
from secure_triplay.privacy.renyi import renyi_epsilon

if TYPE_CHECKING:
    import dp_accounting

AGREEMENT = 0.01  # the larger of 1 % and 0.01
HOPELESS_EPSILON = 1000.0  # beyond it no figure is worth its memory; the guarantee is reported as infinite
_GRIDS = (8e-3, 2e-3, 5e-4, 1e-4)  # of privacy losses; dp-accounting's default is the last
_SETTLED = 1.5e-3
_CLOSE = 3e-4  # of a logarithm, to which the search for a noise solves
_WELL_BEYOND_USE = 100.0  # epsilon; the coarsest grid's upper bound will do
_TOO_WIDE = 2e4  # epsilon, by Renyi's looser bound; grids of more than a few million points end here
_RDP_ORDERS = (2, 3, 4, 6, 8, 12, 16, 24, 32, 64)

Gaussians = tuple[tuple[float, float, int], ...]  # (noise multiplier, sampling rate, times), each pair once


def epsilon(charges: Iterable[Charge], delta: float) -> float:
    """The authoritative epsilon at `delta` of everything charged so far, composed as one history.

    By PLD; a history with noise that sites share in it by Renyi accounting (`renyi`), as a whole.
    Never too small: losses are rounded up. No charges cost 0, a history beyond `HOPELESS_EPSILON` infinity.
    Raises PrivacyError for an impossible delta, or units that do not compose.
    """
    check_delta(delta)
    history = tuple(charges)
    if not shares_noise(history):
        return _pld_epsilon(merged_charges(history), delta)
    figure = renyi_epsilon(history, delta)
    return figure if figure <= HOPELESS_EPSILON else math.inf


def accountant_of(charges: Iterable[Charge]) -> str:
    """The accountant whose figure `epsilon` gives, by name."""
    return "Renyi (dp-accounting)" if shares_noise(tuple(charges)) else "PLD (dp-accounting)"


def shares_noise(history: tuple[Charge, ...]) -> bool:
    """Whether noise that sites share is in a history of one unit. Raises PrivacyError where it has several."""
    _one_unit(history)
    return any(isinstance(charge, SharedNoiseCharge) for charge in history)


def epsilon_prv_check(charges: Iterable[Charge], delta: float) -> float:
    """Epsilon of a purely (subsampled) Gaussian history by Opacus' PRV accountant, once it agrees with PLD.

    PRV's figure includes its own error bound, set here to a quarter of the agreement that is asked for: the
    larger of 1 % and 0.01. Raises PrivacyError where the two differ by more, or PRV cannot compute it.
    """
    check_delta(delta)
    given = tuple(charges)
    if shares_noise(given):
        raise PrivacyError(
            "the second accountant knows Gaussian noise only, and sites shared noise here",
            where="accounting",
            fix="rely on the first, whose formulas tests hold against exact divergences",
        )
    history = merged_charges(given)
    authoritative = _pld_epsilon(history, delta)
    if not history or math.isinf(authoritative):
        return authoritative
    allowed = AGREEMENT * max(1.0, authoritative)
    second = _prv_epsilon(history, delta, allowed / 4)
    if not abs(second - authoritative) <= allowed:
        raise PrivacyError(
            f"two accountants disagree: PLD says epsilon {authoritative:.5g}, PRV {second:.5g}",
            where="accounting",
            fix="do not release anything under this history; report it with its charges",
        )
    return second


@lru_cache(maxsize=256)
def noise_multiplier_for(
    epsilon: float, delta: float, sampling_rate: float, steps: int, also: tuple[GaussianCharge, ...] = ()
) -> float:
    """A noise multiplier, rounded up to five digits, whose `steps` steps and `also` cost at most `epsilon` together.

    Guarantee: the authoritative accountant gives at most `epsilon` for what is returned. It is close to the
    smallest such noise: that figure was at least 0.998 of `epsilon` in every setting tried.
    Raises PrivacyError for impossible settings.
    """
    check_epsilon(epsilon)
    check_delta(delta)
    check_rate(sampling_rate)
    check_steps(steps)
    if epsilon >= HOPELESS_EPSILON:
        raise PrivacyError(f"epsilon {epsilon:g} protects nobody", where="epsilon", fix="1 to 10 is usual")

    others = merged_charges(also)

    def excess(log_noise: float, grid: float) -> float:
        """How far the epsilon of this noise on this grid lies above the target, in logarithms of both."""
        spent = _on_grid((*others, (math.exp(log_noise), sampling_rate, steps)), delta, grid)
        return math.log(min(max(spent, 1e-9), 1e9) / epsilon)

    grids = tuple(size for size in _GRIDS if size <= epsilon / 25) or _GRIDS[-1:]
    # Sampling only ever helps, so the noise that is enough without it bounds the search from above. It starts
    # where the central limit of many small steps lies (Dong, Roth and Su 2022, corollary 5.4): at
    # mu = rate sqrt(steps (e^(1/noise^2) - 1)), usually within a tenth.
    left_for_steps = _gaussian_mu(epsilon, delta) ** 2 - sum(times / noise**2 for noise, _, times in others)
    if left_for_steps <= 0:
        raise PrivacyError(
            f"what is released besides the training costs more than epsilon {epsilon:g} by itself",
            where="epsilon",
            fix="publish with more noise, or not at all",
        )
    mu = math.sqrt(left_for_steps)
    highest = math.log(math.sqrt(steps) / mu) + 0.1
    found, slope = min(highest - 0.1, -0.5 * math.log(math.log1p((mu / sampling_rate) ** 2 / steps))), -1.3
    left = math.inf
    for index, grid in enumerate(grids):
        coarser = found
        found, slope, left = _secant(partial(excess, grid=grid), found, slope, highest)
        if left > _CLOSE:  # even the most that can be needed is not enough by this grid's rounding
            slope = -1.3
        elif index and abs(found - coarser) < _SETTLED / 10:
            break
    if left > _CLOSE:
        raise PrivacyError(
            f"epsilon {epsilon:g} over {steps:,} steps is smaller than the accountant resolves",
            where="epsilon",
            fix="choose a larger epsilon or fewer steps",
        )
    noise = _rounded_up(math.exp(found - max(left, 0.0) / slope))
    while _pld_epsilon((*others, (noise, sampling_rate, steps)), delta) > epsilon:
        noise = _rounded_up(noise * (1 + 2e-4))
    return noise


def _secant(
    function: Callable[[float], float], start: float, slope: float, highest: float
) -> tuple[float, float, float]:
    """A root near `start`, at most `highest`, of a smooth decreasing function; the slope there; what is left.

    What is left is at most `_CLOSE` in size, unless the function is still above 0 at `highest`.
    """
    here, at_here = start, function(start)
    for _ in range(40):
        if abs(at_here) < _CLOSE or (here >= highest and at_here > 0):
            break
        step = max(-0.5, min(0.5, -at_here / slope))
        before, at_before, here = here, at_here, min(here + step, highest)
        at_here = function(here)
        if here != before:
            slope = min((at_here - at_before) / (here - before), -0.1)
    return here, slope, at_here


def merged_charges(charges: Iterable[Charge]) -> Gaussians:
    """The history with equal mechanisms counted together; their order does not matter to what they cost."""
    times: defaultdict[tuple[float, float], int] = defaultdict(int)
    history = tuple(charges)
    _one_unit(history)
    for charge in history:
        noise, rate, count = _AS_GAUSSIAN[type(charge)](charge)
        times[noise, rate] += count
    return tuple(sorted((noise, rate, count) for (noise, rate), count in times.items()))


def _one_unit(history: tuple[Charge, ...]) -> None:
    units = {(charge.unit, charge.neighbouring) for charge in history}
    if len(units) > 1:
        raise PrivacyError(
            f"charges per {' and per '.join(sorted(unit for unit, _ in units))} stand in one history",
            where="accounting",
            fix="keep one ledger a unit: an epsilon per record says nothing about a patient with many",
        )


_AS_GAUSSIAN: dict[type, Callable[[Any], tuple[float, float, int]]] = {
    DpSgdCharge: lambda charge: (charge.noise_multiplier, charge.sampling_rate, charge.steps),
    GaussianCharge: lambda charge: (charge.noise_multiplier, 1.0, charge.releases),
}


@lru_cache(maxsize=1024)
def _pld_epsilon(history: Gaussians, delta: float) -> float:
    """Epsilon on the coarsest grid that is fine enough.

    Every grid gives an upper bound whose error falls with the square of the spacing (Doroshenko et al. 2022;
    measured): once one four times as fine moves the figure by less than 0.15 %, the rest is about 0.01 %.
    """
    if not history:
        return 0.0
    figure = math.inf
    for grid in _GRIDS:
        coarser, figure = figure, _on_grid(history, delta, grid)
        if coarser - figure <= _SETTLED * figure or figure > _WELL_BEYOND_USE:
            break
    return figure if figure <= HOPELESS_EPSILON else math.inf


@lru_cache(maxsize=1024)
def _on_grid(history: Gaussians, delta: float, grid: float) -> float:
    from dp_accounting.pld.pld_privacy_accountant import PLDAccountant
    from dp_accounting.rdp.rdp_privacy_accountant import RdpAccountant

    event = dp_event(history)
    # Renyi accounting costs a millisecond whatever the noise, and gives an upper bound (Mironov 2017): it
    # keeps a history of next to no noise from asking for a grid of billions of points.
    if RdpAccountant(_RDP_ORDERS).compose(event).get_epsilon(delta) > _TOO_WIDE:
        return math.inf
    accountant = PLDAccountant(value_discretization_interval=grid)
    return float(accountant.compose(event).get_epsilon(delta))


def dp_event(history: Gaussians) -> dp_accounting.DpEvent:
    """The history in dp-accounting's own words, its default neighbouring relation being add/remove."""
    import dp_accounting

    return dp_accounting.ComposedDpEvent(
        [
            dp_accounting.SelfComposedDpEvent(
                dp_accounting.GaussianDpEvent(noise)
                if rate == 1
                else dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(noise)),
                times,
            )
            for noise, rate, times in history
        ]
    )


@lru_cache(maxsize=256)
def _prv_epsilon(history: Gaussians, delta: float, eps_error: float) -> float:
    # Here, since it imports torch, which planning a budget does without.
    from opacus.accountants import PRVAccountant

    accountant = PRVAccountant()
    accountant.history = list(history)
    try:
        with warnings.catch_warnings():
            # At rate 1 it takes log(0), whose minus infinity is the right bound of the support; the other
            # warning is about a bound that only sizes its grid.
            warnings.simplefilter("ignore", RuntimeWarning)
            warnings.simplefilter("ignore", UserWarning)
            return float(accountant.get_epsilon(delta, eps_error=eps_error))
    except (RuntimeError, ValueError, ArithmeticError, MemoryError) as error:
        raise PrivacyError(
            f"the second accountant cannot compute this history: {error}",
            where="accounting",
            fix="choose a larger delta, more noise or fewer steps; one accountant's word is not enough",
        ) from error


def _gaussian_mu(epsilon: float, delta: float) -> float:
    """Sensitivity over noise at which one Gaussian mechanism is just private enough (Balle and Wang 2018)."""
    from scipy.optimize import brentq
    from scipy.stats import norm

    def excess(mu: float) -> float:
        lost = norm.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon + norm.logcdf(-mu / 2 - epsilon / mu))
        return float(lost) - delta

    return float(brentq(excess, 1e-12, 100.0))


def _rounded_up(value: float) -> float:
    """The next number of five significant digits at or above a positive value."""
    step = 10.0 ** (math.floor(math.log10(value)) - 4)
    return float(f"{math.ceil(value / step * (1 - 1e-12)) * step:.5g}")
