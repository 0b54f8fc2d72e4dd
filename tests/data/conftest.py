"""Small made-up data sets: manifest folders, good and broken, and Fashion-MNIST's files in miniature."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

from secure_triplay.config import Study, parse_study

settings.register_profile("no-deadline", deadline=None)  # a busy machine is not a failure
settings.load_profile("no-deadline")

CLASSES = ("cat", "dog", "horse")


class ManifestFolder:
    """Builds a folder with images and a manifest; every row can be made wrong on purpose."""

    def __init__(self, folder: Path, columns: tuple[str, ...] = ("path", "label")) -> None:
        self.folder, self.columns = folder, list(columns)
        self.rows: list[list[str]] = []
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def manifest(self) -> Path:
        return self.folder / "manifest.csv"

    def image(self, name: str, *, size: tuple[int, int] = (8, 8), mode: str = "RGB", seed: int = 0) -> Path:
        """A random image of a Pillow mode; its format follows from the name."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        bands = len(Image.new(mode, (1, 1)).getbands())
        pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], bands), dtype=np.uint8)
        if mode.startswith("I;16"):
            Image.fromarray(pixels[..., 0].astype(np.uint16) * 257).save(path)
        elif mode in ("P", "1"):
            Image.fromarray(pixels[..., 0]).convert(mode).save(path)
        else:
            Image.fromarray(pixels if bands > 1 else pixels[..., 0], mode).save(path)
        return path

    def row(self, *cells: str) -> ManifestFolder:
        self.rows.append(list(cells))
        return self

    def add(self, name: str, *cells: str, **image: Any) -> ManifestFolder:
        """An image and its row."""
        self.image(name, **{"seed": len(self.rows), **image})
        return self.row(name, *cells)

    def write(self, *, encoding: str = "utf-8") -> Path:
        with self.manifest.open("w", newline="", encoding=encoding) as file:
            csv.writer(file).writerows([self.columns, *self.rows])
        return self.manifest

    def patients(self, n_patients: int, images_each: int, classes: tuple[str, ...] = CLASSES) -> Path:
        """A complete folder: so many patients with so many images each, labels in turn."""
        self.columns = ["path", "label", "patient_id"]
        for patient in range(n_patients):
            for number in range(images_each):
                label = classes[(patient + number) % len(classes)]
                self.add(f"p{patient}/{number}.png", label, f"patient-{patient}")
        return self.write()


@pytest.fixture
def folder(tmp_path: Path) -> ManifestFolder:
    return ManifestFolder(tmp_path / "site")


def write_idx(path: Path, array: np.ndarray) -> None:
    """An idx file of bytes, as Fashion-MNIST's."""
    header = bytes((0, 0, 8, array.ndim)) + b"".join(extent.to_bytes(4, "big") for extent in array.shape)
    path.write_bytes(header + array.astype(np.uint8).tobytes())


@pytest.fixture(scope="session")
def fashion_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fashion-MNIST in miniature: 200 training and 60 test images a class; each image states its number."""
    folder = tmp_path_factory.mktemp("fashion-mnist")
    rng = np.random.default_rng(7)
    for prefix, each in (("train", 200), ("t10k", 60)):
        labels = rng.permutation(np.repeat(np.arange(10), each))
        images = np.zeros((len(labels), 28, 28))
        images[:, 0, 0], images[:, 0, 1], images[:, 0, 2] = (
            np.arange(len(labels)) % 256,
            np.arange(len(labels)) // 256,
            labels,
        )
        write_idx(folder / f"{prefix}-images-idx3-ubyte", images)
        write_idx(folder / f"{prefix}-labels-idx1-ubyte", labels)
    return folder


@pytest.fixture
def make_study() -> Any:
    """A study around the given `data`, `sites` and `classes`."""

    def make(data: dict[str, Any], *, sites: Any = 2, classes: Any = CLASSES, seed: int = 0) -> Study:
        site_list = (
            [{"name": f"site-{number}"} for number in range(sites)] if isinstance(sites, int) else sites
        )
        return parse_study(
            {
                "study": "made-up",
                "seed": seed,
                "classes": [{"name": name, "prompts": [f"a photo of a {name}"]} for name in classes],
                "backbone": {
                    "source": "open_clip",
                    "name": "ViT-B-32",
                    "licence": "MIT",
                    "unsafe_random_weights": True,
                },
                "data": data,
                "sites": site_list,
                "training": {"rounds": 1},
                "privacy": {"unsafe_dp_off": True, "sampling_rate": 0.5, "expected_batch_size": 10.0},
                "codec": {"range": 1.0},
            }
        )

    return make
