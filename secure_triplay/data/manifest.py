"""A site's own data: a CSV manifest beside the images that it names.

Columns are path and label, and optionally patient_id and domain; paths are relative to the manifest's folder
and may not leave it. A column that is not known is refused rather than ignored: a misspelt `patient_id` would
silently turn a patient's protection into a record's.
"""

from __future__ import annotations

import csv
import difflib
import io
import unicodedata
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from secure_triplay.data.records import Codes, Images, Indices, as_indices, take_codes, to_square
from secure_triplay.errors import DataError

REQUIRED = ("path", "label")
OPTIONAL = ("patient_id", "domain")
FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP")
"""Decoders that are tried; Pillow knows others (PostScript among them) that no image of a patient needs."""

MODES = ("L", "RGB")


@dataclass(frozen=True, eq=False)
class FileRecords:
    """Records whose images are files, opened when they are asked for.

    `units` says for each record whose it is: its patient_id, or, where no patients are named, its own path below
    the manifest's folder.
    """

    manifest: Path
    paths: tuple[Path, ...]
    units: tuple[str, ...]
    rows: Codes
    labels: Codes
    patients: Codes | None = None
    domains: Codes | None = None
    domain_names: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"FileRecords({len(self)} records)"  # never names or labels: a repr ends up in logs

    def __len__(self) -> int:
        return len(self.paths)

    def images(self, indices: Indices, size: int | None = None) -> Images:
        """See Records. Raises DataError for an unreadable image, naming file and row."""
        chosen = as_indices(indices)
        if not len(chosen):
            return np.empty((0, size or 0, size or 0, 3), np.uint8)
        images = [self._open(int(index), size) for index in chosen]
        for index, image in zip(chosen, images, strict=True):
            if image.shape != images[0].shape:
                raise self._error(int(index), "the images differ in size", "ask for one size for all of them")
        return np.stack(images)

    def take(self, indices: Indices) -> FileRecords:
        """See Records."""
        chosen = as_indices(indices)
        return FileRecords(
            self.manifest,
            tuple(self.paths[index] for index in chosen),
            tuple(self.units[index] for index in chosen),
            self.rows[chosen],
            self.labels[chosen],
            take_codes(self.patients, chosen),
            take_codes(self.domains, chosen),
            self.domain_names,
        )

    def check(self) -> None:
        """Decode every image once. Raises DataError for the first that cannot be used: file, row, fix."""
        for index in range(len(self)):
            self._open(index, None)

    def _open(self, index: int, size: int | None) -> Images:
        path = self.paths[index]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                with Image.open(path, formats=FORMATS) as image:
                    self._refuse_unfit(index, image)
                    upright = ImageOps.exif_transpose(image)  # as a viewer shows it
                    square = upright if size is None else to_square(upright, size)
                    return np.asarray(square.convert("RGB"))
        except DataError:
            raise
        except FileNotFoundError as error:
            raise self._error(index, "the image is missing", "restore it, or remove the row") from error
        except UnidentifiedImageError as error:
            what = f"it is not an image in one of the formats {', '.join(FORMATS)}"
            raise self._error(index, what, "convert it to PNG, or remove the row") from error
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise self._error(index, "it has too many pixels", "make it smaller first") from error
        except Exception as error:  # a broken file makes Pillow raise almost anything
            raise self._error(
                index, f"it cannot be read: {error}", "restore it, or remove the row"
            ) from error

    def _refuse_unfit(self, index: int, image: Image.Image) -> None:
        """What would be changed silently on the way to 8-bit RGB is refused instead."""
        deep = any("16" in str(tile[3]) for tile in getattr(image, "tile", ()))  # Pillow drops the low bits
        if image.mode not in MODES or deep:
            found = f"{image.mode}, 16 bits a channel" if deep and image.mode in MODES else image.mode
            what = f"its pixels are {found}; only 8-bit {' and '.join(MODES)} are read"
            raise self._error(index, what, "convert it to 8-bit grey or RGB, deciding what may be lost")
        if getattr(image, "n_frames", 1) != 1:
            raise self._error(index, "it holds several frames", "save the one that is meant as a file")

    def _error(self, index: int, what: str, fix: str) -> DataError:
        where = f"{self.manifest}, row {self.rows[index]} ({self.paths[index].name})"
        return DataError(what, where=where, fix=fix)


def load_manifest(path: str | Path, classes: Sequence[str]) -> FileRecords:
    """The records that a manifest lists, in its order; labels are indices into `classes`.

    Files are found but not opened; `check()` reads them all. Raises DataError naming file, row (1 is the
    header) and the way to mend it.
    """
    path = Path(path)
    rows = _read_rows(path)
    columns = _columns(path, rows)
    reader = _RowReader(path, columns, {name: code for code, name in enumerate(classes)})
    for number, row in enumerate(rows[1:], start=2):
        if row:
            reader.add(number, row)
    if reader.problems:
        first, more = reader.problems[0], len(reader.problems) - 1
        if more:
            first = DataError(
                f"{first.what} (and {more} more rows are wrong)", where=first.where, fix=first.fix
            )
        raise first
    if not reader.paths:
        raise DataError("the manifest lists no images", where=str(path), fix="add a row for each image")
    named = reader.cells.get("patient_id")
    units = named or [image.relative_to(reader.folder).as_posix() for image in reader.paths.values()]
    patients, _ = _codes(named)
    domains, domain_names = _codes(reader.cells.get("domain"), ordered=True)
    return FileRecords(
        path,
        tuple(reader.paths.values()),
        tuple(units),
        np.array(list(reader.paths), dtype=np.int64),
        np.array(reader.labels, dtype=np.int64),
        patients,
        domains,
        domain_names,
    )


class _RowReader:
    """Collects the rows of one manifest, and what is wrong with them."""

    def __init__(self, manifest: Path, columns: list[str], label_codes: dict[str, int]) -> None:
        self.manifest, self.columns, self.label_codes = manifest, columns, label_codes
        self.folder = manifest.resolve().parent
        self.first_row: dict[Path, int] = {}
        self.paths: dict[int, Path] = {}
        self.labels: list[int] = []
        self.cells: dict[str, list[str]] = {name: [] for name in OPTIONAL if name in columns}
        self.spellings: dict[str, str] = {}
        self.problems: list[DataError] = []

    def add(self, number: int, row: list[str]) -> None:
        """Take one row, or note the first thing that is wrong with it."""
        try:
            cells = self._cells(number, row)
            image = self._image(number, cells["path"])
            label = self._label(number, cells["label"])
            self._refuse_look_alike(number, cells.get("patient_id"))
        except DataError as problem:
            self.problems.append(problem)
            return
        self.first_row[image] = number
        self.paths[number] = image
        self.labels.append(label)
        for name, column in self.cells.items():
            column.append(cells[name])

    def _error(self, number: int, what: str, fix: str) -> DataError:
        return DataError(what, where=f"{self.manifest}, row {number}", fix=fix)

    def _cells(self, number: int, row: list[str]) -> dict[str, str]:
        if len(row) != len(self.columns):
            what = f"the row has {len(row)} cells, the header {len(self.columns)}"
            raise self._error(number, what, "put a cell that holds a comma into double quotes")
        cells = {name: cell.strip() for name, cell in zip(self.columns, row, strict=True)}
        for name, cell in cells.items():
            if not cell:
                raise self._error(number, f"the cell {name} is blank", "fill it in, or remove the row")
        return cells

    def _image(self, number: int, name: str) -> Path:
        try:
            image = (self.folder / name).resolve()
            inside, found = image.is_relative_to(self.folder), image.is_file()
        except (OSError, ValueError, RuntimeError) as error:  # too long, a NUL, a loop of links
            raise self._error(
                number, f"path {name!r} is not a usable path: {error}", "mend the path"
            ) from error
        if Path(name).is_absolute() or not inside:
            what = f"path {name!r} leads out of the manifest's folder"
            raise self._error(number, what, "move the image below that folder and give its relative path")
        if not found:
            fix = (
                "use / between folders"
                if "\\" in name
                else "restore the file, mend the path, or remove the row"
            )
            raise self._error(number, f"image {name!r} is missing", fix)
        if image in self.first_row:
            what = f"image {name!r} stands already in row {self.first_row[image]}"
            raise self._error(number, what, "remove one of the two rows")
        return image

    def _label(self, number: int, label: str) -> int:
        code = self.label_codes.get(label)
        if code is None:
            nearest = nearest_name(label, self.label_codes)
            what = f"label {label!r} is not a class of the study; the nearest is {nearest!r}"
            raise self._error(number, what, "mend the label, or add the class to the study")
        return code

    def _refuse_look_alike(self, number: int, patient: str | None) -> None:
        """One patient in two spellings that nobody can tell apart would be protected as two."""
        if patient is None:
            return
        seen = "".join(c for c in unicodedata.normalize("NFKC", patient) if unicodedata.category(c) != "Cf")
        before = self.spellings.setdefault(" ".join(seen.split()), patient)
        if before != patient:
            what = f"patient_id {patient!a} looks like {before!a} in a row above, and is another one"
            raise self._error(
                number, what, "spell it the same way, or, if they are two patients, so that it shows"
            )


def nearest_name(name: str, known: Sequence[str] | dict[str, int]) -> str:
    """The known name most like `name`, capitals aside; there is always one."""
    folded = {other.casefold(): other for other in known}
    nearest = difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=0)
    return folded[nearest[0]]


def _read_rows(path: Path) -> list[list[str]]:
    try:
        raw = path.read_bytes()
    except FileNotFoundError as error:
        raise DataError("there is no such manifest", where=str(path), fix="check the path") from error
    except OSError as error:
        what = f"the manifest cannot be read: {error.strerror}"
        raise DataError(what, where=str(path), fix="it must be a readable CSV file") from error
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        row = raw.count(b"\n", 0, error.start) + 1
        fix = "save it as CSV with encoding UTF-8"
        raise DataError("the manifest is not UTF-8 text", where=f"{path}, row {row}", fix=fix) from error
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows: list[list[str]] = []
    try:
        rows.extend(reader)
    except csv.Error as error:
        where = f"{path}, row {len(rows) + 1}"
        raise DataError(
            f"this is not CSV: {error}", where=where, fix="check the quotes of that row"
        ) from error
    return rows


def _columns(path: Path, rows: list[list[str]]) -> list[str]:
    """The header's names, checked."""
    where = f"{path}, row 1"
    form = "the header is path,label and optionally patient_id,domain"
    if not rows or not any(cell.strip() for cell in rows[0]):
        raise DataError("the manifest is empty", where=where, fix=form)
    names = [name.strip() for name in rows[0]]
    if len(names) == 1 and any(mark in names[0] for mark in ";\t|"):
        raise DataError("the columns are not separated by commas", where=where, fix="save it with commas")
    if missing := [name for name in REQUIRED if name not in names]:
        what = f"column {' and '.join(missing)} is missing; there are {', '.join(names)}"
        raise DataError(what, where=where, fix=form)
    for name in names:
        if names.count(name) > 1:
            raise DataError(f"column {name!r} stands twice", where=where, fix="remove one of them")
        if name not in REQUIRED + OPTIONAL:
            nearest = nearest_name(name, REQUIRED + OPTIONAL)
            what = f"unknown column {name!r}; the nearest known one is {nearest!r}"
            raise DataError(
                what, where=where, fix="rename it, or remove the column; nothing is ignored silently"
            )
    return names


def _codes(cells: list[str] | None, *, ordered: bool = False) -> tuple[Codes | None, tuple[str, ...]]:
    """Cells as codes, by first appearance or in alphabetical order, and the names behind the codes."""
    if cells is None:
        return None, ()
    names = tuple(sorted(set(cells)) if ordered else dict.fromkeys(cells))
    to_code = {name: code for code, name in enumerate(names)}
    return np.array([to_code[cell] for cell in cells], dtype=np.int64), names
