"""A pilot as a table, a frontier plot, and a page that stands alone."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

from markupsafe import Markup
from matplotlib.figure import Figure
from rich import box
from rich.table import Table

from secure_triplay.report.html import write_page
from secure_triplay.report.summary import write_text

_PANELS = (
    ("hours", 1.0, "hours"),
    ("upload_bytes_per_round", 1e-3, "KB sent a round"),
    ("memory_bytes", 2.0**-30, "GiB of memory (estimate)"),
)


_COLUMNS = (
    "optimiser", "rank", "dirs", "blo-\ncks", "wei-\nghts", "bits", "batch", "rou-\nnds", "noise", "sent\nKB",
    "hours", "GiB", "accu-\nracy", "worst\nclass",
)  # fmt: skip


def pilot_table(result: dict[str, Any]) -> Table:
    """A line for each trial; fits 80 columns."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=0)
    for title in _COLUMNS:
        table.add_column(title, justify="left" if title in ("optimiser", "wei-\nghts") else "right")
    for trial in result["trials"]:
        choice, worst = trial["choice"], trial["worst_class"]
        table.add_row(
            _short(choice["optimiser"]),
            str(choice["rank"]),
            str(choice["output_rank"] or "all"),
            str(choice["blocks"]),
            choice["quantization"],
            str(choice["value_bits"]),
            f"{choice['batch']:g}",
            str(choice["rounds"]),
            f"{trial['noise_multiplier']:.3g}",
            f"{trial['upload_bytes_per_round'] / 1e3:.0f}",
            f"{trial['hours']:.2g}" + ("" if trial["fits"] else "!"),
            f"{trial['memory_bytes'] / 2**30:.1f}",
            _with_error(trial),
            _with_error(worst),
            style="bold" if trial["chosen"] else "",
        )
    return table


def _short(optimiser: dict[str, Any]) -> str:
    """`adam .01`."""
    return f"{optimiser['kind'].removeprefix('fed')} {optimiser['learning_rate']:g}".replace(" 0.", " .")


def _with_error(measured: dict[str, Any]) -> str:
    """`73±2`, in per cent."""
    return f"{100 * measured['accuracy']:.0f}±{100 * measured['standard_error']:.0f}"


def write_pilot_page(result: dict[str, Any], out: Path) -> None:
    """`pilot.html` and `frontier.svg` in `out`, each whole or not at all."""
    svg = draw_frontier(result)
    write_text(out / "frontier.svg", svg)
    inline = Markup(svg[svg.index("<svg") :])  # noqa: S704  (numbers and our own words only)
    write_page(out / "pilot.html", "pilot.html.j2", pilot=result, plot=inline)


def draw_frontier(result: dict[str, Any]) -> str:
    """Accuracy on public images against hours, bytes and memory: every trial, and those that none beats; SVG."""
    trials = result["trials"]
    figure = Figure(figsize=(10.5, 3.4), layout="constrained")
    for axes, (column, scale, label) in zip(figure.subplots(1, 3, sharey=True), _PANELS, strict=True):
        points = [(scale * trial[column], 100 * trial["accuracy"]) for trial in trials]
        front = sorted(
            point for point, trial in zip(points, trials, strict=True) if column in trial["frontier"]
        )
        axes.plot(*zip(*points, strict=True), "o", color="#9ab8d6", markersize=5)
        axes.step(*zip(*front, strict=True), where="post", color="#20364d", linewidth=1.2)
        (chosen,) = [trial for trial in trials if trial["chosen"]]
        axes.plot(scale * chosen[column], 100 * chosen["accuracy"], "D", color="#b04a3a", markersize=7)
        axes.axhline(100 * chosen["start_accuracy"], color="#888888", linestyle="--", linewidth=0.8)
        axes.set_xlabel(label)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("accuracy on public images [%]")
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    return re.sub(r"<metadata>.*?</metadata>", "", out.getvalue(), flags=re.DOTALL)
