"""Rare classes inside the budget: two ways that use what a site's classes are, and pay for it.

*Logit adjustment* (Menon et al. 2021, equation 10; by site: Zhang et al. 2022, FedLC): the logarithms of a site's
class shares are added to the logits while it trains, so that a rare class is not learned as an unlikely one. The
shares come from counts with noise (`privacy.counts`), one Gaussian release of each site.

*Synthesis in feature space*, for which the paper trains a GAN: each site releases, for each class, a noised sum of
its records' coordinates in a few public directions, and a noised count. What all sites' sums say of a class' mean
moves public images there: a public image's tokens, shifted in these directions and nowhere else. Every site takes
the same gradients on the same synthetic records, so these cost nothing more (post-processing).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from secure_triplay.client.learner import Encoded, counted_records
from secure_triplay.experiments.federation import Vector
from secure_triplay.loading import Model
from secure_triplay.privacy.counts import ClassCountRule, noised_class_counts
from secure_triplay.privacy.noise import NoiseSource
from secure_triplay.privacy.per_record import evaluation_mode, record_loss

NOISE = 5.0
"""Noise multiplier of each of the two releases."""
DIRECTIONS = 12
"""Public directions: every one carries noise of its own, and the first few hold most of what tells classes apart."""
_SYNTHETIC, _BATCH, _WEIGHT = 60, 64, 0.5

Floats = NDArray[np.float64]


def class_counts(records: Mapping[str, Encoded], n_classes: int, rule: ClassCountRule) -> dict[str, Floats]:
    """By site: its records (n_classes,) of each class, with noise: one release, at the price of `rule.charge`."""
    counted = {site: counted_records(own, rule).labels.numpy() for site, own in records.items()}
    return {
        site: noised_class_counts(labels, n_classes, rule, NoiseSource()) for site, labels in counted.items()
    }


@dataclass(frozen=True)
class Directions:
    """Public directions of flattened tokens (n, t d): `axes` (k, t d), `centre` (t d,); coordinates of norm <= 1."""

    centre: Floats
    axes: Floats
    radius: float

    @classmethod
    def of(cls, public: Encoded, k: int = DIRECTIONS) -> Directions:
        """The principal directions of public images, and the radius that holds nine in ten of them."""
        flat = _flat(public.tokens)
        centre = flat.mean(axis=0)
        _, _, axes = np.linalg.svd(flat - centre, full_matrices=False)
        axes = axes[: min(k, len(axes))]
        radius = float(np.quantile(np.linalg.norm((flat - centre) @ axes.T, axis=1), 0.9))
        return cls(centre, axes, max(radius, 1e-9))

    def coordinates(self, tokens: Tensor) -> Floats:
        """(n, k), each scaled to norm 1 where it is longer."""
        z = (_flat(tokens) - self.centre) @ self.axes.T / self.radius
        found: Floats = z / np.maximum(1.0, np.linalg.norm(z, axis=1, keepdims=True))
        return found


def noised_sums(
    records: Encoded,
    where: Directions,
    n_classes: int,
    rule: ClassCountRule,
    noise: NoiseSource | None = None,
) -> Floats:
    """(n_classes, k + 1): by class the sum of coordinates, and the number of records, each with noise.

    Guarantee: one Gaussian release of noise multiplier `NOISE` per unit under add/remove. A record moves one row,
    by coordinates of norm at most 1 and a count of 1: a distance of at most sqrt(2), times the records of a unit.
    """
    own = counted_records(records, rule)
    labels = own.labels.numpy()
    rows = np.concatenate([where.coordinates(own.tokens), np.ones((len(labels), 1))], axis=1)
    sums = np.zeros((n_classes, rows.shape[1]))
    np.add.at(sums, labels, rows)
    return sums + (noise or NoiseSource()).gaussian(sums.shape, NOISE * math.sqrt(2) * rule.records_per_unit)


def synthesise(
    sums: Floats, noise_std: float, where: Directions, public: Encoded, rng: np.random.Generator
) -> Encoded:
    """Synthetic records from the sum over sites of `noised_sums`, more of them the rarer a class is.

    `noise_std` is that of the sum. A class' mean is drawn towards the public one by what is noise in it; a class
    of which nothing public is known gets none.
    """
    k = where.axes.shape[0]
    counts = np.maximum(sums[:, -1], noise_std)
    z, labels = where.coordinates(public.tokens), public.labels.numpy()
    wanted = np.round(_SYNTHETIC * (1 - counts / counts.max())).astype(int)
    tokens, classes = [], []
    for c in np.flatnonzero(wanted):
        own = np.flatnonzero(labels == c)
        if not len(own):
            continue
        trust = counts[c] ** 2 / (counts[c] ** 2 + k * noise_std**2)
        private = sums[c, :-1] / counts[c]
        mean = trust * private / max(1.0, float(np.linalg.norm(private))) + (1 - trust) * z[own].mean(axis=0)
        base = rng.choice(own, wanted[c])
        other = rng.integers(0, len(labels), wanted[c])
        spread = z[other] - np.stack([z[labels == labels[i]].mean(axis=0) for i in other])
        shift = (mean + spread - z[base]) * where.radius @ where.axes
        tokens.append(public.tokens[base] + torch.from_numpy(shift).float().view_as(public.tokens[base]))
        classes.append(np.full(wanted[c], c))
    if not tokens:
        return Encoded(public.tokens[:0], public.labels[:0])
    return Encoded(torch.cat(tokens), torch.from_numpy(np.concatenate(classes).astype(np.int64)))


def synthetic_step(
    model: Model, synthetic: Encoded, learning_rate: float, seed: int
) -> Callable[[Vector, int], Vector]:
    """What every site adds to a round's mean update: minus the gradient on a public draw of synthetic records."""

    def also(adapter: Vector, number: int) -> Vector:
        if not len(synthetic):
            return np.zeros(len(adapter), np.float32)
        rng = np.random.default_rng([seed, number])
        rows = torch.from_numpy(rng.choice(len(synthetic), min(_BATCH, len(synthetic)), replace=False))
        model.adapter.load_vector(adapter)
        weights = list(model.adapter.weights)
        with evaluation_mode(model.classifier):
            loss = record_loss(model.classifier(synthetic.tokens[rows]), synthetic.labels[rows]) / len(rows)
            gradients = torch.autograd.grad(loss, weights)
        flat: Vector = torch.cat([gradient.reshape(-1) for gradient in gradients]).numpy()
        return (-_WEIGHT * learning_rate * flat).astype(np.float32)

    return also


def _flat(tokens: Tensor) -> Floats:
    found: Floats = tokens.flatten(1).numpy().astype(np.float64)
    return found
