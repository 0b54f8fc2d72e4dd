"""The small study that a pilot is tried on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml


@pytest.fixture(scope="session")
def small() -> Callable[[], dict]:
    """Makes a small study's content, whose own settings are cheap."""

    def make() -> dict:
        demo = yaml.safe_load((Path(__file__).parents[2] / "configs" / "demo.yaml").read_text())
        demo["data"] |= {
            "records_per_site": 80,
            "holdout_per_site": 20,
            "test_images": 40,
            "public_images": 40,
        }
        demo["sites"] = demo["sites"][:2]
        demo["training"] |= {"rounds": 2}
        demo["server_optimiser"] |= {"average_last": 1}
        demo["adapter"] |= {"last_blocks": 1, "rank": 4, "alpha": 8.0}
        demo["privacy"] |= {
            "expected_batch_size": 20,
            "sampling_rate": 0.25,
            "max_units_per_site": 100,
            "delta": 1e-5,
        }
        return demo

    return make


@pytest.fixture
def content(small) -> dict:
    """The small study, to be changed at will."""
    return small()
