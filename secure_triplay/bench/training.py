"""Our private step beside plain Opacus and beside no privacy at all: same adapter, backbone, records and draws.

*Plain Opacus*: GradSampleModule around the whole image tower, every drawn image through every block in every
step, DPOptimizer. *Ours*: frozen blocks run once an image and are cached, the last block computes the class token
alone, hooks sit on the adapter's own layers. *No privacy*: ours without clipping and noise. All three draw the
same Poisson samples from one seeded stream, and the two private ones add the same noise, so that their adapters
can be compared; a seeded stream is for benches and protects nobody.

The one pass that fills the cache is measured too, and charged to ours in `with_cache`, over the rounds of the study.
Seconds are by the clock, and the ways take turns: on a busy machine only the ratios mean something, and they little.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from opacus.grad_sample import GradSampleModule
from rich import box
from rich.table import Table
from torch import Tensor, nn

from secure_triplay.config import Study
from secure_triplay.constants import round_rule
from secure_triplay.loading import aligned_backbone, compute_dtype, load_data
from secure_triplay.model.adapter import attach_adapter
from secure_triplay.model.basis import install_public_basis
from secure_triplay.model.text import class_embeddings
from secure_triplay.model.tower import Classifier, ImageTower, WholeTower
from secure_triplay.privacy.mechanisms import DpSgd
from secure_triplay.privacy.noise import NoiseSource
from secure_triplay.privacy.per_record import record_loss
from secure_triplay.privacy.training import NoisySum, PoissonSampler, train, train_unsafe_without_dp

_REPEATS, _QUICK_REPEATS = 9, 1
_LONG_ENOUGH_S = 1.0
"""A way is timed over as many steps in a row as take so long: one of 20 ms would be timed with cold caches."""


def run_training_bench(
    study: Study,
    *,
    records: int | None = None,
    quick: bool = False,
    seed: int = 0,
    compute: Literal["float32", "bfloat16", "auto"] | None = None,
) -> dict[str, Any]:
    """Measure the three ways on one site's records of a study. Raises what loading its data and model raises.

    `compute` takes the place of the study's own: what 4-bit layers multiply in, for all three ways.

    The three ways, and the plain matrix product that our share is of, take turns, a second each and more, so that a
    machine that gets slower does so for all. Every second turn the ways go backwards, so that none always profits from
    what the one before it left in caches.
    """
    if compute is not None:
        backbone_rule = study.backbone.model_copy(update={"compute": compute})
        study = study.model_copy(update={"backbone": backbone_rule})
    split = load_data(study, study.sites[0].name)
    train_on = split.sites[study.sites[0].name].train
    count = min(len(train_on), records or len(train_on))
    images = train_on.images(np.arange(count), study.backbone.image_size)
    labels = torch.from_numpy(np.asarray(train_on.labels[:count], np.int64))
    backbone = aligned_backbone(study, split.public)
    embeddings = class_embeddings(backbone, study.classes)
    adapter = attach_adapter(backbone, study.adapter, b"bench")
    tower = ImageTower(backbone, adapter.first_block)
    classifier = Classifier(tower.suffix, embeddings, study.training.logit_scale)
    if study.adapter.basis == "public":
        public = split.public.images(np.arange(len(split.public)), study.backbone.image_size)
        install_public_basis(adapter, tower, classifier, public)
    whole = WholeTower(backbone.model.visual, embeddings, study.training.logit_scale)
    rule = round_rule(study)
    tokens, cache_s = _timed(lambda: tower.prefix(images))
    pixels = tower.pixels(images)
    start = adapter.vector()

    def run(way: Callable[[NoiseSource], object], turn: int) -> tuple[np.ndarray[Any, Any], float]:
        """The update of one way's steps, and their seconds: the mean over repetitions that end alike."""
        taken: list[float] = []
        while not taken or sum(taken) < _LONG_ENOUGH_S:
            adapter.load_vector(start)
            noise = NoiseSource.unsafe_from_seed(seed + turn)
            taken.append(_timed(lambda noise=noise: way(noise))[1])  # type: ignore[misc]
        return adapter.vector() - start, float(np.mean(taken))

    ways: dict[str, Callable[[NoiseSource], object]] = {
        "ours": lambda noise: train(classifier, tokens, labels, rule, noise),
        "plain_opacus": lambda noise: _plain_opacus(whole, pixels, labels, rule, noise),
        "no_privacy": lambda noise: train_unsafe_without_dp(
            classifier,
            tokens,
            labels,
            sampling_rate=rule.sampling_rate,
            expected_batch_size=rule.expected_batch_size,
            steps=rule.steps,
            learning_rate=rule.learning_rate,
            physical_batch_size=rule.physical_batch_size,
            noise=noise,
        ),
    }
    run(ways["ours"], 0)  # warms up, and does the check of gradients that is done once a model
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    dtype, rates, gap = compute_dtype(study), [], 0.0
    for turn in range(1, 1 + (_QUICK_REPEATS if quick else _REPEATS)):
        updates = {}
        for name in list(ways)[:: 1 if turn % 2 else -1]:
            updates[name], taken = run(ways[name], turn)
            seconds[name].append(taken)
        rates.append(_matrix_rate(dtype, 0.0 if quick else _LONG_ENOUGH_S))
        gap = max(gap, float(np.abs(updates["ours"] - updates["plain_opacus"]).max()))
    adapter.load_vector(start)
    step = {name: float(np.median(taken)) / rule.steps for name, taken in seconds.items()}
    cached = cache_s / (study.training.rounds * rule.steps)
    ours = _multiply_adds(classifier, tokens) * rule.sampling_rate * count / step["ours"]
    plain = float(np.median(rates))
    return {
        "suite": "training",
        "study": study.study,
        "records": count,
        "drawn_per_step": rule.sampling_rate * count,
        "compute": str(dtype).removeprefix("torch."),
        "n_params": adapter.n_params,
        "seconds_per_step": {name: round(value, 4) for name, value in step.items()},
        "cache_seconds": round(cache_s, 3),
        "speedup_over_plain_opacus": round(step["plain_opacus"] / step["ours"], 3),
        "speedup_with_cache": round(step["plain_opacus"] / (step["ours"] + cached), 3),
        "cost_over_no_privacy": round(step["ours"] / step["no_privacy"], 3),
        "largest_difference_of_adapters": gap,
        "largest_update": float(np.abs(updates["ours"]).max()),
        "our_gmac_per_s": round(ours, 1),
        "matrix_gmac_per_s": round(plain, 1),
        "share_of_matrix_rate": round(ours / plain, 3),
        "machine": {"cores": os.cpu_count(), "threads": torch.get_num_threads(),
                    "load": round(os.getloadavg()[0], 2)},
    }  # fmt: skip


def training_table(result: dict[str, Any]) -> Table:
    """A line for each way; fits 80 columns."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left",
                  title=f"one step, {result['drawn_per_step']:.0f} images drawn, {result['compute']}")  # fmt: skip
    table.add_column("", min_width=44)
    table.add_column("seconds", justify="right")
    table.add_column("of ours", justify="right")
    own = result["seconds_per_step"]["ours"]
    for name, title in (("ours", "ours"), ("plain_opacus", "plain Opacus"), ("no_privacy", "no privacy")):
        value = result["seconds_per_step"][name]
        table.add_row(title, f"{value:.3f}", f"{value / own:.2f} x")
    table.caption = (
        f"Filling the cache once: {result['cache_seconds']:.2f} s. Largest difference of the two private adapters: "
        f"{result['largest_difference_of_adapters']:.1e}.\n"
        f"Ours runs at {100 * result['share_of_matrix_rate']:.0f} % of this machine's rate of matrix products."
    )
    table.caption_justify = "left"
    return table


def _plain_opacus(model: nn.Module, pixels: Tensor, labels: Tensor, rule: DpSgd, noise: NoiseSource) -> None:
    """Opacus as its documentation has it, but with our sampler, normaliser and noise, so that results compare."""
    wrapped = GradSampleModule(model, batch_first=True, loss_reduction="sum", strict=False)
    try:
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        wrapped.train()
        weights = [weight for weight in wrapped.parameters() if weight.requires_grad]
        optimizer = NoisySum(torch.optim.SGD(weights, lr=rule.learning_rate), rule, noise)
        for drawn in PoissonSampler(len(labels), rule.sampling_rate, rule.steps, noise):
            parts = torch.split(drawn, rule.physical_batch_size)
            for index, part in enumerate(parts):
                loss = record_loss(wrapped(pixels[part]), labels[part])
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.signal_skip_step(index + 1 < len(parts))
                optimizer.step()
                optimizer.zero_grad()
    finally:
        wrapped.to_standard_module()
        model.eval()


def _matrix_rate(dtype: torch.dtype, lasting_s: float) -> float:
    """Billion multiply-adds a second of a plain matrix product: of as many as take so many seconds, one at least."""
    a, b = torch.randn(2176, 384).to(dtype), torch.randn(384, 1536).to(dtype)
    products, taken = 0, 0.0
    while not products or taken < lasting_s:
        taken += _timed(lambda: torch.mm(a, b))[1]
        products += 1
    return products * 2176 * 384 * 1536 / 1e9 / taken


def _multiply_adds(classifier: Classifier, tokens: Tensor) -> float:
    """Billions of multiply-adds of one image's linear layers: forward, and where their inputs' gradient is asked for.

    A layer that cached tokens go into has no such gradient. What attention, norms and the records' own gradients need
    is left out: a lower bound.
    """
    per_image = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal per_image
        forward = output[0].numel() * inputs[0].shape[-1]
        per_image += forward * (2 if inputs[0].requires_grad else 1)

    layers = [part for part in classifier.modules() if isinstance(part, nn.Linear)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    try:
        classifier(tokens[:1])
    finally:
        for hook in hooks:
            hook.remove()
    return per_image / 1e9


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """The result, and seconds by the clock."""
    started = time.perf_counter()
    result = work()
    return result, time.perf_counter() - started
