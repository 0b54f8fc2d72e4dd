"""What an attack reports: controls that prove that it can find leakage, and findings under each defence.

A finding without a valid control of the same attack is INVALID, never "safe".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal


class Arm(StrEnum):
    """The defences that are on while an attack observes."""

    NOTHING = "nothing"
    DP = "dp"
    ENCRYPTION = "encryption"
    BOTH = "both"

    @property
    def private(self) -> bool:
        """Whether updates are clipped and noised."""
        return self in (Arm.DP, Arm.BOTH)

    @property
    def encrypted(self) -> bool:
        """Whether updates travel as ciphertexts."""
        return self in (Arm.ENCRYPTION, Arm.BOTH)


class Verdict(StrEnum):
    """What a finding means, given its control."""

    NOTHING_FOUND = "nothing found"
    WITHIN_BOUND = "within its bound"
    LEAKS = "leaks"
    """Above the bound of a defence that claims to prevent it: the suite exits with 1."""
    LEAKS_AS_STATED = "leaks, as stated"
    """Works against an arm, or a threat model, that claims no protection from it."""
    INVALID = "invalid"


@dataclass(frozen=True)
class Control:
    """Proof that an attack finds what is there: run with the defences off, against a goal fixed beforehand."""

    name: str
    valid: bool
    goal: str
    figures: Mapping[str, float | int]


@dataclass(frozen=True)
class Curve:
    """A ROC curve: false and true positive rates (n,), for log axes."""

    fpr: tuple[float, ...]
    tpr: tuple[float, ...]


@dataclass(frozen=True)
class Finding:
    """One attack in one arm: a figure, its 95 % interval, and the bound that the defence claims.

    The higher the figure, the more leaks. `pictures` are paths relative to the report's folder.
    """

    attack: str
    arm: Arm
    adapter: Literal["lora", "ffa", "none"]
    metric: str
    value: float
    verdict: Verdict
    interval: tuple[float, float] | None = None
    bound: float | None = None
    bound_is: str = ""
    note: str = ""
    pictures: tuple[str, ...] = ()
    curve: Curve | None = None
    figures: Mapping[str, float | int] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """All that one attack found."""

    controls: tuple[Control, ...]
    findings: tuple[Finding, ...]
    not_tested: tuple[str, ...] = ()
