"""One site's training as it really runs, with canaries among its records, and what it releases of each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from secure_triplay.attacks.epsilon.canaries import Canaries, with_canaries
from secure_triplay.client.learner import Encoded
from secure_triplay.client.optimiser import GlobalState, step
from secure_triplay.config import Study
from secure_triplay.constants import round_rule
from secure_triplay.loading import Model
from secure_triplay.privacy.noise import NoiseSource
from secure_triplay.privacy.training import DpSgd, SiteOnly, train


class Trainer(Protocol):
    """`privacy.training.train`, or a mutation of it."""

    def __call__(
        self,
        classifier: nn.Module,
        tokens: Tensor,
        labels: Tensor,
        rule: DpSgd,
        noise: NoiseSource,
        patients: Tensor | None,
    ) -> SiteOnly: ...


class NoNoise(NoiseSource):
    """The mistake that the control plants: batches are drawn as ever, and no noise is added."""

    __slots__ = ()

    def gaussian(self, shape: int | tuple[int, ...], std: float) -> NDArray[np.float64]:
        """Zeros."""
        return np.zeros(shape)


def observe(
    study: Study,
    model: Model,
    records: Encoded,
    canaries: Canaries,
    included: NDArray[np.bool_],
    noise: NoiseSource,
    *,
    trainer: Trainer = train,
    tell: Callable[[], None] = lambda: None,
) -> NDArray[np.float64]:
    """Each canary's coordinate of each round's update (rounds, m), in clip norms.

    Every round of the study, by the study's own rule; the site is alone, so that the mean update is its own
    and the server optimiser moves the adapter as it would. Each canary is a unit of privacy of its own. The
    model's adapter is afterwards what it was.
    """
    rule = round_rule(study)
    tokens = torch.cat([records.tokens, canaries.tokens(included, tuple(records.tokens.shape[1:]))])
    labels = torch.cat([records.labels, torch.zeros(int(included.sum()), dtype=torch.int64)])
    units = torch.arange(len(labels)) if rule.unit == "patient" else None
    start = model.adapter.vector()
    state = GlobalState.start(start)
    seen = []
    with with_canaries(
        model.classifier, model.adapter.weights, canaries, records.tokens[:1], rule.l2_clip_norm
    ) as classifier:
        for _ in range(study.training.rounds):
            before = state.adapter.astype(np.float32)
            model.adapter.load_vector(before)
            trainer(classifier, tokens, labels, rule, noise, units)
            update = (model.adapter.vector() - before).astype(np.float64)
            # A gradient of canaries points down its coordinate, so the step goes up: in clip norms, once a draw.
            scale = rule.expected_batch_size / (rule.learning_rate * rule.l2_clip_norm)
            seen.append(update[canaries.coordinates] * scale)
            state = step(state, update, study.server_optimiser)
            tell()
    model.adapter.load_vector(start)
    return np.asarray(seen)
