"""The four plots of a run as inline SVG that follows the page's colours, light or dark.

matplotlib draws in placeholder colours, which become the page's CSS variables; text stays text, so it takes
the page's font, can be searched, and is read aloud. No user's text enters an SVG: names stand in the legend,
which the template escapes.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from secure_triplay.report import words
from secure_triplay.report.html import Key, Plot
from secure_triplay.report.summary import Summary

MOST_COLOURED_SITES = 8

# Placeholder colour in the drawing -> CSS variable of page.css. Unusual values: none is hit by chance.
_COLOURS = {
    "#0a0b01": "ink",
    "#0a0b02": "muted",
    "#0a0b03": "line",
    "#0a0b04": "accent",
    "#0a0b05": "danger",
    "#0a0b06": "soft",
    **{f"#0a0c{n:02x}": f"s{n}" for n in range(1, MOST_COLOURED_SITES + 1)},
}
# CSS variable -> its placeholder colour, to paint with.
COLOUR_OF = {name: colour for colour, name in _COLOURS.items()}
_DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))

_STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 9.0,
    "font.family": "sans-serif",
    "text.color": COLOUR_OF["ink"],
    "axes.labelcolor": COLOUR_OF["muted"],
    "axes.edgecolor": COLOUR_OF["line"],
    "xtick.color": COLOUR_OF["muted"],
    "ytick.color": COLOUR_OF["muted"],
    "xtick.major.size": 0.0,
    "ytick.major.size": 0.0,
    "axes.grid": True,
    "grid.color": COLOUR_OF["line"],
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
}
_NOT_OURS = r"""<!--.*?-->|<metadata>.*?</metadata>|<style.*?</style>|font-family: [^;"]*;? ?"""


def draw(name: str, alt: str, paint: Callable[[Figure], None], height_in: float = 2.5) -> Markup:
    """An SVG element painted by matplotlib; `name` is unique on its page, `alt` says what is to be seen.

    Guarantee: no script, style sheet, font, link or comment; colours follow the page.
    """
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(4.3, height_in), layout="constrained")
        paint(figure)
        out = io.StringIO()
        figure.savefig(
            out, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
        )
    text = out.getvalue()
    text = re.sub(_NOT_OURS, "", text[text.index("<svg") :], flags=re.DOTALL)
    body = text[text.index(">") + 1 :]
    box = re.search(r'viewBox="([\d. ]+)"', text)
    assert box is not None
    body = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', body)
    body = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", body)
    body = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', body).replace("xlink:href", "href")
    body = re.sub(r"#0a0[bc][0-9a-f]{2}", lambda hit: f"var(--{_COLOURS[hit.group()]})", body)
    head = Markup('<svg class="plot" role="img" aria-label="{}" viewBox="{}">').format(alt, box.group(1))
    return head + Markup(body)  # noqa: S704  (matplotlib's own output; it holds numbers and our own words)


def accuracy_by_round(summary: Summary) -> Plot | None:
    """Public accuracy and each site's by round, with the baseline; None where nothing was measured."""
    accuracy = summary.accuracy
    sites = accuracy.per_site_per_round
    if not accuracy.per_round and not sites:
        return None
    rounds = range(summary.rounds + 1)
    styles = _site_styles(list(sites))

    weight = {"linewidth": 1.2} if len(sites) <= MOST_COLOURED_SITES else {"linewidth": 0.8, "alpha": 0.6}

    def paint(figure: Figure) -> None:
        axes = _axes(figure)
        for site, values in sites.items():
            first = accuracy.per_site[site].baseline if site in accuracy.per_site else float("nan")
            colour, dash = styles[site]
            axes.plot(rounds, [first, *values], color=COLOUR_OF[colour], linestyle=_DASHES[dash], **weight)
        axes.axhline(accuracy.baseline, color=COLOUR_OF["muted"], linewidth=1.1, linestyle=(0, (3, 3)))
        if accuracy.per_round:
            axes.plot(
                rounds, [accuracy.baseline, *accuracy.per_round], color=COLOUR_OF["accent"], linewidth=2.6
            )
        axes.plot(
            [summary.rounds], [accuracy.final], "o", color=COLOUR_OF["accent"], markersize=5.5, clip_on=False
        )
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))

    alt = (
        f"Accuracy by round: public test set from {words.percent(accuracy.baseline)} to "
        f"{words.percent(accuracy.final)}; the tables below hold every value."
    )
    legend = [Key("public test set", "accent"), Key("baseline", "muted", "3 3")]
    if len(sites) <= MOST_COLOURED_SITES:
        legend += [Key(site, styles[site][0], _svg_dash(styles[site][1])) for site in sites]
    elif sites:
        legend.append(Key(f"each of {len(sites)} sites", "soft"))
    caption = f"Baseline: {accuracy.baseline_is}. The dot is the published adapter."
    if sites:
        caption += (
            " Site lines: records held back at each site, read by the simulation; they never travelled."
        )
    return Plot("Accuracy by round", caption, draw("accuracy", alt, paint), tuple(legend))


def epsilon_by_round(summary: Summary) -> Plot | None:
    """Epsilon spent after every round against the budget; None where DP was off or the series is missing."""
    entries = [entry for entry in summary.privacy if entry.epsilon_by_round]
    if summary.dp == "off" or not entries:
        return None
    groups: dict[tuple[float, ...], list[str]] = {}
    for entry in entries:
        groups.setdefault(entry.epsilon_by_round, []).append(entry.site)
    budgets = sorted({entry.epsilon_budget for entry in entries if entry.epsilon_budget})
    single = len(groups) == 1
    styles = _site_styles([str(index) for index in range(len(groups))])

    def paint(figure: Figure) -> None:
        axes = _axes(figure)
        for index, values in enumerate(groups):
            colour, dash = ("accent", 0) if single else styles[str(index)]
            axes.plot(
                range(summary.rounds + 1),
                [0.0, *values],
                color=COLOUR_OF[colour],
                linestyle=_DASHES[dash],
                linewidth=2.4,
            )
        for budget in budgets:
            axes.axhline(budget, color=COLOUR_OF["danger"], linewidth=1.3, linestyle=(0, (6, 3)))
        axes.set_ylim(0, 1.1 * max([*budgets, *(max(values) for values in groups)]))

    if single:
        legend = [Key("every site" if len(entries) > 1 else entries[0].site, "accent")]
    elif len(groups) <= MOST_COLOURED_SITES:
        legend = [
            Key(_listed(sites), styles[str(index)][0], _svg_dash(styles[str(index)][1]))
            for index, sites in enumerate(groups.values())
        ]
    else:
        legend = [Key(f"each of {len(entries)} sites", "soft")]
    if budgets:
        legend.append(Key("budget", "danger", "6 3"))
    most = words.spent(summary)
    alt = f"Epsilon spent by round, at most {words.epsilon(most.epsilon)} at the end."
    caption = f"ε per {most.unit} and site at δ = {words.power(most.delta)}, by {most.accountant}."
    if most.epsilon_check_prv is not None:
        caption += f" The PRV accountant gives {most.epsilon_check_prv:.2f}."
    return Plot("ε spent by round", caption, draw("epsilon", alt, paint), tuple(legend))


def bytes_on_the_wire(summary: Summary) -> Plot:
    """Bytes of one site in one round, up and down, against plain fp32."""
    upload = summary.upload
    bars = [
        ("upload, encrypted", upload.bytes_per_site_per_round, "accent"),
        ("download, encrypted sum", upload.download_bytes_per_site_per_round, "s2"),
        ("plain fp32, one way", upload.plaintext_fp32_bytes, "soft"),
    ]
    labelled = [
        (label, float(count), colour, f"{words.size(count)} ({count / upload.n_params:.2f} B/parameter)")
        for label, count, colour in bars
    ]
    alt = "Bytes per site and round. " + "; ".join(f"{label}: {text}" for label, _, _, text in labelled) + "."
    caption = f"Per site and round, for {upload.n_params:,} parameters; everything but TLS is counted."
    return Plot("Bytes on the wire", caption, draw("bytes", alt, _bars(labelled), 0.5 * len(bars) + 0.35))


def time_spent(summary: Summary) -> Plot:
    """Elapsed time of the run, then the work in it summed over sites."""
    timing = summary.timing
    bars = [("whole run, elapsed", timing.wall_s, "soft")]
    if timing.setup_s:
        bars.append(("of it before round 1", timing.setup_s, "soft"))
    bars += [
        ("training", timing.train_s, "accent"),
        ("encode and encrypt", timing.encode_encrypt_s, "s1"),
        ("server's sum", timing.server_sum_s, "s2"),
        ("decrypt and apply", timing.decrypt_apply_s, "s3"),
    ]
    labelled = [(label, seconds, colour, words.duration(seconds)) for label, seconds, colour in bars]
    alt = "Where the time went. " + "; ".join(f"{label}: {text}" for label, _, _, text in labelled) + "."
    caption = "Coloured bars: work, summed over all sites and rounds; sites work at the same time. "
    if timing.train_s:
        caption += (
            f"Encryption in all its parts is {timing.encryption_s / timing.train_s:.1%} of training.".replace(
                "%", " %"
            )
        )
    return Plot("Where the time went", caption, draw("time", alt, _bars(labelled), 0.42 * len(bars) + 0.3))


def run_plots(summary: Summary) -> tuple[Plot, ...]:
    """Every plot that this run has figures for."""
    found = (
        accuracy_by_round(summary),
        epsilon_by_round(summary),
        bytes_on_the_wire(summary),
        time_spent(summary),
    )
    return tuple(plot for plot in found if plot is not None)


def _axes(figure: Figure) -> Any:
    axes = figure.add_subplot()
    axes.set_xlabel("round")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
    axes.grid(axis="x", visible=False)
    axes.margins(x=0.01)
    return axes


def _bars(rows: Sequence[tuple[str, float, str, str]]) -> Callable[[Figure], None]:
    """Horizontal bars, each with its label and figure above it: readable on a phone, whatever the lengths."""

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        largest = max(value for _, value, _, _ in rows) or 1.0
        for row, (label, value, colour, text) in enumerate(rows):
            axes.barh(row, value, height=0.36, color=COLOUR_OF[colour])
            axes.text(0, row - 0.3, label, va="bottom", ha="left")
            axes.text(largest, row - 0.3, text, va="bottom", ha="right", color=COLOUR_OF["muted"])
        axes.set(xlim=(0, largest), ylim=(len(rows) - 0.7, -0.85))
        axes.set_axis_off()

    return paint


def _site_styles(sites: Sequence[str]) -> dict[str, tuple[str, int]]:
    """Colour and dash of each line: distinct for few sites, one quiet colour for many."""
    if len(sites) > MOST_COLOURED_SITES:
        return dict.fromkeys(sites, ("soft", 0))
    return {site: (f"s{index + 1}", index % len(_DASHES)) for index, site in enumerate(sites)}


def _svg_dash(index: int) -> str:
    return "" if index == 0 else " ".join(f"{part:g}" for part in _DASHES[index][1])


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 3 else f"{names[0]} and {len(names) - 1} more"
