"""Fashion-MNIST from its idx files (Xiao, Rasul and Vollgraf 2017)."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from secure_triplay.data.records import ArrayRecords
from secure_triplay.errors import DataError

CLASSES = (
    ("t-shirt", "t-shirt/top", "tshirt", "t-shirt or top", "top"),
    ("trousers", "trouser", "pants"),
    ("pullover", "sweater"),
    ("dress",),
    ("coat",),
    ("sandal", "sandals"),
    ("shirt",),
    ("sneaker", "sneakers"),
    ("bag", "handbag"),
    ("ankle boot", "ankle boots", "boot", "boots"),
)
"""Names under which a study may list each class, in the order of the data set's own codes."""

_FILES = {"train": "train", "test": "t10k"}


def load_fashion_mnist(
    folder: Path, split: Literal["train", "test"], classes: Sequence[str] | None = None
) -> ArrayRecords:
    """One split, images `(n, 28, 28) uint8`; labels are indices into `classes`, or the data set's own codes.

    Classes are matched by name, so a study may list them in any order or leave some out (their records are
    then left out too). Raises DataError for an unknown class name or a file that is not as it should be.
    """
    images = _read_idx(folder / f"{_FILES[split]}-images-idx3-ubyte", dimensions=3)
    codes = _read_idx(folder / f"{_FILES[split]}-labels-idx1-ubyte", dimensions=1).astype(np.int64)
    if len(images) != len(codes) or (codes >= len(CLASSES)).any():
        raise DataError("images and labels do not fit together", where=str(folder), fix="remove the folder")
    if classes is None:
        return ArrayRecords(images, codes)
    to_label = np.full(len(CLASSES), -1, dtype=np.int64)
    to_label[class_codes(classes)] = np.arange(len(classes))
    labels = to_label[codes]
    kept = labels >= 0
    return ArrayRecords(images[kept], labels[kept])


def class_codes(classes: Sequence[str]) -> list[int]:
    """Fashion-MNIST's own code of each named class. Raises DataError for a name that is not one of them."""
    known = {_plain(name): code for code, names in enumerate(CLASSES) for name in names}
    codes: list[int] = []
    for name in classes:
        code = known.get(_plain(name))
        if code is None:
            nearest = difflib.get_close_matches(_plain(name), known, n=1, cutoff=0)
            raise DataError(
                f"class {name!r} is not one of Fashion-MNIST's; the nearest is {nearest[0]!r}",
                where="classes of the study",
                fix="its classes are " + ", ".join(names[0] for names in CLASSES),
            )
        if code in codes:
            raise DataError(
                f"class {name!r} is the same as {classes[codes.index(code)]!r}",
                where="classes of the study",
                fix="leave one of them out",
            )
        codes.append(code)
    return codes


def _plain(name: str) -> str:
    return " ".join(name.casefold().replace("_", " ").split())


def _read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """A whole idx file of bytes: 0, 0, type 8, number of dimensions, each as big-endian u32, then data."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"the file cannot be read ({error.strerror})",
            where=str(path),
            fix="let the program fetch it again",
        ) from error
    header = 4 + 4 * dimensions
    if len(raw) >= header and raw[:4] == bytes((0, 0, 8, dimensions)):
        shape = tuple(int(extent) for extent in np.frombuffer(raw[4:header], ">u4"))
        if len(raw) == header + int(np.prod(shape, dtype=np.int64)):
            return np.frombuffer(raw, np.uint8, offset=header).reshape(shape)
    raise DataError(
        "this is not the idx file that it should be", where=str(path), fix="remove it and start again"
    )
