"""Files that people write: one way from YAML to values, which no file can make eat all memory, and mends that help."""

from __future__ import annotations

import ast
import json
import os
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from secure_triplay import schema
from secure_triplay.attacks.threat import load_threat_model
from secure_triplay.config import load_study, parse_study
from secure_triplay.errors import ConfigError
from secure_triplay.experiments.grid import Experiment, load_grid
from secure_triplay.federation.approval import key_id, require_trust_file
from secure_triplay.ledger.entries import Body
from secure_triplay.policy import load_policy
from secure_triplay.schema import MOST_ALIASED, Frozen, parse_yaml

LAUGHS = "a0: &a0 [ha, ha]\n" + "".join(
    f"a{i}: &a{i} [{', '.join(9 * [f'*a{i - 1}'])}]\n" for i in range(1, 12)
)
LONG = f"a: &a {500 * 'ha '}\nb: [{', '.join(2000 * ['*a'])}]\n"
INSIDE = "a: &a\n  b: *a\n"
READERS = {
    "study": load_study,
    "policy": load_policy,
    "experiment": load_grid,
    "threat model": load_threat_model,
}


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
@pytest.mark.parametrize("text", [LAUGHS, LONG, INSIDE], ids=["laughs", "long", "inside itself"])
def test_aliases_that_no_memory_would_hold_are_refused_in_every_file(tmp_path, read, text):
    (tmp_path / "file.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        read(tmp_path / "file.yaml")
    assert "alias" in caught.value.what


def test_a_trust_file_of_aliases_is_refused_like_any_other_that_is_wrong(tmp_path):
    line = "ssh-ed25519 AAAA approver"
    (tmp_path / "trust.yaml").write_text(f"{key_id(line)}: {line}\n{LAUGHS}")
    with pytest.raises(Exception, match="does not list this site's own approval key"):
        require_trust_file(tmp_path / "trust.yaml", line)


def test_what_aliases_may_add_is_counted_as_json_would_write_it():
    """The oracle writes the content out: one letter a letter, and one more for each value."""

    def in_full(value) -> int:
        if isinstance(value, dict):
            return 1 + sum(in_full(part) for pair in value.items() for part in pair)
        return 1 + (sum(map(in_full, value)) if isinstance(value, list) else len(json.dumps(value)) - 2)

    def text(times: int) -> str:
        return f"a: &a [{', '.join(999 * ['x' * 8])}, {'y' * 7}]\nb: [{', '.join(times * ['*a'])}]\n"

    last = next(n for n in range(1, 10_000) if n * in_full(["x" * 8] * 999 + ["y" * 7]) > MOST_ALIASED)
    assert len(parse_yaml(text(last - 1), "here")["b"]) == last - 1
    with pytest.raises(ConfigError, match="repeat more than memory"):
        parse_yaml(text(last), "here")


def test_a_long_file_without_aliases_is_no_bomb(monkeypatch):
    monkeypatch.setattr(schema, "MOST_ALIASED", 1000)
    many = {"values": list(range(1000))}
    assert parse_yaml(json.dumps(many), "here") == many


def test_anchors_that_people_write_are_read(root):
    for path in sorted((root / "configs" / "experiments").glob("*.yaml")):
        assert parse_yaml(path.read_text(), str(path)) == yaml.safe_load(path.read_text())


def test_every_yaml_that_the_package_reads_goes_through_one_function(root):
    calls = []
    for path in (root / "secure_triplay").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name)
                and node.value.id == "yaml"
            ):
                calls += [path.name] if "load" in node.attr and not node.attr.endswith("Loader") else []
            if isinstance(node, ast.ImportFrom) and node.module == "yaml":
                calls.append(path.name)
    assert calls == ["schema.py"]


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("sites", "x", "sites: must be a list (given: 'x')"),
        ("sites", [1], "sites.0: must be a mapping of keys (given: 1)"),
        ("sites", [], "sites: must have 1 or more entries"),
        ("data", 3, "data: must be a mapping of keys (given: 3)"),
        ("data", {"kind": "x"}, "data: 'kind' must be one of 'fashion-mnist', 'manifest'"),
        ("privacy", [], "privacy: must be a mapping of keys"),
        ("adapter", {"kind": "x"}, "adapter.kind: must be 'ffa' or 'lora' (given: 'x')"),
        ("epsilon", 3, "epsilon: unknown key here; it belongs to another part of the file"),
        ("epsilonn", 3, "epsilonn: unknown key; did you mean `epsilon`?"),
        ("DpOn", 1, "DpOn: unknown key"),
        ("list[x]", 1, "list[x]: unknown key"),
    ],
)
def test_a_wrong_value_is_told_in_the_words_of_the_file(demo, key, value, said):
    with pytest.raises(ConfigError) as caught:
        parse_study(demo | {key: value})
    assert caught.value.what == said


def test_privacy_and_none_are_not_asked_for_together(demo):
    with pytest.raises(
        ConfigError, match=r"unsafe_dp_off trains without privacy, and epsilon, delta, .* are of"
    ):
        parse_study(demo | {"privacy": demo["privacy"] | {"unsafe_dp_off": True}})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rounds: 1\nseed: 0x" + "f" * 6000, "line 2"),
        ("base: &a {x: 1}\nmore: {<<: *a}\n", "merge keys .* line 2"),
    ],
)
def test_a_value_that_cannot_be_shown_or_is_not_read_here_is_refused_with_its_line(text, said):
    with pytest.raises(ConfigError, match=said):
        parse_yaml(text, "study.yaml")


@pytest.mark.parametrize("text", ["010", "-010", "0_1_0", "00", "1:30", "18:00", "1:30.5"])
def test_a_number_that_yaml_reads_otherwise_than_people_do_is_refused(text):
    with pytest.raises(ConfigError, match=f"YAML reads {text} as") as refused:
        parse_yaml(f"a: 1\nmost_patients: {text}\n", "policy.yaml")
    assert refused.value.where == "policy.yaml, line 2"


@pytest.mark.parametrize(
    ("text", "value"),
    [("0", 0), ("10", 10), ("0.10", 0.1), ("1_000", 1000), ("0x10", 16), ("true", True), ("'010'", "010")],
)
def test_numbers_that_yaml_reads_as_people_do_are_read(text, value):
    assert parse_yaml(f"a: {text}", "policy.yaml") == {"a": value}


@pytest.mark.parametrize("read", [load_policy, load_study])
def test_no_hash_of_nothing_is_noted_for_a_file_that_can_be_read_only_once(root, read):
    name = "policies/strict.yaml" if read is load_policy else "demo.yaml"
    reads, writes = os.pipe()
    os.write(writes, (root / "configs" / name).read_bytes())
    os.close(writes)
    with pytest.raises(ConfigError, match="only once"):
        read(Path(f"/dev/fd/{reads}"))
    os.close(reads)


@pytest.mark.parametrize("hours", [3, [], [{"from": "08:00", "until": 9, "x": 1}], {}])
def test_no_name_of_the_validator_stands_in_an_error(root, tmp_path, hours):
    content = yaml.safe_load((root / "configs" / "policies" / "strict.yaml").read_text())
    (tmp_path / "policy.yaml").write_text(yaml.safe_dump(content | {"allowed_hours": hours}))
    with pytest.raises(ConfigError) as caught:
        load_policy(tmp_path / "policy.yaml")
    for word in ("tuple", "function-after", "literal", "Input should", "dictionary"):
        assert word not in caught.value.what
    assert all(
        line.startswith(("allowed_hours: ", "allowed_hours.0.")) for line in caught.value.what.splitlines()
    )


@pytest.mark.parametrize("text", ["", "- a\n", "experiment: [1]\n", "experimnt: grid\n"])
def test_a_wrong_experiment_is_sent_to_experiments_and_told_their_keys(tmp_path, text):
    (tmp_path / "grid.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_grid(tmp_path / "grid.yaml")
    assert "configs/experiments" in caught.value.fix
    assert "config schema" not in caught.value.fix
    assert all(key in caught.value.fix for key in Experiment.model_fields)
    assert "study" not in caught.value.what


@pytest.mark.parametrize(
    ("kind", "mend"),
    [
        ("study", "configs/demo.yaml"),
        ("policy", "configs/policies/"),
        ("experiment", "configs/experiments/"),
        ("threat model", "threat_models/"),
    ],
)
@pytest.mark.parametrize("content", [None, b"", b"- a\n", "a folder"])
def test_a_file_that_is_none_of_its_kind_is_sent_to_examples_of_that_kind(tmp_path, kind, mend, content):
    path = tmp_path / "file.yaml"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content:
        path.mkdir()
    with pytest.raises(ConfigError) as caught:
        READERS[kind](path)
    assert mend in caught.value.fix
    assert "[Errno" not in caught.value.what


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
@pytest.mark.parametrize("name", ["a\0b.yaml", "a\ud800b.yaml"])
def test_a_path_that_no_file_can_have_is_an_error_with_what_to_do(tmp_path, read, name):
    with pytest.raises(ConfigError, match="its path has a letter that no file's name can have") as caught:
        read(tmp_path / name)
    assert caught.value.where.isprintable()
    assert "check the path" in caught.value.fix


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("base", [Frozen, Body])
def test_no_part_of_a_study_a_report_or_a_ledger_holds_a_number_that_is_not_finite(base, value):
    class Told(base):
        epsilon: float

    assert Told(epsilon=1.5).epsilon == 1.5
    with pytest.raises(ValidationError, match="finite"):
        Told(epsilon=value)
