"""How a private local step grows: with images drawn and parameters trained, and on a real-size tower.

Pictures are random and so are ViT-B-32's weights: neither arithmetic nor memory depends on their values, and the
result says so. Seconds are of processor time of one thread, so that a busy machine does not show in them. How
encryption grows with sites and parameters is measured by `bench crypto`, the server by `bench load`.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from rich import box
from rich.table import Table

from secure_triplay.bench.backbone import PACKAGED, VIT_B_32
from secure_triplay.config import Adapter, Backbone, ClassPrompts
from secure_triplay.model.adapter import attach_adapter
from secure_triplay.model.backbone import load_backbone
from secure_triplay.model.text import class_embeddings
from secure_triplay.model.tower import Classifier, ImageTower
from secure_triplay.privacy.mechanisms import DpSgd
from secure_triplay.privacy.noise import NoiseSource
from secure_triplay.privacy.training import train

_TARGETS = r"attn\.(qkv|proj|q_proj|k_proj|v_proj|out_proj)|mlp\.(fc[12]|c_fc|c_proj)"
_RANKS, _DRAWN = (4, 16, 64), (32, 128, 512)
_CLASSES = tuple(ClassPrompts(name=f"class {n}", prompts=(f"a photo of thing {n}",)) for n in range(10))


def run_scaling_bench(*, quick: bool = False, seed: int = 0) -> dict[str, Any]:
    """Measure; `quick` takes the smallest sizes only. Raises AssetError where the packaged weights cannot be had."""
    before, threads = os.getloadavg()[0], torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        drawn = _DRAWN[:1] if quick else _DRAWN
        steps = [
            row
            for rank in (_RANKS[:1] if quick else _RANKS)
            for row in _steps(PACKAGED, "nf4", rank, drawn, seed)
        ]
        real = [_real_size(quantization, 8 if quick else 32, seed) for quantization in ("none", "nf4")]
    finally:
        torch.set_num_threads(threads)
    return {
        "suite": "scaling",
        "quick": quick,
        "steps": steps,
        "real_size": real,
        "nf4_of_fp32_image_bytes": round(real[1]["image_bytes"] / real[0]["image_bytes"], 4),
        "nf4_of_fp32_both_bytes": round(real[1]["both_bytes"] / real[0]["both_bytes"], 4),
        "machine": {
            "cores": os.cpu_count(),
            "threads": 1,
            "bf16": bool(torch.cpu._is_avx512_bf16_supported()),
            "load_before": round(before, 2),
            "load_after": round(os.getloadavg()[0], 2),
        },
    }


def _steps(
    settings: dict[str, Any],
    quantization: str,
    rank: int,
    drawn: tuple[int, ...],
    seed: int,
    images: int = 512,
) -> list[dict[str, Any]]:
    """One private step on so many images, for each of `drawn`, at one rank."""
    backbone = load_backbone(Backbone.model_validate(settings | {"quantization": quantization}))
    embeddings = class_embeddings(backbone, _CLASSES)
    cfg = Adapter(rank=rank, alpha=2.0 * rank, target_modules=_TARGETS, last_blocks=1)
    adapter = attach_adapter(backbone, cfg, b"bench")
    tower = ImageTower(backbone, adapter.first_block)
    classifier = Classifier(tower.suffix, embeddings, 20.0)
    rng = np.random.default_rng(seed)
    count, size = min(images, max(drawn)), backbone.image_size
    pictures = rng.integers(0, 256, (count, size, size, 3), np.uint8)
    tower.prefix(pictures[:2])  # warms up
    tokens, encoding = _timed(lambda: tower.prefix(pictures))
    labels = torch.from_numpy(rng.integers(0, len(_CLASSES), count))
    start, noise = adapter.vector(), NoiseSource()
    rows = []
    for n in drawn:
        rule = DpSgd(1.0, 1.0, 1.0, float(n), 1, 1.0, physical_batch_size=min(n, 512))
        seconds = []
        for _ in range(3):  # the first one warms up and checks the gradients of single records
            adapter.load_vector(start)
            seconds.append(_timed(lambda: train(classifier, tokens[:n], labels[:n], rule, noise))[1])  # noqa: B023
        step = min(seconds[1:])
        rows.append(
            {
                "rank": rank,
                "n_params": adapter.n_params,
                "drawn": n,
                "cpu_s_a_step": round(step, 4),
                "images_per_cpu_s": round(n / step, 1),
                "frozen_blocks_images_per_cpu_s": round(count / encoding, 1),
                "image_bytes": backbone.image_frozen_bytes,
                "both_bytes": backbone.frozen_bytes,
            }
        )
    return rows


def _real_size(quantization: str, images: int, seed: int) -> dict[str, Any]:
    (row,) = _steps(VIT_B_32, quantization, 8, (images,), seed, images)
    return {"name": "ViT-B-32", "weights": "random", "pixels": 224, "quantization": quantization, **row}


def scaling_table(result: dict[str, Any]) -> Table:
    """A line for each measured step; fits 80 columns."""
    table = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left", title="one private step, one thread"
    )
    for title in ("tower", "weights in", "rank", "values", "drawn", "CPU s", "images/s", "frozen\nimages/s"):
        table.add_column(title, justify="left" if title in ("tower", "weights in") else "right")
    for row in (*result["steps"], *result["real_size"]):
        table.add_row(
            row.get("name", "packaged"),
            row.get("quantization", "nf4").replace("none", "fp32"),
            str(row["rank"]),
            f"{row['n_params']:,}",
            str(row["drawn"]),
            f"{row['cpu_s_a_step']:.3f}",
            f"{row['images_per_cpu_s']:.0f}",
            f"{row['frozen_blocks_images_per_cpu_s']:.0f}",
        )
    table.caption = (
        f"ViT-B-32 has random weights. Its frozen weights in nf4 take {result['nf4_of_fp32_image_bytes']:.2f} of fp32 "
        f"(image tower), {result['nf4_of_fp32_both_bytes']:.2f} with the text tower."
    )
    table.caption_justify = "left"
    return table


def plot_scaling(result: dict[str, Any], path: Path) -> None:
    """Processor seconds of a step against images drawn, a line for each number of parameters; SVG."""
    figure = Figure(figsize=(5.2, 3.4), layout="constrained")
    axes = figure.subplots()
    for params in sorted({row["n_params"] for row in result["steps"]}):
        rows = [row for row in result["steps"] if row["n_params"] == params]
        points = [row["drawn"] for row in rows], [row["cpu_s_a_step"] for row in rows]
        axes.plot(*points, "o-", label=f"{params:,} values")
    axes.set(xscale="log", yscale="log", xlabel="images drawn", ylabel="processor seconds a private step")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})


def _timed(work: Any) -> tuple[Any, float]:
    started = time.process_time()
    result = work()
    return result, time.process_time() - started
