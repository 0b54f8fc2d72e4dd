"""The attack report: one page that asks for nothing, never calls an invalid run safe, and a file that is read back."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from secure_triplay.errors import RunError
from secure_triplay.report.attack import (
    AttackReport,
    figures_sha256,
    read_attack_report,
    write_attack_report,
)
from secure_triplay.report.attack_page import lead, roc_plots, write_attack_page
from secure_triplay.report.html import environment

MARKUP = "<script>alert(1)</script><img src=x onerror=alert(1)>\"'-->"
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
)
PICTURE = "pictures/inversion/grid.png"


def _finding(**changes: Any) -> dict[str, Any]:
    return {
        "attack": "inversion",
        "arm": "nothing",
        "adapter": "lora",
        "metric": "PSNR, dB",
        "value": 31.2,
        "interval": [30.1, 32.0],
        "verdict": "leaks, as stated",
        "pictures": [PICTURE],
        **changes,
    }


@pytest.fixture
def content() -> dict[str, Any]:
    """A report's content, its figures invented, free to be changed."""
    curve = {"fpr": [0.0001, 0.01, 1.0], "tpr": [0.0002, 0.05, 1.0]}
    asset = {
        "asset": "an image",
        "must_not": "learn",
        "rests_on": ["encryption"],
        "protected": True,
        "audits": ["inversion"],
        "tests": 1,
        "verdict": "nothing found",
        "why": "inversion: PSNR, dB 9.1 (bound 9.4)",
    }
    return {
        "study": "demo",
        "config_sha256": "a" * 64,
        "study_file_sha256": "b" * 64,
        "package_version": "0.1",
        "package_sha256": "c" * 64,
        "versions": {"torch": "2.14.1"},
        "seed": 0,
        "quick": False,
        "dp": "on",
        "verdict": "nothing above its bound",
        "exit_code": 0,
        "controls": {
            "inversion": {
                "valid": True,
                "attack": "inversion",
                "goal": "25 dB",
                "psnr_db": 31.2,
                "seconds": 0.7,
            }
        },
        "threat_models": [
            {
                "name": "curious-server",
                "title": "A curious server",
                "summary": "It looks.",
                "sha256": "d" * 64,
                "observes": ["uploads"],
                "attacks": ["inversion"],
                "elsewhere": {"epsilon": "secure-triplay audit epsilon STUDY.yaml"},
                "assets": [asset],
                "verdict": "nothing found",
                "assumes": ["no site gives it the key"],
                "not_tested": ["memory of the server"],
            }
        ],
        "findings": [
            _finding(),
            _finding(
                arm="both", adapter="ffa", value=9.1, interval=[8.8, 9.3], bound=9.4, verdict="nothing found"
            ),
            _finding(
                attack="membership",
                metric="AUC",
                value=0.51,
                verdict="within its bound",
                curve=curve,
                arm="dp",
            )
            | {"pictures": []},
        ],
        "attacks": [
            {
                "name": "inversion",
                "title": "Span inversion",
                "source": "us",
                "observed": ["uploads"],
                "controls": [],
            },
            {"name": "membership", "title": "Membership", "source": "them", "observed": [], "controls": []},
        ],
        "ceiling": {
            "epsilon": 8.0,
            "delta": 5e-6,
            "curve": {"fpr": [0.0001, 0.01, 1.0], "tpr": [0.1, 0.5, 1.0]},
        },
        "not_tested": [{"attack": "inversion", "what": "colour images"}],
    }


def _page(content: dict[str, Any], folder: Path) -> str:
    (folder / PICTURE).parent.mkdir(parents=True, exist_ok=True)
    (folder / PICTURE).write_bytes(PNG)
    report = AttackReport.model_validate_json(json.dumps(content))
    return write_attack_page(report, folder).read_text(encoding="utf-8")


class _Parsed(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs


def test_the_page_asks_for_nothing_and_runs_nothing(content, tmp_path):
    text = _page(content, tmp_path)
    page = _Parsed(text)
    assert not {"script", "iframe", "object", "embed", "form"} & set(page.tags)
    addresses = [value for name, value in page.attributes if name in ("src", "href", "xlink:href")]
    assert all(value is not None and value.startswith(("#", "data:")) for value in addresses)
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))


def test_every_picture_is_in_the_page_once(content, tmp_path):
    assert _page(content, tmp_path).count(base64.b64encode(PNG).decode()) == 1


def test_the_page_says_verdict_controls_findings_and_gaps(content, tmp_path):
    text = " ".join(_page(content, tmp_path).split())
    order = [
        "The control found what was there",
        "A curious server",
        "inversion: PSNR, dB 9.1 (bound 9.4)",
        "25 dB",
        "30.1 to 32",
        "Membership: ROC curves",
        "colour images",
        "memory of the server",
        "a" * 64,
    ]
    places = [text.index(each) for each in order[:6]] + [text.rindex(each) for each in order[6:]]
    assert places == sorted(places)
    assert "secure-triplay audit epsilon STUDY.yaml" in text
    assert "INVALID" not in text


def test_an_invalid_run_says_so_in_big_letters_and_nowhere_that_it_is_safe(content, tmp_path):
    content["controls"]["inversion"]["valid"] = False
    content |= {"verdict": "invalid", "exit_code": 2}
    for finding in content["findings"]:
        finding["verdict"] = "invalid"
    content["threat_models"][0]["verdict"] = content["threat_models"][0]["assets"][0]["verdict"] = "invalid"
    text = _page(content, tmp_path)
    assert "<h2>INVALID</h2>" in text
    assert "These controls failed: inversion." in text
    assert "nothing found" not in text
    assert "nothing was found" not in text


def test_a_leak_is_announced_at_the_top(content, tmp_path):
    content["findings"][1]["verdict"] = "leaks"
    content |= {"verdict": "leaks", "exit_code": 1}
    text = _page(content, tmp_path)
    assert text.index("Leakage above a bound") < text.index("Threat models")
    assert "1 finding lies above the bound" in text


def test_a_study_without_privacy_is_marked_in_red_and_has_no_ceiling(content, tmp_path):
    content |= {"dp": "off", "ceiling": None}
    text = _page(content, tmp_path)
    notice = text[text.index('class="warning"') : text.index("Controls valid")]
    assert "This study runs without differential privacy" in notice
    assert "most that ε" not in text
    assert "without it there is no bound" in text


def test_the_lead_counts_what_is_not_protected(content):
    assert "at stake" not in lead(AttackReport.model_validate_json(json.dumps(content)))
    content["threat_models"][0]["assets"][0] |= {"verdict": "leaks, as stated", "protected": False}
    said = lead(AttackReport.model_validate_json(json.dumps(content)))
    assert said.endswith("1 thing at stake is not protected; see below.")


def test_roc_curves_are_drawn_with_guessing_and_the_ceiling_of_the_claimed_epsilon(content):
    report = AttackReport.model_validate_json(json.dumps(content))
    (plot,) = roc_plots(report)
    assert [key.label for key in plot.legend] == [
        "differential privacy",
        "most that ε = 8 allows",
        "guessing",
    ]
    assert plot.svg.count("var(--danger)") == 1
    assert ">0.01 %<" in plot.svg
    assert ">100 %<" in plot.svg
    assert "mathdefault" not in plot.svg
    assert not re.search(r"#[0-9a-f]{6}\b", plot.svg)


def test_no_name_becomes_markup(content, tmp_path):
    clean = _Parsed(_page(content, tmp_path))
    text = json.dumps(content)
    for name in ("demo", "Span inversion", "It looks.", "colour images", "25 dB", "PSNR, dB", "2.14.1"):
        text = text.replace(json.dumps(name), json.dumps(MARKUP + name))
    attacked = _page(json.loads(text), tmp_path)
    assert "<script" not in attacked
    assert _Parsed(attacked).tags == clean.tags
    source = environment().loader.get_source(environment(), "attack.html.j2")[0]  # type: ignore[union-attr]
    assert not re.search(r"\|\s*safe\b|autoescape", source)


@pytest.mark.parametrize(
    "lie",
    [
        {"exit_code": 0, "verdict": "leaks"},
        {"verdict": "nothing above its bound", "findings": [_finding(verdict="leaks")]},
        {"verdict": "nothing above its bound", "findings": [_finding(verdict="invalid")]},
        {"controls": {"inversion": {"valid": False, "attack": "inversion", "goal": ""}}},
    ],
)
def test_a_report_that_contradicts_itself_cannot_be_made(content, lie):
    with pytest.raises(ValidationError):
        AttackReport.model_validate_json(json.dumps(content | lie))


def test_a_report_is_read_back_as_it_was_written(content, tmp_path):
    report = AttackReport.model_validate_json(json.dumps(content))
    write_attack_report(report, tmp_path)
    again = read_attack_report(tmp_path)
    assert again.model_copy(update={"figures_sha256": ""}) == report
    assert again.figures_sha256 == figures_sha256(json.loads((tmp_path / "report.json").read_text()))


def test_seconds_are_outside_the_hash_and_every_figure_is_inside(content):
    first = figures_sha256(content)
    content["controls"]["inversion"]["seconds"] = 99.0
    assert figures_sha256(content) == first
    content["controls"]["inversion"]["psnr_db"] = 31.3
    assert figures_sha256(content) != first


def test_a_missing_folder_and_another_version_get_a_sentence(content, tmp_path):
    with pytest.raises(RunError, match="no attack report can be read"):
        read_attack_report(tmp_path)
    (tmp_path / "report.json").write_text(json.dumps(content | {"schema_version": 2}))
    with pytest.raises(RunError, match="schema version 1") as caught:
        read_attack_report(tmp_path)
    assert "the version of secure-triplay that wrote it" in caught.value.fix


def test_the_lead_does_not_deny_a_figure_past_its_bound_that_chance_allows(root):
    report = read_attack_report(root / "audits" / "attack" / "report.json")
    assert any(one.bound is not None and one.value > one.bound for one in report.findings)
    assert report.exit_code == 0
    assert "nothing was found above its bound by more than chance allows" in lead(report)


def test_the_lead_never_praises_more_than_the_controls_allow(content):
    content["controls"]["other"] = content["controls"]["inversion"] | {"valid": False}
    content |= {"verdict": "invalid", "exit_code": 2}
    said = lead(AttackReport.model_validate_json(json.dumps(content)))
    assert said.startswith("INVALID. These controls failed: other.")
