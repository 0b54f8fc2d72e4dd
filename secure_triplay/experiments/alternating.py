"""LoRA whose A and B take turns: B in odd rounds, A in even ones, the other frozen meanwhile.

The mean of products is then the product of means in every round, as with a frozen A, and A learns too (Chen et al.
2024, RoLoRA, arXiv 2409.02346, algorithm 1). Each round is one DP-SGD round on half of the adapter: it is clipped,
noised, encoded and charged like any other, and only that half is sent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from secure_triplay.client.learner import Encoded, Learner
from secure_triplay.client.optimiser import GlobalState
from secure_triplay.config import Study
from secure_triplay.constants import choose_codec
from secure_triplay.experiments.federation import Vector, one_round
from secure_triplay.loading import Model
from secure_triplay.privacy.noise import NoiseSource

Bools = np.ndarray


class Half:
    """One half of an adapter, trained while the other stays: a learner of vectors of that half's length."""

    def __init__(self, learner: Learner, mine: Bools, whole: Callable[[Vector], Vector]) -> None:
        self._learner, self._mine, self._whole = learner, mine, whole

    def update(self, adapter: Vector) -> Vector:
        """(n_half,) -> (n_half,)."""
        change: Vector = self._learner.update(self._whole(adapter))[self._mine]
        return change


def is_b(model: Model) -> Bools:
    """(n_params,) true where a value is of a B. Needs adapter kind lora."""
    sizes = [(".lora_B" in name, int(np.prod(shape))) for name, shape in _named(model)]
    return np.concatenate([np.full(size, flag) for flag, size in sizes])


def alternate(
    study: Study,
    model: Model,
    records: Mapping[str, Encoded],
    *,
    start: Vector,
    tell: Callable[[int, Vector], None] = lambda _, __: None,
) -> tuple[Vector, int]:
    """The published adapter (n_params,), and how many values the larger half has."""
    b = is_b(model)
    noises = {name: NoiseSource() for name in records}
    learners = {name: Learner(study, model, noises[name], own) for name, own in records.items()}
    weights = {site.name: site.weight for site in study.sites if site.name in records}
    halves = {True: GlobalState.start(start[b]), False: GlobalState.start(start[~b])}
    by_name = dict(zip(model.adapter.names, model.adapter.weights, strict=True))
    try:
        for number in range(1, 1 + study.training.rounds):
            turn = number % 2 == 1
            mine, fixed = (b if turn else ~b), halves[not turn].adapter.astype(np.float32)
            for name, weight in by_name.items():
                weight.requires_grad_((".lora_B" in name) == turn)

            def whole(part: Vector, mine: Bools = mine, fixed: Vector = fixed) -> Vector:
                vector = np.empty(len(mine), np.float32)
                vector[mine], vector[~mine] = part, fixed
                return vector

            half = {name: Half(learner, mine, whole) for name, learner in learners.items()}
            codec = choose_codec(study, int(mine.sum()))
            halves[turn] = one_round(halves[turn], half, noises, codec, weights, study.server_optimiser)
            tell(number, _joined(b, halves))
    finally:
        for weight in by_name.values():
            weight.requires_grad_(True)
    return _joined(b, halves), int(max(b.sum(), (~b).sum()))


def _joined(b: Bools, halves: Mapping[bool, GlobalState]) -> Vector:
    published = np.empty(len(b), np.float32)
    published[b], published[~b] = halves[True].published, halves[False].published
    return published


def _named(model: Model) -> list[tuple[str, tuple[int, ...]]]:
    return list(zip(model.adapter.names, model.adapter.shapes, strict=True))
