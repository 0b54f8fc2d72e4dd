from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from secure_triplay.data.fashion import CLASSES, class_codes, load_fashion_mnist
from secure_triplay.errors import DataError

NAMES = [names[0] for names in CLASSES]


def own_label(images: np.ndarray) -> np.ndarray:
    """The label that each miniature image states in a pixel of its own."""
    return images[:, 0, 2, 0]


def test_labels_belong_to_their_images(fashion_folder: Path) -> None:
    records = load_fashion_mnist(fashion_folder, "test")
    assert len(records) == 600
    np.testing.assert_array_equal(own_label(records.images(range(600))), records.labels)


def test_a_study_that_lists_classes_in_another_order_gets_labels_in_that_order(fashion_folder: Path) -> None:
    order = NAMES[::-1]
    records = load_fashion_mnist(fashion_folder, "train", order)
    np.testing.assert_array_equal(9 - own_label(records.images(range(len(records)))), records.labels)


def test_records_of_classes_that_a_study_leaves_out_are_left_out(fashion_folder: Path) -> None:
    records = load_fashion_mnist(fashion_folder, "test", ["Bag", "T-shirt/top"])
    assert np.bincount(records.labels).tolist() == [60, 60]
    np.testing.assert_array_equal(own_label(records.images(range(120))), np.where(records.labels == 0, 8, 0))


def test_the_data_sets_own_names_are_known() -> None:
    official = [
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ]
    assert class_codes(official) == list(range(10))


def test_an_unknown_class_is_refused_with_the_nearest() -> None:
    with pytest.raises(DataError, match=r"'pullovr'.*nearest is 'pullover'"):
        class_codes(["pullovr"])


def test_a_class_named_twice_in_other_words_is_refused() -> None:
    with pytest.raises(DataError, match="same as 'bag'"):
        class_codes(["bag", "coat", "Handbag"])


@pytest.mark.parametrize(
    "damage", [lambda raw: raw[:-1], lambda raw: b"\x01" + raw[1:], lambda raw: b"", lambda raw: raw + b"x"]
)
def test_a_damaged_file_is_refused(fashion_folder: Path, tmp_path: Path, damage) -> None:  # type: ignore[no-untyped-def]
    for file in fashion_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    labels = tmp_path / "t10k-labels-idx1-ubyte"
    labels.write_bytes(damage(labels.read_bytes()))
    with pytest.raises(DataError, match="t10k-labels"):
        load_fashion_mnist(tmp_path, "test")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="train-images"):
        load_fashion_mnist(tmp_path, "train")
