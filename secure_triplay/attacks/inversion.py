"""Span inversion: pictures from the span of a gradient's rows, in closed form.

Let u_t in R^d be the inputs of the first block's attention, a function of picture and frozen weights alone.
With plain LoRA, h = W u + s B A u, a step moves A by a multiple of

    dL/dA = s sum_t (B^T d_t) u_t^T,

whose rows lie in span{u_t}, in every step and round, whatever B and d_t are. With FFA-LoRA only B moves,

    dL/dB = s sum_t d_t (A u_t)^T,

and its rows lie in span{A u_t}, a subspace of R^r: all of it while r <= tokens, so that nothing is said; with
a larger rank its complement says something. Let P project onto the complement of the span in R^k (k = d with
A = I, or k = r). Then for every token

    P A u_t = 0,    u_t = g (x_t - m_t)/s_t + b,    x_t = W p_t + e_t,

with LayerNorm's g, b, the patch embedding's W and the token's own constants e_t. Times s_t this is linear in
the pixels p_t and in s_t. (With open_clip's norm before the blocks there are two norms, and two more unknown
scales, linear as well.) Directions of unknown scales are added to the span; what is left are linear equations
for the picture, solved with a Gaussian expectation of it by least squares. What pictures have beyond the basis of
that expectation (rounding, clipping at edges) is told from the public images, and equations are weighed by it.

The span is of Zhu and Blaschko's kind ("R-GAP", 2021: gradients as linear equations in a layer's input).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from open_clip.transformer import VisionTransformer
from scipy.linalg import cho_factor, cho_solve

from secure_triplay.attacks.images import ImagePrior, Picture

if TYPE_CHECKING:
    from secure_triplay.model.backbone import Backbone

Array = NDArray[np.float64]
_CORRECTIONS = 2
_ROUNDING = 1 / 255 / 12**0.5


@dataclass(frozen=True, eq=False)
class FirstBlock:
    """PUBLIC. What lies between pixels and the input of the first block's attention.

    `weight` (d, 3, patch, patch) for pixels in [0, 1], `constants` (n_patches, d), `gain` (d,) the product of
    the norms' gains, `free` (d, n_free) the directions that unknown scales multiply, `tokens` how many inputs
    one picture gives (patches, class token and registers).
    """

    weight: Array
    constants: Array
    gain: Array
    free: Array
    tokens: int

    @property
    def width(self) -> int:
        """d."""
        return len(self.gain)


def first_block(backbone: Backbone) -> FirstBlock:
    """The public constants of a backbone's first block: timm's ViT, or open_clip's with its norm before it."""
    visual: Any = backbone.model.visual
    if isinstance(visual, VisionTransformer):
        weight, bias = visual.conv1.weight, None
        position = visual.positional_embedding
        block = visual.transformer.resblocks[0]
        norms = [visual.ln_pre, block.ln_1]
    else:
        trunk = visual.trunk
        weight, bias = trunk.patch_embed.proj.weight, trunk.patch_embed.proj.bias
        position = trunk.pos_embed[0]
        norms = [trunk.blocks[0].norm1]
    w = _array(weight)
    std, mean = np.asarray(backbone.std), np.asarray(backbone.mean)
    scaled = w / std[:, None, None]
    n_patches = (backbone.image_size // w.shape[-1]) ** 2
    constants = _array(position)[-n_patches:] - np.einsum("dcab,c->d", scaled, mean)
    if bias is not None:
        constants = constants + _array(bias)
    gain, free = np.ones(len(w)), np.empty((len(w), 0))
    for norm in norms:
        g, b = _array(norm.weight), _array(norm.bias)
        # each norm takes off a mean (a direction that later norms turn), multiplies, and adds a constant
        free = np.column_stack([g[:, None] * np.column_stack([free, np.ones(len(w))]), b])
        gain = gain * g
    directions, strength, _ = np.linalg.svd(free, full_matrices=False)
    kept = directions[:, strength > 1e-9 * strength[0]]  # two norms without a gain give the same direction
    return FirstBlock(scaled, constants, gain, kept, len(_array(position)))


def _array(tensor: Any) -> Array:
    found: Array = tensor.detach().double().numpy()
    return found


def span_of(rows: Array, n_inputs: int) -> Array | None:
    """The span (k, n_inputs) of gradient rows (m, k); None where it fills the space and so says nothing."""
    k = rows.shape[1]
    if not np.isfinite(rows).all() or len(rows) < n_inputs or k <= n_inputs:
        return None
    values, right = np.linalg.svd(rows, full_matrices=False)[1:]
    return right[:n_inputs].T if values[0] > 0 else None


class SpanInversion:
    """Solves for pictures; holds what depends on public constants alone, so that a picture takes a moment.

    `throughs` are the public A matrices (r, d) that gradients will be seen through; None stands for none.
    """

    def __init__(
        self, block: FirstBlock, prior: ImagePrior, throughs: Sequence[Array | None] = (None,)
    ) -> None:
        self.prior, self._block = prior, block
        parts = _Parts.of(block, prior)
        spread = _spread_off_the_basis(block, prior)
        self._views = [_View.of(parts, spread, block.free, each) for each in throughs]

    def solve(self, spans: Sequence[Array | None], pixel_noise: Sequence[float] = (3e-3,)) -> list[Picture]:
        """The pictures that fit best, one for each standard deviation of a pixel in `pixel_noise`.

        `spans` holds one span a view, None where a gradient says nothing. A large deviation trusts the
        expectation more than the equations; with no span at all, the mean picture is all there is.
        """
        equations = [
            view.equations(span) for view, span in zip(self._views, spans, strict=True) if span is not None
        ]
        if not equations:
            return [self.prior.mean for _ in pixel_noise]
        gram = np.sum([each.gram for each in equations], axis=0)
        found = []
        for deviation in pixel_noise:
            factor = cho_factor(gram + deviation**2 * self.prior.precision)
            z = cho_solve(factor, -np.sum([each.right(None) for each in equations], axis=0))
            for _ in range(_CORRECTIONS):
                off = self._off_the_basis(z)
                z = cho_solve(factor, -np.sum([each.right(off) for each in equations], axis=0))
            found.append(self.prior.picture(z))
        return found

    def _off_the_basis(self, z: Array) -> Array:
        """What clipping to [0, 1] moves each token by (n_patches, d), as far as the picture is known."""
        full = self.prior.unclipped(z)
        return _tokens_of(self._block, (np.clip(full, 0.0, 1.0) - full)[None])


@dataclass(frozen=True, eq=False)
class _Parts:
    """How the unknowns move each token, in two factors, since a patch sees few of them.

    Token t of a picture is left[t] (d, m) @ right[t] (m, n) @ z + base[t] (d,), before its unknown scale.
    """

    left: Array
    right: Array
    base: Array

    @classmethod
    def of(cls, block: FirstBlock, prior: ImagePrior) -> _Parts:
        patch = block.weight.shape[-1]
        grid = prior.size // patch
        by_colour = np.einsum("dcab,ce->deab", block.weight, prior.colours)
        pieces = [_factors(each) for each in prior.rows.reshape(grid, patch, -1)]
        most = max(len(small) for _, small in pieces)
        wide = np.stack([np.pad(each, ((0, 0), (0, most - each.shape[1]))) for each, _ in pieces])
        small = np.stack([np.pad(each, ((0, most - len(each)), (0, 0))) for _, each in pieces])
        left = np.einsum("deab,iap,jbq->ijdepq", by_colour, wide, wide, optimize=True)
        n_colours, side = by_colour.shape[1], small.shape[2]
        right = np.zeros((grid, grid, n_colours, most, most, n_colours, side, side))
        for colour in range(n_colours):
            right[:, :, colour, :, :, colour] = np.einsum("ipf,jqg->ijpqfg", small, small, optimize=True)
        left = left.reshape(grid * grid, block.width, -1)
        right = right.reshape(grid * grid, left.shape[-1], -1)
        base = np.einsum("tdm,tm->td", left, right @ prior.mean_z) + block.constants
        return cls(_through_norm(block.gain, left), right, _through_norm(block.gain, base.T).T)


def _factors(piece: Array) -> tuple[Array, Array]:
    """A matrix (a, f) of small rank k as (a, k) and (k, f)."""
    u, values, v = np.linalg.svd(piece, full_matrices=False)
    k = int((values > 1e-12 * values[0]).sum())
    return u[:, :k], values[:k, None] * v[:k]


def _tokens_of(block: FirstBlock, pictures: Array) -> Array:
    """What pictures (m, 3, size, size) add to their tokens -> (m * n_patches, d)."""
    patch = block.weight.shape[-1]
    grid = pictures.shape[-1] // patch
    cut = pictures.reshape(len(pictures), 3, grid, patch, grid, patch).transpose(0, 2, 4, 1, 3, 5)
    tokens = cut.reshape(len(pictures) * grid * grid, -1) @ block.weight.reshape(block.width, -1).T
    return _through_norm(block.gain, tokens.T).T


def _spread_off_the_basis(block: FirstBlock, prior: ImagePrior) -> Array:
    """Covariance (d, d) of what moves a token and is not in the basis, for one unit of noise in a pixel.

    That is rounding, the same everywhere, and what the public images have beyond the basis: finer detail,
    and what clipping takes off at edges. Both are told apart from what the unknowns do.
    """
    pixels = _through_norm(block.gain, block.weight.reshape(block.width, -1))
    white = pixels @ pixels.T
    seen = _tokens_of(block, prior.leftovers)
    spread = seen.T @ seen / len(seen) + _ROUNDING**2 * white
    spread *= np.trace(white) / np.trace(spread)
    return np.asarray(spread + 1e-9 * np.trace(spread) / len(spread) * np.eye(len(spread)))


@dataclass(frozen=True, eq=False)
class _View:
    """Equations for the picture as seen through one A, whitened for what is not in the basis."""

    left: Array
    right: Array
    base: Array
    free: Array
    whiten: Array
    into: Array
    gram: Array

    @classmethod
    def of(cls, parts: _Parts, spread: Array, free: Array, through: Array | None) -> _View:
        if through is not None:
            spread = through @ spread @ through.T
        values, vectors = np.linalg.eigh(spread)
        whiten = vectors.T / np.sqrt(values)[:, None]
        into = whiten if through is None else whiten @ through
        left = into @ parts.left
        squares = left.transpose(0, 2, 1) @ left
        gram = np.einsum("tmn,tmk->nk", parts.right, squares @ parts.right, optimize=True)
        return cls(left, parts.right, parts.base @ into.T, into @ free, whiten, into, gram)

    def equations(self, span: Array) -> _Equations:
        """Tokens lie in the span, but for the unknown scales."""
        excused, _ = np.linalg.qr(np.column_stack([self.whiten @ span, self.free]))
        moved = (excused.T @ self.left @ self.right).reshape(-1, self.right.shape[-1])
        return _Equations(self, excused, self.gram - moved.T @ moved)


@dataclass(frozen=True, eq=False)
class _Equations:
    """Normal equations of one view: gram (n, n), and the right-hand side (n,) for tokens moved by `off`."""

    view: _View
    excused: Array
    gram: Array

    def right(self, off: Array | None) -> Array:
        """`off` (n_patches, d) is what else is known to move the tokens."""
        base = self.view.base if off is None else self.view.base + off @ self.view.into.T
        rest = base - (base @ self.excused) @ self.excused.T
        return np.asarray(
            np.einsum("tmn,tm->n", self.view.right, np.einsum("tdm,td->tm", self.view.left, rest))
        )


def _through_norm(gain: Array, tokens: Array) -> Array:
    """Columns (..., d, n) centred over d and multiplied by the gain; the norm's own scale stays unknown."""
    return np.asarray(gain[:, None] * (tokens - tokens.mean(axis=-2, keepdims=True)))
