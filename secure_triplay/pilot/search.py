"""From limits to a choice: what fits, what is tried, and which of the tried is taken, and why."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from secure_triplay.errors import PrivacyError
from secure_triplay.pilot.choices import Choice, Space
from secure_triplay.pilot.costs import GIB, Cost, SiteLimits, nothing_fits
from secure_triplay.pilot.optimiser import Optimiser

ORDER = ("optimiser", "rounds", "batch", "output_rank", "rank", "blocks", "value_bits", "quantization")
"""Settings that moved accuracy most in our own runs come first, for where trials run out.

The server optimiser is the first of all. It takes as many trials wherever it stands, one for each other value; but
tried last it would find rounds and batch chosen for another optimiser, and they would have to be tried again."""

PRICES = ("hours", "upload_bytes_per_round", "memory_bytes")
"""Fields of a cost that accuracy is held against."""


@dataclass(frozen=True)
class WorstClass:
    """The class that was got right least often: its place in the study, share right, that share's error, images.

    The standard error is that of one class named beforehand: the worst of several looks a little worse than it is.
    """

    label: int
    accuracy: float
    standard_error: float
    images: int


@dataclass(frozen=True)
class Trial:
    """A choice, what it costs, and what it gave on public images. Errors are of those images, not of the training."""

    choice: Choice
    cost: Cost
    accuracy: float
    standard_error: float
    start_accuracy: float
    seconds: float
    worst_class: WorstClass


@dataclass(frozen=True)
class Decision:
    """The trial that is taken, and the reason in words."""

    trial: Trial
    best: Trial
    reason: str


def what_fits(
    space: Space, cost_of: Callable[[Choice], Cost], limits: SiteLimits
) -> tuple[dict[Choice, Cost], dict[Choice, Cost]]:
    """(choices within the limits, all whose cost is known). Raises ConfigError that names the limit which binds."""
    costs: dict[Choice, Cost] = {}
    no_noise = []
    for choice in space.choices():
        try:
            costs[choice] = cost_of(choice)
        except PrivacyError:
            no_noise.append(choice)
    fits = {choice: cost for choice, cost in costs.items() if max(cost.shares(limits).values()) <= 1}
    if not fits:
        raise nothing_fits(costs, limits, no_noise)
    return fits, costs


def first(own: Choice, fits: Mapping[Choice, Cost]) -> Choice:
    """The study's own choice where it fits; otherwise one that fits with the fewest changes, the fastest of those."""

    def distance(choice: Choice) -> tuple[int, float]:
        changed = sum(getattr(choice, axis) != getattr(own, axis) for axis in ORDER)
        return changed, fits[choice].hours

    return own if own in fits else min(fits, key=distance)


def search(
    space: Space,
    fits: Mapping[Choice, Cost],
    start: Choice,
    attempt: Callable[[Choice], Trial],
    limits: SiteLimits,
    most: int,
) -> list[Trial]:
    """Try choices one setting at a time, each from the best so far; at most `most`.

    A trial whose own speed shows that it does not fit is kept, and never taken.
    """
    tried: dict[Choice, Trial] = {start: attempt(start)}
    here = start
    for axis in ORDER:
        for choice in space.beside(here, axis):
            if len(tried) >= most:
                return list(tried.values())
            if choice in fits and choice not in tried:
                tried[choice] = attempt(choice)
        trials = list(tried.values())
        if _fitting(trials, limits):
            here = decide(trials, limits, start.optimiser).trial.choice
        elif axis == "optimiser":  # it costs nothing, so that no limit speaks against it
            here = of_optimisers(trials, start.optimiser).choice
    return list(tried.values())


def untried(fits: Mapping[Choice, Cost], trials: list[Trial]) -> tuple[str, ...]:
    """Settings of which other values fit, and none was tried: trials ran out before."""

    def values(axis: str, choices: Iterable[Choice]) -> set[Any]:
        return {getattr(choice, axis) for choice in choices}

    tried = [trial.choice for trial in trials]
    return tuple(axis for axis in ORDER if len(values(axis, tried)) == 1 < len(values(axis, fits)))


def level(trials: Sequence[Trial]) -> list[Trial]:
    """Those no more than one standard error below the best accuracy."""
    best = max(trials, key=lambda trial: trial.accuracy)
    return [trial for trial in trials if trial.accuracy >= best.accuracy - best.standard_error]


def resolution(trials: Iterable[Trial]) -> float:
    """The least difference of accuracies, a share of right answers, that the images of these trials tell.

    Two standard errors of a difference. All trials see the same images, so that this is rather too wide.
    """
    return 2 * math.sqrt(2) * max(trial.standard_error for trial in trials)


def worst_gap(one: Trial, other: Trial) -> float:
    """By how much the first one's worst class does better, in two standard errors of the difference."""
    a, b = one.worst_class, other.worst_class
    return (a.accuracy - b.accuracy) / (2 * math.hypot(a.standard_error, b.standard_error))


def of_optimisers(trials: Sequence[Trial], own: Optimiser) -> Trial:
    """Of trials that differ in their optimiser alone: the study's `own`, unless the images tell that another is better.

    Another is better by accuracy, or if it is within one standard error of the best and its worst class does better. Of
    several that are, and of all where `own` was not tried, it is the one with the best worst class, then with the best
    accuracy.
    """
    near = level(trials)
    mine = next((trial for trial in trials if trial.choice.optimiser == own), None)
    if mine is not None:
        least = resolution(trials)
        near = [
            one for one in near if one.accuracy - mine.accuracy >= least or worst_gap(one, mine) >= 1
        ] or [mine]
    return max(near, key=lambda trial: (trial.worst_class.accuracy, trial.accuracy))


def alike_but_optimiser(trials: Sequence[Trial], one: Trial) -> list[Trial]:
    """Those that differ from a trial in their optimiser alone, and itself."""
    return [other for other in trials if other.choice.with_optimiser_of(one.choice) == one.choice]


def settled(trials: Sequence[Trial], own: Optimiser) -> Optimiser:
    """The optimiser that is taken: by the settings in which most were tried, fit or not, since none costs anything."""
    group = max((alike_but_optimiser(trials, one) for one in trials), key=len)
    return of_optimisers(group, own).choice.optimiser


def decide(trials: list[Trial], limits: SiteLimits, own: Optimiser) -> Decision:
    """With the optimiser that is `settled`: of the trials that fit, the cheapest within one standard error of the best.

    Cheap is the sum of the shares of hours and memory; fewer bytes where that is equal. `own` is the study's optimiser.

    This is the one-standard-error rule (Breiman et al. 1984, section 3.4.3): the best of several noisy figures is
    partly the luckiest, and what is told from it by luck alone may as well be cheap. It can cost up to one standard
    error of accuracy, a point or two on 800 images, nine on 24; to keep the study's optimiser can cost as much as the
    images do not tell (`resolution`). Raises ConfigError where what was measured in the trials shows that none fits.
    """
    fitting = _fitting(trials, limits)
    if not fitting:
        raise nothing_fits({trial.choice: trial.cost for trial in trials}, limits, ())
    optimiser = settled(trials, own)
    fitting = [trial for trial in fitting if trial.choice.optimiser == optimiser] or fitting
    best = max(fitting, key=lambda trial: trial.accuracy)
    taken = min(
        level(fitting),
        key=lambda trial: (sum(trial.cost.shares(limits).values()), trial.cost.upload_bytes_per_round),
    )
    share = taken.cost.shares(limits)
    of = f" with {optimiser.words()}" if any(trial.choice.optimiser != optimiser for trial in trials) else ""
    if taken is best:
        reason = f"It has the best accuracy of the choices tried{of} that fit"
        reason += ", and none cheaper comes within one standard error of it."
    else:
        reason = (
            f"The best of the choices tried{of} ({best.choice.words()}) has {best.accuracy:.1%}; this one is within "
            f"one standard error of it ({best.standard_error:.1%}), and the cheapest that is. The best would take "
            f"{best.cost.hours:.2g} h instead of {taken.cost.hours:.2g} h, and {best.cost.memory_bytes / GIB:.1f} GiB "
            f"instead of {taken.cost.memory_bytes / GIB:.1f} GiB."
        )
    reason += f" It uses {share['hours']:.0%} of the hours and {share['memory']:.0%} of the memory allowed."
    if taken.accuracy <= taken.start_accuracy:
        reason += (
            " WARNING: on these images training did not help at this epsilon; more images a site, or more epsilon, "
            "would."
        )
    return Decision(taken, best, reason)


def frontier(trials: list[Trial], price: str) -> list[Trial]:
    """The trials that no other beats in accuracy at the same price or less, cheapest first; `price` is of PRICES."""
    best, found = float("-inf"), []
    for trial in sorted(trials, key=lambda one: (getattr(one.cost, price), -one.accuracy)):
        if trial.accuracy > best:
            best = trial.accuracy
            found.append(trial)
    return found


def _fitting(trials: Any, limits: SiteLimits) -> list[Trial]:
    return [trial for trial in trials if max(trial.cost.shares(limits).values()) <= 1]
