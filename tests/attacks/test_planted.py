"""Planted mistakes fit the code of today, are caught by the tests they name, and nothing else is called a catch."""

from __future__ import annotations

import ast
import json
import re

import pytest

from secure_triplay.attacks.planted import fresh
from secure_triplay.attacks.planted.audit import audit_planted, plant, project_root, run_tests, working_copy
from secure_triplay.attacks.planted.patch import Edit, Patch, load_patch, load_patches
from secure_triplay.errors import ConfigError, RunError

ASKED_FOR = {
    "no-noise",
    "noise-before-clipping",
    "wrong-clip-norm",
    "shuffled-batches",
    "skipped-empty-batches",
    "accountant-reset-each-round",
    "normaliser-from-record-count",
    "batch-contrastive-loss",
    "data-dependent-clip",
    "reused-noise-seed",
    "secret-key-at-the-server",
    "key-relayed-in-the-clear",
    "unrounded-release",
    "replay-accepted",
    "duplicated-site-accepted",
}
PATCHES = load_patches()
DETECTOR = "tests/server/test_sum.py::test_no_site_is_added_twice"


def patch_of(after: str, name: str = "harmless") -> Patch:
    edit = Edit(file="secure_triplay/server/sum.py", before="from __future__ import annotations", after=after)
    return Patch(name=name, mistake="nothing at all", made_by="nobody", edits=(edit,), caught_by=(DETECTOR,))


def test_every_mistake_that_was_asked_for_is_planted():
    assert {patch.name for patch in PATCHES} >= ASKED_FOR


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.name)
def test_every_patch_fits_the_code_of_today_and_is_python(patch, root):
    for path, text in patch.planted(root).items():
        assert text != path.read_text()
        ast.parse(text)


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.name)
def test_every_detector_is_a_test_that_exists(patch, root):
    for node in patch.caught_by:
        file, name = node.split("::")
        assert re.search(rf"^def {name}\(", (root / file).read_text(), re.MULTILINE), node


def test_mistakes_are_caught_by_each_test_that_they_name_and_a_clean_copy_raises_no_alarm(tmp_path):
    names, seen = ["duplicated-site-accepted", "replay-accepted"], []
    result = audit_planted(
        tmp_path / "out",
        lambda done, total: seen.append((done, total)),
        names,
        clean_runs=1,
    )
    assert result["valid"]
    assert (result["planted"], result["caught"], result["clean_runs"]) == (2, 2, 1)
    assert result["false_alarms"] == []
    for entry, patch in zip(result["mistakes"], load_patches(names), strict=True):
        assert (entry["name"], entry["outcome"]) == (patch.name, "caught")
        assert tuple(entry["caught_by"]) == patch.caught_by
    assert seen == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert json.loads((tmp_path / "out" / "result.json").read_text()) == result
    assert "duplicated-site-accepted" in (tmp_path / "out" / "README.md").read_text()


def test_a_change_that_no_test_sees_is_missed_and_one_that_does_not_load_is_broken():
    """Otherwise a detector that fails on anything, or on nothing, would count as a catch.

    That the second is noticed also shows that the tests ran on the copy and not on the installed package.
    """
    with working_copy(project_root()) as copy:
        before = (copy / "secure_triplay/server/sum.py").read_text()
        harmless = plant(copy, patch_of("from __future__ import annotations  # planted"))
        broken = plant(copy, patch_of("import a_module_that_is_nowhere", "broken"))
        assert (harmless["outcome"], harmless["caught_by"]) == ("missed", [])
        assert (broken["outcome"], broken["caught_by"]) == ("broken", [])
        assert "a_module_that_is_nowhere" in broken["said"]
        assert (copy / "secure_triplay/server/sum.py").read_text() == before


DRAWS = """
import os
import numpy as np
import torch
from secure_triplay.privacy.noise import NoiseSource

def test_draws():
    drawn = [NoiseSource.unsafe_from_seed(4).gaussian(1, 1.0)[0], np.random.default_rng(4).random(),
             np.random.default_rng([4, 1]).random(), torch.rand(1, generator=torch.Generator().manual_seed(4)).item()]
    assert NoiseSource.unsafe_from_seed(4).unsafe_seeded
    raise AssertionError("drew " + " ".join(f"{x:.9f}" for x in drawn))
"""


def test_clean_runs_draw_anew_where_a_test_names_a_seed_and_each_can_be_had_again():
    """Fifty runs of one stream would be one run."""
    with working_copy(project_root()) as copy:
        (copy / "tests" / "test_draws.py").write_text(DRAWS)
        drawn = []
        for number in (0, 1, 2, 2):
            said = run_tests(copy, ["tests/test_draws.py"], clean_run=number).said
            drawn.append(re.search(r"AssertionError: drew ([\d. -]+)", said).group(1).split())
    assert drawn[2] == drawn[3]
    for first, second, third in zip(*drawn[:3], strict=True):
        assert len({first, second, third}) == 3


def test_the_plugin_refuses_to_run_outside_a_clean_run(monkeypatch):
    monkeypatch.delenv(fresh.RUN, raising=False)
    with pytest.raises(KeyError, match=fresh.RUN):
        fresh.pytest_configure(None)


def test_a_stale_patch_is_refused_before_any_test_runs(root):
    patch = load_patches(["no-noise"])[0]
    stale = patch.edits[0].model_copy(update={"before": "weight.grad = something_else"})
    with pytest.raises(ConfigError, match="stands 0 times"):
        patch.model_copy(update={"edits": (stale,)}).planted(root)
    twice = patch.edits[0].model_copy(update={"before": "import "})
    with pytest.raises(ConfigError, match=r"stands \d+ times"):
        patch.model_copy(update={"edits": (twice,)}).planted(root)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name: x\nmistake: something wrong\n", "made_by"),
        ("name: y\nmistake: something wrong\nmade_by: somebody\nedits: []\ncaught_by: []\n", "edits"),
        ("name: x\nmistake: something wrong\nmade_by: somebody\ncaught_by: [tests/a.py]\n", "caught_by"),
    ],
)
def test_a_file_that_is_no_patch_is_refused_in_words(tmp_path, text, says):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=says):
        load_patch(path)


def test_unknown_names_and_existing_folders_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="no mistake is called"):
        audit_planted(tmp_path / "out", lambda done, total: None, ["no-such-thing"])
    (tmp_path / "there").mkdir()
    with pytest.raises(RunError, match="exists"):
        audit_planted(tmp_path / "there", lambda done, total: None, ["no-noise"])
