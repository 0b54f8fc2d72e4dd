"""The suite believes no attack on its word, exits with what it found, and writes the same report for the same seed."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest
import yaml
from PIL import Image

from secure_triplay.attacks import registry
from secure_triplay.attacks.attack import Attack, Observable, Setting
from secure_triplay.attacks.finding import Arm, Control, Curve, Finding, Outcome, Verdict
from secure_triplay.attacks.matrix import matrix, read_audits
from secure_triplay.attacks.standing import in_words
from secure_triplay.attacks.suite import above_bound, run_suite
from secure_triplay.attacks.threat import load_threat_model
from secure_triplay.config import parse_study
from secure_triplay.config.training import PersonalBias
from secure_triplay.errors import DataError, RunError
from secure_triplay.report.attack import FindingEntry, read_attack_report

CONTROL = Control("inversion", True, "25 dB", {"psnr_db": 31.0, "ssim": 0.9, "seconds": 0.7})
OPEN = Finding("stub", Arm.NOTHING, "lora", "PSNR, dB", 31.0, Verdict.LEAKS_AS_STATED)
CLOSED = Finding(
    "stub", Arm.BOTH, "ffa", "PSNR, dB", 9.0, Verdict.NOTHING_FOUND, interval=(8.5, 9.5), bound=9.2
)


def stub(outcome: Outcome):
    """An attack that reports what it is told to, and draws one picture from its seed."""

    def run(setting: Setting) -> Outcome:
        pixels = np.random.default_rng(setting.seed).integers(0, 256, (8, 8), np.uint8)
        Image.fromarray(pixels).save(setting.pictures / "grid.png")
        setting.tell(1, 2)
        return replace(
            outcome,
            findings=tuple(
                replace(finding, value=finding.value + 0.001 * setting.seed) for finding in outcome.findings
            ),
        )

    return run


@pytest.fixture
def study(demo):
    return parse_study(demo)


@pytest.fixture
def unsafe_study(demo):
    privacy = demo["privacy"]
    demo["privacy"] = {
        "unsafe_dp_off": True,
        **{key: privacy[key] for key in ("sampling_rate", "expected_batch_size")},
    }
    demo["codec"]["range"] = 0.5
    return parse_study(demo)


@pytest.fixture
def suite(monkeypatch, tmp_path, root, study):
    """Register a stub attack with an outcome (or a function), and run the suite on one small threat model."""

    def run(outcome, *, out="out", study=study, rests_on=("encryption",), seed=0, tell=lambda *_: None):
        module = ModuleType("stub_attack")
        module.ATTACK = Attack(
            "stub",
            "A stub",
            "nobody 2026",
            frozenset({Observable.UPLOADS}),
            outcome if callable(outcome) else stub(outcome),
        )
        monkeypatch.setitem(sys.modules, "stub_attack", module)
        monkeypatch.setattr(registry, "ATTACKS", {"stub": "stub_attack"})
        content = yaml.safe_load((root / "threat_models" / "network-observer.yaml").read_text())
        content |= {
            "audits": {"stub": ["an image"]},
            "must_not_learn": ["an image", "the adapter"],
            "rests_on": {"an image": list(rests_on), "the adapter": ["encryption"]},
            "tested_by": {},
        }
        path = tmp_path / "network-observer.yaml"
        path.write_text(yaml.safe_dump(content))
        return run_suite(study, [load_threat_model(path)], tmp_path / out, seed=seed, tell=tell)

    return run


def image_claim(report):
    return next(asset for asset in report.threat_models[0].assets if asset.asset == "an image")


def test_a_figure_past_its_bound_says_that_chance_allows_it_and_no_other_does():
    def said(value: float, low: float, high: float) -> str:
        return in_words(
            FindingEntry(
                attack="a", arm="dp", adapter="ffa", metric="named", value=value,
                interval=(low, high), bound=0.008, verdict="nothing found",
            )
        )  # fmt: skip

    assert said(0.009, 0.001, 0.03) == "a: named 0.009 (bound 0.008, inside the 95 % interval)"
    assert said(0.007, 0.001, 0.03) == "a: named 0.007 (bound 0.008)"
    assert said(0.02, 0.01, 0.03) == "a: named 0.02 (bound 0.008)"


def test_the_figure_beside_a_claim_is_the_strongest_attackers_and_not_the_first_ones(suite):
    weak, strong, stronger_without = (
        replace(CLOSED, metric=f"hits ({name})", value=value, interval=None, bound=0.2, arm=arm)
        for name, value, arm in (
            ("loss", 0.01, Arm.BOTH),
            ("lira", 0.05, Arm.BOTH),
            ("rmia", 0.9, Arm.NOTHING),
        )
    )
    other = (weak, strong, replace(stronger_without, bound=None, verdict=Verdict.LEAKS_AS_STATED))
    assert image_claim(suite(Outcome((CONTROL,), other))).why == "stub: hits (lira) 0.05 (bound 0.2)"


def test_valid_controls_and_nothing_above_a_bound_exit_with_0(suite, tmp_path):
    report = suite(Outcome((CONTROL,), (OPEN, CLOSED)))
    assert (report.exit_code, report.verdict) == (0, "nothing above its bound")
    assert report.threat_models[0].verdict == "nothing found"
    assert image_claim(report).why == "stub: PSNR, dB 9 (bound 9.2)"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"report.json", "report.html", "pictures"}
    assert read_attack_report(tmp_path / "out").controls["inversion"]["valid"] is True


def test_a_figure_above_its_bound_leaks_whatever_the_attack_calls_it(suite):
    report = suite(Outcome((CONTROL,), (OPEN, replace(CLOSED, value=14.0, interval=(13.0, 15.0)))))
    assert (report.exit_code, report.verdict) == (1, "leaks")
    assert image_claim(report).verdict == report.threat_models[0].verdict == "leaks"


@pytest.mark.parametrize(
    ("interval", "leaks"), [((9.3, 9.9), True), ((9.1, 9.9), False), ((9.0, 9.1), False)]
)
def test_a_figure_is_above_its_bound_only_beyond_chance(interval, leaks):
    assert above_bound(replace(CLOSED, interval=interval, bound=9.2)) is leaks


@pytest.mark.parametrize("controls", [(replace(CONTROL, valid=False),), ()])
def test_without_a_valid_control_every_finding_is_invalid_and_nothing_is_called_safe(
    suite, tmp_path, controls
):
    report = suite(Outcome(controls, (OPEN, CLOSED)))
    assert (report.exit_code, report.verdict) == (2, "invalid")
    assert {finding.verdict for finding in report.findings} == {"invalid"}
    assert report.threat_models[0].verdict == "invalid"
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<h2>INVALID</h2>" in page
    assert "nothing was found" not in page


def test_a_failed_control_outranks_a_leak_and_a_figure_that_is_no_number_is_invalid(suite):
    leak = replace(CLOSED, verdict=Verdict.LEAKS)
    assert suite(Outcome((replace(CONTROL, valid=False),), (leak,))).exit_code == 2
    nothing = replace(CLOSED, value=float("nan"), interval=None)
    assert suite(Outcome((CONTROL,), (nothing,)), out="again").exit_code == 2


def test_same_seed_gives_the_same_report_but_for_the_seconds_and_another_seed_does_not(suite, tmp_path):
    def timed(seconds):
        control = replace(CONTROL, figures={**CONTROL.figures, "seconds": seconds})
        return Outcome((control,), (replace(CLOSED, figures={"images": 50, "seconds": seconds}),))

    contents = []
    for number, (seconds, seed) in enumerate([(1.0, 3), (2.0, 3), (1.0, 4)]):
        suite(timed(seconds), out=f"run-{number}", seed=seed)
        contents.append(json.loads((tmp_path / f"run-{number}" / "report.json").read_text()))
    first, second, other = contents
    assert first["controls"]["inversion"].pop("seconds") == 1.0
    assert second["controls"]["inversion"].pop("seconds") == 2.0
    assert first == second
    assert first["figures_sha256"] != other["figures_sha256"]


def test_report_names_what_it_was_made_from(suite, study):
    report = suite(Outcome((CONTROL,), (CLOSED,), ("colour images",)))
    assert report.config_sha256 == study.sha256
    assert len(report.package_sha256) == 64
    assert "torch" in report.versions
    assert report.controls["inversion"] == {
        "valid": True,
        "attack": "stub",
        "goal": "25 dB",
        "psnr_db": 31.0,
        "ssim": 0.9,
        "seconds": 0.7,
    }
    assert [gap.what for gap in report.not_tested] == ["colour images"]


def test_that_attacked_sites_train_without_the_bias_of_their_classes_is_said_where_the_studys_own_have_it(
    suite, study, tmp_path
):
    for in_training in (False, True):
        bias = PersonalBias(in_training=in_training)
        asked = study.model_copy(update={"personal_bias": bias})
        report = suite(Outcome((CONTROL,), (CLOSED,)), study=asked, out=f"with-{in_training}")
        said = [what for what in report.threat_models[0].not_tested if "bias of its own classes" in what]
        assert len(said) == in_training
        page = (tmp_path / f"with-{in_training}" / "report.html").read_text()
        assert ("the attacked ones train without it" in page) == in_training


def test_the_ceiling_of_the_curves_is_what_the_claimed_epsilon_allows(suite, study):
    curve = Curve((0.0, 0.01, 1.0), (0.0, 0.02, 1.0))
    report = suite(Outcome((CONTROL,), (replace(CLOSED, curve=curve),)))
    assert report.findings[0].curve.tpr == curve.tpr
    ceiling = report.ceiling
    assert (ceiling.epsilon, ceiling.delta) == (study.dp.epsilon, study.dp.delta)
    for rate, hits in zip(ceiling.curve.fpr, ceiling.curve.tpr, strict=True):
        assert rate <= hits <= min(1.0, np.exp(study.dp.epsilon) * rate + study.dp.delta)


def test_a_study_without_privacy_is_attacked_as_such_and_the_report_says_so(suite, unsafe_study, tmp_path):
    report = suite(Outcome((CONTROL,), (OPEN,)), study=unsafe_study, rests_on=("dp",))
    assert report.dp == "off"
    assert report.ceiling is None
    assert image_claim(report).verdict == report.threat_models[0].verdict == "not protected"
    assert "This study runs without differential privacy" in (tmp_path / "out" / "report.html").read_text()


def test_a_claim_is_tried_in_the_arms_that_have_its_defence(suite):
    """What an attack finds under encryption alone says nothing about a claim that rests on noise."""
    encrypted = replace(OPEN, arm=Arm.ENCRYPTION)
    noised = replace(CLOSED, arm=Arm.DP)
    report = suite(Outcome((CONTROL,), (encrypted, noised)), rests_on=("dp",))
    assert image_claim(report).verdict == "nothing found"
    report = suite(Outcome((CONTROL,), (replace(CLOSED, arm=Arm.ENCRYPTION),)), rests_on=("dp",), out="2")
    assert image_claim(report).verdict == "not tested"
    report = suite(Outcome((CONTROL,), (OPEN, noised)), rests_on=("encryption",), out="again")
    assert image_claim(report).verdict == "not tested"


def test_a_claim_that_no_attack_goes_after_is_called_not_tested(suite):
    report = suite(Outcome((CONTROL,), (CLOSED,)))
    claim = next(asset for asset in report.threat_models[0].assets if asset.asset == "the adapter")
    assert (claim.verdict, claim.why) == ("not tested", "nobody tests this")


def test_an_attack_that_cannot_run_is_named_and_leaves_nothing(suite, tmp_path):
    def few(setting):
        raise DataError("12 images are too few for this attack", where="data", fix="give it 50")

    with pytest.raises(DataError, match="12 images are too few") as caught:
        suite(few)
    assert caught.value.where == "attack stub, data"

    def broken(setting):
        return 1 / 0

    with pytest.raises(RunError, match="ZeroDivisionError") as wrapped:
        suite(broken)
    assert wrapped.value.where == "attack stub"
    assert not list(tmp_path.glob("out*"))


def test_a_picture_that_was_not_made_is_an_error_and_others_are_named_from_the_report(suite):
    report = suite(Outcome((CONTROL,), (replace(CLOSED, pictures=("grid.png",)),)))
    assert report.findings[0].pictures == ("pictures/stub/grid.png",)
    with pytest.raises(RunError, match=r"missing\.png was not made"):
        suite(Outcome((CONTROL,), (replace(CLOSED, pictures=("missing.png",)),)), out="again")


def test_an_output_folder_that_exists_is_refused_before_any_attack(suite, tmp_path):
    (tmp_path / "out").mkdir()
    ran = []
    with pytest.raises(RunError, match="exists"):
        suite(lambda setting: ran.append(1))
    assert not ran


def test_progress_ends_complete(suite):
    steps = []
    suite(Outcome((CONTROL,), (CLOSED,)), tell=lambda *step: steps.append(step))
    assert steps == [("stub", 0, 1), ("stub", 1, 2), ("stub", 1, 1)]


def test_the_matrix_shows_the_last_result_and_the_cells_that_nobody_tests(suite, tmp_path):
    suite(Outcome((CONTROL,), (OPEN, CLOSED)), out="audits/inversion")
    cells = matrix([load_threat_model(tmp_path / "network-observer.yaml")], read_audits(tmp_path / "audits"))
    image, adapter = cells
    assert image.measured[0].figure == "PSNR, dB 9 (bound 9.2)"
    assert image.measured[0].file.endswith("audits/inversion/report.json")
    assert not image.nobody_tests
    assert adapter.nobody_tests


def test_the_matrix_refuses_a_result_of_another_version(suite, tmp_path):
    suite(Outcome((CONTROL,), (CLOSED,)), out="audits/inversion")
    path = tmp_path / "audits" / "inversion" / "report.json"
    path.write_text(path.read_text().replace('"schema_version": 1', '"schema_version": 2'))
    with pytest.raises(RunError, match="not an attack report of schema version 1"):
        read_audits(tmp_path / "audits")
