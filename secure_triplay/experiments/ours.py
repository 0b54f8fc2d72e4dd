"""Our federation as a method of a grid: as it is, and with what a variant adds to it.

What a study costs in epsilon is its own charge, composed with whatever a variant releases besides.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from secure_triplay.client.learner import Encoded
from secure_triplay.client.personal import OwnUpdates, class_bias, personal_adapter
from secure_triplay.config import Study
from secure_triplay.constants import choose_codec, class_count_rule, round_rule
from secure_triplay.experiments import tail
from secure_triplay.experiments.alternating import alternate
from secure_triplay.experiments.federation import Vector, federate
from secure_triplay.experiments.scores import Answers, Result
from secure_triplay.experiments.setting import Setting, predict
from secure_triplay.loading import Model
from secure_triplay.privacy.accounting import epsilon
from secure_triplay.privacy.counts import ClassCountRule, log_shares
from secure_triplay.wire import sum_bytes, upload_bytes


def start(setting: Setting, study: Study) -> Result:
    """The adapter before any training."""
    model = setting.model(study)
    return Result(setting.answers(model, {"": setting.start(model)}))


def federated(setting: Setting, study: Study) -> Result:
    """The study's own rounds."""
    model, published = _published(setting, study)
    return _sent(setting.answers(model, {"": published}), study, model)


def alone(setting: Setting, study: Study) -> Result:
    """Each site by itself, by the very rounds, noise and optimiser that the federation has: one term in each sum."""
    model = setting.model(study)
    start = setting.start(model)
    train = setting.train(model)
    biases = _in_training(study, train)
    adapters = {
        site: federate(study, model, {site: records}, start=start, biases=biases).published
        for site, records in train.items()
    }
    return Result(setting.answers(model, adapters), n_params=model.adapter.n_params)


def with_own_updates(setting: Setting, study: Study) -> Result:
    """The federation's adapter, and at each site a second one that its own noised updates move, at no charge.

    Where the study has a personal bias, each site counts its classes with noise for it, within the study's epsilon.
    """
    model = setting.model(study)
    records = setting.train(model)
    own = {site: OwnUpdates.none(model.adapter.n_params) for site in records}
    biases = _biases(study, records)

    def keep(site: str, update: Any) -> None:
        own[site] = own[site].add(update, own[site].last + 1)

    state = federate(
        study,
        model,
        records,
        start=setting.start(model),
        tell=_telling(setting, study, model),
        sent=keep,
        biases=biases if study.trains_with_bias else {},
    )
    shared = setting.answers(model, {"": state.published})
    adapters = {}
    for site, updates in own.items():
        made = personal_adapter(study, updates, state.published, lambda *_, **__: None)
        assert made is not None  # the method's study has noise, and every site trained
        adapters[site] = made.adapter
    personal = setting.answers(model, adapters, biases)
    return _sent(replace(shared, held_back=personal.held_back), study, model)


def tail_aware(setting: Setting, study: Study, *, adjust: bool, synthetic: bool) -> Result:
    """Our federation with what `experiments.tail` does for rare classes; its releases are composed and reported."""
    model, dp = setting.model(study), study.dp
    assert dp is not None  # the method gives its study an epsilon
    records, n_classes = setting.train(model), len(study.classes)
    start, biases, also = setting.start(model), dict[str, Vector](), None
    rule = ClassCountRule(tail.NOISE, dp.records_per_unit, dp.unit)
    if adjust:
        counts = tail.class_counts(records, n_classes, rule)
        biases = {site: log_shares(own, rule.noise_std) for site, own in counts.items()}
    if synthetic:
        public = setting.encoded(model, "public")
        where = tail.Directions.of(public)
        sums = np.sum([tail.noised_sums(own, where, n_classes, rule) for own in records.values()], axis=0)
        noise_std = tail.NOISE * (2 * len(records)) ** 0.5 * rule.records_per_unit
        made = tail.synthesise(sums, noise_std, where, public, np.random.default_rng(study.seed))
        also = tail.synthetic_step(model, made, study.training.learning_rate, study.seed)
    tell = _telling(setting, study, model)
    state = federate(study, model, records, start=start, tell=tell, biases=biases, also=also)
    charges = [replace(round_rule(study).charge, steps=study.total_steps)]
    extra = [rule.charge] * (adjust + synthetic)  # a synthesis' sums have the same noise multiplier
    answers = setting.answers(model, {"": state.published})
    return replace(_sent(answers, study, model), epsilon=epsilon([*charges, *extra], dp.delta))


def alternating(setting: Setting, study: Study) -> Result:
    """A and B in turns."""
    model = setting.model(study)
    adapter, half = alternate(
        study, model, setting.train(model), start=setting.start(model), tell=_telling(setting, study, model)
    )
    answers = setting.answers(model, {"": adapter})
    return _sent(answers, study, model, half)


def _published(setting: Setting, study: Study) -> tuple[Model, Any]:
    model = setting.model(study)
    records = setting.train(model)
    tell, biases = _telling(setting, study, model), _in_training(study, records)
    state = federate(study, model, records, start=setting.start(model), tell=tell, biases=biases)
    return model, state.published


def _biases(study: Study, records: Mapping[str, Encoded]) -> dict[str, Vector]:
    """By site: the bias (n_classes,) of its logits, from its classes, which are counted here; none without a rule."""
    rule = class_count_rule(study)
    if rule is None:
        return {}
    counts = tail.class_counts(records, len(study.classes), rule)
    return {site: class_bias(own, rule) for site, own in counts.items()}


def _in_training(study: Study, records: Mapping[str, Encoded]) -> dict[str, Vector]:
    """By site: the bias with which it trains; none where the study has it do without."""
    return _biases(study, records) if study.trains_with_bias else {}


def _telling(setting: Setting, study: Study, model: Model) -> Callable[[int, Any], None]:
    """What notes each round of a federation."""
    test = setting.encoded(model, "test")

    def tell(number: int, adapter: Any) -> None:
        setting.round(number, study.training.rounds, lambda: predict(model, adapter, test))

    return tell


def _sent(answers: Answers, study: Study, model: Model, values: int | None = None) -> Result:
    """Bytes are those of ciphertexts, seeds and tags; signatures add less than a kilobyte.

    `values`: how many travel in a round; left out: the whole adapter.
    """
    n_params = model.adapter.n_params
    values = n_params if values is None else values
    chunks = choose_codec(study, values).n_chunks
    up, down = upload_bytes(chunks), sum_bytes(chunks, len(study.sites))
    return Result(answers, study.training.rounds, n_params, up, down)
