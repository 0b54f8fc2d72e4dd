"""A federation in one process: the real local step, quantiser and server optimiser; the sum is added in the clear.

What a round releases is the sum of integers, and the encrypted sum is exact (`crypto.codec`): adding the same
integers in the clear gives the same adapter, bit for bit. A test holds one round against real ciphertexts. So a
grid of methods can be measured without keys, processes and a network; what those cost is measured elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from secure_triplay.client.learner import Encoded, Learner
from secure_triplay.client.optimiser import GlobalState, step
from secure_triplay.client.round import SharesNoise, weighted
from secure_triplay.config import ServerOptimiser, Study
from secure_triplay.constants import choose_codec
from secure_triplay.crypto.codec import Codec, Uniform
from secure_triplay.crypto.wrapping import WrappingCodec
from secure_triplay.loading import Model
from secure_triplay.model.ranks import Ranks, ranks_of
from secure_triplay.privacy.noise import NoiseSource

Vector = NDArray[np.float32]
Integers = NDArray[np.int64]
Also = Callable[[Vector, int], Vector]
"""From an adapter (n_params,) and the number of a round to what every site adds to the mean update."""


class Trains(Protocol):
    """Whatever turns a global adapter (n_params,) into an update (n_params,)."""

    def update(self, adapter: Vector) -> Vector: ...


def federate(
    study: Study,
    model: Model,
    records: Mapping[str, Encoded],
    *,
    start: Vector,
    tell: Callable[[int, Vector], None] = lambda _, __: None,
    sent: Callable[[str, Vector], None] = lambda _, __: None,
    biases: Mapping[str, Vector] | None = None,
    also: Also | None = None,
) -> GlobalState:
    """The study's rounds, of the sites in `records`, from the adapter `start`; noise is fresh.

    The state after the last round; `published` is what the study would publish. Each site's noise comes from a
    source of its own. `biases` (n_classes,), by site, stand in its logits while it trains; `also` is added to each mean
    update, the same at every site.
    `tell` is given each round's number, and what the study would publish after it; `sent` each site's name with its own
    noised update (n_params,), every round.
    """
    codec = choose_codec(study, model.adapter.n_params)
    noises = {name: NoiseSource() for name in records}
    ranks = ranks_of(study, model.adapter.shapes)
    learners = {
        name: Learner(
            study,
            model,
            noises[name],
            own,
            None if ranks is None else ranks.trained(name),
        )
        for name, own in records.items()
    }
    for name, learner in learners.items():
        learner.adjust((biases or {}).get(name))
    weights = {site.name: site.weight for site in study.sites if site.name in records}
    state = GlobalState.start(start)
    for number in range(1, 1 + study.training.rounds):
        state = one_round(
            state, learners, noises, codec, weights, study.server_optimiser, ranks=ranks, also=also, sent=sent
        )
        tell(number, state.published)
    return state


def one_round(
    state: GlobalState,
    learners: Mapping[str, Trains],
    noises: Mapping[str, Uniform],
    codec: Codec,
    weights: Mapping[str, float],
    optimiser: ServerOptimiser,
    ranks: Ranks | None = None,
    also: Also | None = None,
    sent: Callable[[str, Vector], None] = lambda _, __: None,
) -> GlobalState:
    """What `client.round` does, between training and the optimiser, with integers instead of ciphertexts."""
    heaviest, n_terms = max(weights.values()), len(learners)
    total: Integers = np.zeros(codec.n_params, np.int64)
    for name, learner in learners.items():
        if isinstance(codec, WrappingCodec):
            assert isinstance(learner, SharesNoise)
            total += learner.noised_sum(state.adapter.astype(np.float32))
            continue
        update = learner.update(state.adapter.astype(np.float32))
        sent(name, update)
        total += codec.quantise(update * np.float32(weights[name] / heaviest), noises[name])
    if isinstance(codec, WrappingCodec):
        total = codec.unpack(codec.pack(total), n_terms)  # wraps where the words would
    mean = weighted(codec.mean(total, n_terms), tuple(learners), weights, ranks)
    if also is not None:
        mean = mean + also(state.adapter.astype(np.float32), state.round + 1)
    return step(state, mean, optimiser)
