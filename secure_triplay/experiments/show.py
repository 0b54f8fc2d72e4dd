"""The table and the plot of a grid; a hole where nothing was measured."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from rich import box
from rich.console import Console
from rich.table import Table

from secure_triplay.report.summary import write_text

HOLE = "–"
_COLUMNS = (
    "accu-\nracy",
    "±",
    "seeds",
    "worst\nsite",
    "worst\npublic",
    "site\n±",
    "head",
    "mid",
    "tail",
    "worst\nclass",
)
_PANELS_A_ROW = 5
_COSTS = ("KB\nup", "KB\ndown", "CPU s\nin all", "rounds to\ntarget", "CPU s to\ntarget", "peak\nMB")


def tables(result: dict[str, Any]) -> list[Table]:
    """Two tables for each data set, accuracy and costs, a line for each method; they fit 80 columns."""
    reasons = {entry["data"]: entry["reason"] for entry in result["skipped"]}
    found = []
    for data in result["data"]:
        rows = {row["method"]: row for row in result["rows"] if row["data"] == data}
        parts = ((data, _COLUMNS, _figures), (f"{data}: what it costs", _COSTS, _costs))
        for title, columns, figures in parts:
            table = Table(
                box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), title=title, title_justify="left"
            )
            table.add_column("method", min_width=12)
            for column in columns:
                table.add_column(column, justify="right")
            for name in result["methods"]:
                row = rows.get(name)
                table.add_row(name, *([HOLE] * len(columns) if row is None else figures(row)))
            if data in reasons:
                table.caption, table.caption_justify = f"not measured: {reasons[data]}", "left"
            found.append(table)
    return found


def _figures(row: dict[str, Any]) -> list[str]:
    return [
        _percent(row["accuracy_mean"]),
        HOLE if row["accuracy_std"] is None else f"{100 * row['accuracy_std']:.1f}",
        str(len(row["seeds"])),
        _percent(row["worst_site_mean"]),
        _percent(row["worst_site_public_mean"]),
        _percent(row.get("site_spread_mean")),
        _percent(row["head_mean"]),
        _percent(row["middle_mean"]),
        _percent(row["tail_mean"]),
        _percent(row["worst_class_mean"]),
    ]


def _costs(row: dict[str, Any]) -> list[str]:
    return [
        *(_thousands(row["rounds"] * (row.get(key) or 0)) for key in ("upload_bytes", "download_bytes")),
        f"{row['cpu_seconds_mean']:.0f}",
        *(_or_hole(row.get(key)) for key in ("rounds_to_target", "cpu_seconds_to_target")),
        _or_hole((row.get("peak_bytes_max") or 0) / 1e6 or None),
    ]


def _or_hole(value: float | None) -> str:
    return HOLE if value is None else f"{value:,.0f}"


def _thousands(n_bytes: float) -> str:
    return f"{n_bytes / 1e3:,.0f}" if n_bytes else HOLE


def _percent(value: float | None) -> str:
    return HOLE if value is None else f"{100 * value:.1f}"


def write_table(result: dict[str, Any], path: Path) -> None:
    """The tables as plain text, with what their columns mean. Raises RunError."""
    out = io.StringIO()
    console = Console(file=out, width=100, color_system=None)
    for table in tables(result):
        console.print(table)
    console.print(
        "Per cent, means over seeds. accuracy: public test set; ±: standard deviation over seeds; worst site: on "
        "records held back there, whose classes are skewed as that site's; worst public: the worst site's model on "
        "the public test set; site ±: standard deviation between sites on their own records; head, mid, tail: classes "
        "with most, middling and fewest training records, a third each; "
        "KB up, down: of one site over all rounds; rounds to, CPU s to: until the grid's target accuracy was first "
        "seen, all sites together, without loading and encoding; peak: of "
        "the whole process, all sites' tokens included.",
        soft_wrap=False,
    )
    states = len(result["made_by"])
    if states > 1:
        console.print(
            f"\nMADE BY {states} STATES of the program or its libraries (made_by in result.json says which cells by "
            "which): differences between cells of different ones may not be the methods'."
        )
    write_text(path, out.getvalue())


def _save(figure: Figure, path: Path) -> None:
    """The figure as SVG, whole or not at all. Raises RunError."""
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    write_text(path, out.getvalue())


def _panels(n: int, *, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A figure of `n` panels of a size in inches, a few a row, so that it stays readable on a page."""
    columns = min(n, _PANELS_A_ROW)
    lines = -(-n // columns)
    figure = Figure(figsize=(width * columns, height * lines), layout="constrained")
    panels = list(figure.subplots(lines, columns, squeeze=False).flat)
    for axes in panels[n:]:
        axes.remove()
    return figure, panels[:n]


def write_plot(result: dict[str, Any], path: Path) -> None:
    """Accuracy by method, a panel for each data set that was measured: the mean, a dot for each seed; SVG."""
    names = result["methods"]
    measured = [name for name in result["data"] if any(row["data"] == name for row in result["rows"])]
    shown = measured or result["data"]
    figure, panels = _panels(len(shown), width=4.2, height=0.4 * len(names) + 1.2)
    for axes, data in zip(panels, shown, strict=True):
        rows = {row["method"]: row for row in result["rows"] if row["data"] == data}
        for place, name in enumerate(names):
            row = rows.get(name)
            if row is None:
                continue
            axes.barh(place, 100 * row["accuracy_mean"], height=0.6, color="#9ab8d6")
            seeds = [100 * value for value in row["accuracy_by_seed"]]
            axes.plot(seeds, [place] * len(seeds), "o", color="#20364d", markersize=3.5)
        axes.set(title=data, xlabel="accuracy on public test images [%]", yticks=range(len(names)))
        axes.set_yticklabels(names)
        axes.set_ylim(len(names) - 0.4, -0.6)
    _save(figure, path)


def write_partitions(result: dict[str, Any], path: Path) -> None:
    """How each data set was divided: a bar a site, a part of it a class, at the first seed that was measured; SVG.

    Panels stand in the order of the grid's file.
    """
    partitions = result["partitions"]
    if not partitions:
        return
    shown = [data for data in result["data"] if data in partitions]
    figure, panels = _panels(len(shown), width=3.2, height=2.6)
    for axes, data in zip(panels, shown, strict=True):
        sites = partitions[data]
        counts = np.array(list(sites.values()))  # (n_sites, n_classes)
        ends = counts.cumsum(axis=1)
        for label in range(counts.shape[1]):
            axes.barh(range(len(sites)), counts[:, label], left=ends[:, label] - counts[:, label],
                      color=f"C{label % 10}", height=0.8)  # fmt: skip
        axes.set(title=data, xlabel="training records, a colour a class", yticks=range(len(sites)))
        axes.set_yticklabels(sites, fontsize=7)
        axes.invert_yaxis()
    _save(figure, path)


_SECONDS = "cpu_seconds_without_loading_and_encoding_mean"
_PRICES: tuple[tuple[str, Callable[[dict[str, Any]], float]], ...] = (
    ("KB sent by a site over all rounds", lambda row: row["rounds"] * row["upload_bytes"] / 1e3),
    ("MB of frozen weights (image tower)", lambda row: (row["image_frozen_bytes"] or 0) / 1e6),
    ("processor seconds (all sites, beside loading and encoding)", lambda row: row[_SECONDS]),
)


_COLOURS = {True: "#6f9bc8", False: "#c9a15b"}
_KINDS = ((True, "blue: private"), (False, "ochre: without privacy"))


def frontier(rows: list[dict[str, Any]], price: Callable[[dict[str, Any]], float]) -> list[dict[str, Any]]:
    """The rows that no other beats in mean accuracy at the same price or less, cheapest first."""
    best, found = float("-inf"), []
    for row in sorted(rows, key=lambda one: (price(one), -one["accuracy_mean"])):
        if row["accuracy_mean"] > best:
            best = row["accuracy_mean"]
            found.append(row)
    return found


def write_frontier(result: dict[str, Any], path: Path) -> bool:
    """Accuracy against bytes, memory and time, for the first data set on which something is sent; SVG.

    The line joins what nothing beats at that price; numbers on it are told below, cheapest first. Methods with privacy
    and those without have colours of their own. Writes nothing, and returns False, where fewer than three methods
    send anything.
    """
    for data in result["data"]:
        rows = [row for row in result["rows"] if row["data"] == data and row["upload_bytes"]]
        if len(rows) >= 3:
            break
    else:
        return False
    figure = Figure(figsize=(12, 5.4), layout="constrained")
    for axes, (label, price) in zip(figure.subplots(1, len(_PRICES), sharey=True), _PRICES, strict=True):
        for row in rows:
            axes.errorbar(
                price(row),
                100 * row["accuracy_mean"],
                yerr=100 * (row["accuracy_std"] or 0.0),
                fmt="o",
                color=_COLOURS[row["private"]],
                ms=4,
                lw=0.8,
            )
        front = frontier(rows, price)
        points = [price(row) for row in front], [100 * row["accuracy_mean"] for row in front]
        axes.step(*points, "-", where="post", color="#20364d", linewidth=1.2)
        for number, point in enumerate(zip(*points, strict=True), start=1):
            axes.annotate(str(number), point, (4, 4), textcoords="offset points", fontsize=8)
        axes.legend(
            handles=[Line2D([], [], linestyle="") for _ in front],
            labels=[f"{number}  {row['method']}" for number, row in enumerate(front, start=1)],
            handlelength=0,
            handletextpad=0,
            fontsize=8,
            frameon=False,
            loc="upper center",
            bbox_to_anchor=(0.5, -0.14),
        )
        axes.set(xlabel=label)
        axes.margins(x=0.08)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("accuracy on public test images [%]")
    named = [name for private, name in _KINDS if any(row["private"] == private for row in rows)]
    figure.suptitle(f"{data} ({', '.join(named)}; bars: standard deviation over seeds)", fontsize=10)
    _save(figure, path)
    return True
