"""`secure-triplay bench`: what was measured is never lost, and no result of something else is overwritten."""

from __future__ import annotations

import json
import os

import pytest
from typer.testing import CliRunner

from secure_triplay.bench import backbone, crypto, load, masking
from secure_triplay.cli import bench
from secure_triplay.deploy import bench as federation
from secure_triplay.errors import PrivacyError, RunError

MEASURED = {"suite": "masking", "rows": [], "goals": {}}


@pytest.fixture
def measured(monkeypatch):
    """Every bench measures the same in no time; what it was asked is counted."""
    asked: list[str] = []

    def run(suite: str):
        return lambda *args, **more: asked.append(suite) or {**MEASURED, "suite": suite}

    for module, suite in ((masking, "masking"), (load, "load"), (crypto, "crypto"), (backbone, "backbone")):
        monkeypatch.setattr(module, f"run_{suite}_bench", run(suite))
        if suite != "backbone":
            monkeypatch.setattr(module, f"plot_{suite}_bench", lambda result, path: path.write_text("<svg/>"))
    return asked


def bench_of(suite: str, out, *more: str):
    return CliRunner().invoke(bench.app, [suite, "--out", str(out), "--json", *more])


def test_a_result_of_another_suite_is_refused_before_anything_is_measured_and_kept(measured, tmp_path):
    (tmp_path / "result.json").write_text('{"suite": "load"}')
    done = bench_of("masking", tmp_path)
    assert isinstance(done.exception, RunError)
    assert "something else" in done.exception.what
    assert str(tmp_path / "result.json") in done.exception.where
    assert measured == []
    assert (tmp_path / "result.json").read_text() == '{"suite": "load"}'


@pytest.mark.parametrize("there", ["", "[]", "not JSON", '{"rows": []}', '{"audit": "server-blindness"}'])
def test_a_file_that_is_no_result_of_a_bench_is_refused_and_kept(measured, tmp_path, there):
    (tmp_path / "result.json").write_text(there)
    assert isinstance(bench_of("masking", tmp_path).exception, RunError)
    assert measured == []
    assert (tmp_path / "result.json").read_text() == there


def test_a_bench_is_run_again_in_its_own_folder(measured, tmp_path):
    (tmp_path / "README.md").write_text("about it")
    for _ in range(2):
        assert bench_of("masking", tmp_path).exit_code == 0
    assert json.loads((tmp_path / "result.json").read_text()) == MEASURED
    assert sorted(os.listdir(tmp_path)) == ["README.md", "bench.svg", "result.json"]
    assert measured == ["masking"] * 2


def test_a_result_of_the_backbones_bench_from_before_it_had_a_name_is_its_own(measured, tmp_path, root):
    (tmp_path / "result.json").write_bytes((root / "audits" / "backbone-memory" / "result.json").read_bytes())
    assert isinstance(bench_of("masking", tmp_path).exception, RunError)
    assert bench_of("backbone", tmp_path).exit_code == 0


def test_what_was_measured_is_printed_even_where_it_cannot_be_written(measured, tmp_path, monkeypatch):
    def measure_and_lose_the_folder(**_):
        (tmp_path / "out").write_text("in the way, meanwhile")
        return MEASURED

    monkeypatch.setattr(masking, "run_masking_bench", measure_and_lose_the_folder)
    done = bench_of("masking", tmp_path / "out")
    assert json.loads(done.stdout) == MEASURED
    assert isinstance(done.exception, RunError)
    assert "cannot be written" in done.exception.what


def test_what_was_measured_is_written_even_where_it_cannot_be_printed(measured, tmp_path, monkeypatch):
    def closed(content):
        raise BrokenPipeError

    monkeypatch.setattr(bench, "print_json", closed)
    assert isinstance(bench_of("masking", tmp_path / "out").exception, BrokenPipeError)
    assert json.loads((tmp_path / "out" / "result.json").read_text()) == MEASURED


def test_a_bench_that_is_refused_leaves_no_folder(tmp_path, root):
    (tmp_path / "policy.yaml").write_text("- a list\n")
    study, policy = str(root / "configs" / "demo.yaml"), str(tmp_path / "policy.yaml")
    done = CliRunner().invoke(
        bench.app, ["federation", study, policy, "--out", str(tmp_path / "deep" / "out")]
    )
    assert done.exception is not None
    assert os.listdir(tmp_path) == ["policy.yaml"]


@pytest.mark.parametrize(
    ("inside", "named"),
    [
        ("site-1/policy.yaml", "{policy}"),
        ("study.yaml", "{study}"),
        ("coordinator/rounds/epoch-1/events.jsonl", "the bench's own folder"),
    ],
)
def test_a_bench_of_a_federation_names_only_files_that_are_still_there(root, monkeypatch, inside, named):
    study, policy = root / "configs" / "demo.yaml", root / "configs" / "policies" / "public-data.yaml"

    def refused(folder, *_):
        raise PrivacyError("refused", where=f"{folder}/{inside}", fix=f"mend {folder}/{inside}; then again")

    monkeypatch.setattr(federation, "_prepared", refused)
    with pytest.raises(PrivacyError) as caught:
        federation.run_federation_bench(study, policy, sites=2, rounds=2)
    named = named.format(study=study, policy=policy)
    assert (caught.value.where, caught.value.fix) == (named, f"mend {named}; then again")
