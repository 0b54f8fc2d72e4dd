"""Sites whose scanners differ, and sites that differ in size."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from secure_triplay.config import Partition
from secure_triplay.data.partition import site_sizes
from secure_triplay.data.records import ArrayRecords
from secure_triplay.data.scanners import SCANNERS, ScannedRecords, Scanner
from secure_triplay.errors import DataError

RAMP = np.repeat(np.arange(0, 256, 5, dtype=np.uint8).reshape(1, 1, -1), 8, axis=1)[..., None].repeat(3, -1)


def test_each_shift_is_the_formula_that_is_published() -> None:
    scanner = Scanner(contrast=0.7, brightness=0.1, gamma=1.8, tint=(1.0, 0.5, 0.25))
    got = scanner.scan(RAMP)
    for column, value in enumerate(RAMP[0, 0, :, 0]):
        level = min(1.0, max(0.0, 0.7 * (int(value) / 255 - 0.5) + 0.5 + 0.1)) ** 1.8
        assert got[0, 3, column].tolist() == pytest.approx(
            [255 * level * t for t in (1, 0.5, 0.25)], abs=0.51
        )


def test_a_blur_spreads_a_point_and_keeps_its_light() -> None:
    point = np.zeros((1, 41, 41, 3), np.uint8)
    point[0, 18:23, 18:23] = 200
    seen = Scanner(blur=0.05).scan(point).astype(float)
    assert seen[0, 20, 20, 0] < 200
    assert seen[0, 20, 25, 0] > 0
    assert seen.sum() == pytest.approx(point.sum(), rel=0.05)


def test_no_two_scanners_are_alike_and_the_first_changes_nothing() -> None:
    photo = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    seen = [scanner.scan(photo) for scanner in SCANNERS]
    assert np.array_equal(seen[0], photo)
    for i, one in enumerate(seen):
        for other in seen[i + 1 :]:
            assert np.abs(one.astype(int) - other).mean() > 2


def test_records_keep_everything_but_their_pixels() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    records = ArrayRecords(pixels, np.arange(6), np.array([0, 0, 1, 1, 2, 2]))
    scanned = ScannedRecords(records, SCANNERS[1]).take([4, 1])
    assert scanned.labels.tolist() == [4, 1]
    assert scanned.patients is not None
    assert scanned.patients.tolist() == [2, 0]
    assert np.array_equal(scanned.images([1, 0]), SCANNERS[1].scan(pixels[[1, 4]]))
    assert scanned.images([]).shape[0] == 0


def test_sizes_fall_by_equal_factors_and_lose_no_record() -> None:
    sizes = site_sizes(16_000, 8, 20.0)
    assert sum(sizes) == 16_000
    assert sizes[0] / sizes[-1] == pytest.approx(20, rel=0.01)
    factors = [a / b for a, b in pairwise(sizes)]
    assert factors == pytest.approx([20 ** (1 / 7)] * 7, rel=0.02)
    assert site_sizes(10, 4, 1.0) == [3, 3, 2, 2]
    with pytest.raises(DataError, match="a site with none"):
        site_sizes(10, 4, 100.0)


@pytest.mark.parametrize("kind", ["domain", "patient"])
def test_a_size_ratio_is_refused_where_every_record_is_given_away(kind: Any) -> None:
    with pytest.raises(ValueError, match="size_ratio has no say"):
        Partition(kind=kind, size_ratio=20.0)
