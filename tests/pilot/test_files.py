"""A pilot's folder: one pilot at a time, nothing reused that is not its own, and study.yaml last."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from secure_triplay.config import load_study
from secure_triplay.errors import ConfigError, RunError
from secure_triplay.pilot.files import Range, kept, locked, study_text
from secure_triplay.pilot.run import Request, _key, run_pilot
from secure_triplay.pilot.sample import public_sample


def test_two_pilots_do_not_write_one_folder(content, tmp_path):
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(content))
    with locked(tmp_path / "out"), pytest.raises(RunError, match="another run is writing this folder"):
        run_pilot(tmp_path / "study.yaml", tmp_path / "out", Request())
    with locked(tmp_path / "out"):
        pass  # free again
    (tmp_path / "out" / "study.yaml").touch()
    with pytest.raises(RunError, match="there is a study in this folder"), locked(tmp_path / "out"):
        pass


@pytest.mark.parametrize("text", ["{}", "[]", "[1]", "null", "3", '"a"', "{", '{"a": 1}', '{"a": 1, "b": null}',
                                  '{"a": 1, "b": NaN}', '{"a": 1, "b": true}', "\xff", '{"a": 1, "b": 1e999}',
                                  '{"a": 0, "b": 0.5}', '{"a": 1.0, "b": 0.5}', '{"a": 1, "b": 1.5}',
                                  '{"a": 1, "b": -0.1}', '{"a": 1' + 400 * "0" + ', "b": 0}', 9999 * "["])  # fmt: skip
def test_a_kept_file_that_is_no_trials_result_is_refused_with_what_to_do(tmp_path, text):
    path = tmp_path / "trial.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(RunError, match=r"not a trial's result.*trial\.json.*remove the file"):
        kept(path, {"a": Range(1, 1e15, whole=True), "b": Range(0, 1)})


def test_a_kept_result_is_read_and_one_that_is_not_there_is_none(tmp_path):
    (tmp_path / "trial.json").write_text(json.dumps({"a": 1, "b": 0.5, "choice": {}}))
    ranges = {"a": Range(1, 2, whole=True), "b": Range(0, 1)}
    assert kept(tmp_path / "trial.json", ranges) == {"a": 1, "b": 0.5}
    assert kept(tmp_path / "absent.json", ranges) is None


def test_a_kept_file_that_cannot_be_read_is_an_error_with_what_to_do(tmp_path):
    (tmp_path / "trial.json").mkdir()
    with pytest.raises(RunError, match=r"cannot be read.*trial\.json"):
        kept(tmp_path / "trial.json", {"a": Range(0, 1)})


@pytest.fixture
def hospital(content, tmp_path):
    """A study with 70 public images in a folder, and its file."""
    folder = tmp_path / "here"
    folder.mkdir()
    rng, names = np.random.default_rng(0), [entry["name"] for entry in content["classes"]]
    with (folder / "public.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "label"])
        for index in range(70):
            Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8)).save(folder / f"{index}.png")
            rows.writerow([f"{index}.png", names[index % 10]])
    content["data"] = {"kind": "manifest", "public_manifest": "public.csv"}
    content["sites"] = [{"name": name, "manifest": f"{name}.csv"} for name in ("north", "east")]
    content["backbone"]["image_size"] = 28
    (folder / "study.yaml").write_text(yaml.safe_dump(content))
    return folder


def key_of(folder: Path) -> str:
    study = load_study(folder / "study.yaml")
    return _key(study, 8.0, public_sample(study, 1000))


def test_trials_of_other_public_images_are_not_reused(hospital, tmp_path):
    before = key_of(hospital)
    same = shutil.copytree(hospital, tmp_path / "same")
    assert key_of(same) == before  # the same images elsewhere
    image = np.asarray(Image.open(same / "5.png")).copy()
    image[0, 0] ^= 255
    Image.fromarray(image).save(same / "5.png")
    assert load_study(same / "study.yaml").sha256 == load_study(hospital / "study.yaml").sha256
    assert key_of(same) != before
    relabelled = shutil.copytree(hospital, tmp_path / "relabelled")
    lines = (relabelled / "public.csv").read_text().splitlines()
    lines[1], lines[2] = (
        f"{a.split(',')[0]},{b.split(',')[1]}" for a, b in ((lines[1], lines[2]), (lines[2], lines[1]))
    )
    (relabelled / "public.csv").write_text("\n".join(lines) + "\n")
    assert key_of(relabelled) != before


def test_which_images_align_is_part_of_a_samples_hash(hospital):
    study = load_study(hospital / "study.yaml")
    sample = public_sample(study, 1000)
    fewer = replace(sample, split=replace(sample.split, public=sample.split.public.take(range(60))))
    assert fewer.sha256(28) != sample.sha256(28)


def test_a_study_is_read_back_before_it_is_in_place(content, hospital, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "study.yaml").write_text(study_text(content, hospital, out))
    moved, study = load_study(out / "study.yaml"), load_study(hospital / "study.yaml")
    assert moved.sha256 == study.sha256
    assert Path(moved.data.public_manifest).resolve() == Path(study.data.public_manifest)
    content["training"]["rounds"] = 0
    with pytest.raises(ConfigError, match="rounds"):
        study_text(content, hospital, out)
