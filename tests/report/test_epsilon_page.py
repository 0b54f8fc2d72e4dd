"""The page of an epsilon audit says what was claimed and shown, and an audit that cannot see says INVALID."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from secure_triplay.report.epsilon_page import write_epsilon_page

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
)


@pytest.fixture
def result() -> dict[str, Any]:
    """An audit's result with invented figures."""
    counts = {"canaries": 5000, "guesses": 500, "correct": 480, "confidence": 0.95}
    return {
        "seed": 0,
        "quick": False,
        "versions": {"secure_triplay": "0.1", "torch": "2.14.1"},
        "study": {"name": "demo", "sha256": "a" * 64, "adapter": "ffa", "audited_with_all_of_b": False},
        "claimed": {
            "epsilon": 8.0,
            "delta": 5e-6,
            "unit": "record",
            "noise_multiplier": 1.5,
            "sampling_rate": 0.25,
            "steps": 16,
        },
        "trained": {
            "records": 1880,
            "canaries": 5000,
            "rounds": 16,
            "canaries_are": "gradient canaries",
            "real": "clipping and noise",
            "not_real": "the path through the backbone",
        },
        "one_run": {
            "steinke": counts | {"lower_bound": 2.71, "ideal_ceiling": 2.99},
            "f_dp": counts | {"lower_bound": 4.13, "ideal_ceiling": 4.4},
        },
        "gradient_canary": {
            "is": "an estimate",
            "estimate": 7.81,
            "interval": [7.1, 8.4],
            "noise_multiplier": 1.51,
        },
        "control": {"is": "without noise", "goal": "above 8", "lower_bound": 17.3, "valid": True},
        "verdict": "pass",
        "reason": "nothing above the claim",
    }


@pytest.fixture
def page(result, tmp_path):
    def write(**changes: Any) -> str:
        (tmp_path / "roc.png").write_bytes(PNG)
        return " ".join(write_epsilon_page(result | changes, tmp_path).read_text(encoding="utf-8").split())

    return write


def test_the_page_shows_claim_bounds_ceilings_estimate_and_control(page):
    text = page()
    for figure in ("8.00", "4.13", "4.40", "2.71", "2.99", "7.81", "7.10 to 8.40", "17.30"):
        assert figure in text
    assert "shows an ε of at least 4.13" in text
    assert base64.b64encode(PNG).decode() in text
    assert "<script" not in text


def test_it_says_where_the_studys_own_adapter_was_too_small_for_the_canaries(page, result):
    whole = result["study"] | {"audited_with_all_of_b": True}
    assert "audited with all of B" in page(study=whole)
    assert "all of B" not in page()


def test_an_audit_that_does_not_see_missing_noise_is_invalid_and_claims_nothing(page):
    text = page(verdict="invalid", reason="without any noise the audit shows epsilon 2 only")
    assert "<h2>INVALID</h2>" in text
    assert "do not contradict" not in text


def test_a_bound_above_the_claim_stands_at_the_top(page):
    text = page(verdict="fail", reason="epsilon is at least 9")
    assert text.index("The claim does not hold") < text.index("Claimed ε")
    assert "do not contradict" not in text


def test_text_of_a_result_becomes_no_markup(page):
    assert "<script" not in page(verdict="fail", reason="<script>alert(1)</script>")
