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


def test_how_many_sites_are_better_off_follows_from_the_ten_seeds(root: Path) -> None:
    of = {method: row for (_, method), row in rows(root / "audits" / "methods" / "personal.json").items()}
    page = " ".join((root / "audits" / "methods" / "README.md").read_text().split())

    def gains(ours: str, other: str) -> list[float]:
        """Points of every site at every seed."""
        pairs = zip(of[ours]["own_records_by_seed"], of[other]["own_records_by_seed"], strict=True)
        return [round(100 * (a[site] - b[site]), 6) for a, b in pairs for site in a]

    def better(found: list[float]) -> tuple[int, int, float]:
        return sum(gain > 0 for gain in found), sum(gain < 0 for gain in found), -min(found)

    up, down, most = better(gains("calibrated", "alone-eps8"))
    assert f"{up} of 80 sites are better and {down} worse, by up to {most:g} points" in page
    up, down, _ = better(gains("calibrated", "alone"))
    assert up == down
    assert f"{up} sites each way" in page
    up, down, most = better(gains("personal-adapter", "eps8"))
    assert (
        f"{up} of 80 are better with it than in the runs of `eps8`, {down} are worse, by up to {most:g} points"
        in page
    )
    assert (
        f"{better(gains('personal-adapter', 'alone'))[0]} of the 80 sites are better with it than alone"
        in page
    )
    worst = [
        round(a - b, 6)
        for a, b in zip(by_seed(of["calibrated"], min), by_seed(of["alone-eps8"], min), strict=True)
    ]
    assert (sum(gain > 0 for gain in worst), worst.count(0)) == (9, 1)
    assert "at nine of ten seeds and equal at one" in page
    shared = [
        a - b
        for a, b in zip(of["calibrated"]["accuracy_by_seed"], of["eps8"]["accuracy_by_seed"], strict=True)
    ]
    behind = 100 * (of["no-dp"]["accuracy_mean"] - of["calibrated"]["accuracy_mean"])
    assert f"{with_error(shared)} points above `eps8`, {behind:.1f} below `no-dp`" in page


def test_the_quantization_curve_and_its_means_follow_from_their_result(root: Path) -> None:
    folder = root / "audits" / "quantization"
    found = {method: row for (_, method), row in rows(folder / "result.json").items()}
    page = (folder / "README.md").read_text()
    weights, ranks, bits = ("fp32", "int8", "nf4"), ("r16", "r64", "r64all"), ("4bit", "6bit", "8bit", "9bit")
    of = {
        key: 100 * found[f"eps8-{'-'.join(key)}"]["accuracy_mean"]
        for key in itertools.product(weights, ranks, bits)
    }
    for name in weights:
        told = [", ".join(f"{of[name, rank, bit]:.1f}" for bit in bits) + " %" for rank in ranks]
        encoding = found[f"eps8-{name}-r16-4bit"]["encoding_cpu_ms_per_image"]
        frozen = found[f"eps8-{name}-r16-4bit"]["image_frozen_bytes"]
        assert cells(page, f"| {name} |")[1:] == [f"{frozen / 1e6:.1f} MB", f"{encoding:.1f}", *told]

    def mean(*some: str) -> str:
        return f"{statistics.mean(value for key, value in of.items() if set(some) <= {*key, few(key)}):.1f}"

    def few(key: tuple[str, str, str]) -> str:
        return "all" if key[1] == "r64all" else "few"

    text = " ".join(page.split())
    for rows_of, said in (
        (
            weights,
            "means over ranks and bits are {}, {} and {} in few directions, {}, {} and {} with all of B",
        ),
        (bits[::-1], "four give {}, {}, {} and {} in few directions, {}, {}, {} and {} with all of B"),
    ):
        assert said.format(*(mean(one, kind) for kind in ("few", "all") for one in rows_of)) in text
    pairs = [of[name, "r64", bit] - of[name, "r64all", bit] for name in weights for bit in bits]
    assert sum(gap > 1e-9 for gap in pairs) == 8
    assert f"({mean('r64')} against {mean('r64all')} in the mean; above in eight pairs of twelve" in text
    assert f"at most {-min(pairs):.1f} below)" in text
    assert f"Rank 16 is level with rank 64 ({mean('r16')} and {mean('r64')})" in text


BENCHES = {
    "| demo, bfloat16 (": "", "| demo, float32 (": "float32", "| demo, bfloat16, one thread": "one-thread",
    "| demo, float32, one thread": "one-thread-float32", "| on the attention, bfloat16": "attention",
    "| on the attention, float32": "attention-float32",
}  # fmt: skip


@pytest.mark.parametrize("start", BENCHES)
def test_the_speed_of_a_private_step_follows_from_its_result(root: Path, start: str) -> None:
    folder = root / "audits" / "training-bench"
    made = json.loads((folder / BENCHES[start] / "result.json").read_text())
    share, met = made["share_of_matrix_rate"], made["share_of_matrix_rate"] >= 0.5
    over, cached = made["speedup_over_plain_opacus"], made["speedup_with_cache"]
    goal = " (2.5)" if made["compute"] == "bfloat16" else " (1.8)"
    told = cells((folder / "README.md").read_text(), start)[1:]
    assert told[0] == f"{1000 * made['seconds_per_step']['ours']:.0f}"
    assert told[1].removesuffix(goal) == (f"{over:.0f}x" if over >= 10 else f"{over:.1f}x")
    assert told[2] == (f"{cached:.0f}x" if cached >= 10 else f"{cached:.1f}x")
    assert told[3] == f"{made['cost_over_no_privacy']:.2f}"
    assert told[4] == (f"{share:.2f}" if met else f"{share:.2f}, missed")
    assert float(told[5]) == pytest.approx(made["largest_difference_of_adapters"], rel=0.03)


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
