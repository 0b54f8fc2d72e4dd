"""Adapters that are trained on random halves of a pool, for membership inference to tell the halves apart.

Targets are drawn apart from shadows: where each adapter is a target once and a shadow otherwise, and each
record in exactly half of them, who is in the shadows tells who is in the target.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray

from secure_triplay.client.learner import Encoded, encode_records
from secure_triplay.client.optimiser import GlobalState, step
from secure_triplay.config import ServerOptimiser, Study
from secure_triplay.constants import round_rule
from secure_triplay.errors import DataError
from secure_triplay.loading import Model, load_data, load_model
from secure_triplay.privacy.noise import NoiseSource
from secure_triplay.privacy.training import train, train_unsafe_without_dp

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Size:
    """How much is trained: records in the pool and in the population, and adapters."""

    pool: int
    population: int
    shadows: int
    targets: int


@dataclass(frozen=True)
class Game:
    """All that a set of adapters shows, shadows first, and who was in which (k, n): the scorer's.

    `changes` (k, rounds, n) is what each round did to the confidences; no rounds where nobody looked.
    """

    n_shadows: int
    confidences: Array
    backbone: Array
    population: Array
    members: Mask
    changes: Array


@dataclass(frozen=True)
class Games:
    """Adapters of one kind, trained on random halves of a pool."""

    study: Study
    model: Model
    pool: Encoded
    population: Encoded
    ticked: Callable[[], None]
    every_round: bool = False
    _looks: list[Array] = field(default_factory=list)

    def play(
        self, size: Size, rng: np.random.Generator, training: Callable[[Encoded, NoiseSource], Array]
    ) -> Game:
        """Shadows, each record in exactly half of them, and targets on halves of their own.

        With `every_round` the pool is looked at after each round's sum, as every site can.
        """
        members = draw_members(size.shadows, size.targets, len(self.pool), rng)
        start = self.model.adapter.vector()
        seen, population, changes = [], [], []
        backbone = self._confidence(self.pool)
        for row in members:
            chosen = torch.from_numpy(np.flatnonzero(row))
            noise = NoiseSource.unsafe_from_seed(int(rng.integers(2**31)))
            released = training(Encoded(self.pool.tokens[chosen], self.pool.labels[chosen]), noise)
            self.model.adapter.load_vector(released.astype(np.float32))
            changes.append(np.diff(np.stack([backbone, *self._looks]), axis=0))
            self._looks.clear()
            seen.append(self._confidence(self.pool))
            population.append(self._confidence(self.population))
            self.model.adapter.load_vector(start)
            self.ticked()
        return Game(
            size.shadows,
            np.asarray(seen),
            backbone,
            np.asarray(population),
            members,
            np.asarray(changes),
        )

    def private(self, records: Encoded, noise: NoiseSource) -> Array:
        """The study's own rule; each record is a unit of its own."""
        rule = round_rule(self.study)
        units = torch.arange(len(records)) if rule.unit == "patient" else None
        return self._rounds(
            self.study.training.rounds,
            self.study.server_optimiser,
            lambda: train(self.model.classifier, records.tokens, records.labels, rule, noise, units),
        )

    def as_stated(self, records: Encoded, noise: NoiseSource) -> Array:
        """The study's steps without clipping and noise; the normaliser fits the smaller pool."""
        rate, training = self.study.privacy.sampling_rate, self.study.training
        return self._rounds(
            training.rounds,
            self.study.server_optimiser,
            lambda: self._plain(
                records, noise, rate, rate * len(records), training.steps_per_round, training.learning_rate
            ),
        )

    def overfitted(self, rounds: int) -> Callable[[Encoded, NoiseSource], Array]:
        """Every record in every one of many steps: more than fit the labels."""

        def training(records: Encoded, noise: NoiseSource) -> Array:
            return self._rounds(
                rounds,
                ServerOptimiser(kind="fedadam", learning_rate=0.003, tau=1e-6),
                lambda: self._plain(records, noise, 1.0, float(len(records)), 1, 1.0),
            )

        return training

    def _plain(
        self, records: Encoded, noise: NoiseSource, rate: float, expected: float, steps: int, speed: float
    ) -> None:
        train_unsafe_without_dp(
            self.model.classifier,
            records.tokens,
            records.labels,
            sampling_rate=rate,
            expected_batch_size=expected,
            steps=steps,
            learning_rate=speed,
            physical_batch_size=self.study.training.physical_batch_size,
            noise=noise,
        )

    def _rounds(self, rounds: int, optimiser: ServerOptimiser, local: Callable[[], object]) -> Array:
        adapter = self.model.adapter
        state = GlobalState.start(adapter.vector())
        for _ in range(rounds):
            before = state.adapter.astype(np.float32)
            adapter.load_vector(before)
            local()
            state = step(state, (adapter.vector() - before).astype(np.float64), optimiser)
            if self.every_round:
                adapter.load_vector(state.adapter.astype(np.float32))
                self._looks.append(self._confidence(self.pool))
        return state.published.astype(np.float64)

    def _confidence(self, records: Encoded) -> Array:
        """log p(right class) - log(1 - p), (n,)."""
        parts = []
        with torch.no_grad():
            for start in range(0, len(records), 256):
                tokens, labels = records.tokens[start : start + 256], records.labels[start : start + 256]
                logits = self.model.classifier(tokens).double()
                right = logits.gather(1, labels[:, None])[:, 0]
                others = logits.scatter(1, labels[:, None], -torch.inf).logsumexp(1)
                parts.append(right - others)
        confidences: Array = torch.cat(parts).numpy()
        return confidences


def adapters_of(size: Size) -> int:
    return size.shadows + size.targets


def draw_members(shadows: int, targets: int, records: int, rng: np.random.Generator) -> Mask:
    """Who is trained on in which adapter (shadows + targets, records); targets do not depend on shadows."""
    order = np.argsort(rng.random((shadows, records)), axis=0)
    halves = [rng.permutation(records) < records // 2 for _ in range(targets)]
    return np.concatenate([order < shadows // 2, np.asarray(halves)])


def both_matrices(study: Study, seed: int) -> Model:
    public = load_data(study, study.sites[0].name).public
    both = study.model_copy(update={"adapter": study.adapter.model_copy(update={"kind": "lora"})})
    return load_model(both, public, hashlib.sha256(f"membership {seed} {study.sha256}".encode()).digest())


def frozen_a(model: Model) -> Model:
    """The same adapter with A frozen: only B is trained and released."""
    whole = model.adapter
    kept = [i for i, name in enumerate(whole.names) if ".lora_B" in name]
    part = replace(
        whole,
        names=tuple(whole.names[i] for i in kept),
        shapes=tuple(whole.shapes[i] for i in kept),
        weights=tuple(whole.weights[i] for i in kept),
    )
    return replace(model, adapter=part)


def only_trains(model: Model) -> None:
    """Gradients for this adapter's weights, and for no others."""
    mine = {id(weight) for weight in model.adapter.weights}
    for name, weight in model.classifier.named_parameters():
        if "lora_" in name:
            weight.requires_grad_(id(weight) in mine)


def pool_and_population(study: Study, model: Model, size: Size) -> tuple[Encoded, Encoded]:
    """The pool and the population, from the first site's records."""
    site = study.sites[0].name
    mine = load_data(study, site).sites[site].train
    needed = size.pool + size.population
    if len(mine) < needed:
        raise DataError(
            f"membership inference needs {needed:,} records; site {site} has {len(mine):,}",
            where="data",
            fix="attack with --quick, or give the first site more records",
        )
    everything = encode_records(model, mine.take(np.arange(needed)), lambda done, total: None)
    pool = first_of(everything, size.pool)
    return pool, Encoded(everything.tokens[size.pool :], everything.labels[size.pool :])


def first_of(records: Encoded, n: int) -> Encoded:
    return Encoded(records.tokens[:n], records.labels[:n])


def mislabelled(records: Encoded, n_classes: int) -> Encoded:
    """Wrong labels: only who was trained on them can have learnt them."""
    shift = 1 + torch.arange(len(records)) % (n_classes - 1)
    return Encoded(records.tokens, (records.labels + shift) % n_classes)
