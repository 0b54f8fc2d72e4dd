"""Sites whose scanners differ: one fixed, published shift for each simulated site, on every image that it holds.

The shifts are the plain ones of a camera: contrast around mid-grey, brightness, gamma, a tint and a blur. They are
constants of this module, in the order of the study's sites, so a study that says `scanners: differ` says which they
are. Public and test images keep the scanner that they came from.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from secure_triplay.data.records import Codes, Images, Indices, Records


@dataclass(frozen=True)
class Scanner:
    """Out = 255 * clip(contrast * (in/255 - 1/2) + 1/2 + brightness, 0, 1) ** gamma * tint, then a Gaussian blur.

    `blur` is its standard deviation as a share of the image's width.
    """

    contrast: float = 1.0
    brightness: float = 0.0
    gamma: float = 1.0
    tint: tuple[float, float, float] = (1.0, 1.0, 1.0)
    blur: float = 0.0

    def scan(self, images: Images) -> Images:
        """(m, h, w, 3) uint8 as this scanner would have taken them."""
        x = np.clip(self.contrast * (images / 255.0 - 0.5) + 0.5 + self.brightness, 0, 1) ** self.gamma
        seen: Images = np.rint(255 * x * np.asarray(self.tint)).astype(np.uint8)
        if not self.blur:
            return seen
        kernel = ImageFilter.GaussianBlur(self.blur * images.shape[2])
        return np.stack([np.asarray(Image.fromarray(image).filter(kernel)) for image in seen])


SCANNERS = (
    Scanner(),
    Scanner(contrast=0.6),
    Scanner(brightness=0.15),
    Scanner(gamma=1.8),
    Scanner(gamma=0.55),
    Scanner(blur=0.03),
    Scanner(tint=(1.0, 0.85, 0.7)),
    Scanner(contrast=0.7, brightness=0.1, blur=0.015),
)
"""By place of the site in the study; with more sites they come round again."""


@dataclass(frozen=True, eq=False)
class ScannedRecords:
    """Records as one scanner takes them."""

    taken: Records
    scanner: Scanner

    def __repr__(self) -> str:
        return f"ScannedRecords({len(self)} records)"

    def __len__(self) -> int:
        return len(self.taken)

    @property
    def labels(self) -> Codes:
        """See Records."""
        return self.taken.labels

    @property
    def patients(self) -> Codes | None:
        """See Records."""
        return self.taken.patients

    @property
    def domains(self) -> Codes | None:
        """See Records."""
        return self.taken.domains

    @property
    def domain_names(self) -> tuple[str, ...]:
        """See Records."""
        return self.taken.domain_names

    def images(self, indices: Indices, size: int | None = None) -> Images:
        """See Records."""
        images = self.taken.images(indices, size)
        return self.scanner.scan(images) if len(images) else images

    def take(self, indices: Indices) -> ScannedRecords:
        """See Records."""
        return ScannedRecords(self.taken.take(indices), self.scanner)

    def check(self) -> None:
        """See Records."""
        self.taken.check()
