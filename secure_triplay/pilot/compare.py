"""What the sample says of the server optimisers, and what it is too small to say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from secure_triplay.pilot.choices import Choice
from secure_triplay.pilot.optimiser import Optimiser
from secure_triplay.pilot.search import Trial, fairest, level

_ERRORS = 2.0 * math.sqrt(2.0)
"""Two standard errors of a difference. All trials see the same images, so that this is rather too wide."""


@dataclass(frozen=True)
class Comparison:
    """Of trials that differ in their server optimiser alone: which are level with the best, within one standard error.

    `not_told_apart` are those closer to the one taken than the images tell: `resolution`, a share of right answers.
    """

    level: tuple[Optimiser, ...]
    not_told_apart: tuple[Optimiser, ...]
    resolution: float
    words: str

    def plain(self) -> dict[str, Any]:
        """The comparison as JSON-able content."""
        return {
            "level": [asdict(one) for one in self.level],
            "not_told_apart": [asdict(one) for one in self.not_told_apart],
            "resolution": round(self.resolution, 5),
            "words": self.words,
        }


def compare(trials: Sequence[Trial], taken: Choice, classes: Sequence[str], images: int) -> Comparison | None:
    """The comparison, on so many measured `images`; None where no other optimiser was tried beside the one taken.

    It is made in the settings in which most optimisers were tried, whether they fit or not: none costs anything.
    """
    alike = [
        [one for one in trials if one.choice.with_optimiser_of(trial.choice) == trial.choice]
        for trial in trials
        if trial.choice.optimiser == taken.optimiser
    ]
    group = max(alike, key=len)
    if len(group) == 1:
        return None
    (mine,) = [trial for trial in group if trial.choice.optimiser == taken.optimiser]
    others = [trial for trial in group if trial is not mine]
    near, resolution = level(group), _ERRORS * max(one.standard_error for one in group)
    untold = [one for one in others if abs(one.accuracy - mine.accuracy) < resolution]
    words = [
        "Server optimisers, all else alike: "
        + "; ".join(
            f"{one.choice.optimiser.words()} {one.accuracy:.1%} ± {one.standard_error:.1%}, worst class "
            f"{classes[one.worst_class.label]} {one.worst_class.accuracy:.1%} ± {one.worst_class.standard_error:.1%}"
            for one in group
        )
        + ".",
        _why(mine, near),
        _resolved(mine, untold, images, resolution),
    ]
    return Comparison(
        tuple(one.choice.optimiser for one in near),
        tuple(one.choice.optimiser for one in untold),
        resolution,
        " ".join(words),
    )


def _why(mine: Trial, near: list[Trial]) -> str:
    name = mine.choice.optimiser.words()
    alone = fairest(near)
    if mine is not alone:
        return (
            f"By this alone {alone.choice.optimiser.words()} would be taken; {name} was for the reason above."
        )
    if len(near) == 1:
        return f"{name} is above the others by more than one standard error."
    return f"{name} is within one standard error of the best, and of those that are none has a better worst class."


def _resolved(mine: Trial, untold: list[Trial], images: int, resolution: float) -> str:
    least = f"{100 * resolution:.1f} points"
    if not untold:
        return f"{images:,} images tell differences from {least} on, and all others are further from it."
    names = ", ".join(one.choice.optimiser.words() for one in untold)
    said = f"NOT TOLD APART from it by {images:,} images, which tell differences from {least} on: {names}."
    if any(abs(_gap(mine, one)) >= 1 for one in untold):
        return said
    return f"{said} Nor are their worst classes: which of these is taken may be luck; more images would say more."


def _gap(one: Trial, other: Trial) -> float:
    """How far two worst classes' accuracies are from each other, in two standard errors of the difference."""
    a, b = one.worst_class, other.worst_class
    return (a.accuracy - b.accuracy) / (2 * math.hypot(a.standard_error, b.standard_error))
