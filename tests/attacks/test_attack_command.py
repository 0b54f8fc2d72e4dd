"""`secure-triplay attack` and `threats`: exit codes that mean something, and no traceback."""

from __future__ import annotations

import json

import pytest
import yaml
from typer.testing import CliRunner

from secure_triplay.attacks import epsilon, suite
from secure_triplay.attacks.finding import Control, Outcome
from secure_triplay.attacks.scene import victims
from secure_triplay.attacks.suite import Ran, make_report
from secure_triplay.cli import app
from secure_triplay.errors import ConfigError, DataError


@pytest.fixture
def run(root):
    def command(*arguments):
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    return command


@pytest.mark.parametrize(("valid", "code"), [(True, 0), (False, 2)])
def test_exit_code_is_that_of_the_report(run, root, tmp_path, monkeypatch, valid, code):
    outcome = Outcome((Control("inversion", valid, "25 dB", {"psnr_db": 20.0}),), ())

    def stand_in(study, models, out, *, seed, quick, workers, tell):
        tell("stub", 1, 2)
        assert (seed, quick, workers) == (7, True, 3)
        attack = next(iter(suite.load_attacks(model.audits)[0] for model in models))
        return make_report(study, models, [Ran(attack, outcome)], seed=seed, quick=quick)

    monkeypatch.setattr(suite, "run_suite", stand_in)
    done = run(
        "attack",
        root / "configs" / "demo.yaml",
        "--threat-model",
        root / "threat_models" / "active-server.yaml",
        "--quick",
        "--seed",
        7,
        "--workers",
        3,
        "--out",
        tmp_path / "out",
    )
    assert done.exit_code == code, done.output
    assert ("CONTROL FAILED: inversion" in done.output) is not valid
    assert ("INVALID" in done.output) is not valid


def test_one_threat_model_and_all_exclude_each_other(run, root, tmp_path):
    study, model = root / "configs" / "demo.yaml", root / "threat_models" / "active-server.yaml"
    done = run("attack", study, "--all", "--threat-model", model, "--out", tmp_path / "out")
    assert isinstance(done.exception, ConfigError)
    assert not (tmp_path / "out").exists()


def test_matrix_fits_80_columns_and_names_every_adversary(run, root, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    done = run("threats", "--threat-models", root / "threat_models", "--audits", root / "audits")
    assert done.exit_code == 0, done.output
    assert max(map(len, done.output.splitlines())) <= 80
    for path in (root / "threat_models").glob("*.yaml"):
        assert yaml.safe_load(path.read_text())["title"] in done.output
    assert "NOT PROTECTED" in done.output


@pytest.mark.parametrize("columns", [40, 60])
def test_a_narrow_terminal_loses_nothing_of_the_matrix(run, root, monkeypatch, columns):
    """The oracle is the JSON: every word that it has of a cell stands in what is shown."""
    asked = ("threats", "--threat-models", root / "threat_models", "--audits", root / "audits")
    cells = json.loads(run(*asked, "--json").output)
    monkeypatch.setenv("COLUMNS", str(columns))
    shown = run(*asked).output
    assert max(map(len, shown.splitlines())) <= columns
    squeezed = "".join(shown.split())  # a line breaks between words, or within one that is too long
    for cell in cells:
        figures = [each[key] for each in cell["measured"] for key in ("verdict", "figure")]
        for text in (cell["asset"], ", ".join(cell["rests_on"]), *cell["audits"], *figures):
            assert "".join(text.split()) in squeezed
    for title in ("must not learn", "must not change", "rests on", "audits", "last measured"):
        assert title in shown


def test_a_folder_without_results_is_not_shown_as_nothing_measured(run, root, tmp_path):
    (tmp_path / "another").mkdir()
    (tmp_path / "another" / "result.json").write_text('{"audit": "of something else"}')
    done = run("threats", "--threat-models", root / "threat_models", "--audits", tmp_path)
    assert isinstance(done.exception, ConfigError)
    assert "no audit or attack has left a result" in done.exception.what
    assert "result.json" in done.exception.fix


def test_matrix_as_json_says_which_cells_nobody_tests(run, root, tmp_path):
    content = yaml.safe_load((root / "threat_models" / "curious-site.yaml").read_text())
    content["must_not_learn"].append("an accuracy")
    content["rests_on"]["an accuracy"] = ["equal sizes"]
    (tmp_path / "curious-site.yaml").write_text(yaml.safe_dump(content))
    done = run("threats", "--threat-models", tmp_path, "--audits", root / "audits", "--json")
    cells = json.loads(done.output)
    assert [cell["asset"] for cell in cells if cell["nobody_tests"]] == ["an accuracy"]
    text = run("threats", "--threat-models", tmp_path, "--audits", root / "audits").output
    assert "NOBODY TESTS THIS" in text
    assert "curious-site: an accuracy" in text


@pytest.mark.parametrize(("verdict", "code"), [("pass", 0), ("fail", 1), ("invalid", 2)])
def test_a_lower_bound_above_the_claim_fails_the_build(run, root, monkeypatch, verdict, code):
    """Which verdict it is follows from bounds in test_epsilon; a build looks at the exit code alone."""
    committed = json.loads((root / "audits" / "epsilon" / "result.json").read_text())
    assert committed["verdict"] == "pass"
    monkeypatch.setattr(epsilon, "audit_epsilon", lambda *_, **__: committed | {"verdict": verdict})
    done = run("audit", "epsilon", root / "configs" / "demo.yaml")
    assert done.exit_code == code, done.output
    assert isinstance(done.exception, SystemExit) or not code  # an exit that was meant, and no error


def test_a_site_with_too_few_images_is_named_with_what_the_attack_needs(attacked):
    with pytest.raises(DataError, match=r"needs 100000 images of a site, and north has \d+") as caught:
        victims(attacked, 100_000, seed=0)
    assert "--quick" in caught.value.fix
