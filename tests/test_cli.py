"""The command: errors in three parts with an exit code of their own, never a traceback; JSON where it is asked for."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from typing import get_type_hints

import pytest
import typer
import yaml
from click.testing import CliRunner

from secure_triplay import cli


def run(*arguments: str, cwd=None, env=None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from secure_triplay.cli import main; main()", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=env, timeout=120, check=False)


def assert_plain_error(done: subprocess.CompletedProcess[str], code: int, *parts: str) -> None:
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    for part in ("Error:", "What to do:", *parts):
        assert part in " ".join(done.stderr.split())


def test_config_check_says_in_plain_words_what_a_study_does(root):
    done = run("config", "check", str(root / "configs" / "demo.yaml"))
    assert done.returncode == 0, done.stderr
    words = " ".join(done.stdout.split())
    for part in ("epsilon 8", "per record and site", "30 rounds", "Server and 2 sites together"):
        assert part in words


def test_config_check_json_holds_the_same_topics(root):
    content = json.loads(run("config", "check", str(root / "configs" / "demo.yaml"), "--json").stdout)
    assert {"Study", "Data", "Model", "Privacy", "Server", "Not protected"} <= set(content)


def test_config_schema_is_a_json_schema():
    assert json.loads(run("config", "schema").stdout)["title"] == "Study"


def test_an_unknown_key_is_an_error_with_exit_code_3(tmp_path, demo):
    demo["trainig"] = demo.pop("training")
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(demo))
    assert_plain_error(run("config", "check", str(path)), 3, "did you mean `training`?", "study.yaml")


def test_a_path_in_an_error_is_never_broken_in_two(tmp_path):
    path = tmp_path / ("a-long-folder-name-" * 8) / "study.yaml"
    done = run("config", "check", str(path))
    assert str(path) in done.stderr


def test_results_that_cannot_be_written_are_an_error_before_anything_is_measured(tmp_path):
    (tmp_path / "taken").write_text("a file, where a folder is asked for")
    told = "import secure_triplay.bench.crypto as bench; bench.run_crypto_bench = lambda **_: print('measured') or {}; "
    command = [sys.executable, "-c", told + "from secure_triplay.cli import main; main()",
               "bench", "crypto", "--quick", "--out", str(tmp_path / "taken" / "out")]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert_plain_error(done, 9, "cannot be written", "taken")
    assert "measured" not in done.stdout


def test_a_folder_that_cannot_be_made_is_no_traceback(tmp_path, root):
    (tmp_path / "taken").write_text("a file, where a folder is asked for")
    asked = ("budget", "plan", str(root / "configs" / "demo.yaml"), "--epsilon", "3")
    assert_plain_error(run(*asked, "--out", str(tmp_path / "taken" / "out")), 9, "cannot be used", "taken")


@pytest.mark.parametrize(
    ("closed", "asked", "code"),
    [
        (">&-", ("config", "schema"), 0),
        ("<&- >&- 2>&-", ("config", "schema"), 0),
        ("2>&-", ("config", "check", "none.yaml"), 3),
    ],
)
def test_a_stream_that_the_caller_closed_is_no_traceback(closed, asked, code):
    told = [sys.executable, "-c", "from secure_triplay.cli import main; main()", *asked]
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {closed}', "sh", *told],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (code, "")


def test_letters_that_a_terminal_lacks_are_no_traceback(root):
    ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = run("config", "check", str(root / "configs" / "demo.yaml"), env=ascii_only)
    assert (done.returncode, done.stderr) == (0, "")
    assert "epsilon 8" in done.stdout


@pytest.mark.parametrize("command", ["check", "schema"])
def test_a_reader_that_went_away_is_told_from_a_finding_by_the_exit_code(root, command):
    asked = ["config", command, *([str(root / "configs" / "demo.yaml")] if command == "check" else [])]
    told = [sys.executable, "-c", "from secure_triplay.cli import main; main()", *asked]
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(told, stdout=write, stderr=subprocess.PIPE, text=True, timeout=120, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


def test_brackets_in_a_path_or_a_study_are_shown_as_they_are(tmp_path, demo):
    demo["adapter"]["target_modules"] = "attn.[a-z]+"
    path = tmp_path / "[old] study.yaml"
    path.write_text(yaml.safe_dump(demo))
    done = run("config", "check", str(path))
    shown = " ".join(done.stdout.split())  # a long path is wrapped
    assert "[old] study.yaml" in shown
    assert "attn.[a-z]+" in shown
    assert_plain_error(run("config", "check", r"none\[/b].yaml"), 3, r"none\[/b].yaml")


def test_a_command_to_run_next_can_be_pasted_where_a_path_has_spaces(tmp_path, root):
    policy = root / "configs" / "policies" / "public-data.yaml"
    asked = ("--policy", str(policy), "--approved-by", "Dr. Weber")
    done = run("site", "init", "--name", "north", "--dir", "ward [a] 3", *asked, cwd=tmp_path)
    assert "--site 'ward [a] 3'" in done.stdout


@pytest.mark.parametrize("most", [500, 20_000])
def test_a_file_that_cannot_grow_is_no_traceback(tmp_path, root, most):
    """As on a full disk: none of the results fits into 500 bytes, and no picture into 20,000."""
    limited = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({most}, {most})); "
    command = [sys.executable, "-c", limited + "from secure_triplay.cli import main; main()", "budget", "plan",
               str(root / "configs" / "demo.yaml"), "--epsilon", "3", "--out", str(tmp_path / "plan")]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert_plain_error(done, 9, "cannot be", str(tmp_path / "plan"), "the disk has room")
    assert os.listdir(tmp_path) == []  # all files of a plan, or none


@pytest.mark.parametrize("wrong", ["study.yaml", "policy.yaml"])
def test_a_bench_of_a_federation_says_which_of_its_files_is_wrong(tmp_path, root, wrong):
    (tmp_path / "study.yaml").write_bytes((root / "configs" / "demo.yaml").read_bytes())
    (tmp_path / "policy.yaml").write_bytes((root / "configs" / "policies" / "public-data.yaml").read_bytes())
    (tmp_path / wrong).write_text("- a list\n")
    done = run("bench", "federation", str(tmp_path / "study.yaml"), str(tmp_path / "policy.yaml"))
    assert_plain_error(done, 3, "a mapping of keys", str(tmp_path / wrong))


@pytest.mark.parametrize("option", ["--audits", "--threat-models"])
def test_a_folder_of_results_that_is_not_there_is_no_lack_of_results(tmp_path, option):
    assert_plain_error(run("threats", option, str(tmp_path / "none")), 3, "no such folder", "none")


@pytest.mark.parametrize("writable", [True, False])
def test_a_mistake_of_the_program_is_a_report_and_a_code_that_is_no_finding(tmp_path, root, writable):
    broken = "import secure_triplay.policy as p; p.load_policy = lambda path: [][1]; import tempfile; "
    broken += f"tempfile.tempdir = {str(tmp_path if writable else tmp_path / 'none')!r}; "
    policy, study = root / "configs" / "policies" / "strict.yaml", root / "configs" / "demo.yaml"
    command = [sys.executable, "-c", broken + "from secure_triplay.cli import main; main()",
               "policy", "check", str(policy), str(study)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert_plain_error(done, 70, "IndexError: list index out of range", "report it")
    reports = list(tmp_path.iterdir())
    assert len(reports) == writable
    for report in reports:
        assert "Traceback" in report.read_text()
        assert report.name.startswith("secure-triplay-crash-")
        assert str(report) in done.stderr
        assert report.stat().st_mode & 0o777 == 0o600


def test_a_seed_that_is_none_is_wrong_usage_and_never_a_crash(tmp_path, root):
    done = run(
        "simulate", str(root / "configs" / "demo.yaml"), "--seed", "-1", "--out", str(tmp_path / "run")
    )
    assert "--seed" in done.stderr
    assert "-1" in done.stderr
    assert "crash" not in done.stderr
    assert os.listdir(tmp_path) == []


def test_an_output_folder_that_exists_is_left_alone(tmp_path, root):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "precious").write_text("kept")
    assert_plain_error(
        run("simulate", str(root / "configs" / "demo.yaml"), "--out", str(tmp_path / "run")), 9, "exists"
    )
    assert (tmp_path / "run" / "precious").read_text() == "kept"


def test_a_budget_that_no_noise_gives_is_refused_before_anything_is_started(tmp_path, demo):
    demo["privacy"]["epsilon"] = 1e-9
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(demo))
    done = run("simulate", str(path), "--out", str(tmp_path / "run"))
    assert_plain_error(done, 3, "privacy.epsilon")
    assert not list(tmp_path.glob("run*"))


@pytest.mark.parametrize(
    "arguments",
    [
        ("nonsense",),
        ("simulate",),
        ("simulate", "a.yaml", "--no-such-option"),
        ("attack", "a.yaml", "--out", "b", "--seed", "-1"),
        ("audit", "epsilon"),
        ("site", "join"),
        ("doctor",),
    ],
)
def test_wrong_usage_exits_with_a_code_that_is_no_finding_and_no_traceback(arguments):
    done = run(*arguments)
    assert done.returncode == 64
    assert "Traceback" not in done.stderr
    assert "Usage" in done.stderr


@pytest.mark.parametrize(
    "command", [(), ("simulate",), ("config",), ("config", "check"), ("bench", "crypto")]
)
def test_every_command_has_help(command):
    done = run(*command, "--help")
    assert done.returncode == 0
    assert "secure-triplay" in done.stdout or "Usage" in done.stdout


def test_help_says_of_every_parameter_what_it_is_and_what_holds_without_it():
    """Nothing of it may be taken for markup, or be lost on its way to the terminal."""
    for command in _leaves(typer.main.get_command(cli.app)):
        shown = _words(CliRunner().invoke(command, ["--help"], env={"COLUMNS": "200"}).stdout)
        for hint in get_type_hints(inspect.unwrap(command.callback), include_extras=True).values():
            for parameter in getattr(hint, "__metadata__", ()):
                if not parameter.hidden:
                    assert parameter.help is None or _words(parameter.help.replace("\\[", "[")) in shown


def _leaves(command):
    inside = getattr(command, "commands", None)
    return [command] if inside is None else [leaf for each in inside.values() for leaf in _leaves(each)]


def _words(text: str) -> str:
    return "".join(letter for letter in text if letter.isalnum() or letter == "[")


def test_help_says_which_variable_an_example_needs():
    assert "BLOOD_CELLS=" in run("simulate", "--help").stdout


def test_version_is_printed():
    assert run("--version").stdout.startswith("secure-triplay ")


def test_an_enrolment_file_that_is_none_is_named_before_sites_are_counted(root, tmp_path):
    (tmp_path / "st-mary.enrol").write_text("")
    done = run(
        *("study", "create", str(root / "configs" / "demo.yaml"), "--sites", str(tmp_path / "st-mary.enrol")),
        *("--server", "fl.example.org:8443", "--out", str(tmp_path / "coordinator")),
    )
    assert_plain_error(done, 3, "st-mary.enrol")
    assert not (tmp_path / "coordinator").exists()


@pytest.mark.parametrize(
    ("words", "meant"), [(["simulat"], "simulate"), (["site", "joi"], "join"), (["audit", "verif"], "verify")]
)
def test_a_command_that_is_mistyped_is_suggested_once(words, meant):
    done = run(*words)
    assert done.returncode == 64
    assert done.stderr.count(f"'{meant}'") == 1
