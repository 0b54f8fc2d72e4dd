"""What an attacker expects a picture to look like, learned from public images alone, and how close it came.

The expectation is a Gaussian over the low spatial frequencies of a small grid: the mean of the public images,
and their covariance shrunk towards the smooth spectrum of natural images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from secure_triplay.errors import DataError

if TYPE_CHECKING:
    from secure_triplay.data.records import Records

Picture = NDArray[np.float64]
"""(3, size, size), values in [0, 1]."""

GRID = 28
_SHRINK = 0.3
_FLOOR = 1e-6


@dataclass(frozen=True)
class ImagePrior:
    """Pictures (3, size, size) as mean + basis z, with z ~ N(0, covariance).

    The basis is separable: `colours` (3, n_colours) times `rows` (size, grid) for height and width, so that
    z has the shape (n_colours, grid, grid). `mean_z` is the mean in that basis. `leftovers` (m, 3, size, size) is
    what the public images have beyond the basis.
    """

    colours: NDArray[np.float64]
    rows: NDArray[np.float64]
    mean_z: NDArray[np.float64]
    covariance: NDArray[np.float64]
    leftovers: NDArray[np.float64]

    @property
    def size(self) -> int:
        """Pixels on a side."""
        return len(self.rows)

    @property
    def n(self) -> int:
        """Unknowns of a picture."""
        return len(self.mean_z)

    @cached_property
    def precision(self) -> NDArray[np.float64]:
        """Inverse of the covariance (n, n)."""
        inverse = np.linalg.inv(self.covariance)
        return np.asarray((inverse + inverse.T) / 2, np.float64)

    @property
    def mean(self) -> Picture:
        """The mean of the public images: the baseline that knows nothing of the picture."""
        return self.picture(np.zeros(self.n))

    def picture(self, z: NDArray[np.float64]) -> Picture:
        """The picture of coefficients `z` (n,), an offset from the mean."""
        return np.asarray(np.clip(self.unclipped(z), 0.0, 1.0), np.float64)

    def unclipped(self, z: NDArray[np.float64]) -> NDArray[np.float64]:
        """The same before values are brought into [0, 1]."""
        grid = self.rows.shape[1]
        small = (self.mean_z + z).reshape(-1, grid, grid)
        full = np.einsum("ce,yf,efg,xg->cyx", self.colours, self.rows, small, self.rows, optimize=True)
        return np.asarray(full, np.float64)


def fit_prior(public: Records, size: int) -> ImagePrior:
    """The expectation of pictures of `size` pixels from public images. Raises DataError for fewer than two."""
    if len(public) < 2:
        raise DataError(
            f"an attacker's expectation needs public images, and there are {len(public)}",
            where="data",
            fix="set data.public_images, or name a public_manifest",
        )
    grid = min(GRID, size)
    small = public.images(np.arange(len(public)), grid).transpose(0, 3, 1, 2) / 255.0
    spread = np.cov(small.transpose(1, 0, 2, 3).reshape(3, -1))
    strength, colours = np.linalg.eigh(spread)
    colours = colours[:, strength > 1e-9 * strength.max()][:, ::-1].copy()
    frequency = _dct(grid)
    z = np.einsum("ce,fy,ncyx,gx->nefg", colours, frequency, small, frequency, optimize=True)
    z = z.reshape(len(small), -1)
    mean_z = z.mean(axis=0)
    empirical = np.cov(z.T)
    smooth = _smooth(grid, [float(np.trace(part)) for part in _blocks(empirical, colours.shape[1])])
    covariance = (1 - _SHRINK) * empirical + _SHRINK * np.diag(smooth)
    rows = _upsampling(grid, size) @ frequency.T
    return ImagePrior(colours, rows, mean_z, covariance, _beyond(public, colours, rows))


def _beyond(public: Records, colours: NDArray[np.float64], rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """What pictures have that no coefficients give: finer detail, and what clipping takes off at edges."""
    full = np.stack(pictures_of(public, np.arange(len(public)), len(rows)))
    back = np.linalg.pinv(rows)
    z = np.einsum("ce,fy,ncyx,gx->nefg", colours, back, full, back, optimize=True)
    return np.asarray(full - np.einsum("ce,yf,nefg,xg->ncyx", colours, rows, z, rows, optimize=True))


def pictures_of(records: Records, indices: Sequence[int] | NDArray[np.int64], size: int) -> list[Picture]:
    """Records as a model sees them: pictures of `size` pixels."""
    found = records.images(np.asarray(indices, np.int64), size)
    return [np.asarray(each.transpose(2, 0, 1) / 255.0, np.float64) for each in found]


@dataclass(frozen=True)
class Closeness:
    """How close a reconstruction came: PSNR in dB and SSIM; higher is closer."""

    psnr_db: float
    ssim: float


def closeness(truth: Picture, found: Picture) -> Closeness:
    """PSNR and SSIM (Wang et al. 2004, by scikit-image) of a reconstruction; for the scorer alone."""
    from skimage.metrics import structural_similarity

    ssim = structural_similarity(truth, found, channel_axis=0, data_range=1.0)
    return Closeness(psnr_db(truth, found), float(ssim))


def psnr_db(truth: Picture, found: Picture) -> float:
    """Peak signal-to-noise ratio in dB, at most 100."""
    error = float(np.mean((truth - found) ** 2))
    return 100.0 if error < 1e-10 else -10.0 * float(np.log10(error))


def _dct(n: int) -> NDArray[np.float64]:
    """The orthonormal DCT-II (n, n): a row a frequency (Ahmed, Natarajan and Rao 1974)."""
    k, i = np.arange(n)[:, None], np.arange(n)[None]
    rows = np.sqrt(2.0 / n) * np.cos(np.pi * (2 * i + 1) * k / (2 * n))
    rows[0] /= np.sqrt(2.0)
    return np.asarray(rows, np.float64)


def _upsampling(grid: int, size: int) -> NDArray[np.float64]:
    """(size, grid): bicubic resizing of one side, as the study's own images are resized."""
    if grid == size:
        return np.eye(size)
    eye = torch.eye(grid, dtype=torch.float64)[None, None]
    sized = F.interpolate(eye, size=(size, grid), mode="bicubic", antialias=True, align_corners=False)
    rows: NDArray[np.float64] = sized[0, 0].numpy()
    return rows


def _smooth(grid: int, totals: Sequence[float]) -> NDArray[np.float64]:
    """Variances that fall as 1/f^2 (Field 1987), with the given total for each colour."""
    f = np.arange(grid) / grid
    power = 1.0 / (0.05 + 40.0 * (f[:, None] ** 2 + f[None] ** 2)) ** 1.5
    power = power.reshape(-1) / power.sum()
    return np.concatenate([total * power + _FLOOR for total in totals])


def _blocks(covariance: NDArray[np.float64], n: int) -> list[NDArray[np.float64]]:
    size = len(covariance) // n
    return [covariance[i * size : (i + 1) * size, i * size : (i + 1) * size] for i in range(n)]
