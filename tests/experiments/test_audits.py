"""The tables of audits that no command prints line by line follow from the results beside them."""

from __future__ import annotations

import itertools
import json
import math
import statistics
from pathlib import Path
from typing import Any

import pytest


def rows(path: Path) -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["data"], row["method"]): row for row in json.loads(path.read_text())["rows"]}


def cells(page: str, start: str) -> list[str]:
    """The cells of the one line of a page that starts so, without marks."""
    (line,) = [line for line in page.splitlines() if line.strip().startswith(start)]
    return [cell.strip().replace("**", "") for cell in line.strip().strip("|").split("|")]


def with_error(values: list[float], sign: str = "") -> str:
    error = statistics.stdev(values) / math.sqrt(len(values))
    return f"{100 * statistics.mean(values):{sign}.1f} ± {100 * error:.1f}"


def by_seed(row: dict[str, Any], of: Any) -> list[float]:
    return [of(sites.values()) for sites in row["own_records_by_seed"]]


METHODS = {
    "| `alone` |": "alone", "| `alone-eps8`:": "alone-eps8", "| `central` |": "central", "| `no-dp` |": "no-dp",
    "| `eps8` |": "eps8", "| `personal-adapter` |": "personal-adapter", "| `personalised`:": "personalised",
    "| **`calibrated`**:": "calibrated",
}  # fmt: skip


def test_what_a_site_wins_by_something_of_its_own_follows_from_the_ten_seeds(root: Path) -> None:
    folder = root / "audits" / "methods"
    found = rows(folder / "personal.json")
    page = (folder / "README.md").read_text().split("| own records | worst of eight sites |")[1]
    of = {method: row for (_, method), row in found.items()}
    assert all(len(row["seeds"]) == 10 for row in of.values())
    for start, method in METHODS.items():
        row = of[method]
        public = 100 * row["accuracy_mean"]
        mean = 100 * statistics.mean(by_seed(row, statistics.mean))
        assert cells(page, start)[1:] == [with_error(by_seed(row, min)), f"{mean:.1f}", f"{public:.1f}"]
    for ours, other in itertools.product(("personalised", "calibrated"), ("alone-eps8", "alone")):
        gains = [
            [a - b for a, b in zip(by_seed(of[ours], how), by_seed(of[other], how), strict=True)]
            for how in (min, statistics.mean)
        ]
        public = 100 * (of[ours]["accuracy_mean"] - of[other]["accuracy_mean"])
        said = cells(page, f"| `{ours}` less `{other}`,")[1:]
        assert said == [*(with_error(gain, "+") for gain in gains), f"{public:+.1f}"]


@pytest.mark.parametrize(
    ("start", "data"),
    [("| blood cells |", "blood-cells"), ("| PACS, photo", "pacs-photo"), ("| PACS, sketch", "pacs-sketch")],
)
def test_what_it_wins_where_classes_are_alike_follows_from_its_result(
    root: Path, start: str, data: str
) -> None:
    folder = root / "audits" / "methods"
    found = rows(folder / "personal-elsewhere.json")
    page = (folder / "README.md").read_text().split("| per cent: public test set; own records")[1]
    told = []
    for method in ("alone-eps8", "eps8", "personal-adapter", "personalised", "calibrated"):
        row = found[data, method]
        public, spread, own = (
            100 * row[f"{name}"] for name in ("accuracy_mean", "accuracy_std", "mean_site_mean")
        )
        told.append(f"{public:.1f} ({spread:.1f}); {own:.1f}")
    assert cells(page, start)[1:] == told


STEPS = {
    "| start |": "start", "| FedAdam, 0.01:": "eps8", "| FedAdam, 0.003 |": "eps8-adam0.003",
    "| FedAdam, 0.001 |": "eps8-adam0.001", "| FedAvg, 1.0 |": "eps8-fedavg1.0", "| FedAvg, 0.3 |": "eps8-fedavg0.3",
    "| FedAvg, 0.1 |": "eps8-fedavg0.1",
}  # fmt: skip


@pytest.mark.parametrize("start", STEPS)
def test_which_step_was_best_follows_from_the_seeds_that_no_other_audit_uses(root: Path, start: str) -> None:
    folder = root / "audits" / "adapters"
    found = rows(folder / "server-steps.json")
    page = (folder / "README.md").read_text().split("### Which step, on other seeds")[1]
    told = []
    for data in ("blood-cells", "long-tail-50", "small-50"):
        row = found[data, STEPS[start]]
        assert row["seeds"] == [10, 11, 12]
        told.append(
            ", ".join(f"{100 * row[f'{name}_mean']:.1f}" for name in ("accuracy", "tail", "mean_site"))
        )
    assert cells(page, start)[1:] == told
