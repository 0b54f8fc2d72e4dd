"""A grid is checked before anything runs, goes on where it was stopped, and never invents a figure."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

from secure_triplay.config import parse_study
from secure_triplay.data.split import split_study
from secure_triplay.errors import AssetError, ConfigError, DataError, RunError
from secure_triplay.experiments.grid import _identity, load_grid
from secure_triplay.experiments.methods import METHODS, method
from secure_triplay.experiments.procedures import PROCEDURES
from secure_triplay.experiments.run import run_experiment
from secure_triplay.experiments.show import HOLE, frontier, write_frontier, write_partitions
from secure_triplay.memory import restart_peak
from secure_triplay.planner.measured import read_measurements

ROOT = Path(__file__).parent.parent.parent
PRICE = "cpu_seconds_without_loading_and_encoding_mean"
TIMES = ("cpu_seconds_mean", "peak_bytes_max", "cpu_seconds_to_target", PRICE)


def figures(result):
    return [{key: value for key, value in row.items() if key not in TIMES} for row in result["rows"]]


def test_every_impossible_combination_is_named_and_nothing_is_started(grid_file, tmp_path):
    file = grid_file(
        methods=["eps8", "eps3", "eps200", "no-dp"],
        change={
            "no-dp": {"training.rounds": 0},
            "eps8": {"privacy.l2_clip_norm": -1.0},
            "eps3": {"codec.range": 1e-35},  # a study, but not an encoding
        },
    )
    with pytest.raises(ConfigError) as caught:
        run_experiment(file, tmp_path / "out")
    for method_name in ("eps8", "eps3", "eps200", "no-dp"):
        assert f"{method_name} on pictures" in str(caught.value)
    assert "nothing was started" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_method_that_does_not_exist_is_named_with_the_nearest(grid_file, tmp_path):
    with pytest.raises(ConfigError, match=r"centrall.*'central'"):
        run_experiment(grid_file(methods=["centrall"]), tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seeds": [1, 1]}, "seed is named twice"),
        ({"methods": ["alone", "alone"]}, "method is named twice"),
        ({"change": {"eps3": {"training.rounds": 5}}}, "change.eps3"),
        ({"seeds": []}, "seeds"),
        ({"sites": 3}, "sites"),
    ],
)
def test_a_grid_that_makes_no_sense_is_refused(grid_file, tmp_path, change, said):
    with pytest.raises(ConfigError, match=said):
        run_experiment(grid_file(**change), tmp_path / "out")


def test_variants_are_every_combination_of_their_axes_and_each_has_its_own_settings(grid_file):
    axes = {"adapter.rank": {"r2": 2, "r8": 8}, "server_optimiser": {"plain": {"kind": "fedavg"}}}
    grid = load_grid(
        grid_file(
            methods=["eps3"], variants=[{"method": "eps8", "axes": axes}, {"method": "no-dp", "axes": axes}]
        )
    )
    found = {cell.method.name: cell.study for cell in grid.cells if cell.seed == 1}
    expected = ["eps3", "eps8-r2-plain", "eps8-r8-plain", "no-dp-r2-plain", "no-dp-r8-plain"]
    assert list(found) == [method.name for method in grid.methods] == expected
    assert found["eps8-r2-plain"].adapter.rank == 2
    assert found["eps8-r8-plain"].adapter.rank == 8
    assert found["eps8-r8-plain"].server_optimiser.kind == "fedavg"
    assert found["eps3"].server_optimiser.kind == "fedadam"
    assert found["eps8-r8-plain"].dp.epsilon == 8.0
    assert found["no-dp-r2-plain"].dp is None
    assert len({cell.identity for cell in grid.cells}) == len(grid.cells)


@pytest.mark.parametrize(
    ("variants", "said"),
    [
        ([{"method": "epz8", "axes": {"adapter.rank": {"r2": 2}}}], "epz8"),
        ([{"method": "eps8", "axes": {"adapter.rank": {"r0": 0}}}], "eps8-r0 on pictures"),
        ([{"method": "eps8", "axes": {"adapter.rank": {"a": 1}}}] * 2, "method is named twice"),
        ([{"method": "eps8", "axes": {}}], "axes"),
        ([], "no methods and no variants"),
    ],
)
def test_variants_that_make_no_sense_are_named_and_nothing_is_started(grid_file, tmp_path, variants, said):
    with pytest.raises(ConfigError, match=said):
        run_experiment(grid_file(methods=[], variants=variants), tmp_path / "out")
    assert not (tmp_path / "out").exists()


OTHER_CLASSES = [{"name": name, "prompts": [f"one that is {name}"]} for name in ("dark", "light")]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data.partition.alpha", 0.1),
        ("data.holdout_fraction", 0.5),
        ("classes", OTHER_CLASSES),
        ("seed", 7),
        ("sites", [{"name": "north"}, {"name": "west"}]),
        ("sites", [{"name": "north"}, {"name": "south"}, {"name": "west"}]),
    ],
)
@pytest.mark.parametrize("variant", [True, False])
def test_a_method_that_would_have_other_records_is_refused_and_sent_to_the_data(
    grid_file, tmp_path, key, value, variant
):
    """They would be those of whichever method of the data and seed came first."""
    if variant:
        grid = {"variants": [{"method": "no-dp", "axes": {key: {"a": value}}}]}
    else:
        grid = {"methods": ["fedavg-cnn", "no-dp"], "change": {"no-dp": {key: value}}}
    with pytest.raises(ConfigError) as caught:
        run_experiment(grid_file(**grid), tmp_path / "out")
    assert f"it changes {key.split('.')[0]}" in str(caught.value)
    assert "data[].change" in str(caught.value)
    assert "fedavg-cnn on" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_method_may_change_rank_and_weight_of_sites_and_say_again_what_holds(grid_file):
    sites = [{"name": "north", "weight": 3.0}, {"name": "south", "rank": 2}]
    change = {"sites": sites, "data.test_fraction": 0.25, "classes": [
        {"name": "dark", "prompts": ["a dark picture"]}, {"name": "light", "prompts": ["a light picture"]}
    ]}  # fmt: skip
    grid = load_grid(grid_file(methods=["eps8", "mixed-ranks"], change={"eps8": change}, seeds=[1]))
    eps8, mixed = (cell.study.sites for cell in grid.cells)
    assert [(site.weight, site.rank) for site in eps8] == [(3.0, None), (1.0, 2)]
    assert [site.rank for site in mixed] == [None, grid.cells[1].study.adapter.rank // 4]


@pytest.mark.parametrize("adapter", [{"kind": "ffa"}, None])
def test_a_rank_that_a_study_does_not_say_is_the_default_at_sites_of_mixed_ranks_too(grid_file, adapter):
    path = grid_file(methods=["mixed-ranks"], seeds=[1])
    study = path.parent / "study.yaml"
    content = yaml.safe_load(study.read_text()) | {"adapter": adapter}
    study.write_text(yaml.safe_dump({key: value for key, value in content.items() if value is not None}))
    (cell,) = load_grid(path).cells
    assert [site.rank for site in cell.study.sites] == [None, 1]
    assert cell.study.adapter.rank == 4


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("sites.rank", "sites has no keys, so no rank"),
        ("training.rounds.most", "rounds has no keys, so no most"),
    ],
)
def test_a_key_of_what_has_no_keys_is_named_and_nothing_is_started(grid_file, tmp_path, key, said):
    with pytest.raises(ConfigError, match=f"no-dp on pictures: {said}"):
        run_experiment(grid_file(methods=["no-dp"], change={"no-dp": {key: 2}}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


BLOOD = "attn\\.proj|mlp\\.fc2"


def test_an_adapter_that_no_backbone_takes_is_named_for_every_cell_before_anything_is_measured(
    grid_file, tmp_path
):
    """Whether a tower has such layers, and so many blocks, showed when its model was loaded, after other cells."""
    variants = [
        {"method": "eps8", "axes": {"adapter.target_modules": {"zzz": "zzz", "fine": BLOOD}}},
        {"method": "no-dp", "axes": {"adapter.last_blocks": {"b12": 12, "b20": 20}}},
        {"method": "start", "axes": {"backbone.image_size": {"px28": 28, "px30": 30}}},
        {"method": "alone", "axes": {"backbone.name": {"nowhere": "no-such-model"}}},
        {"method": "fedavg-cnn", "axes": {"adapter.last_blocks": {"b20": 20}}},  # it takes no backbone
    ]
    file = grid_file(methods=["fedavg-cnn"], variants=variants)
    with pytest.raises(ConfigError) as caught:
        run_experiment(file, tmp_path / "out")
    first, *told = caught.value.what.splitlines()
    assert "nothing was started" in first
    assert [line.partition(": ")[0] for line in told] == [
        f"{name} on pictures" for name in ("eps8-zzz", "no-dp-b20", "start-px30", "alone-nowhere")
    ]
    for line, said in zip(
        told, ("'zzz' matches no", "has 12 blocks", "not a multiple", "backbone is"), strict=True
    ):
        assert said in line
    assert caught.value.where == str(file)
    assert not (tmp_path / "out").exists()


def test_each_backbone_is_built_once_to_check_all_cells_of_a_grid(grid_file, monkeypatch):
    from secure_triplay.model import structure

    built = []
    real = structure.TimmModel
    structure._packaged_tower.cache_clear()
    monkeypatch.setattr(structure, "TimmModel", lambda *args: built.append(args) or real(*args))
    axes = {"adapter.rank": {f"r{n}": n for n in range(3, 9)}, "backbone.image_size": {"a": 28, "b": 42}}
    assert len(load_grid(grid_file(methods=[], variants=[{"method": "eps8", "axes": axes}])).cells) == 24
    assert len(built) == 2


def test_faults_of_names_of_files_and_of_settings_stand_in_one_list(grid_file, tmp_path):
    file = grid_file(
        methods=["centrall", "eps200", "eps8"],
        data=[
            {"name": "gone", "study": "no-such-study.yaml"},
            {"name": "pictures", "study": "study.yaml"},
            {"name": "odd", "study": "study.yaml", "change": {"sites.rank": 3}},
            {"name": "nul", "study": "a\0b.yaml"},
        ],
    )
    with pytest.raises(ConfigError) as caught:
        run_experiment(file, tmp_path / "out")
    for said in (
        "no method 'centrall'; the nearest is 'central'",
        f"gone: there is no such file ({tmp_path / 'no-such-study.yaml'})",
        "eps200 on pictures: ",
        "odd: sites has no keys, so no rank",
        "nul: its path has a letter that no file's name can have (",
    ):
        assert said in caught.value.what
    assert "eps8 on pictures" not in caught.value.what
    assert caught.value.where == str(file)
    assert not (tmp_path / "out").exists()


def test_a_manifest_with_a_name_that_no_file_can_have_is_a_hole_like_one_that_is_not_here(grid_file):
    data = [
        {"name": name, "study": "study.yaml", "change": {"data.manifest": manifest}}
        for name, manifest in (("nul", "a\0b.csv"), ("long", 999 * "a"))
    ]
    assert set(load_grid(grid_file(data=data)).skipped) == {"nul", "long"}


@pytest.mark.parametrize(
    ("name", "change", "key", "other"),
    [
        ("eps8", {"privacy.epsilon": 1.0}, "privacy.epsilon", "eps1"),
        ("eps8", {"privacy.epsilon": 0.25}, "privacy.epsilon", "eps0.25"),
        ("alone-eps8", {"privacy.epsilon": 3}, "privacy.epsilon", "alone-eps3"),
        ("eps8", {"privacy": {"unsafe_dp_off": True, "sampling_rate": 0.5, "expected_batch_size": 8}},
         "privacy.epsilon", "no-dp"),
        ("no-dp", {"privacy.epsilon": 3.0}, "privacy.epsilon", "eps3"),
        ("no-dp", {"privacy": {"epsilon": 3.0}}, "privacy.unsafe_dp_off", "eps3"),
        ("alone", {"privacy": {"epsilon": 3.0}}, "privacy.unsafe_dp_off", "alone-eps3"),
        ("lora", {"adapter.kind": "ffa"}, "adapter.kind", "eps8"),
        ("alternating", {"adapter": {"kind": "ffa"}}, "adapter.kind", "eps8"),
        ("personalised", {"personal_bias": None}, "personal_bias", "personal-adapter"),
        ("personalised", {"personal_bias.in_training": True}, "personal_bias.in_training", "calibrated"),
        ("calibrated", {"personal_bias": None}, "personal_bias", "personal-adapter"),
        ("calibrated", {"personal_bias": {}}, "personal_bias.in_training", "personalised"),
        ("mixed-ranks", {"sites": [{"name": "north"}, {"name": "south", "weight": 2.0}]}, "sites.rank", "eps8"),
        ("adjusted", {"privacy.epsilon": 3.0}, "privacy.epsilon", None),
        ("tripleplay", {"adapter.kind": "ffa"}, "adapter.kind", None),
        ("fedavg-tower", {"backbone.quantization": "nf4"}, "backbone.quantization", None),
        ("central", {"privacy": {"epsilon": 3.0}}, "privacy.unsafe_dp_off", None),
    ],
)  # fmt: skip
@pytest.mark.parametrize("variant", [True, False])
def test_what_a_method_is_named_for_is_changed_by_another_method_and_not_under_its_title(
    grid_file, tmp_path, name, change, key, other, variant
):
    (dotted, value), *_ = change.items()
    if variant:
        grid = {"methods": [], "variants": [{"method": name, "axes": {dotted: {"a": value}}}]}
    else:
        grid = {"methods": [name], "change": {name: change}}
    with pytest.raises(ConfigError) as caught:
        run_experiment(grid_file(**grid), tmp_path / "out")
    assert f"on pictures: it changes {key}, which the method itself sets" in caught.value.what
    assert (f"the method for that is {other}" if other else "no method has another") in caught.value.what


def test_a_change_may_say_again_what_the_method_sets(grid_file):
    change = {
        "eps8": {"privacy.epsilon": 8},
        "lora": {"adapter": {"kind": "lora", "rank": 2}},
        "personalised": {"personal_bias": {"noise_multiplier": 30.0}},
    }
    grid = load_grid(grid_file(methods=list(change), change=change, seeds=[1]))
    assert [cell.study.dp.epsilon for cell in grid.cells] == [8.0, 8.0, 8.0]


@pytest.mark.parametrize("change", [{"seed": 7}, {"seed": 1}])
def test_a_seed_among_the_changes_of_data_is_refused_and_sent_to_seeds(grid_file, tmp_path, change):
    """It was overwritten by each of the grid's seeds."""
    data = [{"name": "pictures", "study": "study.yaml", "change": change}]
    with pytest.raises(ConfigError, match=r"pictures: it changes seed.*data\[\]\.seeds"):
        run_experiment(grid_file(data=data), tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "due"),
    [
        ("eps8.0", "eps8"), ("eps08", "eps8"), ("eps8\n", "eps8"), ("eps 8", "eps8"), ("eps+8", "eps8"),
        ("eps8e0", "eps8"), ("eps\uff18", "eps8"), ("alone-eps3.50", "alone-eps3.5"), ("eps1_0", "eps10"),
    ],
)  # fmt: skip
def test_a_method_has_one_spelling(grid_file, tmp_path, name, due):
    """With two it had two rows, each with seeds of its own."""
    with pytest.raises(ConfigError) as caught:
        run_experiment(grid_file(methods=["eps8", name]), tmp_path / "out")
    assert f"it is written {due}" in caught.value.what
    assert method(due).name == due


def test_masks_and_a_shared_key_are_two_cells(grid_file):
    """What a study without a kind and one with masks say is hashed alone, as it always was."""
    axes = {"aggregation": {"masks": "masked", "key": "shared-key"}}
    grid = load_grid(grid_file(methods=[], variants=[{"method": "no-dp", "axes": axes}], seeds=[1]))
    masked, key = (_identity("pictures", "no-dp", cell.study) for cell in grid.cells)
    assert masked != key


def test_a_study_without_privacy_cannot_be_run_at_an_epsilon(grid_file, tmp_path):
    privacy = {"unsafe_dp_off": True, "sampling_rate": 0.5, "expected_batch_size": 8}
    with pytest.raises(ConfigError, match=r"eps8 on pictures.*without privacy"):
        run_experiment(grid_file({"privacy": privacy}, methods=["eps8"]), tmp_path / "out")


def test_data_that_cannot_be_divided_are_named_and_nothing_is_started(grid_file, tmp_path):
    """Whether there are enough of them shows only once they are there."""
    file = grid_file(
        data=[
            {"name": "pictures", "study": "study.yaml"},
            {"name": "skewed", "study": "study.yaml", "change": {"data.test_domain": "kitchen"}},
        ]
    )
    with pytest.raises(ConfigError, match=r"(?s)nothing was started.*skewed, seed 1: .*kitchen"):
        run_experiment(file, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("data", "said"),
    [({"test_fraction": 0.0}, "no public test images"), ({"public_images": 0}, "no public images")],
)
def test_data_without_images_to_measure_on_or_to_align_on_are_named_and_nothing_is_started(
    grid_file, tmp_path, pictures, data, said
):
    whole = {"kind": "manifest", "manifest": str(pictures), "public_images": 8, "test_fraction": 0.25}
    file = grid_file({"data": whole | {"partition": {"kind": "iid"}} | data}, methods=["fedavg-cnn", "no-dp"])
    with pytest.raises(ConfigError, match=rf"(?s)nothing was started.*pictures, seed 2: there are {said}"):
        run_experiment(file, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_missing_data_leave_a_hole_with_its_reason_and_no_row(grid_file, tmp_path):
    file = grid_file(
        data=[
            {"name": "pictures", "study": "study.yaml"},
            {"name": "absent", "study": "study.yaml", "change": {"data.manifest": "${NOT_SET_HERE}/m.csv"}},
            {"name": "gone", "study": "study.yaml", "change": {"data.manifest": "gone/m.csv"}},
        ]
    )
    told = []
    result = run_experiment(file, tmp_path / "out", told.append)
    assert {row["data"] for row in result["rows"]} == {"pictures"}
    assert {entry["data"] for entry in result["skipped"]} == {"absent", "gone"}
    assert [text for text in told if "absent is skipped" in text and "NOT_SET_HERE" in text]
    table = (tmp_path / "out" / "table.txt").read_text()
    absent = table[table.index("absent") : table.index("gone")]
    lines = [line for line in absent.splitlines() if line.strip().startswith("fedavg-cnn")]
    assert [line.split()[1:] for line in lines] == [[HOLE] * 10, [HOLE] * 6]  # figures, and costs
    assert "NOT_SET_HERE" in absent


def test_a_stopped_grid_goes_on_without_repeating_or_losing_a_cell(grid_file, tmp_path):
    file, out = grid_file(seeds=[1, 2, 3]), tmp_path / "out"

    def stop(text):
        if text.startswith("[2/3]"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_experiment(file, out, stop)
    cells = sorted((out / "cells").iterdir())
    assert [path.name for path in cells] == ["pictures--fedavg-cnn--1.json"]
    before = (cells[0].stat().st_mtime_ns, cells[0].read_bytes())
    assert not (out / "result.json").exists()

    partial = run_experiment(file, out, only_collect=True)
    assert partial["missing"] == ["pictures--fedavg-cnn--2", "pictures--fedavg-cnn--3"]
    assert [row["seeds"] for row in partial["rows"]] == [[1]]
    assert partial["rows"][0]["accuracy_std"] is None  # one seed has no spread

    told = []
    resumed = run_experiment(file, out, told.append)
    assert resumed["missing"] == []
    assert [text for text in told if text.startswith("[")] == [
        "[2/3] fedavg-cnn on pictures, seed 2",
        "[3/3] fedavg-cnn on pictures, seed 3",
    ]
    assert (cells[0].stat().st_mtime_ns, cells[0].read_bytes()) == before
    assert figures(resumed) == figures(run_experiment(file, tmp_path / "whole"))

    told.clear()
    assert run_experiment(file, out, told.append) == resumed
    assert not [text for text in told if text.startswith("[")]


def test_cells_of_other_settings_are_refused_not_mixed_in(grid_file, tmp_path):
    run_experiment(grid_file(seeds=[1]), tmp_path / "out")
    with pytest.raises(RunError, match="other settings"):
        run_experiment(grid_file({"study": "another"}, seeds=[1]), tmp_path / "out")
    (tmp_path / "out" / "cells" / "pictures--fedavg-cnn--1.json").write_text("{}")
    with pytest.raises(RunError, match="not a cell"):
        run_experiment(grid_file(seeds=[1]), tmp_path / "out")


DAMAGE = [
    ("accuracy", 7.5), ("accuracy", -0.1), ("accuracy", None), ("accuracy", "0.5"), ("accuracy", True),
    ("accuracy", float("nan")), ("accuracy", float("inf")), ("worst_site", 1.5), ("worst_site_public", None),
    ("mean_site", "high"), ("head", 2), ("tail", float("nan")), ("worst_class", []), ("by_site", None),
    ("by_site", [0.5]), ("by_site", {"nowhere": 0.5}), ("by_site", {"north": 5.0}), ("by_class", [0.5]),
    ("by_class", [0.5, 1.5]), ("by_class", 0.5), ("epsilon", -8.0), ("delta", 2.0), ("rounds", -1), ("rounds", 1.5),
    ("n_params", "many"), ("upload_bytes", None), ("cpu_seconds", -1.0), ("cpu_seconds", float("nan")),
    ("curve", None), ("curve", [{"round": 1}]), ("curve", [{"round": 1, "cpu_seconds": 0.1, "accuracy": 3.0}]),
    ("class_counts", None), ("class_counts", {"north": [1, 2]}), ("class_counts", {"north": [1], "south": [1]}),
    ("peak_bytes", -5), ("encoded_images", None), ("encoding_cpu_seconds", "x"), ("noise", {"a": float("nan")}),
    ("noise", 3), ("made_by", 3), ("data", "other"), ("method", "eps8"), ("method", None), ("seed", 2),
    ("seed", "1"), ("identity", None), ("anything", float("-inf")),
]  # fmt: skip


@pytest.fixture(scope="module")
def measured_cell(tmp_path_factory):
    """The cell of one measured grid, by its bytes, once there is one."""
    return {}


@pytest.mark.parametrize("only_collect", [True, False])
@pytest.mark.parametrize(("key", "value"), DAMAGE)
def test_a_cell_that_holds_what_no_figure_can_be_is_refused_before_anything_is_measured(
    grid_file, tmp_path, measured_cell, key, value, only_collect
):
    file, cells = grid_file(seeds=[1, 2]), tmp_path / "out" / "cells"
    name = "pictures--fedavg-cnn--1.json"
    if not measured_cell:
        run_experiment(grid_file(seeds=[1]), tmp_path / "once")
        measured_cell[name] = json.loads((tmp_path / "once" / "cells" / name).read_text())
        grid_file(seeds=[1, 2])
    cells.mkdir(parents=True)
    (cells / name).write_text(json.dumps(measured_cell[name] | {key: value}))
    told = []
    with pytest.raises(RunError, match=rf"not a cell's result.*{re.escape(name)}.*remove the file"):
        run_experiment(file, tmp_path / "out", told.append, only_collect=only_collect)
    assert not [text for text in told if text.startswith("[")]
    assert not (tmp_path / "out" / "result.json").exists()


@pytest.mark.parametrize(
    "key", ["accuracy", "by_site", "worst_class", "rounds", "cpu_seconds", "seed", "method"]
)
def test_a_cell_that_lacks_a_figure_is_refused(grid_file, tmp_path, key):
    run_experiment(grid_file(seeds=[1]), tmp_path / "out")
    path = tmp_path / "out" / "cells" / "pictures--fedavg-cnn--1.json"
    found = json.loads(path.read_text())
    del found[key]
    path.write_text(json.dumps(found))
    with pytest.raises(RunError, match=f"not a cell's result .{key}"):
        run_experiment(grid_file(seeds=[1]), tmp_path / "out")


@pytest.mark.parametrize("text", ["[]", "3", "null", '"identity"', 9999 * "[", "", "\0"])
def test_a_cell_that_is_no_mapping_is_refused(grid_file, tmp_path, text):
    (tmp_path / "out" / "cells").mkdir(parents=True)
    (tmp_path / "out" / "cells" / "pictures--fedavg-cnn--1.json").write_text(text)
    with pytest.raises(RunError, match="not a cell's result"):
        run_experiment(grid_file(seeds=[1]), tmp_path / "out")


def test_cells_of_another_manifest_are_refused_though_no_setting_changed(grid_file, tmp_path, pictures):
    folder = tmp_path / "own"
    shutil.copytree(pictures.parent, folder)
    data = {"kind": "manifest", "manifest": str(folder / "manifest.csv"), "public_images": 8}
    file, out = grid_file({"data": data | {"partition": {"kind": "iid"}}}, seeds=[1]), tmp_path / "out"
    run_experiment(file, out)
    content = (folder / "manifest.csv").read_text()
    (folder / "manifest.csv").write_text(content.replace("0.png,dark", "0.png,light"))
    with pytest.raises(RunError, match="other manifests"):
        run_experiment(file, out)
    cell = out / "cells" / "pictures--fedavg-cnn--1.json"
    earlier = json.loads(cell.read_text())
    del earlier["manifests"]  # as cells were before manifests were noted
    cell.write_text(json.dumps(earlier))
    assert run_experiment(file, out)["missing"] == []


def test_a_result_whose_cells_are_of_several_states_of_the_program_says_so(grid_file, tmp_path, monkeypatch):
    file, out, told = grid_file(seeds=[1, 2, 3]), tmp_path / "out", []
    whole = run_experiment(file, out)
    assert [len(one["cells"]) for one in whole["made_by"]] == [3]
    assert len(whole["made_by"][0]["state"]["code"]) == 64
    assert whole["made_by"][0]["state"]["torch"]
    assert "STATES" not in (out / "table.txt").read_text()

    cells = out / "cells"
    old = json.loads((cells / "pictures--fedavg-cnn--1.json").read_text())
    del old["made_by"]  # as cells were before it was noted
    (cells / "pictures--fedavg-cnn--1.json").write_text(json.dumps(old))
    (cells / "pictures--fedavg-cnn--3.json").unlink()
    monkeypatch.setattr("secure_triplay.federation.bundle.package_sha256", lambda: "another")
    mixed = run_experiment(file, out, told.append)
    name = "pictures--fedavg-cnn--"
    assert [one["cells"] for one in mixed["made_by"]] == [[f"{name}1"], [f"{name}2"], [f"{name}3"]]
    assert [one["state"] and one["state"]["code"] == "another" for one in mixed["made_by"]] == [
        None,
        False,
        True,
    ]
    assert "MADE BY 3 STATES" in (out / "table.txt").read_text()
    assert any(text.startswith("2 of them are of another state") for text in told)


@pytest.mark.parametrize("place", ["", "cells"])
@pytest.mark.parametrize("refused", ["no folder", "no file"])
def test_a_folder_that_cannot_be_written_is_known_before_anything_is_measured(
    grid_file, tmp_path, monkeypatch, place, refused
):
    out, told = tmp_path / "out", []
    (out / "cells").mkdir(parents=True)
    (out / ".lock").touch()
    if refused == "no folder":
        shutil.rmtree(out / place)
        (out / place).write_text("a file")
    else:
        real = tempfile.TemporaryFile

        def full(*args, dir, **kwargs):
            if dir == out / place:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(*args, dir=dir, **kwargs)

        monkeypatch.setattr(tempfile, "TemporaryFile", full)
    with pytest.raises(RunError, match="cannot be written") as caught:
        run_experiment(grid_file(seeds=[1]), out, told.append)
    assert caught.value.where == str(out / place)
    assert caught.value.fix
    assert told == []


@pytest.mark.parametrize(
    "name", ["result.json", "table.txt", "accuracy.svg", "partitions.svg", "frontier.svg"]
)
def test_a_result_that_cannot_be_written_is_named_and_what_was_there_stays_whole(
    grid_file, tmp_path, monkeypatch, name
):
    """A disk that is full, half way through the file."""
    file, out = grid_file(methods=["fedavg-cnn"], seeds=[1]), tmp_path / "out"
    result = run_experiment(file, out)
    rows = [{**result["rows"][0], "method": method} for method in ("a", "b", "c")]
    monkeypatch.setattr("secure_triplay.experiments.run.collect", lambda *_: {**result, "rows": rows})
    run_experiment(file, out)
    before = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    assert len(before[name]) > 100
    real = os.fsync

    def full(number):
        if name in os.readlink(f"/proc/self/fd/{number}"):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(number)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match="No space left") as caught:
        run_experiment(file, out)
    assert caught.value.where == str(out / name)
    assert caught.value.fix
    assert (out / name).read_bytes() == before[name]
    assert {path.name for path in out.iterdir() if path.is_file()} == set(before)


def test_a_cell_that_cannot_be_read_is_named(grid_file, tmp_path):
    (tmp_path / "out" / "cells" / "pictures--fedavg-cnn--1.json").mkdir(parents=True)
    with pytest.raises(RunError, match="cannot be read"):
        run_experiment(grid_file(seeds=[1]), tmp_path / "out")


def test_a_peak_that_may_be_of_the_cells_before_is_a_hole(grid_file, tmp_path, monkeypatch):
    monkeypatch.setattr("secure_triplay.memory._CLEAR", tmp_path)
    monkeypatch.setattr("secure_triplay.memory.peak_bytes", lambda: 1 << 40)
    (row,) = run_experiment(grid_file(seeds=[1]), tmp_path / "out")["rows"]
    assert row["peak_bytes_max"] is None


def test_what_a_method_costs_to_a_target_is_read_off_its_own_rounds(grid_file, tmp_path):
    file, out = grid_file(seeds=[1, 2], target_accuracy=0.6), tmp_path / "out"
    result = run_experiment(file, out)
    cells = [json.loads(path.read_text()) for path in sorted((out / "cells").iterdir())]
    (row,) = result["rows"]
    for cell in cells:
        assert cell["curve"][-1]["accuracy"] == cell["accuracy"]
        assert [point["round"] for point in cell["curve"]] == list(range(2, 21, 2))
        assert (
            sum(map(sum, cell["class_counts"].values())) == 20
        )  # of 48: 12 test, 8 public, 4 held back at each
        assert cell["peak_bytes"] > 1e7 if restart_peak() else cell["peak_bytes"] is None
    first = [next(point for point in cell["curve"] if point["accuracy"] >= 0.6) for cell in cells]
    assert row["rounds_to_target"] == pytest.approx(sum(point["round"] for point in first) / 2)
    assert row["cpu_seconds_to_target"] == pytest.approx(
        sum(point["cpu_seconds"] for point in first) / 2, abs=0.06
    )
    assert row["download_bytes"] == row["upload_bytes"] == 4 * row["n_params"]
    assert result["partitions"] == {"pictures": cells[0]["class_counts"]}
    assert (out / "partitions.svg").stat().st_size > 1000
    never = run_experiment(grid_file(seeds=[1, 2], target_accuracy=0.999999), out, only_collect=True)
    reached = all(any(point["accuracy"] == 1 for point in cell["curve"]) for cell in cells)
    assert reached or never["rows"][0]["rounds_to_target"] is None


def test_a_grid_killed_without_warning_goes_on_with_what_was_written(grid_file, tmp_path):
    file, out = grid_file(seeds=[1, 2, 3]), tmp_path / "out"
    run = "import sys; from pathlib import Path; from secure_triplay.experiments.run import run_experiment\n"
    run += "import os, signal\n"
    run += "def tell(text):\n    if text.startswith('[3/3]'): os.kill(os.getpid(), signal.SIGKILL)\n"
    run += "run_experiment(Path(sys.argv[1]), Path(sys.argv[2]), tell)"
    ended = subprocess.run([sys.executable, "-c", run, str(file), str(out)], check=False)
    assert ended.returncode == -9
    kept = {path.name: path.read_bytes() for path in (out / "cells").iterdir()}
    assert set(kept) == {"pictures--fedavg-cnn--1.json", "pictures--fedavg-cnn--2.json"}
    told = []
    result = run_experiment(file, out, told.append)
    assert [text for text in told if text.startswith("[")] == ["[3/3] fedavg-cnn on pictures, seed 3"]
    assert result["missing"] == []
    assert {name: (out / "cells" / name).read_bytes() for name in kept} == kept


def test_mean_and_spread_are_those_of_the_cells(grid_file, tmp_path):
    result = run_experiment(grid_file(seeds=[1, 2, 3]), tmp_path / "out")
    cells = [json.loads(path.read_text()) for path in sorted((tmp_path / "out" / "cells").iterdir())]
    values = [cell["accuracy"] for cell in cells]
    (row,) = result["rows"]
    mean = sum(values) / 3
    assert row["accuracy_mean"] == pytest.approx(mean, abs=1e-5)
    assert row["accuracy_std"] == pytest.approx((sum((v - mean) ** 2 for v in values) / 2) ** 0.5, abs=1e-5)
    assert row["seeds"] == [1, 2, 3]
    assert row["worst_site_mean"] == pytest.approx(sum(c["worst_site"] for c in cells) / 3, abs=1e-5)
    worst = [min(sites.values()) for sites in row["own_records_by_seed"]]
    assert worst == pytest.approx([cell["worst_site"] for cell in cells])
    spread = sum(statistics.pstdev(cell["by_site"].values()) for cell in cells) / 3
    assert row["site_spread_mean"] == pytest.approx(spread, abs=1e-5)
    (line,) = [
        text.split()
        for text in (tmp_path / "out" / "table.txt").read_text().splitlines()
        if "fedavg-cnn" in text
    ][:1]
    assert line[6] == f"{100 * spread:.1f}"
    assert row["accuracy_std"] > 0 < spread  # or the lines above would say nothing
    assert mean > 0.7


def test_a_left_out_domain_is_the_test_set_and_at_no_site(grid_file):
    content = load_grid(grid_file(seeds=[1])).cells[0].study.model_dump(mode="json")
    content["data"] |= {"test_domain": "ward", "partition": {"kind": "domain"}}
    split = split_study(parse_study(content))
    names = split.test.domain_names
    assert {names[code] for code in split.test.domains} == {"ward"}
    assert len(split.test) == 24
    for part in (split.public, *(site.train for site in split.sites.values())):
        assert {names[code] for code in part.domains} == {"lab"}
    content["data"]["test_domain"] = "kitchen"
    with pytest.raises(DataError, match="kitchen"):
        split_study(parse_study(content))


def test_a_private_methods_study_holds_its_epsilon_and_no_other_method_has_one(grid_file):
    ours = ["eps3", "eps0.5", "alone-eps2", "personalised"]
    grid = load_grid(grid_file(methods=[*ours, *sorted(set(METHODS) - {"personalised"})]))
    found = {cell.method.name: cell.study for cell in grid.cells}
    epsilons = {name: study.dp.epsilon for name, study in found.items() if study.dp}
    # less than 8 where more than the training is released, and the rest goes to that
    assert epsilons == {
        "eps3": 3.0, "eps0.5": 0.5, "alone-eps2": 2.0, "personalised": 8.0, "calibrated": 8.0, "adjusted": 7.9,
        "synthesised": 7.9, "tail-aware": 7.8, "personal-adapter": 8.0, "lora": 8.0, "alternating": 8.0,
        "mixed-ranks": 8.0,
    }  # fmt: skip
    assert found["tripleplay"].adapter.kind == "lora"
    assert found["eps3"].total_steps == found["personalised"].total_steps == 2
    assert {row_method.name for row_method in grid.methods if row_method.private} == set(epsilons)


def test_every_method_has_a_procedure_and_every_procedure_a_method():
    used = {known.procedure for known in (*METHODS.values(), method("eps1"), method("alone-eps1"))}
    assert used == set(PROCEDURES)


@pytest.mark.parametrize(
    "name", ["alone-", "alone-no-dp", "alone-epsx", "alone-alone-eps8", "eps", "epsnan", "epsinf"]
)
def test_a_method_that_does_not_exist_is_named(name):
    with pytest.raises(ConfigError, match=f"no method '{name}'"):
        method(name)


def test_a_site_alone_under_privacy_is_a_federation_of_itself(monkeypatch):
    """Each site's rounds see its own records and no others, from the same start."""
    taken = []

    def federate(study, model, records, *, start, biases):
        taken.append((dict(records), start))
        assert biases == {}
        return SimpleNamespace(published=f"adapter of {'+'.join(records)}")

    monkeypatch.setattr("secure_triplay.experiments.ours.federate", federate)
    answered = {}
    setting = SimpleNamespace(
        model=lambda study: SimpleNamespace(adapter=SimpleNamespace(n_params=3)),
        start=lambda model: "start",
        train=lambda model: {"north": "its records", "south": "others"},
        answers=lambda model, adapters: answered.update(adapters),
    )
    study = SimpleNamespace(trains_with_bias=False)
    PROCEDURES[method("alone-eps8").procedure](setting, study)
    assert taken == [({"north": "its records"}, "start"), ({"south": "others"}, "start")]
    assert answered == {"north": "adapter of north", "south": "adapter of south"}


@pytest.fixture(scope="module")
def real(tmp_path_factory, pictures):
    """A grid with the packaged model, run once."""
    folder = tmp_path_factory.mktemp("real")
    content = yaml.safe_load((ROOT / "configs" / "experiments" / "fashion-mnist.yaml").read_text())
    content["classes"] = [{"name": n, "prompts": [f"a {n} picture"]} for n in ("dark", "light")]
    content["data"] = {"kind": "manifest", "manifest": str(pictures), "public_images": 8}
    content["data"]["partition"] = {"kind": "iid"}
    content["sites"] = [{"name": "north"}, {"name": "south"}]
    content["training"]["rounds"] = 4
    content["server_optimiser"]["average_last"] = 1
    # eight public images span no 64 directions, and the logits of two classes move along hardly more than one
    content["adapter"] |= {"rank": 4, "output_rank": 1}
    (folder / "study.yaml").write_text(yaml.safe_dump(content))
    grid = {
        "experiment": "real",
        "seeds": [1],
        "data": [{"name": "pictures", "study": "study.yaml"}],
        "methods": ["start", "alone", "eps8", "eps1", "alone-eps8", "personalised", "personal-adapter"],
        "variants": [{"method": "start", "axes": {"backbone.quantization": {"fp32": "none"}}}],
    }
    (folder / "grid.yaml").write_text(yaml.safe_dump(grid))
    told: list[str] = []
    try:
        result = run_experiment(folder / "grid.yaml", folder / "out", told.append)
    except AssetError as error:
        pytest.skip(f"the packaged weights cannot be had here: {error.what}")
    return folder / "out", result, told


def test_the_frozen_blocks_run_once_for_all_methods(real):
    encoded = [text for text in real[2] if text.startswith("encoding")]
    # two sites' training and held-back records, and the test set; another tower encodes what it needs anew
    assert len(encoded[:5]) == len(set(encoded[:5])) == 5
    assert len(encoded[5:]) == len(set(encoded[5:])) == 3
    assert real[2].count("loading the model") == 2


def test_memory_and_time_to_encode_are_those_of_the_tower_that_was_used(real):
    rows = {row["method"]: row for row in real[1]["rows"]}
    assert rows["start"]["image_frozen_bytes"] == rows["eps8"]["image_frozen_bytes"]
    assert rows["start-fp32"]["image_frozen_bytes"] > 5 * rows["start"]["image_frozen_bytes"]
    assert rows["start"]["encoding_cpu_ms_per_image"] > 0
    assert rows["eps1"]["encoding_cpu_ms_per_image"] is None  # its images were encoded before
    assert 0 <= rows["start"][PRICE] <= rows["start"]["cpu_seconds_mean"]


def test_a_method_pays_for_no_model_that_those_after_it_use(real):
    """Whoever comes first would look dearer, and fall off the frontier for it."""
    for row in real[1]["rows"]:
        (path,) = (real[0] / "cells").glob(f"pictures--{row['method']}--*.json")
        cell = json.loads(path.read_text())
        assert (cell["loading_cpu_seconds"] > 0) == (row["method"] in ("start", "start-fp32"))
        shared = cell["loading_cpu_seconds"] + cell["encoding_cpu_seconds"]
        assert row[PRICE] == pytest.approx(cell["cpu_seconds"] - shared, abs=0.06)


def test_the_planner_reads_the_table(real):
    out, result, _ = real
    measured = read_measurements(out / "result.json")
    rows = {row["method"]: row for row in result["rows"]}
    (at_eight,) = measured.at(8.0)
    assert at_eight.accuracy == rows["eps8"]["accuracy_mean"]
    assert at_eight.start == rows["start"]["accuracy_mean"]
    assert measured.at(3.0) == ()


def test_rounds_that_are_sent_and_epsilon_stand_in_the_rows(real):
    rows = {row["method"]: row for row in real[1]["rows"]}
    assert {name: row["rounds"] for name, row in rows.items()} == {
        "start": 0, "alone": 0, "alone-eps8": 0, "eps8": 4, "eps1": 4, "personalised": 4, "personal-adapter": 4,
        "start-fp32": 0,
    }  # fmt: skip
    epsilons = {name: row["epsilon"] for name, row in rows.items() if row["epsilon"]}
    # a second adapter's updates are paid for already, and class counts are paid for within
    private = {"eps8": 8.0, "eps1": 1.0, "alone-eps8": 8.0, "personal-adapter": 8.0, "personalised": 8.0}
    assert epsilons == private
    assert rows["alone-eps8"]["upload_bytes"] == 0  # a site that trains alone sends nothing
    assert rows["eps8"]["upload_bytes"] == rows["eps1"]["upload_bytes"] > 0
    assert np.isfinite([row["accuracy_mean"] for row in rows.values()]).all()


def test_the_frontier_holds_what_nothing_beats_at_its_price():
    rows = [
        {"method": name, "accuracy_mean": accuracy, "price": price}
        for name, accuracy, price in (
            ("a", 0.7, 1),
            ("b", 0.6, 2),
            ("c", 0.8, 3),
            ("d", 0.8, 4),
            ("e", 0.75, 1),
        )
    ]
    assert [row["method"] for row in frontier(rows, lambda row: row["price"])] == ["e", "c"]


def test_a_plot_of_the_frontier_is_written_where_several_methods_send(real, tmp_path):
    out, result, _ = real
    assert (out / "frontier.svg").read_text().count("</g>") > 20
    only = {**result, "rows": [row for row in result["rows"] if row["method"] == "start"]}
    assert write_frontier(only, tmp_path / "none.svg") is False
    assert not (tmp_path / "none.svg").exists()


def test_names_on_the_frontier_stand_below_it_and_not_on_each_other(tmp_path):
    rows = [
        {
            "data": "pictures", "method": name, "accuracy_mean": accuracy, "accuracy_std": 0.01, "private": name != "c",
            "rounds": 1, "upload_bytes": n, "image_frozen_bytes": 1, PRICE: n,
        }
        for name, accuracy, n in (("a", 0.7, 1000), ("b", 0.7001, 1001), ("c", 0.7002, 1002))
    ]  # fmt: skip
    assert write_frontier({"data": ["pictures"], "rows": rows}, tmp_path / "frontier.svg")
    svg = (tmp_path / "frontier.svg").read_text()
    placed = dict(re.findall(r"<!-- \d  (\w) -->\s*<g [^>]*translate\([\d.]+ ([\d.]+)\)", svg))
    lines = sorted(float(y) for y in placed.values())
    assert sorted(placed) == ["a", "b", "c"]
    assert min(np.diff(lines)) > 8  # points of text
    assert "ochre: without privacy" in svg


def test_partitions_are_told_and_drawn_in_the_order_of_the_data(grid_file, tmp_path):
    data = [{"name": name, "study": "study.yaml"} for name in ("zebra", "apple")]
    result = run_experiment(grid_file(data=data, seeds=[1]), tmp_path / "out")
    assert list(result["partitions"]) == ["zebra", "apple"]
    write_partitions(
        {**result, "partitions": dict(reversed(result["partitions"].items()))}, tmp_path / "drawn.svg"
    )
    for drawn in (tmp_path / "out" / "partitions.svg", tmp_path / "drawn.svg"):
        svg = drawn.read_text()
        assert 0 < svg.index("<!-- zebra -->") < svg.index("<!-- apple -->")


def test_the_command_names_the_fault_and_exits_with_its_code(grid_file, tmp_path):
    code = "from secure_triplay.cli import main; main()"
    file = grid_file(methods=["eps200"])
    run = subprocess.run(
        [sys.executable, "-c", code, "experiment", str(file), "--out", str(tmp_path / "out")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 3
    assert "eps200 on pictures" in run.stderr
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize(
    "broken", [{"data": None}, {"data": "pictures"}, {"sites": None}, {"sites": [3]}, {"sites": 3}]
)
def test_a_study_file_that_is_no_study_is_named_and_no_traceback(grid_file, tmp_path, broken):
    with pytest.raises(ConfigError, match="pictures"):
        run_experiment(grid_file(study=broken, methods=["eps8", "mixed-ranks"]), tmp_path / "out")
    assert not (tmp_path / "out").exists()
