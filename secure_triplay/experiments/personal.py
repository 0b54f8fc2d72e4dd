"""What a site keeps for itself: a bias of the logits from its class counts, or a second adapter of its own updates."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from secure_triplay.privacy.noise import NoiseSource

STEP = 0.002
"""How far noise alone moves a value of the second adapter; chosen on other seeds than those reported."""


def class_bias(
    labels: NDArray[np.int64], n_classes: int, noise_std: float, noise: NoiseSource | None = None
) -> NDArray[np.float32]:
    """Logarithms (n_classes,) of the class shares of `labels` (n,), from counts with Gaussian noise.

    Guarantee: one Gaussian release of noise multiplier `noise_std` under add/remove of a record, since the
    counts' l2 sensitivity is 1. Counts below the noise tell nothing, and are raised to its level.
    """
    counts = np.bincount(labels, minlength=n_classes).astype(np.float64)
    counts += (noise or NoiseSource()).gaussian(n_classes, noise_std)
    counts = np.maximum(counts, noise_std)
    bias: NDArray[np.float32] = np.log(counts / counts.sum()).astype(np.float32)
    return bias


class OwnUpdates:
    """The sum of a site's own noised updates, of which a second adapter is made that never leaves the site.

    The updates are paid for when they are sent, so their sum is post-processing: nothing is charged for it, and nothing
    that is sent changes. `noise_std` is the public deviation of the noise in each value of one update.
    """

    def __init__(self, n_params: int, noise_std: float) -> None:
        self._sum, self._rounds, self._noise_std = np.zeros(n_params), 0, noise_std

    def add(self, update: NDArray[np.float32]) -> None:
        """One round's update (n_params,)."""
        self._sum += update
        self._rounds += 1

    def personal(self, published: NDArray[np.float32]) -> NDArray[np.float32]:
        """The published adapter (n_params,), moved by the sum: its noise has the deviation `STEP` in each value."""
        step = STEP / (self._noise_std * max(1, self._rounds) ** 0.5)
        moved: NDArray[np.float32] = (published + step * self._sum).astype(np.float32)
        return moved
