from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from secure_triplay.data.manifest import load_manifest
from secure_triplay.errors import DataError

CLASSES = ("cat", "dog", "horse")


def refusal(manifest: Path) -> DataError:
    with pytest.raises(DataError) as caught:
        load_manifest(manifest, CLASSES).check()
    assert caught.value.what
    assert str(manifest) in caught.value.where
    assert caught.value.fix
    return caught.value


def test_a_good_manifest_gives_images_labels_patients_and_domains(folder: Any) -> None:
    folder.columns = ["label", "path", "domain", "patient_id"]  # in any order
    for number, (label, domain, patient) in enumerate(
        [("dog", "b", "x"), ("cat", "a", "y"), ("dog", "b", "x")]
    ):
        folder.image(f"sub/{number}.png", seed=number)
        folder.row(label, f"sub/{number}.png", domain, patient)
    records = load_manifest(folder.write(), CLASSES)
    records.check()
    assert records.labels.tolist() == [1, 0, 1]
    assert records.domain_names == ("a", "b")
    assert records.domains is not None
    assert records.domains.tolist() == [1, 0, 1]
    assert records.patients is not None
    assert records.patients.tolist() == [0, 1, 0]
    expected = np.asarray(Image.open(folder.folder / "sub/2.png"))
    np.testing.assert_array_equal(records.images([2])[0], expected)


def test_without_the_optional_columns_there_are_no_patients_and_no_domains(folder: Any) -> None:
    records = load_manifest(folder.add("a.png", "cat").write(), CLASSES)
    assert records.patients is None
    assert records.domains is None


@pytest.mark.parametrize(
    "other",
    ["Mu\u0308ller 7", "M\u00fcller\u00a07", "M\u00fcller  7", "M\u00fcl\u200bler 7", "\ufeffM\u00fcller 7"],
)
def test_no_patient_counts_as_two_by_spellings_that_look_the_same(folder: Any, other: str) -> None:
    folder.columns = ["path", "label", "patient_id"]
    for number, patient in enumerate(
        ["M\u00fcller 7", "m\u00fcller 7", other]
    ):  # capitals may tell two apart
        folder.image(f"{number}.png", seed=number)
        folder.row(f"{number}.png", "cat", patient)
    refused = refusal(folder.write())
    assert "looks like" in refused.what
    assert refused.where.endswith("row 4")


def test_taken_records_keep_images_labels_and_rows_together(folder: Any) -> None:
    folder.patients(4, 3)
    records = load_manifest(folder.manifest, CLASSES)
    taken = records.take([7, 2]).take([1, 0])
    assert taken.labels.tolist() == records.labels[[2, 7]].tolist()
    assert taken.rows.tolist() == [4, 9]
    np.testing.assert_array_equal(taken.images([0, 1]), records.images([2, 7]))


def test_images_are_opened_only_when_asked_for(folder: Any) -> None:
    folder.add("a.png", "cat").add("b.png", "dog")
    (folder.folder / "b.png").write_bytes(b"not an image")
    records = load_manifest(folder.write(), CLASSES)
    assert records.images([0]).shape == (1, 8, 8, 3)
    with pytest.raises(DataError, match=r"b\.png"):
        records.images([1])


def test_grey_and_colour_of_any_allowed_format_become_rgb(folder: Any) -> None:
    for name, mode in [
        ("a.png", "L"),
        ("b.jpg", "RGB"),
        ("c.jpg", "L"),
        ("d.tif", "RGB"),
        ("e.bmp", "RGB"),
        ("f.webp", "RGB"),
    ]:
        folder.add(name, "cat", mode=mode)
    records = load_manifest(folder.write(), CLASSES)
    records.check()
    assert records.images(range(6)).shape == (6, 8, 8, 3)


def test_images_of_different_sizes_need_one_size_to_be_asked_for(folder: Any) -> None:
    folder.add("a.png", "cat", size=(8, 8)).add("b.png", "cat", size=(20, 12))
    records = load_manifest(folder.write(), CLASSES)
    assert records.images([0, 1], size=14).shape == (2, 14, 14, 3)
    assert records.images([], size=14).shape == (0, 14, 14, 3)
    with pytest.raises(DataError, match=r"differ in size.*row 3"):
        records.images([0, 1])


def test_a_sideways_photo_is_turned_as_its_camera_says(folder: Any) -> None:
    path = folder.image("a.png", size=(8, 4))
    upright = np.asarray(Image.open(path))
    tag = Image.Exif()
    tag[0x0112] = 3  # upside down
    Image.fromarray(upright[::-1, ::-1]).save(path, exif=tag)
    records = load_manifest(folder.row("a.png", "cat").write(), CLASSES)
    np.testing.assert_array_equal(records.images([0])[0], upright)


def test_a_byte_order_mark_and_windows_line_ends_do_no_harm(folder: Any) -> None:
    folder.add("a.png", "cat")
    folder.manifest.write_bytes(b"\xef\xbb\xbfpath,label\r\na.png, cat \r\n\r\n")
    assert load_manifest(folder.manifest, CLASSES).labels.tolist() == [0]


@pytest.mark.parametrize(
    ("mode", "name"),
    [
        ("CMYK", "a.jpg"),
        ("RGBA", "a.png"),
        ("P", "a.png"),
        ("1", "a.png"),
        ("LA", "a.png"),
        ("I;16", "a.png"),
    ],
)
def test_an_image_with_other_channels_is_refused_naming_file_and_row(
    folder: Any, mode: str, name: str
) -> None:
    folder.add("good.png", "cat").add(name, "dog", mode=mode)
    error = refusal(folder.write())
    assert mode in error.what
    assert f"row 3 ({name})" in error.where


def test_colours_of_16_bits_are_refused_rather_than_cut_to_8(folder: Any) -> None:
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header, row = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0), b"\0" + bytes(range(12))
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(row)), chunk(b"IEND", b"")]
    (folder.folder / "deep.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    assert "16 bits" in refusal(folder.row("deep.png", "cat").write()).what


def test_several_frames_in_one_file_are_refused(folder: Any) -> None:
    frames = [Image.new("L", (4, 4), colour) for colour in (0, 200)]
    frames[0].save(folder.folder / "a.tif", save_all=True, append_images=frames[1:])
    assert "frames" in refusal(folder.row("a.tif", "cat").write()).what


@pytest.mark.parametrize("keep", [0, 1, 20, 0.5, 0.95])
@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_a_truncated_image_is_refused_by_the_early_check(folder: Any, name: str, keep: float) -> None:
    folder.add(name, "cat", size=(64, 64))
    path = folder.folder / name
    raw = path.read_bytes()
    path.write_bytes(raw[: keep if isinstance(keep, int) else int(keep * len(raw))])
    assert f"row 2 ({name})" in refusal(folder.write()).where


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, about broken tags
def test_broken_bytes_never_escape_as_another_error(folder: Any) -> None:
    rng = np.random.default_rng(3)
    for name in ("a.png", "a.jpg", "a.tif", "a.webp", "a.bmp"):
        raw = folder.image(name, size=(16, 16)).read_bytes()
        folder.rows = []
        manifest = folder.row(name, "cat").write()
        for _ in range(40):
            broken = np.frombuffer(raw, np.uint8).copy()
            broken[rng.integers(0, len(raw), 8)] = rng.integers(0, 256, 8)
            (folder.folder / name).write_bytes(broken.tobytes())
            with contextlib.suppress(DataError):  # or nothing: some damage decodes to other pixels
                load_manifest(manifest, CLASSES).check()


@pytest.mark.parametrize("kind", [SyntaxError, ValueError, IndexError, TypeError, MemoryError, OSError])
def test_whatever_a_decoder_raises_becomes_an_error_that_names_the_file(
    folder: Any, monkeypatch: Any, kind: type[Exception]
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise kind("broken")

    folder.add("a.png", "cat")
    monkeypatch.setattr(Image, "open", fails)
    assert "row 2 (a.png)" in refusal(folder.write()).where


def test_a_file_format_that_needs_a_program_to_decode_is_not_an_image(folder: Any) -> None:
    (folder.folder / "a.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\nshowpage\n")
    assert "not an image" in refusal(folder.row("a.eps", "cat").write()).what


def test_an_image_with_too_many_pixels_is_refused_before_it_fills_memory(
    folder: Any, monkeypatch: Any
) -> None:
    folder.add("a.png", "cat", size=(20, 20))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300)
    assert "too many pixels" in refusal(folder.write()).what


def test_an_image_that_vanishes_after_loading_is_named(folder: Any) -> None:
    records = load_manifest(folder.add("a.png", "cat").write(), CLASSES)
    (folder.folder / "a.png").unlink()
    with pytest.raises(DataError, match=r"missing.*row 2"):
        records.images([0])


def test_a_missing_image_is_refused_at_load_and_the_other_bad_rows_are_counted(folder: Any) -> None:
    folder.add("a.png", "cat").row("gone.png", "cat").row("gone too.png", "cat").add("b.png", "bird")
    error = refusal(folder.write())
    assert "gone.png" in error.what
    assert "2 more rows" in error.what
    assert "row 3" in error.where


@pytest.mark.parametrize("name", ["../secret.png", "sub/../../secret.png", "link.png", "linked/secret.png"])
def test_no_path_leads_out_of_the_manifests_folder(folder: Any, name: str) -> None:
    outside = folder.folder.parent / "secret.png"
    Image.new("L", (4, 4)).save(outside)
    os.symlink(outside, folder.folder / "link.png")
    os.symlink(outside.parent, folder.folder / "linked")
    (folder.folder / "sub").mkdir()
    assert "leads out" in refusal(folder.row(name, "cat").write()).what


def test_an_absolute_path_is_refused_even_inside(folder: Any) -> None:
    inside = folder.image("a.png")
    assert "leads out" in refusal(folder.row(str(inside), "cat").write()).what


@pytest.mark.parametrize("name", ["a\0b.png", "x" * 5000, "loop"])
def test_a_path_that_no_file_can_have_is_refused(folder: Any, name: str) -> None:
    os.symlink("loop", folder.folder / "loop")
    refusal(folder.row(name, "cat").write())


def test_a_folder_is_not_an_image(folder: Any) -> None:
    (folder.folder / "sub").mkdir()
    assert "missing" in refusal(folder.row("sub", "cat").write()).what


@pytest.mark.parametrize("second", ["a.png", "./a.png", "sub/../a.png"])
def test_an_image_listed_twice_is_refused_however_its_path_is_written(folder: Any, second: str) -> None:
    (folder.folder / "sub").mkdir()
    error = refusal(folder.add("a.png", "cat").row(second, "dog").write())
    assert "already in row 2" in error.what
    assert "row 3" in error.where


def test_an_unknown_label_is_refused_with_the_nearest_class(folder: Any) -> None:
    error = refusal(folder.add("a.png", "Dgo").write())
    assert "'Dgo'" in error.what
    assert "nearest is 'dog'" in error.what


@pytest.mark.parametrize("cells", [["a.png", "", "p"], ["", "cat", "p"], ["a.png", "cat", " "]])
def test_a_blank_cell_is_refused(folder: Any, cells: list[str]) -> None:
    folder.columns = ["path", "label", "patient_id"]
    folder.image("a.png")
    error = refusal(folder.row(*cells).write())
    assert "blank" in error.what
    assert "row 2" in error.where


@pytest.mark.parametrize("cells", [["a.png"], ["a.png", "cat", "extra"]])
def test_a_row_of_another_length_is_refused(folder: Any, cells: list[str]) -> None:
    folder.image("a.png")
    assert "cells" in refusal(folder.row(*cells).write()).what


@pytest.mark.parametrize("content", [b"", b"\n", b"path,label\n", b"path,label\n\n\n", b"\xef\xbb\xbf"])
def test_an_empty_manifest_is_refused(folder: Any, content: bytes) -> None:
    folder.manifest.write_bytes(content)
    assert "empty" in (error := refusal(folder.manifest)).what or "no images" in error.what


@pytest.mark.parametrize(
    ("header", "says"),
    [
        ("path", "label is missing"),
        ("label,patient_id", "path is missing"),
        ("path;label", "commas"),
        ("path,label,label", "twice"),
        ("path,label,patientid", "'patient_id'"),
        ("path,label,age", "unknown column 'age'"),
    ],
)
def test_a_wrong_header_is_refused(folder: Any, header: str, says: str) -> None:
    folder.image("a.png")
    folder.manifest.write_text(f"{header}\na.png,cat,x\n")
    error = refusal(folder.manifest)
    assert says in error.what
    assert "row 1" in error.where


def test_another_encoding_is_refused_naming_the_row(folder: Any) -> None:
    folder.manifest.write_bytes("path,label\na.png,cat\nüber.png,cat\n".encode("latin-1"))
    error = refusal(folder.manifest)
    assert "UTF-8" in error.what
    assert "row 3" in error.where


def test_broken_quotes_are_refused_naming_the_row(folder: Any) -> None:
    folder.image("a.png")
    folder.manifest.write_text('path,label\na.png,cat\n"b.png,cat\n')
    error = refusal(folder.manifest)
    assert "not CSV" in error.what
    assert "row 3" in error.where


def test_a_missing_manifest_and_a_folder_in_its_place_are_refused(folder: Any) -> None:
    assert "no such manifest" in refusal(folder.manifest).what
    folder.manifest.mkdir()
    assert "cannot be read" in refusal(folder.manifest).what


def test_a_repr_tells_no_names_and_no_labels(folder: Any) -> None:
    assert repr(load_manifest(folder.add("a.png", "cat").write(), CLASSES)) == "FileRecords(1 records)"
