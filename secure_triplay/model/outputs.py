"""B in few public output directions: B = U S, with U (d_out, k) frozen and public, and S (k, rank) trained and sent.

The update of a layer with d_out outputs then has k x rank values instead of d_out x rank. Training a small matrix
between two frozen ones is LoRA-XS (Balazy et al. 2024, arXiv 2405.17604), which takes both from the layer's weights.
Here, as A is taken from what public images give a layer, U is taken from what their logits ask of it: of the gradients
g of the class logits at the layer's output,

    C = sum over images, tokens and classes c of g_c g_c^T,    g_c = d(logit_c - mean of the logits) / d(output),

U holds the k leading eigenvectors. A cross-entropy's gradient at the output is a combination of the g_c, whatever the
label, so no label is used. With n classes k = n - 1 keeps most: of ten classes on the packaged backbone, 9 directions
hold 0.98 of C's trace. Training in what public gradients span is Zhou, Wu and Banerjee 2021 (arXiv 2007.03813).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from secure_triplay.errors import ConfigError

if TYPE_CHECKING:
    from secure_triplay.model.tower import Classifier

_LEAST = 1e-6
"""Directions along which the logits' gradients reach less than this part of the furthest are none."""

_BATCH = 64  # gradients keep every layer's values of a batch in memory
_WHERE = "adapter.output_rank"


class FewOutputs(nn.Module):
    """B (outputs, rank) as U S: `inner` is S, zero to begin with; `directions` is U, zero until it is installed."""

    directions: Tensor

    def __init__(self, rank: int, outputs: int, directions: int) -> None:
        super().__init__()
        self.inner = nn.Linear(rank, directions, bias=False)
        nn.init.zeros_(self.inner.weight)
        self.register_buffer("directions", torch.zeros(outputs, directions), persistent=False)

    @property
    def weight(self) -> Tensor:
        """B, multiplied out: what PEFT saves and merges."""
        return self.directions @ self.inner.weight

    def forward(self, x: Tensor) -> Tensor:
        """(..., rank) -> (..., outputs). Raises ConfigError where S is to be used before U was installed."""
        if self.inner.weight.any() and not self.directions.any():
            raise ConfigError(
                "an adapter of few output directions has none yet, and would do nothing",
                where=_WHERE,
                fix="install them from public images first (`model.basis.install_public_basis`)",
            )
        return F.linear(self.inner(x), self.directions)


def logit_gradients(
    layers: dict[str, Any], classifier: Classifier, tokens: Tensor
) -> dict[str, NDArray[np.float64]]:
    """By layer: C (d_out, d_out) for public tokens (n, t, d), the layers' weights being what they are."""
    outputs: dict[str, Tensor] = {}
    found = {name: np.zeros((layer.out_features,) * 2) for name, layer in layers.items()}
    hooks = [
        layer.register_forward_hook(lambda _, __, output, name=name: outputs.__setitem__(name, output))
        for name, layer in layers.items()
    ]
    try:
        for part in torch.split(tokens, _BATCH):
            logits = classifier(part)
            for one in (logits - logits.mean(dim=1, keepdim=True)).sum(dim=0):
                # a record's logits are its own, so the gradient of their sum has each record's
                gradients = torch.autograd.grad(one, list(outputs.values()), retain_graph=True)
                for name, gradient in zip(outputs, gradients, strict=True):
                    rows = gradient.reshape(-1, gradient.shape[-1]).double().numpy()
                    found[name] += rows.T @ rows
    finally:
        for hook in hooks:
            hook.remove()
    return found


def leading_directions(gradients: NDArray[np.float64], count: int) -> NDArray[np.float32]:
    """The `count` leading eigenvectors of C (d, d) as rows (count, d); each one's largest entry is positive.

    Raises ConfigError where the logits move along fewer.
    """
    values, vectors = np.linalg.eigh(gradients)
    if count > len(values) or not values[-count] > _LEAST**2 * values[-1]:
        raise ConfigError(
            f"the logits of the public images move along fewer than {count} directions of a layer's outputs",
            where=_WHERE,
            fix="lower it to the number of classes less one, or leave it out",
        )
    rows = vectors[:, ::-1][:, :count].T
    found: NDArray[np.float32] = (
        rows * np.sign(rows[np.arange(count), np.abs(rows).argmax(axis=1)])[:, None]
    ).astype(np.float32)
    return found


def shortfall(directions: NDArray[np.float64], gradients: NDArray[np.float64]) -> tuple[float, float, float]:
    """How far rows (k, d) are from `leading_directions` of C (d, d), whatever turns one into the other.

    The largest error of a product of two rows (1 or 0 is due); the part of C that the leading k directions hold and
    these do not; and the least that any direction within the rows' span holds, in units of what the k-th leading one
    does (1 is due). The last sees a small direction exchanged, which the part does not.
    """
    off = float(np.abs(directions @ directions.T - np.eye(len(directions))).max())
    leading = np.linalg.eigvalsh(gradients)[-len(directions) :]
    held = directions @ gradients @ directions.T
    if not leading[0] > 0:
        return off, np.inf, 0.0
    return off, 1 - float(np.trace(held) / leading.sum()), float(np.linalg.eigvalsh(held)[0] / leading[0])
