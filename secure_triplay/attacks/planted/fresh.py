"""A pytest plugin: every seed that a test names stands for another stream in each clean run.

Tests with fixed seeds would repeat themselves, so that fifty clean runs were one. With this plugin a run draws
samples, noise and records anew, and from the run's number an alarm can be had again. Keys come from the
operating system and are fresh anyway.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch

from secure_triplay.privacy.noise import NoiseSource

RUN = "SECURE_TRIPLAY_CLEAN_RUN"
_APART = 1_000_003


def pytest_configure(config: Any) -> None:
    """Shift every seed by the run's number. Raises KeyError outside a clean run."""
    shift_seeds(int(os.environ[RUN]) * _APART)


def shift_seeds(by: int) -> None:
    """From now on a seed gives the stream that the seed plus `by` gave, in numpy, torch and our own source."""
    numpys, ours, torchs = np.random.default_rng, NoiseSource.unsafe_from_seed, torch.manual_seed

    def default_rng(seed: Any = None) -> np.random.Generator:
        if isinstance(seed, (int, np.integer)):
            seed = [by, int(seed)]
        elif isinstance(seed, (list, tuple)):
            seed = [by, *seed]
        return numpys(seed)

    class Generator(torch.Generator):
        def manual_seed(self, seed: int) -> torch.Generator:
            return super().manual_seed(seed + by)

    patches: tuple[tuple[Any, str, Any], ...] = (
        (np.random, "default_rng", default_rng),
        (NoiseSource, "unsafe_from_seed", staticmethod(lambda seed: ours(seed + by))),
        (torch, "manual_seed", lambda seed: torchs(seed + by)),
        (torch, "Generator", Generator),
    )
    for where, name, shifted in patches:
        setattr(where, name, shifted)
