from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from secure_triplay.data.records import ArrayRecords


def grey(n: int = 6, side: int = 28) -> ArrayRecords:
    pixels = np.random.default_rng(0).integers(0, 256, (n, side, side), dtype=np.uint8)
    return ArrayRecords(pixels, np.arange(n, dtype=np.int64), np.arange(n, dtype=np.int64) // 2)


def test_images_come_in_the_order_asked_for_with_three_equal_channels_from_grey() -> None:
    records = grey()
    images = records.images([3, 1, 3])
    assert images.shape == (3, 28, 28, 3)
    assert images.dtype == np.uint8
    for channel in range(3):
        np.testing.assert_array_equal(images[..., channel], records.pixels[[3, 1, 3]])


def test_resizing_equals_pillows_bicubic_for_each_image() -> None:
    records = grey()
    resized = records.images([0, 5], size=56)
    for image, pixels in zip(resized, records.pixels[[0, 5]], strict=True):
        expected = Image.fromarray(pixels).resize((56, 56), Image.Resampling.BICUBIC).convert("RGB")
        np.testing.assert_array_equal(image, np.asarray(expected))


@pytest.mark.parametrize("size", [None, 56])
def test_an_empty_batch_has_the_shape_of_a_batch(size: int | None) -> None:
    assert grey().images([], size).shape == (0, size or 28, size or 28, 3)


def test_oblong_images_keep_their_proportions_and_their_middle() -> None:
    pixels = np.zeros((1, 10, 30), np.uint8)
    pixels[:, :, 10:20] = 255  # a white square in the middle: exactly what a square cut must show
    records = ArrayRecords(pixels, np.zeros(1, np.int64))
    assert (records.images([0], size=10) == 255).all()


def test_taking_records_keeps_labels_and_patients_with_their_images() -> None:
    records = grey()
    chosen = records.take([4, 0])
    assert chosen.labels.tolist() == [4, 0]
    assert chosen.patients is not None
    assert chosen.patients.tolist() == [2, 0]
    np.testing.assert_array_equal(chosen.images([0, 1]), records.images([4, 0]))
    assert len(records.take([])) == 0


@pytest.mark.parametrize(
    "pixels", [np.zeros((2, 4, 4, 4), np.uint8), np.zeros((2, 4, 4), np.float32), np.zeros((2, 4), np.uint8)]
)
def test_pixels_of_another_form_are_refused(pixels: np.ndarray) -> None:
    with pytest.raises(ValueError, match="uint8"):
        ArrayRecords(pixels, np.zeros(2, np.int64))


def test_columns_of_another_length_are_refused() -> None:
    with pytest.raises(ValueError, match="one for each image"):
        ArrayRecords(np.zeros((2, 4, 4), np.uint8), np.zeros(3, np.int64))


def test_a_repr_tells_no_content() -> None:
    assert repr(grey()) == "ArrayRecords(6 records)"
