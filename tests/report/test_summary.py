from __future__ import annotations

import ast
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from secure_triplay.errors import RunError
from secure_triplay.report.summary import Summary, write_summary
from secure_triplay.schema import Frozen

PROMISED = (
    "accuracy.baseline",
    "accuracy.final",
    "accuracy.per_site",
    "accuracy.worst_site",
    "upload.bytes_per_site_per_round",
    "upload.n_params",
    "upload.plaintext_fp32_bytes",
    "upload.bytes_per_param",
    "timing.train_s",
    "timing.encode_encrypt_s",
    "timing.server_sum_s",
    "timing.decrypt_apply_s",
    "timing.wall_s",
    "rounds",
    "config_sha256",
    "backbone.name",
    "backbone.sha256",
    "backbone.licence",
    "backbone.quantization",
    "versions",
    "schema_version",
    "seed",
    "study",
    "dp",
)


def test_a_summary_survives_writing_and_reading(summary: Summary, tmp_path: Path) -> None:
    path = write_summary(summary, tmp_path / "summary.json")
    assert Summary.model_validate_json(path.read_bytes()) == summary


SAID_ONCE_FOR_ALL = {
    "SitePrivacy": {"neighbouring"},
    "HarnessOnly": {"travelled", "fields", "note"},
    "Summary": {"schema_version", "harness_only"},
}
FILLED_LAST = {"AdapterMade": {"files_sha256"}}
"""Once the adapter's files are there."""


def test_a_run_fills_every_field_of_its_summary(root: Path) -> None:
    """The oracle is the code that makes one: which fields it names."""
    filled: dict[str, set[str | None]] = {}
    for node in ast.walk(ast.parse((root / "secure_triplay" / "summarise.py").read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            filled.setdefault(node.func.attr, set()).update(keyword.arg for keyword in node.keywords)
    for part in (part for part in Frozen.__subclasses__() if part.__module__ == Summary.__module__):
        unsaid = set(part.model_fields) - SAID_ONCE_FOR_ALL.get(part.__name__, set())
        assert unsaid - FILLED_LAST.get(part.__name__, set()) == filled.get(part.__name__, set()), (
            part.__name__
        )


@pytest.mark.parametrize("key", PROMISED)
def test_every_promised_figure_stands_under_its_promised_key(summary: Summary, key: str) -> None:
    found: Any = json.loads(summary.to_json())
    for part in key.split("."):
        found = found[part]
    assert found is not None


def test_privacy_has_one_complete_entry_a_site(summary: Summary) -> None:
    entries = json.loads(summary.to_json())["privacy"]
    assert [entry["site"] for entry in entries] == list(summary.federation.sites)
    promised = {
        "site",
        "epsilon",
        "delta",
        "unit",
        "accountant",
        "noise_multiplier",
        "sampling_rate",
        "steps",
    }
    assert all(promised <= set(entry) for entry in entries)


def test_figures_by_site_are_marked_as_never_having_travelled(summary: Summary) -> None:
    marker = json.loads(summary.to_json())["harness_only"]
    assert marker["travelled"] is False
    assert {"accuracy.per_site", "accuracy.worst_site", "federation.records_per_site"} <= set(
        marker["fields"]
    )


def test_nobody_can_mark_them_as_having_travelled(content: dict[str, Any]) -> None:
    content["harness_only"]["travelled"] = True
    with pytest.raises(ValidationError, match="travelled"):
        Summary.model_validate_json(json.dumps(content))


def test_a_summary_cannot_be_changed(summary: Summary) -> None:
    with pytest.raises(ValidationError):
        summary.rounds = 1  # type: ignore[misc]


def _epsilon_while_off(content: dict[str, Any]) -> None:
    content["dp"] = "off"


def _no_epsilon_while_on(content: dict[str, Any]) -> None:
    content["privacy"][0]["epsilon"] = None


def _epsilon_without_noise(content: dict[str, Any]) -> None:
    content["privacy"][0]["noise_multiplier"] = 0.0


def _worst_is_not_worst(content: dict[str, Any]) -> None:
    content["accuracy"]["worst_site"] = {"name": "east"} | {
        key: content["accuracy"]["per_site"]["east"][key] for key in ("baseline", "final")
    }


def _bytes_do_not_add_up(content: dict[str, Any]) -> None:
    content["upload"]["bytes_per_param"] = 2.0


def _short_series(content: dict[str, Any]) -> None:
    content["accuracy"]["per_round"].pop()


def _stranger(content: dict[str, Any]) -> None:
    content["federation"]["records_per_site"]["nobody"] = 1


def _missing_entry(content: dict[str, Any]) -> None:
    content["privacy"].pop()


def _unknown_key(content: dict[str, Any]) -> None:
    content["note"] = "x"


def _other_version(content: dict[str, Any]) -> None:
    content["schema_version"] = 1


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (_epsilon_while_off, "dp is off"),
        (_no_epsilon_while_on, "dp is on"),
        (_epsilon_without_noise, "without noise"),
        (_worst_is_not_worst, "lowest"),
        (_bytes_do_not_add_up, "bytes a parameter"),
        (_short_series, "series"),
        (_stranger, "nobody"),
        (_missing_entry, "one entry per site"),
        (_unknown_key, "note"),
        (_other_version, "schema_version"),
    ],
)
def test_a_summary_that_contradicts_itself_is_refused(
    content: dict[str, Any], spoil: Callable[[dict[str, Any]], None], says: str
) -> None:
    spoil(content)
    with pytest.raises(ValidationError, match=says):
        Summary.model_validate_json(json.dumps(content))


def test_nan_is_refused(summary: Summary) -> None:
    with pytest.raises(ValidationError):
        Summary.model_validate_json(summary.to_json().replace("0.659", "NaN"))


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_no_other(
    summary: Summary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    target = tmp_path / "summary.json"
    target.write_text("old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, full)
    with pytest.raises(RunError, match="No space left"):
        write_summary(summary, target)
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]
    assert target.read_text() == "old"


def test_a_folder_that_is_not_there_is_a_clear_error(summary: Summary, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="cannot be written"):
        write_summary(summary, tmp_path / "none" / "summary.json")
