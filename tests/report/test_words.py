from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from secure_triplay.report import words
from secure_triplay.report.summary import Summary


@pytest.mark.parametrize(
    ("value", "shown"),
    [(7.9701, "7.98"), (7.98, "7.98"), (8.0, "8.00"), (0.001, "0.01"), (None, "unbounded")],
)
def test_epsilon_is_never_rounded_down(value: float | None, shown: str) -> None:
    assert words.epsilon(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1 KB"),
        (69312, "69.3 KB"),
        (999_600, "1 MB"),
        (1.48e9, "1.48 GB"),
        (2.5e12, "2,500 GB"),
    ],
)
def test_sizes_are_readable(value: float, shown: str) -> None:
    assert words.size(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0.00 s"),
        (0.004, "4 ms"),
        (0.42, "0.42 s"),
        (12.34, "12.3 s"),
        (132.4, "2 min 12 s"),
        (119.7, "2 min 0 s"),
    ],
)
def test_durations_are_readable(value: float, shown: str) -> None:
    assert words.duration(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"), [(5e-6, "5×10⁻⁶"), (1e-5, "10⁻⁵"), (2.5e-12, "2.5×10⁻¹²"), (None, "none")]
)
def test_delta_is_readable(value: float | None, shown: str) -> None:
    assert words.power(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0, "= 1"),
        (3.0, "= 20.1"),
        (8.0, "= 2,981"),
        (34.0, "= 583,461,742,527,454"),
        (35.0, "< 10¹⁶"),
        (800.0, "< 10³⁴⁸"),
    ],
)
def test_what_epsilon_allows_is_said_as_a_factor_that_can_be_read(value, shown):
    assert words.e_to(value) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [("2026-11-23T10:22:07+00:00", "2026-11-23 10:22 UTC"), ("2026-11-23 10:22 UTC", "2026-11-23 10:22 UTC")],
)
def test_times_are_readable_and_keep_their_zone(text: str, shown: str) -> None:
    assert words.moment(text) == shown
    assert words.moment("2026-11-23T10:22:07+02:00") == "2026-11-23T10:22:07+02:00"


def test_the_headline_says_when_accuracy_fell(content: dict[str, Any]) -> None:
    content["accuracy"]["final"] = 0.5
    assert (
        "fell from 65.9 % to 50.0 % (−15.9 points)"
        in words.headline(Summary.model_validate_json(json.dumps(content)))[0]
    )


def test_a_gain_within_the_test_sets_uncertainty_is_called_that(
    content: dict[str, Any], summary: Summary
) -> None:
    assert not any("tell apart" in line for line in words.headline(summary))
    content["accuracy"]["final"] = content["accuracy"]["baseline"] + 0.01
    assert any(
        "tell apart" in line for line in words.headline(Summary.model_validate_json(json.dumps(content)))
    )


def test_the_guarantee_names_everything_that_an_auditor_recomputes(summary: Summary) -> None:
    claim = words.guarantee(summary.privacy[0])
    for part in (
        "7.98",
        "5×10⁻⁶",
        "adding or removing one record",
        "20 steps",
        "rate 0.25",
        "1.221",
        "dp-accounting PLD",
    ):
        assert part in claim


def test_the_statement_for_all_sites_is_that_of_the_site_that_spent_most(content: dict[str, Any]) -> None:
    content["privacy"][2]["epsilon"] = 9.5
    assert words.spent(Summary.model_validate_json(json.dumps(content))).epsilon == 9.5


def test_server_with_one_site_is_named_as_unprotected_where_nothing_is_masked(
    summary: Summary, unsafe: Summary
) -> None:
    for run in (summary, unsafe):
        assert any(limit.title == "The server together with one site" for limit in words.limits(run))


def test_masked_runs_name_the_smallest_coalition_that_may_read_an_update(content: dict[str, Any]) -> None:
    content["federation"] |= {"aggregation": "masked", "colluders": 1, "threshold": 3}
    (limit,) = [
        each
        for each in words.limits(Summary.model_validate_json(json.dumps(content)))
        if "The server" in each.title
    ]
    assert limit.title == "The server together with 2 sites"
    assert "up to 1 of the" in limit.text
    assert "differential privacy" in limit.text
    for wrong in ({"aggregation": "shared-key"}, {"colluders": None}, {"threshold": None}):
        with pytest.raises(ValidationError):
            Summary.model_validate_json(json.dumps(content | {"federation": content["federation"] | wrong}))


def test_without_dp_the_first_limit_is_what_the_adapter_reveals(unsafe: Summary) -> None:
    first, *others = words.limits(unsafe)
    assert "adapter" in first.title
    assert not any("ε" in limit.text for limit in others)


def test_what_clocks_tell_is_named_as_unprotected(summary: Summary) -> None:
    assert any("clocks" in limit.title and "server included" in limit.text for limit in words.limits(summary))
