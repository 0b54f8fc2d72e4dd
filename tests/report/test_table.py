from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from secure_triplay.report.summary import Summary
from secure_triplay.report.table import closing_table


def _printed(summary: Summary, width: int = 80) -> str:
    out = io.StringIO()
    Console(file=out, width=width, color_system=None).print(closing_table(summary))
    return out.getvalue()


def test_the_table_says_what_the_run_reached_spent_and_cost(summary: Summary) -> None:
    text = _printed(summary)
    for part in (
        "65.9 %",
        "74.9 %",
        "worst: south",
        "7.98",
        "69.3 KB",
        "δ = 5×10⁻⁶",
        "103.89",
        "132.40",
        "never",
    ):
        assert part in text, part
    assert "UNSAFE" not in text


@pytest.mark.parametrize("name", ["north", "n" * 48, "病院" * 20])
def test_the_table_fits_80_columns(renamed: Callable[[str, str], Summary], name: str) -> None:
    lines = _printed(renamed("north", name), width=80).splitlines()
    assert max(cell_len(line.rstrip()) for line in lines) <= 80
    # Wider than the terminal, rich would cut; on a wider one the same table must not grow past 80 either.
    assert (
        max(cell_len(line.rstrip()) for line in _printed(renamed("north", name), width=300).splitlines()[:10])
        <= 80
    )
    assert all("69.3 KB" in line for line in lines if line.lstrip().startswith(("east", "west", name[:4])))


def test_without_dp_the_table_begins_with_the_warning(unsafe: Summary) -> None:
    text = _printed(unsafe)
    assert text.index("UNSAFE") < text.index("public test set")
    assert text.count("unbounded") == 4


def test_a_large_federation_stays_short_and_shows_its_worst_site(large: Summary) -> None:
    text = _printed(large)
    assert "worst: hospital-number-39" in text
    assert "And 30 more sites in summary.json" in text


def test_markup_in_a_name_is_shown_as_it_is(renamed: Callable[[str, str], Summary]) -> None:
    assert "[red]x[/red]" in _printed(renamed("north", "[red]x[/red]"))
    assert "[/nope]" in _printed(renamed("demo", "[/nope]"))


@pytest.mark.parametrize("name", ["north", "n" * 48, "病院" * 20])
def test_personal_adapters_have_a_column_that_fits_and_are_said_to_be_free_and_to_stay(
    personal: dict[str, Any], name: str
) -> None:
    personal["accuracy"]["per_site"]["west"] = {"baseline": 0.0, "final": 1.0, "records": 9, "personal": 1.0}
    made = Summary.model_validate_json(json.dumps(personal).replace('"north"', json.dumps(name)))
    text = _printed(made, width=80)
    for figure in (
        "100.0 %   +100.0    100.0 %",
        " 61.5 % ",
        " 69.0 % ",
        " +7.5 ",
        " before ",
        " up/round",
    ):
        assert figure in text, "no figure is cut for a name"
    lines = text.splitlines()
    assert max(cell_len(line.rstrip()) for line in lines) <= 80
    (east, south) = (next(line for line in lines if site in line) for site in ("east", "worst: south"))
    sites = made.accuracy.per_site
    assert f"{100 * (sites['south'].final + 0.01):.1f} %" in south
    assert sum(site.personal is None for site in sites.values()) == 1
    assert text.count("–") == 1
    assert all("69.3 KB" in line and "7.98" in line for line in (east, south))
    flat = " ".join(text.split())
    assert "no privacy beyond ε" in flat
    assert "is never sent" in flat


def test_without_personal_adapters_there_is_no_column_for_them(summary: Summary) -> None:
    assert "personal" not in _printed(summary).lower()


def test_a_ciphertext_larger_than_the_plain_update_is_explained(content: dict[str, Any]) -> None:
    assert "no smaller for carrying few values" not in _printed(
        Summary.model_validate_json(json.dumps(content))
    )
    upload = content["upload"]
    content["adapter"]["n_params"] = 1000
    sent = upload["bytes_per_site_per_round"]
    upload |= {"n_params": 1000, "plaintext_fp32_bytes": 4000, "bytes_per_param": sent / 1000}
    upload |= {"download_bytes_per_param": upload["download_bytes_per_site_per_round"] / 1000}
    assert "no smaller for carrying few values" in " ".join(
        _printed(Summary.model_validate_json(json.dumps(content))).split()
    )
