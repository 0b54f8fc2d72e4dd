"""One clipped sum in integers, with one site's share of the noise: what `shares` is about, on an adapter.

Gradients of single records come from the same hooks as in DP-SGD (`per_record`); none of them is kept, and no weight is
moved: the step is taken on the opened sum, the same at every site.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from secure_triplay.errors import PrivacyError
from secure_triplay.privacy.noise import NoiseSource
from secure_triplay.privacy.per_record import backward_per_record, per_record_gradients
from secure_triplay.privacy.shares import ShareRule
from secure_triplay.privacy.training import PoissonSampler, checked_weights

Integers = NDArray[np.int64]

_NORM_FLOOR = 1e-6  # as in Opacus; keeps a zero gradient from dividing by zero


def noised_sum(
    classifier: nn.Module, tokens: Tensor, labels: Tensor, rule: ShareRule, noise: NoiseSource
) -> list[Integers]:
    """One array of integers a trainable weight, in its shape: minus the clipped sum, on the grid, plus one share.

    `tokens` (n, t, d) float32, `labels` (n,) int64, as for `training.train`; weights stay as they are.

    Guarantee: together with `rule.honest_shares` - 1 other shares, and only then, it is private per record under
    add/remove at the price of `rule.charge`. Alone it has a share's noise: `rule.charged_for(1)`.

    Raises DataError for records that do not fit, PrivacyError where a rule cannot be kept.
    """
    weights = checked_weights(classifier, tokens, labels)
    total = [np.zeros(tuple(weight.shape), np.float64) for weight in weights]
    (drawn,) = PoissonSampler(len(labels), rule.sampling_rate, 1, noise)
    with per_record_gradients(classifier):
        for part in torch.split(drawn, rule.physical_batch_size):
            if not len(part):
                continue
            backward_per_record(classifier, weights, tokens[part], labels[part])
            rows = [weight.grad_sample.numpy() for weight in weights]
            for summed, integers in zip(total, rounded(clipped(rows, rule), rule, noise), strict=True):
                summed -= integers.sum(axis=0)  # whole numbers far below 2^53: exact
            for weight in weights:
                weight.grad_sample = None
    return [summed.astype(np.int64) + noise.skellam(summed.shape, rule.share_variance) for summed in total]


def clipped(rows: Sequence[NDArray[np.float32]], rule: ShareRule) -> list[NDArray[np.float64]]:
    """Gradients (n, *shape) of single records, each scaled to at most the clipping norm, in steps of the grid."""
    wide = [part.astype(np.float64) for part in rows]
    norms = np.sqrt(sum(np.square(part).reshape(len(part), -1).sum(axis=1) for part in wide))
    if not np.isfinite(norms).all():
        raise PrivacyError(
            "a gradient is not finite", where="training", fix="lower the learning rate, check the images"
        )
    factor = np.minimum(1.0, rule.l2_clip_norm / (norms + _NORM_FLOOR)) / rule.grid_step
    return [part * factor.reshape(-1, *[1] * (part.ndim - 1)) for part in wide]


def rounded(
    exact: Sequence[NDArray[np.float64]], rule: ShareRule, noise: NoiseSource
) -> list[NDArray[np.float64]]:
    """Whole numbers near the given ones, unbiased; no record (first axis) is longer than `rule.l2_sensitivity`.

    A record that rounding at random made too long is rounded toward zero. Raises PrivacyError where that is too long
    as well, which a clipped record never is.
    """
    whole = [np.floor(part + noise.uniform(part.shape)) for part in exact]
    long = _squares(whole) > rule.l2_sensitivity**2
    if long.any():
        for part, given in zip(whole, exact, strict=True):
            part[long] = np.trunc(given[long])
    if (_squares(whole) > rule.l2_sensitivity**2).any():
        raise PrivacyError(
            "a record's gradient is longer than its bound",
            where="training",
            fix="nothing was released; report this, since clipping did not bound it",
        )
    return whole


def _squares(parts: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Squared norm of each record over all weights; of whole numbers it is exact below 2^53."""
    return np.asarray(sum(np.square(part).reshape(len(part), -1).sum(axis=1) for part in parts))
