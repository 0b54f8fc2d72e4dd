"""A site's data and model, ready to learn: the part of the round that sees images.

Blocks below the lowest adapted one never change, so each image runs through them once, and their output is
what every step trains on. It stays in this process's memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from secure_triplay.config import Study
from secure_triplay.constants import round_rule, share_rule
from secure_triplay.data.records import Records
from secure_triplay.errors import DataError, PrivacyError
from secure_triplay.loading import Model
from secure_triplay.model.tower import Adjusted, Classifier
from secure_triplay.privacy.counts import AnyCountRule, ClassCountRule
from secure_triplay.privacy.noise import NoiseSource
from secure_triplay.privacy.summing import Integers, noised_sum
from secure_triplay.privacy.training import train, train_unsafe_without_dp

_EVALUATION_BATCH = 256


@dataclass(frozen=True)
class Encoded:
    """Records after the frozen blocks: tokens (n, t, d) float32, labels (n,) int64, and whose each record is.

    `patients` is (n,) int64, equal where the patient is, or None where the manifest names none.
    """

    tokens: torch.Tensor
    labels: torch.Tensor
    patients: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Score:
    """Correct answers out of `total`."""

    correct: int
    total: int


class Learner:
    """Trains and measures one site's adapter; holds the site's encoded records."""

    def __init__(
        self,
        study: Study,
        model: Model,
        noise: NoiseSource,
        train_on: Encoded,
        trained: NDArray[np.bool_] | None = None,
    ) -> None:
        """`trained` (n_params,) is public and says which values this site trains; None: all of them."""
        if noise.unsafe_seeded:
            raise PrivacyError(
                "noise from a seed protects nobody",
                where="training",
                fix="leave the seed to tests and audits",
            )
        require_units(study, len(train_on), None if train_on.patients is None else train_on.patients.numpy())
        self._study, self._model, self._noise, self._train_on = study, model, noise, train_on
        self._trains: Classifier | Adjusted = model.classifier
        self._moves, self._masks = trained, None if trained is None else _masks(model, trained)

    def adjust(self, bias: NDArray[np.float32] | None) -> None:
        """Train from now on with `bias` (n_classes,), if any, added to the logits; `score` goes on without it.

        Privacy is that of training and of whatever made the bias: each record's gradient is its own, and is clipped.
        """
        self._trains = self._model.classifier if bias is None else Adjusted(self._model.classifier, bias)

    def update(self, adapter: NDArray[np.float32]) -> NDArray[np.float32]:
        """One round's local steps from the global adapter (n_params,) -> the update (n_params,).

        Raises ConfigError where sites share their noise: then there is no such update, but `noised_sum`.
        """
        self._model.adapter.load_vector(adapter)
        classifier, tokens, labels = self._trains, self._train_on.tokens, self._train_on.labels
        if self._study.dp:
            rule = round_rule(self._study)
            train(classifier, tokens, labels, rule, self._noise, self._train_on.patients, self._masks)
        else:
            training, privacy = self._study.training, self._study.privacy
            train_unsafe_without_dp(
                classifier,
                tokens,
                labels,
                sampling_rate=privacy.sampling_rate,
                expected_batch_size=privacy.expected_batch_size,
                steps=training.steps_per_round,
                learning_rate=training.learning_rate,
                physical_batch_size=training.physical_batch_size,
                noise=self._noise,
            )
        update: NDArray[np.float32] = self._model.adapter.vector() - adapter
        if self._moves is not None:
            update[~self._moves] = 0.0
        return update

    def noised_sum(self, adapter: NDArray[np.float32]) -> Integers:
        """This site's part of a sum with shared noise, at the global adapter (n_params,) -> (n_params,) int64."""
        rule = share_rule(self._study)
        if rule is None:
            raise PrivacyError(
                "one share of noise protects nobody, and this study shares none",
                where="training",
                fix="`update`",
            )
        self._model.adapter.load_vector(adapter)
        classifier = self._trains
        parts = noised_sum(classifier, self._train_on.tokens, self._train_on.labels, rule, self._noise)
        weights = (weight for weight in classifier.parameters() if weight.requires_grad)
        by_weight = {id(weight): part for weight, part in zip(weights, parts, strict=True)}
        return np.concatenate([by_weight[id(weight)].reshape(-1) for weight in self._model.adapter.weights])

    def class_labels(self, rule: ClassCountRule) -> NDArray[np.int64]:
        """Labels (n,) of those of this site's training records that the rule counts."""
        labels: NDArray[np.int64] = counted_records(self._train_on, rule).labels.numpy()
        return labels

    def score(
        self, adapter: NDArray[np.float32], records: Encoded, bias: NDArray[np.float32] | None = None
    ) -> Score:
        """Top-1 answers of the given adapter on encoded records, with `bias` (n_classes,) added to the logits."""
        self._model.adapter.load_vector(adapter)
        correct, added = 0, 0.0 if bias is None else torch.from_numpy(bias)
        with torch.no_grad():
            for start in range(0, len(records), _EVALUATION_BATCH):
                logits = self._model.classifier(records.tokens[start : start + _EVALUATION_BATCH]) + added
                correct += int((logits.argmax(-1) == records.labels[start : start + _EVALUATION_BATCH]).sum())
        return Score(correct, len(records))


def _masks(model: Model, trained: NDArray[np.bool_]) -> list[torch.Tensor]:
    """A mask (n_params,) by weight, in the order of the classifier's own."""
    ends = np.cumsum([weight.numel() for weight in model.adapter.weights])
    by_weight = {
        id(weight): torch.from_numpy(trained[end - weight.numel() : end].copy()).view_as(weight)
        for weight, end in zip(model.adapter.weights, ends, strict=True)
    }
    return [by_weight[id(weight)] for weight in model.classifier.parameters() if weight.requires_grad]


def counted_records(records: Encoded, rule: AnyCountRule) -> Encoded:
    """The first `rule.records_per_unit` records of each patient, where the unit is the patient; otherwise all.

    A cap on patients where the unit is the record would let a second image in when the first one goes: two counts
    would move instead of one.
    """
    if rule.unit == "record" or not len(records):
        return records
    if records.patients is None:
        raise DataError(
            "the study counts by patient, and these records do not say whose they are",
            where="data",
            fix="add a column patient_id to the manifest, the same for all images of one patient",
        )
    order = torch.argsort(records.patients, stable=True)
    _, counts = torch.unique_consecutive(records.patients[order], return_counts=True)
    kept = (
        torch.cat([part[: rule.records_per_unit] for part in torch.split(order, counts.tolist())])
        .sort()
        .values
    )
    return Encoded(records.tokens[kept], records.labels[kept], records.patients[kept])


def encode_records(model: Model, records: Records, tell: Callable[[int, int], None]) -> Encoded:
    """Run records through the frozen blocks once; `tell(done, total)` after each batch."""
    batches = []
    for start in range(0, len(records), _EVALUATION_BATCH):
        part = np.arange(start, min(start + _EVALUATION_BATCH, len(records)))
        batches.append(model.tower.prefix(records.images(part, model.backbone.image_size)))
        tell(int(part[-1]) + 1, len(records))
    tokens = torch.cat(batches) if batches else torch.empty(0)
    patients = None if records.patients is None else torch.from_numpy(np.asarray(records.patients, np.int64))
    return Encoded(tokens, torch.from_numpy(np.asarray(records.labels, np.int64)), patients)


def require_units(study: Study, n_records: int, patients: NDArray[np.int64] | None) -> None:
    """Refuse records that the study's privacy does not fit; to be asked before any budget is reserved.

    `patients` is (n_records,) int64 or None. Raises DataError where the study protects patients and none are
    named, PrivacyError where a site has more units than the study's delta counts on. Said to the operator
    here, in figures that go nowhere else.
    """
    dp = study.dp
    if dp is None:
        return
    if dp.unit == "patient" and patients is None:
        raise DataError(
            "the study protects patients, and this site's records do not say whose they are",
            where="data",
            fix="add a column patient_id to the manifest, the same for all images of one patient",
        )
    units = n_records if dp.unit == "record" or patients is None else len(np.unique(patients))
    if units > dp.max_units_per_site:
        raise PrivacyError(
            f"this site has {units:,} {dp.unit}s and the study's delta counts on "
            f"{dp.max_units_per_site:,} at most",
            where="privacy.max_units_per_site",
            fix=f"train on fewer {dp.unit}s, or have the study raise the bound and lower delta",
        )
