"""Gradient canaries inside the study's own training: records whose gradient is one coordinate of the adapter.

The strongest canary there is against DP-SGD is a record whose clipped gradient is as long as the clip norm
allows and orthogonal to everybody else's (Nasr et al. 2023; Maddock, Sablayrolles and Stock 2022). No input
image has such a gradient, so a canary bypasses the backbone: it enters one adapted layer as a unit vector,
and its logit is one output of that layer. Everything else is what a site runs: the layers, Opacus' hooks on
them, clipping over all layers, sampling, noise, normaliser, and real records in the same batches.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from secure_triplay.errors import ConfigError

_MARK = -float(2**20)  # no token of an image is anywhere near; indices below it stay exact in float32
_STEEP = 100.0  # an unclipped canary is so many clip norms long


@dataclass(frozen=True)
class Canaries:
    """`coordinates` (m,) int64 of the flat adapter, no two alike: the canaries' gradients are orthogonal."""

    coordinates: NDArray[np.int64]

    @classmethod
    def draw(cls, n_params: int, count: int, rng: np.random.Generator) -> Canaries:
        """`count` coordinates at random. Raises ConfigError where the adapter has fewer."""
        if count > n_params:
            raise ConfigError(
                f"{count:,} canaries need as many parameters; the adapter has {n_params:,}",
                where="audit epsilon",
                fix="audit with fewer canaries, or a study with a larger adapter",
            )
        return cls(np.sort(rng.choice(n_params, size=count, replace=False)).astype(np.int64))

    def __len__(self) -> int:
        return len(self.coordinates)

    def tokens(self, included: NDArray[np.bool_], shape: tuple[int, ...]) -> Tensor:
        """Marked tokens (k, *shape) float32 of the k included canaries; they stand for themselves only."""
        indices = np.flatnonzero(included)
        tokens = torch.zeros((len(indices), *shape))
        tokens.view(len(indices), -1)[:, 0] = _MARK - torch.from_numpy(indices).float()
        return tokens


class CanaryClassifier(nn.Module):
    """The study's classifier, which also takes marked tokens and gives those records canary gradients.

    A canary's logits are all 0, whatever the weights, and its loss has slope `_STEEP` clip norms in its own
    coordinate and none elsewhere. Other records pass through the classifier as ever.
    """

    def __init__(
        self, inner: nn.Module, layers: tuple[_Routed, ...], canaries: Canaries, l2_clip_norm: float
    ) -> None:
        super().__init__()
        self.inner = inner
        self._layers = layers
        sizes = [layer.weight.numel() for layer in layers]
        starts = np.cumsum([0, *sizes])
        where = np.searchsorted(starts, canaries.coordinates, side="right") - 1
        width = np.array([layer.weight.shape[1] for layer in layers])[where]
        self._layer = torch.from_numpy(where)
        self._out, self._in = (
            torch.from_numpy(part) for part in np.divmod(canaries.coordinates - starts[where], width)
        )
        self._slope = _STEEP * l2_clip_norm

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (n, n_classes) float32."""
        first = tokens.flatten(1)[:, 0]
        marked = first <= _MARK
        if not marked.any():
            logits: Tensor = self.inner(tokens)
            return logits
        index = (_MARK - first[marked]).long()
        for number, layer in enumerate(self._layers):
            layer.route(self._in[index], self._layer[index] == number)
        try:
            real = ~marked
            if real.any():
                ordinary = self.inner(tokens[real])
            else:
                for layer in self._layers:
                    layer.alone()
                ordinary = tokens.new_zeros((0, self.n_classes))
            value = torch.stack([layer.taken(self._out[index]) for layer in self._layers]).sum(0)
        finally:
            for layer in self._layers:
                layer.clear()
        own = value.new_zeros((len(index), ordinary.shape[1]))
        own = torch.cat([self._slope * (value - value.detach())[:, None], own[:, 1:]], dim=1)
        order = torch.cat([real.nonzero()[:, 0], marked.nonzero()[:, 0]])
        return torch.cat([ordinary, own])[torch.argsort(order)]

    n_classes = 2  # set once a real record has passed


class _Routed(nn.Module):
    """A linear layer that takes canary rows below the real ones, and hands only the real ones on."""

    def __init__(self, inner: nn.Linear) -> None:
        super().__init__()
        self.inner = inner
        self._shape: tuple[int, ...] = (inner.in_features,)
        self._in: Tensor | None = None
        self._mine: Tensor | None = None
        self._result: Tensor | None = None

    @property
    def weight(self) -> Tensor:
        """Of the layer inside; peft asks for its type."""
        return self.inner.weight

    def route(self, inputs: Tensor, mine: Tensor) -> None:
        """The next call also takes canary rows: unit vectors of `inputs` where `mine`, otherwise zero."""
        self._in, self._mine, self._result = inputs, mine, None

    def forward(self, x: Tensor) -> Tensor:
        """(n, ..., in) -> (n, ..., out), as if there were no canaries."""
        self._shape = tuple(x.shape[1:])
        if self._in is None or self._mine is None:
            plain: Tensor = self.inner(x)
            return plain
        rows = x.new_zeros((len(self._in), *self._shape))
        rows.view(len(rows), -1, self._shape[-1])[torch.arange(len(rows)), 0, self._in % self._shape[-1]] = (
            self._mine.to(x.dtype)
        )
        out: Tensor = self.inner(torch.cat([x, rows]))
        self._result = out[len(x) :].reshape(len(rows), -1, out.shape[-1])[:, 0]
        return out[: len(x)]

    def alone(self) -> None:
        """A call with canary rows only."""
        self(self.weight.new_zeros((0, *self._shape)))

    def taken(self, outputs: Tensor) -> Tensor:
        """(k,): each canary's output where it is this layer's, otherwise 0."""
        if self._result is None or self._mine is None:
            raise ConfigError("an adapted layer was not reached", where="audit epsilon")
        picked = self._result[torch.arange(len(outputs)), outputs % self._result.shape[-1]]
        return picked * self._mine.to(picked.dtype)

    def clear(self) -> None:
        """Back to ordinary calls."""
        self._in = self._mine = self._result = None


@contextmanager
def with_canaries(
    classifier: nn.Module, weights: tuple[nn.Parameter, ...], canaries: Canaries, example: Tensor, clip: float
) -> Iterator[CanaryClassifier]:
    """The classifier with its trained layers routed; they are put back afterwards.

    `weights` in the order of the flat adapter, `example` (1, t, d) tokens of a real record.
    Raises ConfigError where a trained weight is not that of a linear layer of the image tower.
    """
    routed: list[tuple[nn.Module, str, nn.Linear]] = []
    layers: list[_Routed] = []
    try:
        for weight in weights:
            parent, name, linear = _owner(classifier, weight)
            layer = _Routed(linear)
            parent._modules[name] = layer
            routed.append((parent, name, linear))
            layers.append(layer)
        wrapped = CanaryClassifier(classifier, tuple(layers), canaries, clip)
        with torch.no_grad():
            wrapped.n_classes = int(classifier(example).shape[-1])  # every layer sees its shape, too
        yield wrapped
    finally:
        for parent, name, linear in routed:
            parent._modules[name] = linear


def _owner(classifier: nn.Module, weight: nn.Parameter) -> tuple[nn.Module, str, nn.Linear]:
    for parent in classifier.modules():
        for name, child in parent._modules.items():
            if isinstance(child, nn.Linear) and child.weight is weight and child._parameters["bias"] is None:
                return parent, name, child
    raise ConfigError(
        "the adapter trains something else than linear layers without bias",
        where="audit epsilon",
        fix="audit a study whose adapter is LoRA or FFA-LoRA",
    )
