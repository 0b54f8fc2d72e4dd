"""A study file is taken whole and as meant, or refused with the key, the reason and the mend."""

from __future__ import annotations

import copy
import hashlib

import pytest
import yaml
from pydantic import ValidationError

from secure_triplay.config import load_study, parse_study, study_schema
from secure_triplay.errors import ConfigError


def changed(content: dict, path: str, value: object) -> dict:
    """A copy with one key set; "DELETE" removes it."""
    content = copy.deepcopy(content)
    *parents, last = path.split(".")
    part = content
    for key in parents:
        part = part[key]
    if value == "DELETE":
        del part[last]
    else:
        part[last] = value
    return content


@pytest.mark.parametrize("name", ["demo", "blood-cells", "hospital"])
def test_every_shipped_study_loads(name, root, monkeypatch):
    monkeypatch.setenv("BLOOD_CELLS", "/data")
    monkeypatch.setenv("HOSPITAL_DATA", "/data")
    assert load_study(root / "configs" / f"{name}.yaml").study == name


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("privacy.epsilonn", 8.0, "privacy.epsilonn: unknown key; did you mean `epsilon`?"),
        ("trainig", {}, "trainig: unknown key; did you mean `training`?"),
        ("adapter.ranks", 4, "did you mean `rank`?"),
        ("data.partition.alfa", 0.3, "did you mean `alpha`?"),
        ("training.rounds", "twenty", "training.rounds: must be a whole number (given: 'twenty')"),
        ("training.rounds", True, "training.rounds"),
        ("adapter.rank", 0, "adapter.rank: must be 1 or more (given: 0)"),
        ("privacy.l2_clip_norm", 0.0, "privacy.l2_clip_norm: must be more than 0 (given: 0.0)"),
        ("privacy.epsilon", float("nan"), "privacy.epsilon"),
        ("data.partition.imbalance", float("inf"), "data.partition.imbalance: must be a finite number"),
        (
            "privacy.delta",
            0.001,
            "delta 0.001 is too large: with at most 2,000 records at a site it may be 5e-06",
        ),
        ("privacy.unit", "patient", "max_records_per_patient"),
        ("privacy", "DELETE", "privacy: missing"),
        ("classes", [{"name": "one", "prompts": ["a"]}], "classes"),
        ("classes", [{"name": "a", "prompts": []}, {"name": "b", "prompts": ["b"]}], "prompts"),
        ("sites", [{"name": "north"}, {"name": "north"}], "site name north stands more than once"),
        ("sites", [{"name": "North Clinic"}], "sites.0.name"),
        ("backbone.licence", "CC-BY-NC-4.0", "licence 'CC-BY-NC-4.0' is not among allowed_licences"),
        ("backbone.sha256", "DELETE", "sha256 of the weight file is missing"),
        ("backbone.sha256", "1234", "backbone.sha256"),
        ("backbone.quantization", "int4", "backbone.quantization"),
        ("adapter.target_modules", "attn.(", "not a regular expression"),
        ("server_optimiser.average_last", 99, "average_last is larger than training.rounds"),
        ("codec.value_bits", 1, "codec.value_bits"),
        ("aggregation", {"kind": {}}, "aggregation is masked or shared-key"),
        pytest.param("privacy.epsilon", 10**400, "privacy.epsilon", id="epsilon has no float"),
        pytest.param("privacy.delta", 10**400, "privacy.delta", id="delta has no float"),
        pytest.param("privacy.sampling_rate", -(10**400), "sampling_rate", id="rate has no float"),
    ],
)
def test_a_wrong_key_is_named_with_its_mend(demo, path, value, expected):
    with pytest.raises(ConfigError) as caught:
        parse_study(changed({"codec": {}, **demo}, path, value))
    assert expected in caught.value.what


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        ("privacy.epsilon", 0, "epsilon 0 cannot be had: at 0 nothing may be learned from anybody"),
        ("privacy.epsilon", -1.0, "epsilon -1 cannot be had"),
        ("privacy.epsilon", 1e4, "epsilon 10000 protects nobody"),
        ("privacy.delta", 0.0, "delta 0 is not a small chance above 0"),
        ("privacy.delta", -1e-6, "delta -1e-06 is not a small chance above 0"),
        ("privacy.delta", 1.0, "delta 1 is not a small chance above 0"),
        (
            "privacy.delta",
            0.001,
            "delta 0.001 is too large: with at most 2,000 records at a site it may be 5e-06",
        ),
        ("privacy.sampling_rate", 1.5, "a step cannot use 1.5 of a site: that is more than there is"),
        ("privacy.sampling_rate", 0, "a step cannot use 0 of a site: that is nobody at all"),
        ("privacy.expected_batch_size", 2001, "2,001 is more records a step than exist"),
        ("training.rounds", -3, "-3 rounds of training are impossible; give a whole number from 1"),
        ("training.rounds", 0, "0 rounds of training are impossible"),
        ("training.rounds", 10**6, "1,000,000 rounds of training are impossible"),
    ],
)
def test_an_impossible_budget_gets_a_sentence_that_an_officer_understands(demo, path, value, sentence):
    with pytest.raises(ConfigError) as caught:
        parse_study(changed(demo, path, value))
    assert sentence in caught.value.what
    assert "Input should" not in caught.value.what


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        ("privacy.max_records_per_patient", "DELETE", "unit: patient needs it"),
        ("privacy.max_records_per_patient", 200, "only 128 images fit into memory at once"),
        ("privacy.expected_batch_size", 300, "300 is more patients a step than exist"),
        ("privacy.delta", 1e-4, "with at most 200 patients at a site it may be 5e-05"),
        ("privacy.unit", "record", "max_records_per_patient belongs to unit: patient"),
        ("data", {"kind": "fashion-mnist"}, "unit: patient needs data that name patients"),
    ],
)
def test_a_study_that_protects_patients_says_what_it_needs(root, path, value, sentence):
    study = yaml.safe_load((root / "configs" / "blood-cells.yaml").read_text())
    assert parse_study(study).dp.unit == "patient"
    with pytest.raises(ConfigError) as caught:
        parse_study(changed(study, path, value))
    assert sentence in caught.value.what


def test_a_study_without_privacy_needs_the_unsafe_key_and_a_range(demo):
    off = {"sampling_rate": 0.25, "expected_batch_size": 500}
    with pytest.raises(ConfigError):
        parse_study(changed(demo, "privacy", off))
    with pytest.raises(ConfigError, match=r"codec\.range is missing"):
        parse_study(changed(demo, "privacy", off | {"unsafe_dp_off": True}))
    with pytest.raises(ConfigError):
        parse_study(
            changed(changed(demo, "privacy", off | {"unsafe_dp_off": False}), "codec", {"range": 0.1})
        )
    study = parse_study(
        changed(changed(demo, "privacy", off | {"unsafe_dp_off": True}), "codec", {"range": 0.1})
    )
    assert study.dp is None


def test_a_study_cannot_be_changed_after_it_was_read(demo):
    study = parse_study(demo)
    with pytest.raises(ValidationError):
        study.privacy.epsilon = 80.0


def test_the_hash_covers_what_is_agreed_on_and_not_where_a_machine_keeps_it(demo):
    base = parse_study(demo).sha256
    assert parse_study(copy.deepcopy(demo)).sha256 == base
    assert parse_study(changed(demo, "privacy.epsilon", 4.0)).sha256 != base
    assert parse_study(changed(demo, "seed", 1)).sha256 != base
    manifests = [
        changed(demo, "data", {"kind": "manifest", "manifest": path}) for path in ("/a/m.csv", "/b/m.csv")
    ]
    assert parse_study(manifests[0]).sha256 == parse_study(manifests[1]).sha256


def test_config_sha256_is_that_of_the_file(root):
    path = root / "configs" / "demo.yaml"
    assert load_study(path).file_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("text", "what", "where"),
    [
        ("", "empty", ""),
        ("- a\n- b\n", "mapping", ""),
        ("study: [1, 2\n", "not YAML", "line"),
        ("study: demo\nstudy: other\n", "given twice", "line 2"),
        ("study: !!python/object/apply:os.system ['true']\n", "not YAML", "line 1"),
        ("study: demo\napproved_on: 2026-02-30\n", "day is out of range", "line 2"),
        ("study: demo\nseed: " + 5000 * "9", "4300 digits", "line 2"),
        ("study: !!int several\n", "not YAML", "line 1"),
        ("study: !!bool several\n", "not YAML", "line 1"),
        ("study: demo\n? [a, b]\n: 1\n", "where a key is due", "line 2"),
        ("study: " + 2000 * "[" + 2000 * "]", "nested too deep", ""),
    ],
)
def test_a_file_that_is_no_study_is_refused_with_the_line(tmp_path, text, what, where):
    path = tmp_path / "study.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_study(path)
    assert what in caught.value.what
    assert where in caught.value.where


def test_missing_and_binary_files_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        load_study(tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_study(tmp_path / "binary.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_study(tmp_path)


def test_paths_are_taken_from_the_study_files_folder_and_variables_must_be_set(tmp_path, demo, monkeypatch):
    path = tmp_path / "study.yaml"
    path.write_text(
        yaml.safe_dump(changed(demo, "data", {"kind": "manifest", "manifest": "cells/manifest.csv"}))
    )
    assert load_study(path).data.manifest == str(tmp_path / "cells" / "manifest.csv")
    monkeypatch.delenv("NOT_SET_ANYWHERE", raising=False)
    path.write_text(
        yaml.safe_dump(changed(demo, "data", {"kind": "manifest", "manifest": "$NOT_SET_ANYWHERE/m.csv"}))
    )
    with pytest.raises(ConfigError, match="variable that is not set") as caught:
        load_study(path)
    assert "export NOT_SET_ANYWHERE=" in caught.value.fix
    assert caught.value.where == str(path)


def test_the_schema_names_every_key_of_the_demo(demo):
    schema = study_schema()
    assert set(demo) <= set(schema["properties"])
    assert schema["additionalProperties"] is False


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("partition", {"kind": "patient", "scanners": "differ"}),
        ("public_images", 50),
        ("test_fraction", 0.5),
        ("test_domain", "photo"),
    ],
)
def test_what_divides_one_manifest_is_refused_where_each_site_has_its_own(demo, name, value):
    demo["data"] = {"kind": "manifest", "test_manifest": "t.csv", "public_manifest": "p.csv"}
    demo["sites"] = [{"name": each["name"], "manifest": f"{each['name']}.csv"} for each in demo["sites"]]
    parse_study(demo)
    demo["data"][name] = value
    with pytest.raises(ConfigError, match=rf"data\.{name}: each site brings a manifest of its own"):
        parse_study(demo)


def test_a_seed_given_beside_the_file_is_checked_as_one_in_it(tmp_path, demo):
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(demo))
    assert load_study(path, seed=7).seed == 7
    assert load_study(path).seed == demo["seed"]
    with pytest.raises(ConfigError, match="seed: must be 0 or more"):
        load_study(path, seed=-1)
