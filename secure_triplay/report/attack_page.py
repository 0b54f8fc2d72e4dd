"""`report.html` of an attack run: one file with its pictures in it, to read or to mail."""

from __future__ import annotations

import base64
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from secure_triplay.errors import RunError
from secure_triplay.report.attack import AttackReport, Control, FindingEntry
from secure_triplay.report.html import Key, Plot, write_page
from secure_triplay.report.plots import COLOUR_OF, draw

ARMS = {
    "nothing": "no defence",
    "dp": "differential privacy",
    "encryption": "encryption",
    "both": "both",
}
ADAPTERS = {"lora": "LoRA (A and B)", "ffa": "FFA-LoRA (A frozen)", "none": "–"}
BAD = ("leaks", "invalid", "not protected")
_MIME = {".png": "image/png", ".jpg": "image/jpeg", ".svg": "image/svg+xml"}
_ARM_COLOURS = {"nothing": "s1", "dp": "s2", "encryption": "s3", "both": "s4"}
_LOWEST = 1e-4


@dataclass(frozen=True)
class Picture:
    """One picture of the report with what it shows; `data` is a data URI."""

    data: str
    title: str
    alt: str
    caption: str


def write_attack_page(report: AttackReport, folder: Path) -> Path:
    """Write `report.html` into the folder that holds the report's pictures. Raises RunError."""
    return write_page(
        folder / "report.html",
        "attack.html.j2",
        report=report,
        lead=lead(report),
        pictures=pictures(report, folder),
        curves=roc_plots(report),
        arms=ARMS,
        adapters=ADAPTERS,
        bad=BAD,
        titles={attack.name: attack.title for attack in report.attacks},
        figure=figure_text,
        interval=interval_text,
        control=control_text,
        sentence=sentence,
    )


def lead(report: AttackReport) -> str:
    """The result in a sentence or two, never more reassuring than the controls allow."""
    if report.verdict == "invalid":
        failed = [name for name, control in report.controls.items() if control["valid"] is not True]
        which = f"These controls failed: {', '.join(failed)}. " if failed else ""
        return (
            f"INVALID. {which}An attack that cannot find what is there proves nothing when it finds nothing: "
            "this report says nothing about safety."
        )
    valid = len(report.controls)
    which = "The control" if valid == 1 else f"All {valid} controls"
    first = f"{which} found what was there with the defences off. "
    if report.verdict == "leaks":
        leaks = sum(finding.verdict == "leaks" for finding in report.findings)
        return (
            first + f"{leaks} finding{'s lie' if leaks != 1 else ' lies'} above the bound of a "
            "defence that claims to prevent it."
        )
    first += "With them on, nothing was found above its bound by more than chance allows."
    open_claims = sum(
        asset.verdict in ("not protected", "leaks, as stated")
        for threat in report.threat_models
        for asset in threat.assets
    )
    if report.dp == "off":
        first += " But differential privacy is off, and without it there is no bound."
    if open_claims:
        things = "1 thing at stake is" if open_claims == 1 else f"{open_claims} things at stake are"
        first += f" {things} not protected; see below."
    return first


def pictures(report: AttackReport, folder: Path) -> tuple[Picture, ...]:
    """Every picture once, in the order of the findings, as data URIs. Raises RunError where one is missing."""
    first: dict[str, list[FindingEntry]] = {}
    for finding in report.findings:
        for name in finding.pictures:
            first.setdefault(name, []).append(finding)
    titles = {attack.name: attack.title for attack in report.attacks}
    return tuple(
        Picture(
            data=data_uri(folder / name),
            title=titles.get(findings[0].attack, findings[0].attack),
            alt=f"Pictures of the attack {findings[0].attack}",
            caption="; ".join(
                dict.fromkeys(
                    f"{ARMS[each.arm]}, {ADAPTERS[each.adapter]}: {each.metric} {figure_text(each.value)}"
                    for each in findings
                )
            ),
        )
        for name, findings in first.items()
    )


def data_uri(path: Path) -> str:
    """A picture as a data URI, by its suffix. Raises RunError where it cannot be read."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RunError(
            f"a picture cannot be read: {error.strerror}", where=str(path), fix="run the attacks again"
        ) from error
    return f"data:{_MIME[path.suffix]};base64,{base64.b64encode(content).decode()}"


def sentence(text: str, capital: bool = True) -> str:
    """The text with a capital, where asked for, and a full stop."""
    text = text.strip().rstrip(".")
    first = text[:1].upper() if capital else text[:1]
    return f"{first}{text[1:]}." if text else ""


def figure_text(value: float | None) -> str:
    """Three digits; whole numbers whole; `–` where there is none."""
    if value is None:
        return "–"
    if float(value).is_integer() and abs(value) < 1e6:
        return f"{value:.0f}"
    return f"{value:.3g}"


def interval_text(finding: FindingEntry) -> str:
    """`8.9 to 9.3`, or nothing."""
    if finding.interval is None:
        return "–"
    return " to ".join(map(figure_text, finding.interval))


def control_text(control: Control) -> str:
    """A control's figures in one line."""
    shown = []
    for key, value in control.items():
        if key in ("valid", "attack", "goal"):
            continue
        text = value if isinstance(value, str) else figure_text(float(value))
        shown.append(f"{key.replace('_', ' ')} {text}")
    return " · ".join(shown)


def roc_plots(report: AttackReport) -> tuple[Plot, ...]:
    """ROC curves on log axes, one plot for each attack and kind of adapter, with the claimed epsilon's ceiling.

    Where an attack has several ways of scoring, each arm has a plot of its own.
    """
    drawn = [finding for finding in report.findings if finding.curve is not None]
    arms = Counter((finding.attack, finding.adapter, finding.arm) for finding in drawn)
    groups: dict[tuple[str, str, str], list[FindingEntry]] = {}
    for finding in drawn:
        several = arms[finding.attack, finding.adapter, finding.arm] > 1
        arm = finding.arm if several else ""
        groups.setdefault((finding.attack, finding.adapter, arm), []).append(finding)
    return tuple(
        _roc(f"roc{index}", attack, adapter, findings, report)
        for index, ((attack, adapter, _), findings) in enumerate(groups.items())
    )


def _roc(
    name: str, attack: str, adapter: str, findings: Sequence[FindingEntry], report: AttackReport
) -> Plot:
    ceiling = report.ceiling

    def paint(figure: Figure) -> None:
        axes: Any = figure.add_subplot()
        axes.set(xscale="log", yscale="log", xlim=(_LOWEST, 1), ylim=(_LOWEST, 1.1))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda rate, _: f"{100 * rate:g} %"))
            axis.set_minor_locator(NullLocator())
        axes.set_xlabel("false positive rate")
        axes.set_ylabel("true positive rate")
        axes.plot([_LOWEST, 1], [_LOWEST, 1], color=COLOUR_OF["muted"], linewidth=1.0, linestyle=(0, (3, 3)))
        if ceiling is not None:
            axes.plot(
                ceiling.curve.fpr,
                ceiling.curve.tpr,
                color=COLOUR_OF["danger"],
                linewidth=1.6,
                linestyle=(0, (6, 3)),
            )
        for position, finding in enumerate(findings):
            assert finding.curve is not None
            axes.step(
                finding.curve.fpr,
                finding.curve.tpr,
                where="post",
                color=COLOUR_OF[_line(findings, position)],
                linewidth=1.8,
            )

    legend = [
        Key(_label(findings, each), _line(findings, position)) for position, each in enumerate(findings)
    ]
    if ceiling is not None:
        legend.append(Key(f"most that ε = {ceiling.epsilon:g} allows", "danger", "6 3"))
    legend.append(Key("guessing", "muted", "3 3"))
    alt = f"ROC curves of {attack} on log axes; the table of findings holds the figures."
    caption = "Log axes: what matters is the left end, where few are wrongly accused."
    if ceiling is None:
        caption += " There is no ceiling: differential privacy is off."
    else:
        caption += " The ceiling holds for the arms with differential privacy."
    titles = {entry.name: entry.title for entry in report.attacks}
    title = titles.get(attack, attack) + (f", {ADAPTERS[adapter]}" if adapter != "none" else "")
    if not _one_line_an_arm(findings):
        title += f", {ARMS[findings[0].arm]}"
    return Plot(title, caption, draw(name, alt, paint, 3.2), tuple(legend))


def _one_line_an_arm(findings: Sequence[FindingEntry]) -> bool:
    return len({finding.arm for finding in findings}) == len(findings)


def _line(findings: Sequence[FindingEntry], position: int) -> str:
    if _one_line_an_arm(findings):
        return _ARM_COLOURS[findings[position].arm]
    return f"s{position % 8 + 1}"


def _label(findings: Sequence[FindingEntry], finding: FindingEntry) -> str:
    if _one_line_an_arm(findings):
        return ARMS[finding.arm]
    found = re.fullmatch(r".*\((.+)\)", finding.metric)
    return found[1] if found else finding.metric
