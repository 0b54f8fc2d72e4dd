"""Small grids on pictures made here: two classes that differ in brightness, in manifests of two domains."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    """A manifest of 48 pictures of 8 x 8 pixels: classes dark and light, domains lab and ward."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    with (folder / "manifest.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "domain"])
        for index in range(48):
            label = ("dark", "light")[index % 2]
            brightness = rng.normal(170 if label == "light" else 90, 30)  # some are hard to tell
            pixels = np.clip(brightness + rng.normal(0, 20, (8, 8, 3)), 0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index}.png")
            writer.writerow([f"{index}.png", label, ("lab", "ward")[index // 2 % 2]])
    return folder / "manifest.csv"


@pytest.fixture
def grid_file(tmp_path, pictures):
    """Writes an experiment file over the pictures, with what is given changed, and its study; returns its path."""

    def write(study: dict[str, Any] | None = None, **changes: Any) -> Path:
        content = yaml.safe_load((ROOT / "configs" / "blood-cells.yaml").read_text())
        content["classes"] = [
            {"name": "dark", "prompts": ["a dark picture"]},
            {"name": "light", "prompts": ["a light picture"]},
        ]
        content["data"] = {
            "kind": "manifest",
            "manifest": str(pictures),
            "public_images": 8,
            "test_fraction": 0.25,
            "holdout_fraction": 0.25,
            "partition": {"kind": "iid"},
        }
        content["sites"] = [{"name": "north"}, {"name": "south", "weight": 2.0}]
        content["training"] |= {"rounds": 2}
        content["privacy"] = {
            "epsilon": 8.0,
            "delta": 5.0e-6,
            "max_units_per_site": 2000,
            "sampling_rate": 0.25,
            "expected_batch_size": 10,
            "l2_clip_norm": 10.0,
        }
        content["server_optimiser"] |= {"average_last": 1}
        content |= study or {}
        (tmp_path / "study.yaml").write_text(yaml.safe_dump(content))
        experiment = {
            "experiment": "small",
            "seeds": [1, 2],
            "data": [{"name": "pictures", "study": "study.yaml"}],
            "methods": ["fedavg-cnn"],
        } | changes
        path = tmp_path / "experiment.yaml"
        path.write_text(yaml.safe_dump(experiment))
        return path

    return write
