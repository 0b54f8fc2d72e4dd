"""Labelled images as every other part sees them, wherever they lie.

Images come out as (m, height, width, 3) uint8 in RGB, opened when they are asked for. A record's label is an
index into the study's classes; patients and domains are codes that mean nothing outside these records.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Images: TypeAlias = NDArray[np.uint8]
Codes: TypeAlias = NDArray[np.int64]
Indices: TypeAlias = Sequence[int] | Codes


class Records(Protocol):
    """A fixed, ordered set of labelled images."""

    @property
    def labels(self) -> Codes:
        """Class of each record, `(n,) int64`, an index into the study's classes."""

    @property
    def patients(self) -> Codes | None:
        """Patient of each record, `(n,) int64`, equal where the patient is; None where none are named."""

    @property
    def domains(self) -> Codes | None:
        """Domain of each record, `(n,) int64`, an index into `domain_names`; None where none are named."""

    @property
    def domain_names(self) -> tuple[str, ...]:
        """Name of each domain code."""

    def __len__(self) -> int:
        """Number of records."""

    def images(self, indices: Indices, size: int | None = None) -> Images:
        """The images, `(m, size, size, 3) uint8`, in the order of `indices`; None keeps their own size.

        Resized as CLIP does: shortest side to `size`, bicubic with antialiasing, then the centre (Radford
        2021). Raises DataError that names an image which cannot be read, or which differs in size from the
        others where no size is asked for.
        """

    def take(self, indices: Indices) -> Records:
        """The records at `indices`, in that order; codes keep their meaning."""

    def check(self) -> None:
        """Read every image once, so that a bad one is known before training. Raises DataError naming it."""


@dataclass(frozen=True, eq=False)
class ArrayRecords:
    """Records whose images are in memory: grey `(n, h, w) uint8` or colour `(n, h, w, 3) uint8`."""

    pixels: Images
    labels: Codes
    patients: Codes | None = None
    domains: Codes | None = None
    domain_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.pixels.dtype != np.uint8 or self.pixels.shape[3:] not in ((), (3,)) or self.pixels.ndim < 3:
            raise ValueError(f"pixels are (n, h, w) or (n, h, w, 3) uint8, not {self.pixels.shape}")
        for column in (self.labels, self.patients, self.domains):
            if column is not None and (column.dtype != np.int64 or column.shape != (len(self.pixels),)):
                raise ValueError("labels, patients and domains are (n,) int64, one for each image")

    def __repr__(self) -> str:
        return f"ArrayRecords({len(self)} records)"  # never their content: a repr ends up in logs

    def __len__(self) -> int:
        return len(self.pixels)

    def images(self, indices: Indices, size: int | None = None) -> Images:
        """See Records; sizes cannot differ here."""
        chosen = self.pixels[as_indices(indices)]
        if size is not None and chosen.shape[1:3] != (size, size):
            resized = np.empty((len(chosen), size, size, *chosen.shape[3:]), np.uint8)
            for row, pixels in enumerate(chosen):
                resized[row] = np.asarray(to_square(Image.fromarray(pixels), size))
            chosen = resized
        return np.repeat(chosen[..., None], 3, axis=3) if chosen.ndim == 3 else chosen

    def take(self, indices: Indices) -> ArrayRecords:
        """See Records."""
        chosen = as_indices(indices)
        return ArrayRecords(
            self.pixels[chosen],
            self.labels[chosen],
            take_codes(self.patients, chosen),
            take_codes(self.domains, chosen),
            self.domain_names,
        )

    def check(self) -> None:
        """Nothing to read: the images are here."""


def as_indices(indices: Indices) -> Codes:
    """Indices as `(m,) int64`, an empty sequence (an empty Poisson batch) included."""
    return np.asarray(indices, dtype=np.int64).reshape(-1)


def take_codes(codes: Codes | None, chosen: Codes) -> Codes | None:
    """The chosen codes, or None where there are none."""
    return None if codes is None else codes[chosen]


def to_square(image: Image.Image, size: int) -> Image.Image:
    """Shortest side to `size` (bicubic, antialiased), then the centre `size` x `size`."""
    width, height = image.size
    scale = size / min(width, height)
    if scale != 1:
        width, height = max(size, round(width * scale)), max(size, round(height * scale))
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return image if (width, height) == (size, size) else image.crop((left, top, left + size, top + size))
