"""One choice, tried: the run's own private step, quantiser and server optimiser on public images.

A site of the sample has fewer images than a real one. So that the noise weighs as it will, it is scaled: a step
draws at the study's rate, is divided by what that draws here, and gets noise of the very standard deviation that
one parameter of the real mean gradient has. Fewer images a step make the signal itself noisier than it will be,
and fewer different images are learned from: accuracy here is a lower one, and for comparing choices.
"""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from secure_triplay.client.learner import Encoded
from secure_triplay.client.optimiser import GlobalState
from secure_triplay.config import Study
from secure_triplay.constants import choose_codec, round_rule
from secure_triplay.experiments.federation import one_round
from secure_triplay.experiments.setting import Setting, predict
from secure_triplay.loading import Model
from secure_triplay.pilot.choices import site_units
from secure_triplay.pilot.sample import Sample
from secure_triplay.pilot.search import WorstClass
from secure_triplay.privacy.mechanisms import DpSgd
from secure_triplay.privacy.noise import NoiseSource
from secure_triplay.privacy.training import train
from secure_triplay.report.words import standard_error

Vector = NDArray[np.float32]


class PublicSetting(Setting):
    """A setting whose records are the sample's."""

    def __init__(self, study: Study, sample: Sample) -> None:
        super().__init__(study)
        self.__dict__["split"] = sample.split  # in place of the study's records, which nothing here may see


class PublicLearner:
    """The private step on public records, with the noise of a real site (module docstring).

    `images` were drawn so far, in `seconds` of processor time a thread: those of a machine that is otherwise idle.
    """

    def __init__(
        self, model: Model, records: Encoded, rule: DpSgd, noise: NoiseSource, real_units: float
    ) -> None:
        self._model, self._noise, self._records = model, noise, records
        self.images, self.seconds = 0.0, 0.0
        self._patients = records.patients if records.patients is not None else torch.arange(len(records))
        here = len(torch.unique(self._patients)) if rule.unit == "patient" else len(records)
        self._images_per_unit = min(len(records) / here, rule.max_records_per_patient or 1)
        self._rule = scaled_rule(rule, here, real_units)

    def update(self, adapter: Vector) -> Vector:
        """One round's steps from the global adapter (n_params,) -> the update (n_params,)."""
        self._model.adapter.load_vector(adapter)
        began = time.process_time()
        report = train(
            self._model.classifier,
            self._records.tokens,
            self._records.labels,
            self._rule,
            self._noise,
            self._patients,
        )
        self.images += sum(report.batch_sizes) * self._images_per_unit
        self.seconds += (time.process_time() - began) / torch.get_num_threads()
        change: Vector = self._model.adapter.vector() - adapter
        return change


def scaled_rule(rule: DpSgd, units_here: int, real_units: float) -> DpSgd:
    """The rule for a smaller site: the noise in the mean gradient keeps its standard deviation."""
    share = min(1.0, units_here / real_units)
    return replace(
        rule,
        expected_batch_size=rule.expected_batch_size * share,
        noise_multiplier=rule.noise_multiplier * share,
    )


def try_choice(setting: PublicSetting, study: Study) -> dict[str, Any]:
    """Train a study that has the choice in it on the sample -> accuracy, worst class, their errors, and speed."""
    started = time.perf_counter()
    model = setting.model(study)
    records = setting.train(model)
    rule, codec = round_rule(study), choose_codec(study, model.adapter.n_params)
    noises = {name: NoiseSource() for name in records}
    learners = {
        name: PublicLearner(model, own, rule, noises[name], site_units(study))
        for name, own in records.items()
    }
    weights = {site.name: site.weight for site in study.sites}
    start = setting.start(model)
    state = GlobalState.start(start)
    for _ in range(study.training.rounds):
        state = one_round(state, learners, noises, codec, weights, study.server_optimiser)
    measured = setting.encoded(model, "test")
    truth = measured.labels.numpy()
    right = predict(model, state.published, measured) == truth
    accuracy, worst = float(right.mean()), worst_class(right, truth)
    before = float((predict(model, start, measured) == truth).mean())
    images = sum(learner.images for learner in learners.values())
    return {
        "accuracy": accuracy,
        "start_accuracy": before,
        "standard_error": standard_error(accuracy, len(truth)),
        **{f"worst_class_{name}": value for name, value in asdict(worst).items()},
        "measured_images": len(truth),
        "n_params": model.adapter.n_params,
        "tokens": measured.tokens.shape[1],
        "step_s_per_image": sum(learner.seconds for learner in learners.values()) / max(1.0, images),
        "seconds": round(time.perf_counter() - started, 2),
    }


def worst_class(right: NDArray[np.bool_], truth: NDArray[np.int64]) -> WorstClass:
    """The class got right least often, of those that have images; `right` and `truth` (labels) are (n,)."""
    shares = {int(label): float(right[truth == label].mean()) for label in np.unique(truth)}
    label = min(shares, key=shares.__getitem__)
    images = int((truth == label).sum())
    return WorstClass(label, shares[label], standard_error(shares[label], images), images)
