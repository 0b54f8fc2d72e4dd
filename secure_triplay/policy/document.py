"""The policy file itself: what people at a site write, and how it is read."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import Field, ValidationError, field_validator, model_validator

from secure_triplay.config import Count, Name, Positive, Sha256
from secure_triplay.schema import (
    Frozen,
    lists_to_tuples,
    mapping_of,
    read_bytes,
    read_mapping,
    readable_error,
)

Export = Literal["adapter", "budget-evidence", "audit-log", "accuracy"]
Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
DAYS: tuple[Day, ...] = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


class Hours(Frozen):
    """A stretch of some days in which training may run; `until` before `from` means past midnight."""

    days: Annotated[tuple[Day, ...], Field(min_length=1)] = DAYS
    start: str = Field(alias="from", description='local time, in quotes, such as "18:00"')
    until: str = Field(description='local time, in quotes; "24:00" is the end of the day')

    @field_validator("start", "until", mode="before")
    @classmethod
    def _clock(cls, value: Any) -> Any:
        # YAML reads 18:00 without quotes as the number 1080, and 06:00 as text.
        if not isinstance(value, str) or not re.fullmatch(r"([01]\d|2[0-3]):[0-5]\d|24:00", value):
            raise ValueError('write a time of day in quotes, such as "18:00"')
        return value

    @model_validator(mode="after")
    def _some_time(self) -> Hours:
        if self.start == self.until or self.start == "24:00":
            raise ValueError('this is no time at all; a whole day is from "00:00" until "24:00"')
        return self

    def holds(self, local: datetime) -> bool:
        """Whether a local time lies in it; a night belongs to the day on which it begins."""
        minute = local.hour * 60 + local.minute
        start, until = _minutes(self.start), _minutes(self.until)
        today, yesterday = DAYS[local.weekday()], DAYS[local.weekday() - 1]
        if start < until:
            return today in self.days and start <= minute < until
        return (today in self.days and minute >= start) or (yesterday in self.days and minute < until)

    def __str__(self) -> str:
        days = "every day" if set(self.days) == set(DAYS) else ", ".join(self.days)
        return f"{days} from {self.start} to {self.until}"


class Delta(Frozen):
    """How small delta must be: at most 1 / (times_patients x the most patients, or records, at the site)."""

    times_patients: Annotated[int, Field(ge=100)] = Field(
        100, description="larger is stricter; 100 is the floor"
    )
    most_patients: Count | None = Field(
        None, description="public upper bound on this site's patients, no count"
    )
    most_records: Count | None = Field(
        None, description="public upper bound on this site's records, no count"
    )


class SitePolicy(Frozen):
    """What one site allows. Public within the study: it holds no secret and no count of what is there."""

    policy: Name
    approved_by: Annotated[str, Field(min_length=1)] | None = Field(
        None,
        description="who answers for this file, for its readers alone: the ledger has who gave --approved-by",
    )
    approved_on: date | None = Field(None, description="since when, for its readers alone")

    epsilon_per_study: Annotated[Positive, Field(le=100)]
    epsilon_per_year: Annotated[Positive, Field(le=1000)] = Field(
        description="over all studies of a calendar year in UTC; the site's ledger enforces it"
    )
    smallest_privacy_unit: Literal["record", "patient"] = Field(
        description="patient: a study that protects single records only is refused"
    )
    delta: Delta
    unsafe_allow_dp_off: bool = Field(False, description="take part in studies without any privacy")

    fewest_participants: Annotated[int, Field(ge=2)] = Field(
        description="sites in a study, and in every round"
    )
    allow_two_site_studies: bool = Field(
        False, description="with two sites each can work out the other's update from the sum"
    )

    allow_shared_noise: bool = Field(
        False,
        description="whether epsilon may rest on shares of noise that other sites add (`noise: shared`)",
    )

    allowed_backbone_sha256: Literal["any"] | tuple[Sha256, ...] = Field(
        description="hashes of the weight files that may run here, or the word any"
    )
    allowed_licences: Annotated[tuple[str, ...], Field(min_length=1)]

    timezone: str = Field("UTC", description="of allowed_hours, such as Europe/Berlin")
    allowed_hours: Literal["always"] | Annotated[tuple[Hours, ...], Field(min_length=1)]
    may_export: tuple[Export, ...] = Field(
        description="what people here may hand out; the program enforces `accuracy` alone, by refusing studies"
    )

    @field_validator("timezone")
    @classmethod
    def _known_zone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError, OSError) as error:
            raise ValueError("no such time zone; names are such as Europe/Berlin or UTC") from error
        return value

    @model_validator(mode="after")
    def _consistent(self) -> SitePolicy:
        if self.epsilon_per_study > self.epsilon_per_year:
            raise ValueError(
                "epsilon_per_study is larger than epsilon_per_year, so one of them means nothing"
            )
        if self.allow_two_site_studies and self.fewest_participants > 2:
            raise ValueError(
                f"allow_two_site_studies is true, but fewest_participants is {self.fewest_participants}; "
                "set it to 2, or do not allow them"
            )
        return self


_FIX = "start from one of configs/policies/; `secure-triplay policy schema` lists every key"


@dataclass(frozen=True)
class ReadPolicy:
    """A policy with the SHA-256, in hex, of the very bytes that it was read from."""

    rules: SitePolicy
    sha256: str


def read_policy(path: Path) -> ReadPolicy:
    """The policy in a site's own YAML file, which is read once: its rules and its hash are of the same bytes.

    Raises ConfigError that names the key and, for an unknown key, the nearest known one.
    """
    raw = read_bytes(path, _FIX)
    content = mapping_of(raw, path, "a policy", _FIX)
    try:
        rules = SitePolicy.model_validate(lists_to_tuples(content))
    except ValidationError as error:
        raise readable_error(error, str(path), "secure_triplay.policy", _FIX) from error
    return ReadPolicy(rules, hashlib.sha256(raw).hexdigest())


def load_policy(path: str | Path) -> SitePolicy:
    """The rules alone of `read_policy`. Raises ConfigError."""
    return read_policy(Path(path)).rules


def policy_content(path: Path) -> dict[str, Any]:
    """The plain content of a policy file, as it stands there. Raises ConfigError where it is no mapping of keys."""
    return read_mapping(path, "a policy", _FIX)


def policy_schema() -> dict[str, Any]:
    """JSON Schema of a policy file, for editors."""
    schema = SitePolicy.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    return schema


def _minutes(clock: str) -> int:
    hours, minutes = clock.split(":")
    return int(hours) * 60 + int(minutes)
