"""From answers to the figures of one cell: public accuracy, each site's own, and the rare classes'.

Which classes are rare is known to the experiment alone, from all sites' records together; no site and no server
of a real federation could say it without a charge.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Answers:
    """A method's answers: on the public test set, by model, and on each site's held-back records.

    `test` has one entry, under the empty name, where all sites end with the same model; otherwise one a site.
    """

    test: Mapping[str, Labels]
    held_back: Mapping[str, Labels]


@dataclass(frozen=True)
class Result:
    """Answers, and what they cost: rounds, trained parameters, bytes that one site sends and gets in one round.

    `epsilon` is given where more was released than the study's own training.
    """

    answers: Answers
    rounds: int = 0
    n_params: int = 0
    upload_bytes: int = 0
    download_bytes: int = 0
    epsilon: float | None = None


@dataclass(frozen=True)
class Truth:
    """The right answers, and how many training records of each class all sites have together."""

    test: Labels
    held_back: Mapping[str, Labels]
    trained_on: Labels


def score(answers: Answers, truth: Truth) -> dict[str, Any]:
    """The figures of a cell; None where there was nothing to measure them on.

    `accuracy`: mean over models on the public test set. `worst_site`: the worst site on the records that it held
    back itself, whose classes are skewed as its own are. `worst_site_public`: the worst site's model on the
    public test set. `head`, `middle`, `tail`: mean accuracy of the classes with most, middling and fewest
    training records, a third each (the odd ones in the middle).
    """
    public = [float((found == truth.test).mean()) for found in answers.test.values()]
    own = {
        name: float((found == truth.held_back[name]).mean())
        for name, found in answers.held_back.items()
        if len(found)
    }
    by_class = _by_class(answers.test, truth.test, len(truth.trained_on))
    return {
        "accuracy": float(np.mean(public)),
        "worst_site": min(own.values()) if own else None,
        "worst_site_public": min(public),
        "mean_site": float(np.mean(list(own.values()))) if own else None,
        "by_site": own,
        "by_class": by_class,
        "worst_class": min(value for value in by_class if value is not None),
        **{name: _mean([by_class[c] for c in part]) for name, part in thirds(truth.trained_on).items()},
    }


def thirds(trained_on: Labels) -> dict[str, list[int]]:
    """Classes by their number of training records: head, middle and tail."""
    order = [int(c) for c in np.argsort(-trained_on, kind="stable")]
    size = max(1, len(order) // 3)
    return {"head": order[:size], "middle": order[size:-size], "tail": order[-size:]}


def _by_class(test: Mapping[str, Labels], truth: Labels, n_classes: int) -> list[float | None]:
    right = np.mean([found == truth for found in test.values()], axis=0)
    return [float(right[truth == c].mean()) if (truth == c).any() else None for c in range(n_classes)]


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
