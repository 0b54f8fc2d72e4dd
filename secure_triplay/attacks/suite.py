"""Run what threat models allow their adversaries, judge it, and put it into one report.

An attack is not believed on its word: without a valid control of its own it is INVALID, and a figure above
its bound leaks, whatever the attack calls it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import secure_triplay
from secure_triplay.attacks.attack import Attack, Setting
from secure_triplay.attacks.finding import Finding, Outcome, Verdict
from secure_triplay.attacks.registry import AUDITS, load_attack, load_attacks
from secure_triplay.attacks.standing import stand_of, worst
from secure_triplay.attacks.threat import ThreatModel
from secure_triplay.attacks.workers import in_workers, tell_parent
from secure_triplay.config import Study
from secure_triplay.constants import require_own_noise
from secure_triplay.errors import RunError, SecureTriplayError
from secure_triplay.report.attack import (
    AttackEntry,
    AttackReport,
    Ceiling,
    Control,
    CurveEntry,
    FindingEntry,
    Gap,
    StandWord,
    ThreatEntry,
    write_attack_report,
)
from secure_triplay.report.attack_page import write_attack_page
from secure_triplay.runfolder import run_folder

Tell = Callable[[str, int, int], None]
"""`tell(attack, done, total)` moves that attack's progress bar."""

_TIMINGS = ("seconds", "_seconds")
_LONG = ("membership-rounds", "membership", "span-inversion")
"""Begun first, so that no worker is left with a long one when the others are done."""


@dataclass(frozen=True)
class Ran:
    """An attack with what it found, judged."""

    attack: Attack
    outcome: Outcome

    @property
    def valid(self) -> bool:
        """Whether every control proves that the attack finds what is there; no control proves nothing."""
        return bool(self.outcome.controls) and all(control.valid for control in self.outcome.controls)


def run_suite(
    study: Study,
    models: Sequence[ThreatModel],
    out: Path,
    *,
    seed: int = 0,
    quick: bool = False,
    workers: int = 0,
    tell: Tell = lambda attack, done, total: None,
) -> AttackReport:
    """Run each attack that the threat models name once, and write report.json, report.html and pictures/.

    `out` must not exist, and holds everything or does not come into being. With `workers` attacks run in so
    many processes at a time, of one thread each, and figures do not depend on how many; without, in this one.
    Raises RunError, and whatever keeps an attack from running at all (too few images, no weights).
    """
    require_own_noise(study)
    attacks = load_attacks({name for model in models for name in model.audits})
    with run_folder(out) as folder:
        if workers:
            longest_first = sorted(attacks, key=lambda attack: attack.name not in _LONG)
            calls = [(attack.name, study, folder, seed, quick) for attack in longest_first]
            outcomes = in_workers(_run_in_worker, calls, workers=workers, tell=tell)
            found = dict(zip((attack.name for attack in longest_first), outcomes, strict=True))
            ran = [Ran(attack, found[attack.name]) for attack in attacks]
        else:
            ran = [_run(attack, study, folder, seed=seed, quick=quick, tell=tell) for attack in attacks]
        report = make_report(study, models, ran, seed=seed, quick=quick)
        write_attack_report(report, folder)
        write_attack_page(report, folder)
    return report


def _run_in_worker(name: str, study: Study, folder: Path, seed: int, quick: bool) -> Outcome:
    return _run(load_attack(name), study, folder, seed=seed, quick=quick, tell=tell_parent).outcome


def _run(attack: Attack, study: Study, folder: Path, *, seed: int, quick: bool, tell: Tell) -> Ran:
    pictures = folder / "pictures" / attack.name
    pictures.mkdir(parents=True)
    tell(attack.name, 0, 1)
    setting = Setting(study, seed, quick, pictures, lambda done, total: tell(attack.name, done, total))
    try:
        outcome = attack.run(setting)
    except SecureTriplayError as error:
        where = f"attack {attack.name}" + (f", {error.where}" if error.where else "")
        raise type(error)(error.what, where=where, fix=error.fix) from error
    except Exception as error:
        raise RunError(
            f"the attack stopped with {type(error).__name__}: {error}",
            where=f"attack {attack.name}",
            fix="this is a mistake in the attack, not a finding; report it with the study file",
        ) from error
    tell(attack.name, 1, 1)
    if not any(pictures.iterdir()):
        pictures.rmdir()
    found = tuple(
        _with_pictures(replace(finding, attack=attack.name), folder, pictures) for finding in outcome.findings
    )
    return judged(Ran(attack, replace(outcome, findings=found)))


def _with_pictures(finding: Finding, folder: Path, pictures: Path) -> Finding:
    """The same finding, its pictures relative to the report's folder. Raises RunError for one that is missing."""
    paths = []
    for name in finding.pictures:
        found = next(
            (base / name for base in (folder, pictures, pictures.parent) if (base / name).is_file()), None
        )
        if found is None:
            raise RunError(
                f"the picture {name} was not made",
                where=f"attack {finding.attack}",
                fix="this is a mistake in the attack; report it",
            )
        paths.append(found.relative_to(folder).as_posix())
    return replace(finding, pictures=tuple(paths))


def judged(ran: Ran) -> Ran:
    """The same, where what its controls do not carry is INVALID, and what is above its bound leaks."""
    findings = []
    for finding in ran.outcome.findings:
        if not ran.valid:
            finding = replace(finding, verdict=Verdict.INVALID)
        elif above_bound(finding) and finding.verdict in (Verdict.NOTHING_FOUND, Verdict.WITHIN_BOUND):
            finding = replace(finding, verdict=Verdict.LEAKS)
        elif math.isnan(finding.value):
            finding = replace(finding, verdict=Verdict.INVALID)
        findings.append(finding)
    return Ran(ran.attack, replace(ran.outcome, findings=tuple(findings)))


def above_bound(finding: Finding) -> bool:
    """Whether a figure is above its bound beyond chance: the harmless end of its 95 % interval is."""
    if finding.bound is None:
        return False
    low, _ = finding.interval or (finding.value, finding.value)
    return low > finding.bound


def make_report(
    study: Study, models: Sequence[ThreatModel], ran: Sequence[Ran], *, seed: int, quick: bool
) -> AttackReport:
    """Everything that was found, per attack and per threat model, with the verdict and the exit code."""
    from secure_triplay.federation.bundle import package_sha256
    from secure_triplay.summarise import versions

    verdict, code = _verdict(ran)
    return AttackReport(
        study=study.study,
        config_sha256=study.sha256,
        study_file_sha256=study.file_sha256,
        package_version=secure_triplay.__version__,
        package_sha256=package_sha256(),
        versions=versions(),
        seed=seed,
        quick=quick,
        dp="off" if study.dp is None else "on",
        verdict=verdict,
        exit_code=code,
        controls=_controls(ran),
        threat_models=tuple(_threat(model, ran, study) for model in models),
        findings=tuple(_entry(finding) for each in ran for finding in each.outcome.findings),
        attacks=tuple(
            AttackEntry(
                name=each.attack.name,
                title=each.attack.title,
                source=each.attack.source,
                observed=tuple(sorted(need.value for need in each.attack.needs)),
                controls=tuple(control.name for control in each.outcome.controls),
            )
            for each in ran
        ),
        ceiling=_ceiling(study),
        not_tested=tuple(
            Gap(attack=each.attack.name, what=what) for each in ran for what in each.outcome.not_tested
        ),
    )


def _verdict(
    ran: Sequence[Ran],
) -> tuple[Literal["nothing above its bound", "leaks", "invalid"], Literal[0, 1, 2]]:
    words = {finding.verdict for each in ran for finding in each.outcome.findings}
    controls = [control for each in ran for control in each.outcome.controls]
    if not controls or Verdict.INVALID in words or not all(control.valid for control in controls):
        return "invalid", 2
    return ("leaks", 1) if Verdict.LEAKS in words else ("nothing above its bound", 0)


def _controls(ran: Sequence[Ran]) -> dict[str, Control]:
    found: dict[str, Control] = {}
    for each in ran:
        for control in each.outcome.controls:
            name = control.name if control.name not in found else f"{each.attack.name}.{control.name}"
            found[name] = {
                "valid": control.valid,
                "attack": each.attack.name,
                "goal": control.goal,
                **{key: _plain(value) for key, value in control.figures.items() if math.isfinite(value)},
            }
    return found


def _not_modelled(study: Study) -> tuple[str, ...]:
    """What sites of this study do in training and attacked ones here do not."""
    if not study.trains_with_bias:
        return ()
    return (
        "the bias of its own classes with which a site of this study trains: the attacked ones train without it",
    )


def _threat(model: ThreatModel, ran: Sequence[Ran], study: Study) -> ThreatEntry:
    mine = [each for each in ran if each.attack.name in model.audits]
    found = _found(mine)
    assets = tuple(stand_of(model, asset, found, private=study.dp is not None) for asset in model.assets)
    words: list[StandWord] = [asset.verdict for asset in assets]
    if any(not each.valid for each in mine if each.outcome.controls or each.outcome.findings):
        words.append("invalid")
    words += [
        finding.verdict
        for entries in found.values()
        for finding in entries
        if finding.verdict in ("leaks", "invalid")
    ]
    return ThreatEntry(
        name=model.name,
        title=model.title,
        summary=model.summary,
        sha256=model.sha256,
        observes=tuple(seen.value for seen in model.observes),
        attacks=tuple(each.attack.name for each in mine),
        elsewhere={name: AUDITS[name] for name in model.audits if name in AUDITS},
        assets=assets,
        verdict=worst(words),
        assumes=model.assumes,
        not_tested=(*model.not_tested, *_not_modelled(study)),
    )


def _found(ran: Sequence[Ran]) -> Mapping[str, tuple[FindingEntry, ...]]:
    return {each.attack.name: tuple(_entry(finding) for finding in each.outcome.findings) for each in ran}


def _entry(finding: Finding) -> FindingEntry:
    interval = finding.interval
    return FindingEntry(
        attack=finding.attack,
        arm=finding.arm.value,
        adapter=finding.adapter,
        metric=finding.metric,
        value=_finite(finding.value),
        interval=None if interval is None else (_finite(interval[0]), _finite(interval[1])),
        bound=None if finding.bound is None else _finite(finding.bound),
        bound_is=finding.bound_is,
        verdict=finding.verdict.value,
        note=finding.note,
        pictures=finding.pictures,
        curve=None
        if finding.curve is None
        else CurveEntry(fpr=tuple(map(float, finding.curve.fpr)), tpr=tuple(map(float, finding.curve.tpr))),
        figures={
            key: _plain(value) if math.isfinite(value) else None
            for key, value in finding.figures.items()
            if not key.endswith(_TIMINGS)  # timings stand in controls alone: they differ between runs
        },
    )


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _plain(value: float | int) -> float | int:
    """A Python number, whatever numpy made it."""
    return int(value) if float(value).is_integer() and not isinstance(value, float) else float(value)


def _ceiling(study: Study) -> Ceiling | None:
    """True positive rates that the claimed epsilon allows, at false positive rates from 1e-4 to 1."""
    import numpy as np

    from secure_triplay.constants import noise_multiplier
    from secure_triplay.planner.attacker import membership_ceiling
    from secure_triplay.planner.losses import composed

    if study.dp is None:
        return None
    dp = study.dp
    losses = composed(noise_multiplier(study), dp.sampling_rate, study.total_steps)
    rates = [float(rate) for rate in np.logspace(-4, 0, 65)]
    hits = [membership_ceiling(rate, dp.epsilon, dp.delta, losses).tight for rate in rates]
    return Ceiling(
        epsilon=dp.epsilon, delta=dp.delta, curve=CurveEntry(fpr=tuple(rates), tpr=tuple(map(float, hits)))
    )
