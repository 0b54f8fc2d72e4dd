"""The methods of a grid: each turns a setting into answers, through one interface.

Private ones are the study's own round at some epsilon. The others train without any privacy: they say what the
same data would give, and what the usual ways give.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from secure_triplay.config import Study
from secure_triplay.crypto.parameters import PACKED_BYTES, SEED_BYTES
from secure_triplay.errors import ConfigError
from secure_triplay.experiments.scores import Answers, Result
from secure_triplay.prepare import Model, choose_codec, round_rule, share_rule, update_noise_std
from secure_triplay.privacy.mechanisms import GaussianCharge

if TYPE_CHECKING:
    from secure_triplay.experiments.setting import Setting

COUNT_NOISE = 20.0
"""`personalised`: standard deviation of the noise on each of a site's class counts, in records."""
_FOR_COUNTS = 0.1
"""`personalised`: epsilon kept back for the counts; the composed figure is what the cell reports."""


@dataclass(frozen=True)
class Method:
    """What a method changes in the data's study, and how it runs.

    `private` says that its answers carry an epsilon; `unit`, where given, is the only one that it protects.
    """

    name: str
    title: str
    run: Callable[[Setting, Study], Result]
    change: Callable[[dict[str, Any]], dict[str, Any]]
    private: bool = False
    unit: str | None = None

    @property
    def federated(self) -> bool:
        """Whether it is the study's own rounds, as they are."""
        return self.run is _federated

    def check(self, study: Study) -> None:
        """Raises a SecureTriplayError where the study's constants cannot be had, before any image is read."""
        if study.dp is not None:
            if share_rule(study) is None:
                round_rule(study)
            elif not self.federated:
                raise ConfigError(
                    "it has steps of single sites, and this study shares the noise of their sum"
                )
            if self.unit not in (None, study.dp.unit):
                raise ConfigError(f"it protects one {self.unit}, and the study's unit is the {study.dp.unit}")
        choose_codec(study, n_params=1)


def method(name: str) -> Method:
    """A method by name: one of METHODS, or `epsX`, our federation at epsilon X. Raises ConfigError."""
    if name in METHODS:
        return METHODS[name]
    try:
        epsilon = float(name.removeprefix("eps")) if name.startswith("eps") else None
    except ValueError:
        epsilon = None
    if epsilon is None:
        raise ConfigError(
            f"there is no method {name!r}",
            where="methods",
            fix=f"methods are {', '.join(METHODS)}, and eps8, eps3, eps0.5 and so on",
        )
    return Method(name, f"ours, epsilon {epsilon:g}", _federated, _at(epsilon), private=True)


def _at(epsilon: float) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda content: {**content, "privacy": {**_private(content), "epsilon": epsilon}}


def _without_dp(content: dict[str, Any]) -> dict[str, Any]:
    """The same rounds, batches and optimiser, with a range that mean gradients stay inside without clipping.

    Without DP there are records only; where the study draws patients, a batch is as many as they may give.
    """
    dp = _private(content)
    limit = 2.0 * dp["l2_clip_norm"] * content["training"].get("learning_rate", 1.0)
    batch = dp["expected_batch_size"] * (dp.get("max_records_per_patient") or 1)
    rest = {key: value for key, value in content.items() if key != "published_accuracy"}  # it costs epsilon
    return {
        **rest,
        "privacy": {
            "unsafe_dp_off": True,
            "sampling_rate": dp["sampling_rate"],
            "expected_batch_size": batch,
        },
        "codec": {"value_bits": 16, "range": limit},
    }


def _private(content: dict[str, Any]) -> dict[str, Any]:
    privacy: dict[str, Any] = content["privacy"]
    if "epsilon" not in privacy:
        raise ConfigError("the data's study runs without privacy", where="privacy", fix="give it an epsilon")
    return privacy


def _encrypted_bytes(study: Study, n_params: int) -> int:
    """Ciphertexts and seeds of one upload; tags and signatures add less than a kilobyte."""
    return choose_codec(study, n_params).n_chunks * (PACKED_BYTES + SEED_BYTES)


def _start(setting: Setting, study: Study) -> Result:
    model = setting.model(study)
    return Result(setting.answers(model, {"": setting.start(model)}))


def _federated(setting: Setting, study: Study) -> Result:
    model, published = _published(setting, study)
    return _sent(setting.answers(model, {"": published}), study, model)


def _with_own_updates(setting: Setting, study: Study) -> Result:
    """The federation's adapter, and at each site a second one that its own noised updates move, at no charge."""
    from secure_triplay.client.personal import OwnUpdates
    from secure_triplay.experiments.federation import federate

    model, noise_std = setting.model(study), update_noise_std(study)
    records = setting.train(model)
    own = {site: OwnUpdates.none(model.adapter.n_params) for site in records}

    def keep(site: str, update: Any) -> None:
        own[site] = own[site].add(update, own[site].last + 1)

    state = federate(
        study,
        model,
        records,
        start=setting.start(model),
        tell=_telling(setting, study, model),
        sent=keep,
    )
    shared = setting.answers(model, {"": state.published})
    made = {site: each.personal(state.published, noise_std) for site, each in own.items()}
    personal = setting.answers(model, made)
    return _sent(replace(shared, held_back=personal.held_back), study, model)


def _personalised(setting: Setting, study: Study) -> Result:
    """The federation's adapter, and at each site a bias of the logits that never leaves it.

    The bias is the logarithm of the site's class shares (Saerens, Latinne and Decaestecker 2002, equation 2.4),
    from its class counts with noise. One record more changes one count by one, so the counts are one Gaussian
    release, composed with the training's charge.
    """
    from secure_triplay.experiments.personal import class_bias
    from secure_triplay.privacy.accounting import epsilon

    model, published = _published(setting, study)
    biases = {
        site: class_bias(records.labels.numpy(), len(study.classes), COUNT_NOISE)
        for site, records in setting.train(model).items()
    }
    dp = study.dp
    assert dp is not None  # its study is made by _at
    charge = replace(round_rule(study).charge, steps=study.total_steps)
    spent = epsilon([charge, GaussianCharge(COUNT_NOISE)], dp.delta)
    answers = setting.answers(model, {"": published}, biases)
    return replace(_sent(answers, study, model), epsilon=spent)


def _tail_aware(*, adjust: bool, synthetic: bool) -> Callable[[Setting, Study], Result]:
    """Our federation with what `experiments.tail` does for rare classes; its releases are composed and reported."""

    def run(setting: Setting, study: Study) -> Result:
        from secure_triplay.experiments import tail
        from secure_triplay.experiments.federation import federate
        from secure_triplay.privacy.accounting import epsilon

        model, dp = setting.model(study), study.dp
        assert dp is not None  # its study is made by _at
        records, n_classes = setting.train(model), len(study.classes)
        per_unit = dp.max_records_per_patient or 1
        start, models, also = setting.start(model), None, None
        if adjust:
            models = tail.adjusted_models(model, records, n_classes, per_unit)
        if synthetic:
            public = setting.encoded(model, "public")
            where = tail.Directions.of(public)
            sums = np.sum(
                [tail.noised_sums(own, where, n_classes, per_unit) for own in records.values()], axis=0
            )
            noise_std = tail.NOISE * (2 * len(records)) ** 0.5 * per_unit
            made = tail.synthesise(sums, noise_std, where, public, np.random.default_rng(study.seed))
            also = tail.synthetic_step(model, made, study.training.learning_rate, study.seed)
        tell = _telling(setting, study, model)
        state = federate(study, model, records, start=start, tell=tell, models=models, also=also)
        charges = [replace(round_rule(study).charge, steps=study.total_steps)]
        extra = [GaussianCharge(tail.NOISE, unit=dp.unit)] * (adjust + synthetic)
        answers = setting.answers(model, {"": state.published})
        return replace(_sent(answers, study, model), epsilon=epsilon([*charges, *extra], dp.delta))

    return run


def _alternating(setting: Setting, study: Study) -> Result:
    from secure_triplay.experiments.alternating import alternate

    model = setting.model(study)
    adapter, half = alternate(
        study, model, setting.train(model), start=setting.start(model), tell=_telling(setting, study, model)
    )
    answers = setting.answers(model, {"": adapter})
    return _sent(answers, study, model, half)


def _plain_lora(content: dict[str, Any]) -> dict[str, Any]:
    """A and B trained, from a random A: nothing of the adapter comes from public images."""
    adapter = content.get("adapter", {}) | {"kind": "lora", "basis": "seed", "output_rank": None}
    return {**content, "adapter": adapter}


def _lora(content: dict[str, Any]) -> dict[str, Any]:
    return _at(8.0)(_plain_lora(content))


def _mixed_ranks(content: dict[str, Any]) -> dict[str, Any]:
    """Every second site trains a quarter of the columns."""
    rank = max(1, content["adapter"]["rank"] // 4)
    sites = [{**site, "rank": rank} if n % 2 else site for n, site in enumerate(content["sites"])]
    return _at(8.0)({**content, "sites": sites})


def _published(setting: Setting, study: Study) -> tuple[Model, Any]:
    from secure_triplay.experiments.federation import federate

    model = setting.model(study)
    records = setting.train(model)
    tell = _telling(setting, study, model)
    state = federate(study, model, records, start=setting.start(model), tell=tell)
    return model, state.published


def _telling(setting: Setting, study: Study, model: Model) -> Callable[[int, Any], None]:
    """What notes each round of a federation."""
    from secure_triplay.experiments.setting import predict

    test = setting.encoded(model, "test")

    def tell(number: int, adapter: Any) -> None:
        setting.round(number, study.training.rounds, lambda: predict(model, adapter, test))

    return tell


def _sent(answers: Answers, study: Study, model: Model, values: int | None = None) -> Result:
    """`values`: how many travel in a round; left out: the whole adapter."""
    n_params = model.adapter.n_params
    values = n_params if values is None else values
    chunks = choose_codec(study, values).n_chunks
    seeds = len(study.sites) * chunks * SEED_BYTES  # c1 of the sum is expanded from every site's
    up, down = _encrypted_bytes(study, values), chunks * PACKED_BYTES + seeds
    return Result(answers, study.training.rounds, n_params, up, down)


def _alone(setting: Setting, study: Study) -> Result:
    from secure_triplay.experiments.plain import fit

    model = setting.model(study)
    adapters = {
        site: fit(model, [records], setting.start(model), seed=study.seed)
        for site, records in setting.train(model).items()
    }
    return Result(setting.answers(model, adapters), n_params=model.adapter.n_params)


def _central(setting: Setting, study: Study) -> Result:
    from secure_triplay.experiments.plain import fit

    model = setting.model(study)
    adapter = fit(model, list(setting.train(model).values()), setting.start(model), seed=study.seed)
    return Result(setting.answers(model, {"": adapter}), n_params=model.adapter.n_params)


def _local_epochs(proximal: float) -> Callable[[Setting, Study], Result]:
    def run(setting: Setting, study: Study) -> Result:
        from secure_triplay.experiments.plain import ROUNDS, federate_epochs
        from secure_triplay.experiments.setting import predict

        model = setting.model(study)
        records, test = setting.train(model), setting.encoded(model, "test")

        def tell(number: int, adapter: Any) -> None:
            setting.round(number, ROUNDS, lambda: predict(model, adapter, test))

        adapter = federate_epochs(
            model, records, setting.start(model), proximal=proximal, seed=study.seed, tell=tell
        )
        n_params = model.adapter.n_params
        answers = setting.answers(model, {"": adapter})
        return Result(answers, ROUNDS, n_params, 4 * n_params, 4 * n_params)

    return run


def _fedclip(setting: Setting, study: Study) -> Result:
    from secure_triplay.experiments.others import fedclip

    return fedclip(setting, study)


def _fedavg_tower(setting: Setting, study: Study) -> Result:
    from secure_triplay.experiments.others import fedavg_tower

    return fedavg_tower(setting, study)


def _fedavg_cnn(setting: Setting, study: Study) -> Result:
    from secure_triplay.experiments.others import fedavg_cnn

    return fedavg_cnn(setting, study)


def _published_lora(content: dict[str, Any]) -> dict[str, Any]:
    return _without_dp(_plain_lora(content))


def _full_precision(content: dict[str, Any]) -> dict[str, Any]:
    return _without_dp({**content, "backbone": {**content["backbone"], "quantization": "none"}})


METHODS = {
    found.name: found
    for found in (
        Method("start", "aligned on public images, not trained", _start, _without_dp),
        Method("alone", "each site alone, no privacy", _alone, _without_dp),
        Method("central", "all records in one place, no privacy", _central, _without_dp),
        Method("no-dp", "ours without privacy", _federated, _without_dp),
        Method(
            "personalised",
            "ours, epsilon 8, with a bias at each site",
            _personalised,
            _at(8.0 - _FOR_COUNTS),
            private=True,
            unit="record",
        ),
        Method(
            "personal-adapter",
            "ours, epsilon 8, with a second adapter at each site",
            _with_own_updates,
            _at(8.0),
            private=True,
        ),
        Method(
            "adjusted",
            "ours, epsilon 8, logits adjusted by each site's noised class counts",
            _tail_aware(adjust=True, synthetic=False),
            _at(8.0 - _FOR_COUNTS),
            private=True,
        ),
        Method(
            "synthesised",
            "ours, epsilon 8, rare classes synthesised from noised statistics",
            _tail_aware(adjust=False, synthetic=True),
            _at(8.0 - _FOR_COUNTS),
            private=True,
        ),
        Method(
            "tail-aware",
            "ours, epsilon 8, adjusted and synthesised",
            _tail_aware(adjust=True, synthetic=True),
            _at(8.0 - 2 * _FOR_COUNTS),
            private=True,
        ),
        Method("lora", "ours, epsilon 8, A and B trained", _federated, _lora, private=True),
        Method("alternating", "ours, epsilon 8, B and A in turns", _alternating, _lora, private=True),
        Method(
            "mixed-ranks",
            "ours, epsilon 8, every second site a quarter of the rank",
            _federated,
            _mixed_ranks,
            private=True,
        ),
        Method("tripleplay", "TriplePlay: 4-bit, LoRA A and B, FedAvg", _local_epochs(0.0), _published_lora),
        Method("fedprox", "FedProx, our adapter", _local_epochs(0.01), _without_dp),
        Method("fedclip", "FedCLIP: attention adapter", _fedclip, _without_dp),
        Method("fedavg-tower", "FedAvg, all weights of the image tower", _fedavg_tower, _full_precision),
        Method("fedavg-cnn", "FedAvg, small CNN from scratch", _fedavg_cnn, _without_dp),
    )
}
