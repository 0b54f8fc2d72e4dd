"""The matrix of adversaries, assets, defences and audits, with what was last measured and what nobody tests."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from secure_triplay.attacks.registry import AUDITS
from secure_triplay.attacks.standing import in_words, speaking, worst
from secure_triplay.attacks.threat import Asset, ThreatModel
from secure_triplay.errors import RunError
from secure_triplay.report.attack import AttackReport, FindingEntry, StandWord, read_attack_report


@dataclass(frozen=True)
class Measured:
    """The last figure of one audit for a claim: its verdict, in words, and the file that holds it."""

    audit: str
    verdict: str
    figure: str
    file: str


@dataclass(frozen=True)
class Cell:
    """One adversary and one asset: what prevents it, who tests that, and what came out."""

    adversary: str
    asset: str
    must_not: Literal["learn", "change"]
    rests_on: tuple[str, ...]
    audits: tuple[str, ...]
    tests: int
    measured: tuple[Measured, ...]
    verdict: StandWord

    @property
    def nobody_tests(self) -> bool:
        """Whether neither an audit nor a test goes after it."""
        return not self.audits and not self.tests


@dataclass(frozen=True)
class Committed:
    """Results that lie in audits/: attack reports by file, and what other audits concluded."""

    reports: tuple[tuple[str, AttackReport], ...]
    verdicts: dict[str, Measured]

    def findings(self) -> dict[str, tuple[FindingEntry, ...]]:
        """Attack -> the findings of its last report; a full run counts before a quick one."""
        found: dict[str, tuple[FindingEntry, ...]] = {}
        for _, report in sorted(self.reports, key=lambda each: not each[1].quick):
            for attack in report.attacks:
                found[attack.name] = tuple(each for each in report.findings if each.attack == attack.name)
        return found

    def file_of(self, attack: str) -> str:
        """The file that `findings` took an attack from."""
        files = [
            file
            for file, report in sorted(self.reports, key=lambda each: not each[1].quick)
            if attack in {each.name for each in report.attacks}
        ]
        return files[-1]


def read_audits(folder: Path) -> Committed:
    """Every attack report and every audit's verdict below a folder; other results are left alone.

    Raises RunError for a report of another version.
    """
    reports, verdicts = [], {}
    for path in sorted((*folder.glob("*/report.json"), *folder.glob("*/result.json"))):
        content = _json(path)
        if content.get("kind") == "attack":
            reports.append((str(path), read_attack_report(path)))
        elif path.parent.name in AUDITS:
            audit = path.parent.name
            verdict, figure = _CONCLUSIONS[audit](content)
            verdicts[audit] = Measured(audit, verdict, figure, str(path))
    return Committed(tuple(reports), verdicts)


def matrix(models: Sequence[ThreatModel], committed: Committed) -> tuple[Cell, ...]:
    """One cell for each adversary and each thing that it must not learn or change, in the files' order."""
    found = committed.findings()
    return tuple(_cell(model, asset, found, committed) for model in models for asset in model.assets)


def _cell(
    model: ThreatModel, asset: Asset, found: dict[str, tuple[FindingEntry, ...]], committed: Committed
) -> Cell:
    speak = speaking(model, asset, found)
    measured = []
    for audit in model.audits_of(asset):
        mine = [finding for finding in speak if finding.attack == audit]
        if mine:
            figure = in_words(mine[0]).removeprefix(f"{audit}: ")
            measured.append(Measured(audit, mine[0].verdict, figure, committed.file_of(audit)))
        elif audit in committed.verdicts:
            measured.append(committed.verdicts[audit])
    return Cell(
        adversary=model.name,
        asset=asset.value,
        must_not="learn" if asset in model.must_not_learn else "change",
        rests_on=tuple(defence.value for defence in model.rests_on.get(asset, ())),
        audits=model.audits_of(asset),
        tests=len(model.tested_by.get(asset, ())),
        measured=tuple(measured),
        verdict=worst(finding.verdict for finding in speak),
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise RunError(
            "an audit's result cannot be read", where=str(path), fix="restore it, or run the audit again"
        ) from error
    return content if isinstance(content, dict) else {}


def _planted(content: dict[str, Any]) -> tuple[str, str]:
    alarms = content.get("false_alarms", ())
    return (
        "pass" if content.get("valid") is True else "fail",
        f"{content.get('caught')} of {content.get('planted')} mistakes caught, {len(alarms)} false alarms in "
        f"{content.get('clean_runs')} clean runs",
    )


def _epsilon(content: dict[str, Any]) -> tuple[str, str]:
    claimed = content.get("claimed", {}).get("epsilon", math.nan)
    bound = content.get("one_run", {}).get("f_dp", {}).get("lower_bound", math.nan)
    return str(content.get("verdict", "invalid")), f"epsilon at least {bound:.2f}, claimed {claimed:g}"


def _collusion(content: dict[str, Any]) -> tuple[str, str]:
    arms, setting = content.get("arms", {}), content.get("setting", {})
    got = [arms.get(arm, {}).get("psnr_db", math.nan) for arm in ("t-1 sites", "t sites")]
    return (
        str(content.get("verdict", "invalid")),
        f"PSNR {got[0]:.1f} dB against {setting.get('threshold', 0) - 1} sites and the server, the mean image's; "
        f"{got[1]:.1f} dB against {setting.get('threshold')}",
    )


_CONCLUSIONS = {"planted-bugs": _planted, "epsilon": _epsilon, "collusion": _collusion}
"""Audits with a command of their own: their result -> verdict, and one line of figures."""
