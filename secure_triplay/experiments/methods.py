"""The methods of a grid: what each is called, and what it changes in a data's study. `procedures` has what each runs.

Private ones are the study's own round at some epsilon. The others train without any privacy: they say what the
same data would give, and what the usual ways give. Nothing here loads what trains, so a grid is checked at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from secure_triplay.config import Adapter, Study
from secure_triplay.constants import choose_codec, round_rule, share_rule
from secure_triplay.errors import ConfigError

FEDERATED = "federated"
"""The study's own rounds, as they are."""
_FOR_RELEASE = 0.1
"""Epsilon kept back for class counts or statistics; the composed figure is what the cell reports."""


@dataclass(frozen=True)
class Method:
    """What a method changes in the data's study, and what it then runs: a name in `procedures.PROCEDURES`.

    `private` says that its answers carry an epsilon.
    """

    name: str
    title: str
    procedure: str
    change: Callable[[dict[str, Any]], dict[str, Any]]
    private: bool = False

    @property
    def federated(self) -> bool:
        """Whether it is the study's own rounds, as they are."""
        return self.procedure == FEDERATED

    def check(self, study: Study) -> None:
        """Raises a SecureTriplayError where the study's constants cannot be had, before any image is read."""
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
    if epsilon is None:
        raise ConfigError(
            f"there is no method {name!r}",
            where="methods",
            fix=f"methods are {', '.join(METHODS)}, and eps8, eps3, eps0.5, alone-eps8 and so on",
        )
    if alone:
        title = f"each site alone by our rounds, epsilon {epsilon:g}"
        return Method(name, title, "rounds alone", _at(epsilon), private=True)
    return Method(name, f"ours, epsilon {epsilon:g}", FEDERATED, _at(epsilon), private=True)


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


def _biased(content: dict[str, Any]) -> dict[str, Any]:
    return {**_at(8.0)(content), "personal_bias": content.get("personal_bias") or {}}


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


METHODS = {
    found.name: found
    for found in (
        Method("start", "aligned on public images, not trained", "start", _without_dp),
        Method("alone", "each site alone, no privacy", "alone", _without_dp),
        Method("central", "all records in one place, no privacy", "central", _without_dp),
        Method("no-dp", "ours without privacy", FEDERATED, _without_dp),
        Method(
            "personalised",
            "ours, epsilon 8, with a second adapter and a charged bias at each site",
            "own updates",
            _biased,
            private=True,
        ),
        Method(
            "personal-adapter",
            "ours, epsilon 8, with a second adapter at each site",
            "own updates",
            _at(8.0),
            private=True,
        ),
        Method(
            "adjusted",
            "ours, epsilon 8, logits adjusted by each site's noised class counts",
            "adjusted",
            _at(8.0 - _FOR_RELEASE),
            private=True,
        ),
        Method(
            "synthesised",
            "ours, epsilon 8, rare classes synthesised from noised statistics",
            "synthesised",
            _at(8.0 - _FOR_RELEASE),
            private=True,
        ),
        Method(
            "tail-aware",
            "ours, epsilon 8, adjusted and synthesised",
            "adjusted and synthesised",
            _at(8.0 - 2 * _FOR_RELEASE),
            private=True,
        ),
        Method("lora", "ours, epsilon 8, A and B trained", FEDERATED, _lora, private=True),
        Method("alternating", "ours, epsilon 8, B and A in turns", "alternating", _lora, private=True),
        Method(
            "mixed-ranks",
            "ours, epsilon 8, every second site a quarter of the rank",
            FEDERATED,
            _mixed_ranks,
            private=True,
        ),
        Method("tripleplay", "TriplePlay: 4-bit, LoRA A and B, FedAvg", "local epochs", _published_lora),
        Method("fedprox", "FedProx, our adapter", "proximal epochs", _without_dp),
        Method("fedclip", "FedCLIP: attention adapter", "fedclip", _without_dp),
        Method("fedavg-tower", "FedAvg, all weights of the image tower", "fedavg-tower", _full_precision),
        Method("fedavg-cnn", "FedAvg, small CNN from scratch", "fedavg-cnn", _without_dp),
    )
}
