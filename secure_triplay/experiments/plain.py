"""Training without privacy, for comparison: Adam in small batches, at one place or by rounds of local epochs.

Nothing here is ever run on a site's records in a real study: what these adapters tell of a record is unbounded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from secure_triplay.client.learner import Encoded
from secure_triplay.config import Study
from secure_triplay.experiments.scores import Result
from secure_triplay.experiments.setting import Setting, predict
from secure_triplay.loading import Model
from secure_triplay.privacy.per_record import evaluation_mode, record_loss

Vector = NDArray[np.float32]

EPOCHS, BATCH, LEARNING_RATE = 5, 64, 3e-3
ROUNDS, LOCAL_EPOCHS = 10, 1


def fit(
    model: Model,
    records: Sequence[Encoded],
    start: Vector,
    *,
    seed: int,
    epochs: int = EPOCHS,
    proximal: float = 0.0,
) -> Vector:
    """Adam (Kingma and Ba 2015) over all records for some epochs, its step falling to zero as a cosine.

    With `proximal` mu, mu/2 |w - start|^2 is added to the loss (FedProx: Li et al. 2020, equation 2).
    """
    model.adapter.load_vector(start)
    weights = list(model.adapter.weights)
    anchor = [weight.detach().clone() for weight in weights]
    where = np.concatenate([[(part, row) for row in range(len(one))] for part, one in enumerate(records)])
    rng = np.random.default_rng(seed)
    batches = -(-len(where) // BATCH)
    optimiser = torch.optim.Adam(weights, lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=epochs * batches)
    with evaluation_mode(model.classifier):
        for _ in range(epochs):
            for chosen in np.array_split(rng.permutation(where), batches):
                tokens = torch.stack([records[part].tokens[row] for part, row in chosen])
                labels = torch.stack([records[part].labels[row] for part, row in chosen])
                loss = record_loss(model.classifier(tokens), labels) / len(labels)
                if proximal:
                    pulls = zip(weights, anchor, strict=True)
                    loss = loss + 0.5 * proximal * sum((now - then).square().sum() for now, then in pulls)
                optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                schedule.step()
        optimiser.zero_grad()
    return model.adapter.vector()


def federate_epochs(
    model: Model,
    records: Mapping[str, Encoded],
    start: Vector,
    *,
    proximal: float,
    seed: int,
    tell: Callable[[int, Vector], None],
) -> Vector:
    """FedAvg (McMahan et al. 2017): local epochs at every site, and the mean weighted by record counts.

    The counts are used uncharged, as published methods do.
    """
    counts = np.array([len(one) for one in records.values()], np.float64)
    adapter = start
    for number in range(1, 1 + ROUNDS):
        local = [
            fit(model, [one], adapter, seed=seed * 1000 + number, epochs=LOCAL_EPOCHS, proximal=proximal)
            for one in records.values()
        ]
        adapter = np.average(np.stack(local), axis=0, weights=counts).astype(np.float32)
        tell(number, adapter)
    return adapter


def alone(setting: Setting, study: Study) -> Result:
    """`fit` at each site by itself."""
    model = setting.model(study)
    adapters = {
        site: fit(model, [records], setting.start(model), seed=study.seed)
        for site, records in setting.train(model).items()
    }
    return Result(setting.answers(model, adapters), n_params=model.adapter.n_params)


def central(setting: Setting, study: Study) -> Result:
    """`fit` on all records in one place."""
    model = setting.model(study)
    adapter = fit(model, list(setting.train(model).values()), setting.start(model), seed=study.seed)
    return Result(setting.answers(model, {"": adapter}), n_params=model.adapter.n_params)


def local_epochs(setting: Setting, study: Study, *, proximal: float) -> Result:
    """`federate_epochs`, with what travels: the adapter in fp32, in the clear."""
    model = setting.model(study)
    records, test = setting.train(model), setting.encoded(model, "test")

    def tell(number: int, adapter: Vector) -> None:
        setting.round(number, ROUNDS, lambda: predict(model, adapter, test))

    adapter = federate_epochs(
        model, records, setting.start(model), proximal=proximal, seed=study.seed, tell=tell
    )
    n_params = model.adapter.n_params
    answers = setting.answers(model, {"": adapter})
    return Result(answers, ROUNDS, n_params, 4 * n_params, 4 * n_params)
