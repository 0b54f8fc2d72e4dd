"""How one claim of a threat model came out, from the findings of the audits that go after it.

Used on a fresh run for its report, and on committed reports for the matrix of `secure-triplay threats`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from secure_triplay.attacks.registry import AUDITS
from secure_triplay.attacks.threat import Asset, Defence, ThreatModel
from secure_triplay.report.attack import WORST_FIRST, AssetEntry, FindingEntry, StandWord

Found = Mapping[str, tuple[FindingEntry, ...]]
"""Attack name -> its findings."""


def worst(words: Iterable[StandWord]) -> StandWord:
    """The most serious of some verdicts; `not tested` of none."""
    return min(words, key=WORST_FIRST.index, default="not tested")


def speaking(model: ThreatModel, asset: Asset, found: Found) -> tuple[FindingEntry, ...]:
    """The findings that speak for or against a claim, most serious first; of one measure the strongest.

    A protected claim is tried in the arms that have its defences on; what an attack reaches with them off is
    its control. A claim that is not protected is shown by whatever works.
    """
    all_findings = [finding for name in model.audits_of(asset) for finding in found.get(name, ())]
    if asset in model.not_protected:
        kept = all_findings
    else:
        defences = set(model.rests_on[asset])
        private, encrypted = Defence.DP in defences, bool(defences - {Defence.DP})
        kept = [
            finding
            for finding in all_findings
            if finding.verdict != "leaks, as stated"
            and (not private or finding.arm in ("dp", "both"))
            and (not encrypted or finding.arm in ("encryption", "both"))
        ]
    place: dict[tuple[str, str], int] = {}
    for finding in kept:
        place.setdefault(_measure(finding), len(place))

    def order(finding: FindingEntry) -> tuple[int, int, float]:
        value = math.inf if finding.value is None else finding.value  # beyond measure
        return WORST_FIRST.index(finding.verdict), place[_measure(finding)], -value

    return tuple(sorted(kept, key=order))


def _measure(finding: FindingEntry) -> tuple[str, str]:
    """What may be held against one another: of one attack, whoever of its attackers (in brackets) it was."""
    return finding.attack, finding.metric.partition(" (")[0]


def stand_of(model: ThreatModel, asset: Asset, found: Found, *, private: bool) -> AssetEntry:
    """How the claim about one asset stands; `private` says whether the study has differential privacy."""
    findings = speaking(model, asset, found)
    rests_on = model.rests_on.get(asset, ())
    verdict = worst(finding.verdict for finding in findings)
    why = ""
    if findings and verdict == findings[0].verdict:
        why = in_words(findings[0])
    if Defence.DP in rests_on and not private and verdict not in ("leaks", "invalid"):
        verdict, why = "not protected", "differential privacy is off in this study"
    elif asset in model.not_protected and verdict not in ("leaks", "invalid", "leaks, as stated"):
        verdict, why = "not protected", why or "no attack of this run shows it"
    elif verdict == "not tested":
        why = _elsewhere(model, asset)
    return AssetEntry(
        asset=asset.value,
        must_not="learn" if asset in model.must_not_learn else "change",
        rests_on=tuple(defence.value for defence in rests_on),
        protected=asset not in model.not_protected,
        audits=model.audits_of(asset),
        tests=len(model.tested_by.get(asset, ())),
        verdict=verdict,
        why=why,
    )


def in_words(finding: FindingEntry) -> str:
    """`span-inversion: 9.1 dB (bound 9.4)`: the figure that decided, and whether chance allows it past its bound."""
    value = "beyond measure" if finding.value is None else f"{finding.value:.3g}"
    bound = "" if finding.bound is None else f" (bound {finding.bound:.3g}{_by_chance(finding)})"
    return f"{finding.attack}: {finding.metric} {value}{bound}"


def _by_chance(finding: FindingEntry) -> str:
    """Why a figure past its bound is no leak: the bound lies in its 95 % interval."""
    low, high = finding.interval or (None, None)
    if finding.value is None or finding.bound is None or low is None or high is None:
        return ""
    return ", inside the 95 % interval" * (finding.value > finding.bound and low <= finding.bound <= high)


def _elsewhere(model: ThreatModel, asset: Asset) -> str:
    others = [name for name in model.audits_of(asset) if name in AUDITS]
    tests = len(model.tested_by.get(asset, ()))
    parts = [f"by the audit {name}" for name in others]
    if tests:
        parts.append(f"by {tests} test{'s' * (tests != 1)} of the project")
    return "not by this run; " + " and ".join(parts) if parts else "nobody tests this"
