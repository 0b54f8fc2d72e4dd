"""`report.json` of an attack run: what was attacked, what was found, and what it means.

Two runs with the same seed, study and program write the same file except for the timings, which stand in
`controls.*.seconds` alone; `figures_sha256` is over everything else, so that two runs compare by one line.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from secure_triplay.errors import RunError
from secure_triplay.report.summary import Sha256, write_text
from secure_triplay.schema import Frozen

SCHEMA_VERSION = 1

VerdictWord = Literal["nothing found", "within its bound", "leaks", "leaks, as stated", "invalid"]
StandWord = VerdictWord | Literal["not protected", "not tested"]
ArmWord = Literal["nothing", "dp", "encryption", "both"]
Control = dict[str, bool | int | float | str]

WORST_FIRST: tuple[StandWord, ...] = (
    "invalid",
    "leaks",
    "not protected",
    "leaks, as stated",
    "within its bound",
    "nothing found",
    "not tested",
)


class CurveEntry(Frozen):
    """A ROC curve: false and true positive rates, the same number of each."""

    fpr: tuple[float, ...]
    tpr: tuple[float, ...]

    @model_validator(mode="after")
    def _pairs(self) -> Self:
        if len(self.fpr) != len(self.tpr):
            raise ValueError("fpr and tpr have different lengths")
        return self


class FindingEntry(Frozen):
    """One attack in one arm on one kind of adapter."""

    attack: str
    arm: ArmWord
    adapter: Literal["lora", "ffa", "none"]
    metric: str
    value: float | None
    worse: Literal["higher"] = Field(
        "higher", description="the higher a figure, the more leaks: no attack has another"
    )
    interval: tuple[float | None, float | None] | None = Field(None, description="95 %")
    bound: float | None = None
    bound_is: str = ""
    verdict: VerdictWord
    note: str = ""
    pictures: tuple[str, ...] = Field((), description="relative to the report's folder")
    curve: CurveEntry | None = None
    figures: dict[str, float | int | None] = Field({}, description="what else was measured; no timings")


class AttackEntry(Frozen):
    """One attack that ran: what it is, where it is from, and what its observation was built from."""

    name: str
    title: str
    source: str
    observed: tuple[str, ...]
    controls: tuple[str, ...]


class AssetEntry(Frozen):
    """One thing that an adversary must not learn or change, and how that claim came out."""

    asset: str
    must_not: Literal["learn", "change"]
    rests_on: tuple[str, ...]
    protected: bool
    audits: tuple[str, ...]
    tests: int
    verdict: StandWord
    why: str


class ThreatEntry(Frozen):
    """One threat model and its verdict."""

    name: str
    title: str
    summary: str
    sha256: Sha256
    observes: tuple[str, ...]
    attacks: tuple[str, ...]
    elsewhere: dict[str, str] = Field({}, description="audits with a command of their own, not run here")
    assets: tuple[AssetEntry, ...]
    verdict: StandWord
    assumes: tuple[str, ...]
    not_tested: tuple[str, ...]


class Ceiling(Frozen):
    """The most that any membership test reaches against the study's training, by its claimed epsilon."""

    epsilon: float
    delta: float
    curve: CurveEntry


class Gap(Frozen):
    """Something that an attack does not test."""

    attack: str
    what: str


class AttackReport(Frozen):
    """All of `report.json`."""

    schema_version: Literal[1] = 1
    kind: Literal["attack"] = "attack"
    study: str
    config_sha256: Sha256
    study_file_sha256: Sha256
    package_version: str
    package_sha256: Sha256
    versions: dict[str, str]
    seed: Annotated[int, Field(ge=0)]
    quick: bool
    dp: Literal["on", "off"]
    encryption: Literal["on"] = Field("on", description="no study runs without")
    verdict: Literal["nothing above its bound", "leaks", "invalid"]
    exit_code: Literal[0, 1, 2]
    controls: dict[str, Control]
    threat_models: tuple[ThreatEntry, ...]
    findings: tuple[FindingEntry, ...]
    attacks: tuple[AttackEntry, ...]
    ceiling: Ceiling | None = None
    not_tested: tuple[Gap, ...] = ()
    differs_between_runs: tuple[str, ...] = ("controls.*.seconds",)
    figures_sha256: str = ""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        valid = all(control["valid"] is True for control in self.controls.values())
        words = {finding.verdict for finding in self.findings}
        code = {"nothing above its bound": 0, "leaks": 1, "invalid": 2}[self.verdict]
        if code != self.exit_code:
            raise ValueError(f"exit_code {self.exit_code} does not belong to the verdict {self.verdict!r}")
        if self.verdict != "invalid" and (not valid or "invalid" in words):
            raise ValueError("a control or a finding is invalid, and the verdict is not")
        if self.verdict == "nothing above its bound" and "leaks" in words:
            raise ValueError("a finding leaks, and the verdict says that nothing does")
        return self

    def to_json(self) -> str:
        """Indented JSON with a final newline and a fresh `figures_sha256`."""
        content = self.model_dump(mode="json")
        content["figures_sha256"] = figures_sha256(content)
        return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def figures_sha256(content: Mapping[str, Any]) -> str:
    """Hash of a report's content without its timings and without this hash itself."""
    kept: dict[str, Any] = {key: value for key, value in content.items() if key != "figures_sha256"}
    kept["controls"] = {
        name: {key: value for key, value in control.items() if key != "seconds"}
        for name, control in content["controls"].items()
    }
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def read_attack_report(path: str | Path) -> AttackReport:
    """The report in a file or a folder. Raises RunError where there is none, or one of another version."""
    path = Path(path)
    path = path / "report.json" if path.is_dir() else path
    try:
        text = path.read_bytes()
    except OSError as error:
        raise RunError(
            f"no attack report can be read: {error.strerror}",
            where=str(path),
            fix="name a folder that `secure-triplay attack --out` wrote",
        ) from error
    try:
        return AttackReport.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "the whole"
        raise RunError(
            f"this is not an attack report of schema version {SCHEMA_VERSION}: {key}: {first['msg']}",
            where=str(path),
            fix="read it with the version of secure-triplay that wrote it, or run the attacks again",
        ) from error


def write_attack_report(report: AttackReport, folder: Path) -> Path:
    """Write `report.json` whole or not at all. Raises RunError."""
    return write_text(folder / "report.json", report.to_json())
