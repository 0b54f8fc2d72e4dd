"""A study, a moment, a round or an export, held against a policy."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from secure_triplay.config import Study
from secure_triplay.errors import PrivacyError
from secure_triplay.policy.document import DAYS, SitePolicy

_PROTECTS = {"record": 0, "patient": 1}


@dataclass(frozen=True)
class Refusal:
    """One rule that a study breaks: what it asks, what the policy allows, what a person could do."""

    rule: str
    asked: str
    allowed: str
    fix: str

    def __str__(self) -> str:
        return f"{self.asked}; {self.allowed}. {self.fix}"


def check_terms(policy: SitePolicy, study: Study) -> list[Refusal]:
    """Every rule that the study breaks, but for the hours: people join by day what trains at night.

    What was spent before is the ledger's to know; this checks what one study asks for.
    """
    return [refusal for rule in _RULES for refusal in rule(policy, study)]


def check_hours(policy: SitePolicy, now: datetime) -> Refusal | None:
    """A refusal where training may not run now; `now` must carry its time zone. Raises PrivacyError."""
    if now.tzinfo is None:
        raise PrivacyError(
            "a time without a time zone cannot be checked", where="allowed_hours", fix="pass UTC"
        )
    if policy.allowed_hours == "always":
        return None
    local = now.astimezone(ZoneInfo(policy.timezone))
    if any(hours.holds(local) for hours in policy.allowed_hours):
        return None
    opens = next_opening(policy, now)
    when = f"The study waits until {DAYS[opens.weekday()]} {opens:%H:%M}" if opens else "The study cannot run"
    return Refusal(
        "allowed_hours",
        f"The study asks to train now, {DAYS[local.weekday()]} {local:%H:%M} ({policy.timezone})",
        "the policy allows training " + ", and ".join(str(hours) for hours in policy.allowed_hours),
        f"{when}, or a person widens allowed_hours.",
    )


def next_opening(policy: SitePolicy, now: datetime) -> datetime | None:
    """The local time at which training may next run, within eight days; `now` where it may."""
    zone = ZoneInfo(policy.timezone)
    if policy.allowed_hours == "always":
        return now.astimezone(zone)
    moment = now.astimezone(UTC)
    # Minute by minute in UTC, so that nights on which the clock is changed come out right.
    minutes = (moment.replace(second=0, microsecond=0) + timedelta(minutes=n) for n in range(1, 8 * 24 * 60))
    for local in (later.astimezone(zone) for later in (moment, *minutes)):
        if any(hours.holds(local) for hours in policy.allowed_hours):
            return local
    return None


def check_participants(policy: SitePolicy, participants: int) -> Refusal | None:
    """A refusal where a round has too few sites; for the study as a whole and for each round's survivors."""
    if participants >= policy.fewest_participants and (participants > 2 or policy.allow_two_site_studies):
        return None
    if participants == 2 and policy.fewest_participants == 2:
        return Refusal(
            "allow_two_site_studies",
            "The study asks to sum the updates of two sites, from which each can work out the other's",
            "the policy does not consent to studies of two sites",
            "Wait for a third site, or a person sets allow_two_site_studies to true.",
        )
    return Refusal(
        "fewest_participants",
        f"The study asks to sum the updates of {participants} site{'s' * (participants != 1)}",
        f"the policy allows no fewer than {policy.fewest_participants}",
        "Find more sites, or a person lowers fewest_participants.",
    )


def _epsilon(policy: SitePolicy, study: Study) -> list[Refusal]:
    if study.dp is None:
        if policy.unsafe_allow_dp_off:
            return []
        return [
            Refusal(
                "unsafe_allow_dp_off",
                "The study asks to train without differential privacy, so that what it reveals is not "
                "bounded",
                f"the policy allows an epsilon of {policy.epsilon_per_study:g} at most",
                "The study sets an epsilon; only for data that are public already, a person sets "
                "unsafe_allow_dp_off.",
            )
        ]
    limits = {
        "epsilon_per_study": (policy.epsilon_per_study, "a study"),
        "epsilon_per_year": (policy.epsilon_per_year, "a year"),
    }
    return [
        Refusal(
            rule,
            f"The study asks for epsilon {study.dp.epsilon:g}",
            f"the policy allows {most:g} {per} at most",
            f"The study lowers its epsilon to {most:g} (see `secure-triplay budget plan`), or a person "
            f"raises {rule}.",
        )
        for rule, (most, per) in limits.items()
        if study.dp.epsilon > most
    ]


def _unit(policy: SitePolicy, study: Study) -> list[Refusal]:
    if study.dp is None or _PROTECTS[study.dp.unit] >= _PROTECTS[policy.smallest_privacy_unit]:
        return []
    return [
        Refusal(
            "smallest_privacy_unit",
            f"The study protects each {study.dp.unit}, so that somebody with many is protected less",
            f"the policy asks that it protects each {policy.smallest_privacy_unit}",
            "The study sets unit: patient with max_records_per_patient, or a person sets "
            "smallest_privacy_unit: record.",
        )
    ]


def _delta(policy: SitePolicy, study: Study) -> list[Refusal]:
    if study.dp is None:
        return []
    dp, own = study.dp, policy.delta
    here = own.most_patients if dp.unit == "patient" else own.most_records
    units = max(dp.max_units_per_site, here or 0)
    refusals = []
    if here is not None and here > dp.max_units_per_site:
        refusals.append(
            Refusal(
                "delta",
                f"The study assumes at most {dp.max_units_per_site:,} {dp.unit}s at any site",
                f"this site may hold up to {here:,} by its policy",
                f"The study raises max_units_per_site to {here:,} or more, and lowers delta with it.",
            )
        )
    most = 1 / (own.times_patients * units)
    if dp.delta > most * (1 + 1e-9):
        shown = _down(most)
        refusals.append(
            Refusal(
                "delta",
                f"The study asks for delta {dp.delta:g}",
                f"the policy allows {shown} at most, which is 1 / ({own.times_patients:,} x {units:,} "
                f"{dp.unit}s)",
                f"The study lowers delta to {shown}, or a person lowers times_patients (not below 100).",
            )
        )
    return refusals


def _participants(policy: SitePolicy, study: Study) -> list[Refusal]:
    refusal = check_participants(policy, len(study.sites))
    return [] if refusal is None else [refusal]


def _backbone(policy: SitePolicy, study: Study) -> list[Refusal]:
    backbone, refusals = study.backbone, []
    if policy.allowed_backbone_sha256 != "any":
        wanted = {"weights": backbone.sha256}
        if backbone.text_sha256 is not None:
            wanted["text tower"] = backbone.text_sha256
        for part, sha256 in wanted.items():
            if sha256 in policy.allowed_backbone_sha256:
                continue
            named = f"sha256 {sha256}" if sha256 else "random weights, which have no hash"
            refusals.append(
                Refusal(
                    "allowed_backbone_sha256",
                    f"The study asks to run {backbone.name} ({part}: {named})",
                    f"the policy allows {len(policy.allowed_backbone_sha256)} weight file(s), and not "
                    "this one",
                    "A person who has checked that file adds its sha256 to allowed_backbone_sha256."
                    if sha256
                    else "The study names a weight file by its sha256.",
                )
            )
    if backbone.licence not in policy.allowed_licences:
        refusals.append(
            Refusal(
                "allowed_licences",
                f"The study asks to run {backbone.name} under the licence {backbone.licence}",
                f"the policy allows {', '.join(policy.allowed_licences)}",
                "The study takes another backbone, or a person who has read the licence adds it to "
                "allowed_licences.",
            )
        )
    return refusals


def _published(policy: SitePolicy, study: Study) -> list[Refusal]:
    if study.published_accuracy is None or "accuracy" in policy.may_export:
        return []
    return [
        Refusal(
            "may_export",
            "The study publishes how many held-back records the adapter gets right, with noise",
            f"the policy lets out: {', '.join(policy.may_export) or 'nothing'}",
            "The study leaves published_accuracy out, or a person adds accuracy to may_export.",
        )
    ]


def _shared_noise(policy: SitePolicy, study: Study) -> list[Refusal]:
    if study.shared_noise is None or policy.allow_shared_noise:
        return []
    return [
        Refusal(
            "allow_shared_noise",
            "The study shares noise between sites, so that this site's epsilon rests on the honesty of others",
            "the policy allows noise that is enough by itself, and no other",
            "The study takes `noise: local`, or a person sets allow_shared_noise: true.",
        )
    ]


_RULES: tuple[Callable[[SitePolicy, Study], list[Refusal]], ...] = (
    _epsilon,
    _unit,
    _delta,
    _participants,
    _backbone,
    _published,
    _shared_noise,
)


def _down(value: float) -> str:
    """Two digits, rounded down: what is printed as allowed is allowed."""
    size = 10.0 ** (math.floor(math.log10(value)) - 1)
    return f"{math.floor(value / size * (1 + 1e-12)) * size:.2g}"
