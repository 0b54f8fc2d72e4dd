"""What the sample says of the server optimisers, and what it is too small to say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from secure_triplay.pilot.choices import Choice
from secure_triplay.pilot.optimiser import Optimiser
from secure_triplay.pilot.search import (
    Trial,
    alike_but_optimiser,
    level,
    of_optimisers,
    resolution,
    worst_gap,
)


@dataclass(frozen=True)
class Comparison:
    """Of trials that differ in their server optimiser alone: which are level with the best, within one standard error.

    `not_told_apart` are those closer to the one taken than the images tell (`resolution`, a share of right answers),
    and whose worst class is, too.
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


def compare(
    trials: Sequence[Trial], taken: Choice, own: Optimiser, classes: Sequence[str], images: int
) -> Comparison | None:
    """The comparison, on so many measured `images`; None where no other optimiser was tried beside the one taken.

    It is made in the settings in which most optimisers were tried, whether they fit or not: none costs anything.
    """
    with_it = [trial for trial in trials if trial.choice.optimiser == taken.optimiser]
    group = max((alike_but_optimiser(trials, trial) for trial in with_it), key=len)
    if len(group) == 1:
        return None
    (mine,) = [trial for trial in group if trial.choice.optimiser == taken.optimiser]
    others = [trial for trial in group if trial is not mine]
    near, least = level(group), resolution(group)
    untold = [
        one for one in others if abs(one.accuracy - mine.accuracy) < least and abs(worst_gap(one, mine)) < 1
    ]
    words = [
        "Server optimisers, all else alike: "
        + "; ".join(
            f"{one.choice.optimiser.words()} {one.accuracy:.1%} ± {one.standard_error:.1%}, worst class "
            f"{classes[one.worst_class.label]} {one.worst_class.accuracy:.1%} ± {one.worst_class.standard_error:.1%}"
            for one in group
        )
        + ".",
        _why(mine, group, own),
        _resolved(untold, images, least, kept=mine.choice.optimiser == own),
    ]
    return Comparison(
        tuple(one.choice.optimiser for one in near),
        tuple(one.choice.optimiser for one in untold),
        least,
        " ".join(words),
    )


def _why(mine: Trial, group: list[Trial], own: Optimiser) -> str:
    name, alone = mine.choice.optimiser.words(), of_optimisers(group, own)
    if mine is not alone:
        return (
            f"By this alone {alone.choice.optimiser.words()} would be taken; {name} was for the reason above."
        )
    if mine.choice.optimiser == own:
        return f"{name} is the study's own, and the images do not tell that another is better."
    if any(one.choice.optimiser == own for one in group):
        return f"The images tell that {name} is better than the study's own, {own.words()}."
    return f"{name} is within one standard error of the best, and of those that are none has a better worst class."


def _resolved(untold: list[Trial], images: int, least: float, *, kept: bool) -> str:
    points = f"{100 * least:.1f} points of accuracy"
    if not untold:
        return (
            f"{images:,} images tell differences from {points} on; all others are further from it, or their worst "
            "class is."
        )
    names = ", ".join(one.choice.optimiser.words() for one in untold)
    luck = "" if kept else "which of these is taken may be luck; "
    return (
        f"NOT TOLD APART from it by {images:,} images, which tell differences from {points} on, nor by their worst "
        f"class: {names}; {luck}more images would say more."
    )
