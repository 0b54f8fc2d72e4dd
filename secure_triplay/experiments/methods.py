"""The methods of a grid: what each is called, and what it changes in a data's study. `procedures` has what each runs.

Private ones are the study's own round at some epsilon. The others train without any privacy: they say what the
same data would give, and what the usual ways give. Nothing here loads what trains, so a grid is checked at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from secure_triplay.config import Adapter, Backbone, Study
from secure_triplay.config.kinds import is_number
from secure_triplay.config.training import PersonalBias
from secure_triplay.constants import choose_codec, round_rule, share_rule
from secure_triplay.errors import ConfigError

FEDERATED = "federated"
"""The study's own rounds, as they are."""
_WITH_BIAS = (FEDERATED, "rounds alone", "own updates")
"""Procedures whose sites train with the bias of their own classes where the study has it so."""
_FOR_RELEASE = 0.1
"""Epsilon kept back for class counts or statistics; the composed figure is what the cell reports."""


@dataclass(frozen=True)
class Method:
    """What a method changes in the data's study, and what it then runs: a name in `procedures.PROCEDURES`.

    `private` says that its answers carry an epsilon. `own` are the dotted keys of a study that its title speaks of,
    each with the method that has another value there, if there is one: an epsilon follows `eps` and `alone-eps`.
    """

    name: str
    title: str
    procedure: str
    change: Callable[[dict[str, Any]], dict[str, Any]]
    own: Mapping[str, str | None]
    private: bool = False

    @property
    def federated(self) -> bool:
        """Whether it is the study's own rounds, as they are."""
        return self.procedure == FEDERATED

    @property
    def takes_model(self) -> bool:
        """Whether it loads the study's backbone and adapter."""
        return self.procedure != "fedavg-cnn"

    def require_own(self, content: dict[str, Any], made: dict[str, Any]) -> None:
        """Return nothing if a study's content still says what this method made of it, in the method's own keys.

        Its row would stand under a title that is not true of it. Raises ConfigError.
        """
        for key, other in self.own.items():
            due, found = _value(made, key), _value(content, key)
            if due == found:
                continue
            there = _value(content, "privacy.epsilon")
            if other in ("eps", "alone-eps"):
                without = "no-dp" if other == "eps" else "alone"
                other = f"{other}{_spelled(there)}" if _is_epsilon(there) else without
            raise ConfigError(
                f"it changes {key}, which the method itself sets"
                + (f" to {due:g}" if isinstance(due, float) else "")
                + (f"; the method for that is {other}" if other else "; no method has another value there"),
                where="methods",
                fix=f"take {other}" if other else "leave the change out",
            )

    def check(self, study: Study) -> None:
        """Raises a SecureTriplayError where the study's constants cannot be had, before any image is read.

        And ConfigError where sites of the study train with a bias, and the method's own steps would leave it out.
        """
        if study.trains_with_bias and self.procedure not in _WITH_BIAS:
            raise ConfigError(
                "it trains without the bias of personal_bias.in_training, which this study asks for"
            )
        if study.dp is not None:
            if share_rule(study) is None:
                round_rule(study)
            elif not self.federated:
                raise ConfigError(
                    "it has steps of single sites, and this study shares the noise of their sum"
                )
        choose_codec(study, n_params=1)


def method(name: str) -> Method:
    """A method by name: one of METHODS, `epsX`, our federation at epsilon X, or `alone-epsX`. Raises ConfigError."""
    if name in METHODS:
        return METHODS[name]
    alone, rest = name.startswith("alone-"), name.removeprefix("alone-")
    try:
        epsilon = float(rest.removeprefix("eps")) if rest.startswith("eps") else None
    except ValueError:
        epsilon = None
    if epsilon is None or not math.isfinite(epsilon):
        raise ConfigError(
            f"there is no method {name!r}",
            where="methods",
            fix=f"methods are {', '.join(METHODS)}, and eps8, eps3, eps0.5, alone-eps8 and so on",
        )
    kind = "alone-eps" if alone else "eps"
    if name != f"{kind}{_spelled(epsilon)}":
        raise ConfigError(
            f"there is no method {name!r}: it is written {kind}{_spelled(epsilon)}",
            where="methods",
            fix=f"write {kind}{_spelled(epsilon)}; with two spellings one method would have two rows",
        )
    own = {"privacy.epsilon": kind}
    if alone:
        title = f"each site alone by our rounds, epsilon {_spelled(epsilon)}"
        return Method(name, title, "rounds alone", _at(epsilon), own, private=True)
    return Method(name, f"ours, epsilon {_spelled(epsilon)}", FEDERATED, _at(epsilon), own, private=True)


def _spelled(epsilon: float) -> str:
    """The one way to write an epsilon in a method's name."""
    return repr(float(epsilon)).removesuffix(".0")


def _is_epsilon(value: Any) -> bool:
    return is_number(value) and 0 < value < math.inf


def _value(content: dict[str, Any], key: str) -> Any:
    """What a study's content says at a dotted key of `Method.own`; a study's default where it does not."""
    if key == "sites.rank":
        sites = content.get("sites")
        listed = sites if isinstance(sites, list | tuple) else ()
        return [site.get("rank") for site in listed if isinstance(site, dict)]
    if key == "personal_bias":  # its noise is the study's, that there is one the method's
        return content.get(key) is not None
    part, _, last = key.partition(".")
    inner = content.get(part)
    return inner.get(last, _DEFAULTS.get(key)) if isinstance(inner, dict) else _DEFAULTS.get(key)


_DEFAULTS = {f"adapter.{key}": getattr(Adapter(), key) for key in ("kind", "basis", "output_rank")} | {
    "backbone.quantization": Backbone.model_fields["quantization"].default,
    "personal_bias.in_training": PersonalBias().in_training,
}


def _at(epsilon: float) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda content: {**content, "privacy": {**_private(content), "epsilon": epsilon}}


def _without_dp(content: dict[str, Any]) -> dict[str, Any]:
    """The same rounds, batches and optimiser, with a range that mean gradients stay inside without clipping.

    Without DP there are records only; where the study draws patients, a batch is as many as they may give.
    """
    dp = _private(content)
    limit = 2.0 * dp["l2_clip_norm"] * content["training"].get("learning_rate", 1.0)
    batch = dp["expected_batch_size"] * (dp.get("max_records_per_patient") or 1)
    costs_epsilon = ("published_accuracy", "personal_bias")
    rest = {key: value for key, value in content.items() if key not in costs_epsilon}
    return {
        **rest,
        "privacy": {
            "unsafe_dp_off": True,
            "sampling_rate": dp["sampling_rate"],
            "expected_batch_size": batch,
        },
        "codec": {"value_bits": 16, "range": limit},
    }


def _biased(in_training: bool) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def change(content: dict[str, Any]) -> dict[str, Any]:
        bias = {**(content.get("personal_bias") or {}), "in_training": in_training}
        return {**_at(8.0)(content), "personal_bias": bias}

    return change


def _private(content: dict[str, Any]) -> dict[str, Any]:
    privacy: dict[str, Any] = content["privacy"]
    if "epsilon" not in privacy:
        raise ConfigError("the data's study runs without privacy", where="privacy", fix="give it an epsilon")
    return privacy


def _plain_lora(content: dict[str, Any]) -> dict[str, Any]:
    """A and B trained, from a random A: nothing of the adapter comes from public images."""
    adapter = content.get("adapter", {}) | {"kind": "lora", "basis": "seed", "output_rank": None}
    return {**content, "adapter": adapter}


def _lora(content: dict[str, Any]) -> dict[str, Any]:
    return _at(8.0)(_plain_lora(content))


def _mixed_ranks(content: dict[str, Any]) -> dict[str, Any]:
    """Every second site trains a quarter of the columns."""
    rank = max(1, (content.get("adapter") or {}).get("rank", Adapter().rank) // 4)
    sites = [{**site, "rank": rank} if n % 2 else site for n, site in enumerate(content["sites"])]
    return _at(8.0)({**content, "sites": sites})


def _published_lora(content: dict[str, Any]) -> dict[str, Any]:
    return _without_dp(_plain_lora(content))


def _full_precision(content: dict[str, Any]) -> dict[str, Any]:
    return _without_dp({**content, "backbone": {**content["backbone"], "quantization": "none"}})


_OFF: dict[str, str | None] = {"privacy.unsafe_dp_off": None, "privacy.epsilon": None}
_EPSILON: dict[str, str | None] = {"privacy.epsilon": None}
_PLAIN: dict[str, str | None] = {"adapter.kind": None, "adapter.basis": None, "adapter.output_rank": None}
_PLAIN_AT_8: dict[str, str | None] = {**dict.fromkeys(_PLAIN, "eps8"), **_EPSILON}

METHODS = {
    found.name: found
    for found in (
        Method("start", "aligned on public images, not trained", "start", _without_dp, _OFF),
        Method(
            "alone",
            "each site alone, no privacy",
            "alone",
            _without_dp,
            dict.fromkeys(_OFF, "alone-eps"),
        ),
        Method("central", "all records in one place, no privacy", "central", _without_dp, _OFF),
        Method("no-dp", "ours without privacy", FEDERATED, _without_dp, dict.fromkeys(_OFF, "eps")),
        Method(
            "personalised",
            "ours, epsilon 8, with a second adapter and a charged bias at each site",
            "own updates",
            _biased(in_training=False),
            {"personal_bias": "personal-adapter", "personal_bias.in_training": "calibrated", **_EPSILON},
            private=True,
        ),
        Method(
            "calibrated",
            "personalised, and trained with that bias",
            "own updates",
            _biased(in_training=True),
            {"personal_bias": "personal-adapter", "personal_bias.in_training": "personalised", **_EPSILON},
            private=True,
        ),
        Method(
            "personal-adapter",
            "ours, epsilon 8, with a second adapter at each site",
            "own updates",
            _at(8.0),
            _EPSILON,
            private=True,
        ),
        Method(
            "adjusted",
            "ours, epsilon 8, logits adjusted by each site's noised class counts",
            "adjusted",
            _at(8.0 - _FOR_RELEASE),
            _EPSILON,
            private=True,
        ),
        Method(
            "synthesised",
            "ours, epsilon 8, rare classes synthesised from noised statistics",
            "synthesised",
            _at(8.0 - _FOR_RELEASE),
            _EPSILON,
            private=True,
        ),
        Method(
            "tail-aware",
            "ours, epsilon 8, adjusted and synthesised",
            "adjusted and synthesised",
            _at(8.0 - 2 * _FOR_RELEASE),
            _EPSILON,
            private=True,
        ),
        Method("lora", "ours, epsilon 8, A and B trained", FEDERATED, _lora, _PLAIN_AT_8, private=True),
        Method(
            "alternating",
            "ours, epsilon 8, B and A in turns",
            "alternating",
            _lora,
            _PLAIN_AT_8,
            private=True,
        ),
        Method(
            "mixed-ranks",
            "ours, epsilon 8, every second site a quarter of the rank",
            FEDERATED,
            _mixed_ranks,
            {"sites.rank": "eps8", **_EPSILON},
            private=True,
        ),
        Method(
            "tripleplay",
            "TriplePlay: 4-bit, LoRA A and B, FedAvg",
            "local epochs",
            _published_lora,
            {**_PLAIN, **_OFF},
        ),
        Method("fedprox", "FedProx, our adapter", "proximal epochs", _without_dp, _OFF),
        Method("fedclip", "FedCLIP: attention adapter", "fedclip", _without_dp, _OFF),
        Method(
            "fedavg-tower",
            "FedAvg, all weights of the image tower",
            "fedavg-tower",
            _full_precision,
            {"backbone.quantization": None, **_OFF},
        ),
        Method("fedavg-cnn", "FedAvg, small CNN from scratch", "fedavg-cnn", _without_dp, _OFF),
    )
}
