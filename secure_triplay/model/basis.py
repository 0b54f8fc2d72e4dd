"""A frozen A from public images: the directions in which a layer's inputs vary, instead of random ones.

FFA-LoRA trains B on A u. A random A (r, d_in) keeps r directions out of d_in, most of which hardly vary over
images, and noise lies on every one of them. Here A's rows are the leading principal directions of the inputs u of
public images, divided by how far the inputs reach along each (whitened), so that every row carries as much. Taking
LoRA's A from activations is EVA's idea (Paischer et al. 2024, arXiv 2410.07170, section 3); taking what noise is
spread over from public data is that of Zhou, Wu and Banerjee 2021 (arXiv 2007.03813, section 3).

With `adapter.output_rank`, B is likewise kept to few directions of a layer's outputs (`model.outputs`).

It sees public images only, and costs no privacy. Its values are rounded to float16. Two processors compute two bases,
so in a real federation the coordinator computes one, the signed study bundle carries it, and each site installs
those very values after `require_of_public_images`. A simulation computes it on its one machine, and gets the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from secure_triplay.errors import ConfigError
from secure_triplay.matrices import Matrices, rounded
from secure_triplay.model.outputs import FewOutputs, leading_directions, logit_gradients, shortfall

if TYPE_CHECKING:
    from secure_triplay.model.adapter import Adapter
    from secure_triplay.model.tower import Classifier, Images, ImageTower

Inputs = dict[str, NDArray[np.float32]]
"""By layer: what it is given for the public images, (n, d_in)."""


@dataclass(frozen=True)
class Seen:
    """What public images show of the adapted layers.

    `inputs`, and where B is kept to few directions `gradients`: by layer, C (d_out, d_out) of `model.outputs`.
    """

    inputs: Inputs
    gradients: dict[str, NDArray[np.float64]]


MAX_OUTSIDE, MAX_GRAM_ERROR, MAX_LENGTH = 0.2, 0.25, 1.25
"""Bounds of `require_of_public_images`: measured figures stand there."""

MAX_OFF, MAX_SHORTFALL, MIN_LEAST = 0.01, 0.02, 0.9
"""Bounds of `require_of_public_gradients`."""

_LEAST = 1e-6
"""Directions in which inputs reach less than this part of the furthest are none."""

OUTPUTS = ".outputs"
"""What follows a layer's name, in a bundle, for the U^T (k, d_out) beside its A."""

_NAME = "default"
_PEFT = "base_model.model."
_WHERE = "adapter.basis"


def install_public_basis(
    adapter: Adapter, tower: ImageTower, classifier: Classifier, public: Images, given: Matrices | None = None
) -> None:
    """Set each frozen A and U from public images (n, H, W, 3) uint8, or from `given` once held against them.

    Raises ConfigError where they are fewer than the adapter's rank, or where `given` is not theirs, and then
    sets nothing. The adapter must not be trained yet.
    """
    seen = look(adapter, tower, classifier, public)
    if given is None:
        given = fitted(adapter, seen)
    else:
        require_of_this_adapter(given, adapter)
        require_of_public_images(given, seen.inputs)
        require_of_public_gradients(given, seen.gradients)
    with torch.no_grad():
        for name, (weight, turned) in _frozen(adapter).items():
            values = torch.from_numpy(given[name].astype(np.float32))
            weight.copy_(values.T if turned else values)


def look(adapter: Adapter, tower: ImageTower, classifier: Classifier, public: Images) -> Seen:
    """What public images (n, H, W, 3) uint8 show of the adapter's layers. Raises ConfigError for none."""
    inputs = layer_inputs(adapter, tower, public)
    layers = {name: layer for name, layer in _layers(adapter).items() if _few_outputs(layer) is not None}
    return Seen(inputs, logit_gradients(layers, classifier, tower.prefix(public)) if layers else {})


def fitted(adapter: Adapter, seen: Seen) -> Matrices:
    """Each layer's A (rank, d_in), and U^T (k, d_out) where B has few outputs, in float16. Raises ConfigError."""
    found: Matrices = {}
    for name, layer in _layers(adapter).items():
        found[name] = rounded(whitened_directions(seen.inputs[name], layer.lora_A[_NAME].out_features))
        few = _few_outputs(layer)
        if few is not None:
            found[name + OUTPUTS] = rounded(leading_directions(seen.gradients[name], few.inner.out_features))
    return found


def layer_inputs(adapter: Adapter, tower: ImageTower, public: Images) -> Inputs:
    """What each adapted layer is given for public images (n, H, W, 3) uint8. Raises ConfigError for none."""
    if not len(public):
        raise ConfigError(
            "there are no public images here, and a basis is made of them and held against them",
            where=_WHERE,
            fix="set data.public_images, or name the public manifest (at a site: site join --public-manifest)",
        )
    layers = _layers(adapter)
    seen: dict[str, list[NDArray[np.float32]]] = {name: [] for name in layers}

    def note(name: str, given: torch.Tensor) -> None:
        seen[name].append(given.detach().reshape(-1, given.shape[-1]).float().numpy())

    hooks = [
        layer.register_forward_pre_hook(lambda _, inputs, name=name: note(name, inputs[0]))
        for name, layer in layers.items()
    ]
    try:
        tower.features(tower.prefix(public))  # the prefix never reaches an adapted layer
    finally:
        for hook in hooks:
            hook.remove()
    return {name: np.concatenate(parts) for name, parts in seen.items()}


def require_of_this_adapter(given: Matrices, adapter: Adapter) -> None:
    """Return nothing if these are the adapter's layers, each of its shape. Raises ConfigError."""
    due = {
        name: tuple(weight.T.shape if turned else weight.shape)
        for name, (weight, turned) in _frozen(adapter).items()
    }
    found = {name: a.shape for name, a in given.items()}
    wrong = sorted(name for name in due.keys() | found.keys() if due.get(name) != found.get(name))
    if wrong:
        name = wrong[0]
        raise ConfigError(
            f"the basis is of another adapter: {name} is {found.get(name, 'missing')} there, and "
            f"{due.get(name, 'not adapted')} here",
            where=_WHERE,
            fix="ask the coordinator for a bundle that was made with the study's own backbone and adapter",
        )


def require_of_public_images(given: Matrices, inputs: Inputs) -> None:
    """Return nothing if each A could be `whitened_directions` of this site's own inputs (n, d_in) of public images.

    Three things are asked of each A (r, d_in), whose values are finite already:

        span     a row's part outside the span of the inputs is at most 0.2 of the row
        whitened products of two rows' projections, over the inputs, are within 0.25 of the mean square that is due
                 (1 or 0 of it)
        length   no row is longer than 1.25 times the longest that `whitened_directions` gives here, so that the
                 inputs vary along each row about as far as along their r-th direction, or further

    Measured on the packaged backbone (56 px, 100 and 1,000 images of Fashion-MNIST, rank 4 to 96, last 1 and last 4
    blocks; float32 held against bfloat16, both ways): at most 0.068, 0.077 and 1.005. Random rows: of some row 0.87 or
    more is outside the span of 100 images, and some product is off by 0.89 or more.

    What it protects: it keeps A to what public images span, so that a coordinator that chooses A otherwise is
    refused. What it does not: within that span A may still be turned as the coordinator likes, and as many inputs
    as d_in span everything, so that only the last two bounds say something. Differential privacy holds whatever A
    is, and does not rest on this. Raises ConfigError.
    """
    for name, u in inputs.items():
        outside, off, length = deviations(given[name].astype(np.float64), u.astype(np.float64))
        if not (outside <= MAX_OUTSIDE and off <= MAX_GRAM_ERROR and length <= MAX_LENGTH):
            raise ConfigError(
                f"the basis in the bundle is not of the public images here: {outside:.2f} of a row of {name} is "
                f"outside their span (at most {MAX_OUTSIDE}), products of rows are off by {off:.2f} (at most "
                f"{MAX_GRAM_ERROR}), and the longest row has {length:.2f} of the length due (at most {MAX_LENGTH})",
                where=_WHERE,
                fix="compare the public images with the coordinator's, file by file; if they are the same, do not "
                "take part: A was chosen otherwise",
            )


def require_of_public_gradients(given: Matrices, gradients: dict[str, NDArray[np.float64]]) -> None:
    """Return nothing if each U could be `leading_directions` of this site's own C (d_out, d_out) of public images.

    Its rows must be orthonormal within 0.01, hold all but 0.02 of what as many of the leading directions hold, and no
    direction among them may hold less than 0.9 of what the last of the leading ones does. Measured as above, 2 to 20
    directions, in float32 and bfloat16: at most 0.0004, at most 0.0009, at least 0.998; a test holds these. Random
    directions miss 0.94 or more; those of another hundred images of the same classes miss 0.6 or more.
    What it protects and what not is as with A: within what public images show, U may be turned. Raises ConfigError.
    """
    for name, c in gradients.items():
        off, short, least = shortfall(given[name + OUTPUTS].astype(np.float64), c)
        if not (off <= MAX_OFF and short <= MAX_SHORTFALL and least >= MIN_LEAST):
            raise ConfigError(
                f"the output directions in the bundle are not of the public images here: of {name} they miss "
                f"{short:.2f} of the logits' gradients (at most {MAX_SHORTFALL}), one holds {least:.2f} of what "
                f"the last is to (at least {MIN_LEAST}), and products of rows are off by {off:.2f} (at most {MAX_OFF})",
                where=_WHERE,
                fix="compare the public images with the coordinator's, file by file; if they are the same, do not "
                "take part: the directions were chosen otherwise",
            )


def deviations(a: NDArray[np.float64], inputs: NDArray[np.float64]) -> tuple[float, float, float]:
    """How far A (r, d) is from `whitened_directions` of inputs (n, d), whatever turns one into the other.

    The largest part of a row outside the span, the largest error of a product of two rows' projections in units of
    the mean square that is due, and the longest row in units of the longest due; infinite where the inputs span
    no r directions.
    """
    n, rank = len(inputs), len(a)
    _, values, rows = np.linalg.svd(inputs, full_matrices=False)
    spans = int((values > _LEAST * values[0]).sum())
    if spans < rank:
        return np.inf, np.inf, np.inf
    along = a @ rows[:spans].T
    lengths = np.linalg.norm(a, axis=1)
    if not lengths.all():
        return np.inf, np.inf, np.inf
    outside = np.linalg.norm(a - along @ rows[:spans], axis=1) / lengths
    seen, target = along * values[:spans], _mean_square(inputs)
    off = np.abs(seen @ seen.T / (n * target) - np.eye(rank))
    longest = np.sqrt(n * target) / values[rank - 1]
    return float(outside.max()), float(off.max()), float(lengths.max() / longest)


def whitened_directions(inputs: NDArray[np.floating], rank: int) -> NDArray[np.float32]:
    """Rows a (rank, d) with a_i . u uncorrelated over the inputs u (n, d), all of one mean square.

    That mean square is the one that rows drawn uniformly on +-1/sqrt(d) have, so that step sizes carry over:
    |u|^2 / (3 d). A row's largest entry is positive, so that every machine takes the same sign.
    """
    u = inputs.astype(np.float64)
    n = len(u)
    if n < rank:
        raise ConfigError(
            f"{n} public images span no {rank} directions",
            where="adapter.rank",
            fix="lower the rank, give more public images, or leave adapter.basis out",
        )
    _, values, rows = np.linalg.svd(u, full_matrices=False)
    if not values[rank - 1] > _LEAST * values[0]:
        raise ConfigError(
            f"the public images span no {rank} directions",
            where="adapter.rank",
            fix="lower the rank, give more public images, or leave adapter.basis out",
        )
    rows = rows[:rank] * np.sign(rows[np.arange(rank), np.abs(rows[:rank]).argmax(axis=1)])[:, None]
    reach = np.sqrt(n * _mean_square(u))
    found: NDArray[np.float32] = (rows * (reach / values[:rank])[:, None]).astype(np.float32)
    return found


def _mean_square(inputs: NDArray[np.float64]) -> float:
    """What a row's projections are due: |u|^2 / (3 d), in the mean over the inputs u (n, d)."""
    return float(np.square(inputs).sum(axis=1).mean() / (3 * inputs.shape[1]))


def _layers(adapter: Adapter) -> dict[str, Any]:
    """Adapted layers by their path inside the model."""
    return {
        name.removeprefix(_PEFT): module
        for name, module in adapter.peft.named_modules()
        if _NAME in getattr(module, "lora_A", {})
    }


def _few_outputs(layer: Any) -> FewOutputs | None:
    b = layer.lora_B[_NAME]
    return b if isinstance(b, FewOutputs) else None


def _frozen(adapter: Adapter) -> dict[str, tuple[torch.Tensor, bool]]:
    """What is taken from public images, by its name in a bundle; whether it is held the other way round."""
    found: dict[str, tuple[torch.Tensor, bool]] = {}
    for name, layer in _layers(adapter).items():
        found[name] = layer.lora_A[_NAME].weight, False
        few = _few_outputs(layer)
        if few is not None:
            found[name + OUTPUTS] = few.directions, True
    return found
