"""What a site keeps for itself: a bias of the logits from its own class counts, under noise."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from secure_triplay.privacy.noise import NoiseSource


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
