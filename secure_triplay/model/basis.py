"""A frozen A from public images: the directions in which a layer's inputs vary, instead of random ones.

FFA-LoRA trains B on A u. A random A (r, d_in) keeps r directions out of d_in, most of which hardly vary over
images, and noise lies on every one of them. Here A's rows are the leading principal directions of the inputs u of
public images, divided by how far the inputs reach along each (whitened), so that every row carries as much. Taking
LoRA's A from activations is EVA's idea (Paischer et al. 2024, arXiv 2410.07170, section 3); taking what noise is
spread over from public data is that of Zhou, Wu and Banerjee 2021 (arXiv 2007.03813, section 3).

It sees public images only, and costs no privacy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from secure_triplay.errors import ConfigError

if TYPE_CHECKING:
    from secure_triplay.model.adapter import Adapter
    from secure_triplay.model.tower import Images, ImageTower

_NAME = "default"


def install_public_basis(adapter: Adapter, tower: ImageTower, public: Images) -> None:
    """Set each frozen A from what its layer is given for public images (n, H, W, 3) uint8.

    Raises ConfigError where they are fewer than the adapter's rank. The adapter must not be trained yet.
    """
    layers = {
        name: module
        for name, module in adapter.peft.named_modules()
        if _NAME in getattr(module, "lora_A", {})
    }
    seen: dict[str, list[NDArray[np.float64]]] = {name: [] for name in layers}

    def note(name: str, given: torch.Tensor) -> None:
        seen[name].append(given.detach().reshape(-1, given.shape[-1]).double().numpy())

    hooks = [
        layer.register_forward_pre_hook(lambda _, inputs, name=name: note(name, inputs[0]))
        for name, layer in layers.items()
    ]
    try:
        tower.features(tower.prefix(public))
    finally:
        for hook in hooks:
            hook.remove()
    for name, layer in layers.items():
        weight: Any = layer.lora_A[_NAME].weight
        inputs = np.concatenate(
            seen[name][-1:]
        )  # the suffix' pass; the prefix never reaches an adapted layer
        with torch.no_grad():
            weight.copy_(torch.from_numpy(whitened_directions(inputs, len(weight))))


def whitened_directions(inputs: NDArray[np.float64], rank: int) -> NDArray[np.float32]:
    """Rows a (rank, d) with a_i . u uncorrelated over the inputs u (n, d), all of one mean square.

    That mean square is the one that rows drawn uniformly on +-1/sqrt(d) have, so that step sizes carry over:
    |u|^2 / (3 d). A row's largest entry is positive, so that every machine takes the same sign.
    """
    n, width = inputs.shape
    if n < rank:
        raise ConfigError(
            f"{n} public images span no {rank} directions",
            where="adapter.rank",
            fix="lower the rank, give more public images, or leave adapter.basis out",
        )
    _, values, rows = np.linalg.svd(inputs, full_matrices=False)
    if not values[rank - 1] > 1e-6 * values[0]:
        raise ConfigError(
            f"the public images span no {rank} directions",
            where="adapter.rank",
            fix="lower the rank, give more public images, or leave adapter.basis out",
        )
    rows = rows[:rank] * np.sign(rows[np.arange(rank), np.abs(rows[:rank]).argmax(axis=1)])[:, None]
    target = np.sqrt(np.square(inputs).sum(axis=1).mean() / (3 * width))
    found: NDArray[np.float32] = (rows * (target * np.sqrt(n) / values[:rank])[:, None]).astype(np.float32)
    return found
