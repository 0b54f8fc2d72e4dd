from __future__ import annotations

import io
from collections.abc import Callable

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
