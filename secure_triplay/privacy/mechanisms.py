"""What a release costs: each mechanism that touches data, as the public numbers that set its price.

A charge holds public constants only. It never holds a record count, a drawn batch size or anything else
that a site's records decide, so it may be printed, sent and audited.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from secure_triplay.errors import PrivacyError

Unit = Literal["record", "patient"]
Neighbouring = Literal["add/remove"]

# The PLD accountant's rounding stays far below this; from 1e-12 down it was off to either side (measured).
SMALLEST_DELTA = 1e-10

# What the accountants compute; beyond it they overflow or divide by zero, or, over more steps, do not return.
SMALLEST_NOISE, MOST_NOISE = 1e-12, 1e9
SMALLEST_RATE = 1e-12
MOST_STEPS = 1_000_000
MOST_SENSITIVITY = 1 << 31


@dataclass(frozen=True)
class DpSgdCharge:
    """`steps` Poisson-subsampled Gaussian mechanisms (Abadi et al. 2016; Mironov, Talwar and Zhang 2019).

    Two data sets are neighbours when one has one `unit` more than the other. Between neighbours a clipped sum
    differs by at most C, and the noise has standard deviation `noise_multiplier` times C.
    """

    mechanism: ClassVar[str] = "dp-sgd"
    noise_multiplier: float
    sampling_rate: float
    steps: int
    unit: Unit = "record"
    neighbouring: Neighbouring = "add/remove"

    def __post_init__(self) -> None:
        _check_noise(self.noise_multiplier)
        check_rate(self.sampling_rate)
        check_steps(self.steps)
        _check_relation(self.unit, self.neighbouring)


@dataclass(frozen=True)
class GaussianCharge:
    """`releases` Gaussian mechanisms over all records, such as published counts (Dwork et al. 2006).

    `noise_multiplier` is the noise's standard deviation divided by the l2 sensitivity under add/remove.
    """

    mechanism: ClassVar[str] = "gaussian"
    noise_multiplier: float
    releases: int = 1
    unit: Unit = "record"
    neighbouring: Neighbouring = "add/remove"

    def __post_init__(self) -> None:
        _check_noise(self.noise_multiplier)
        if not _whole(self.releases) or not 1 <= self.releases <= MOST_STEPS:
            raise PrivacyError(
                f"{_shown(self.releases)} releases cannot be charged",
                where="releases",
                fix=f"charge 1 to {MOST_STEPS:,}",
            )
        _check_relation(self.unit, self.neighbouring)


@dataclass(frozen=True)
class SharedNoiseCharge:
    """`steps` sums of a Poisson sample's integer gradients under Skellam noise that `honest_shares` sites' shares make.

    `l2_sensitivity` bounds one record's integer gradient, in steps of the grid; `noise_multiplier` is the noise's
    standard deviation divided by it, in each coordinate of a sum with `honest_shares` shares that the adversary does
    not know. The price holds against whoever sees sums and knows the shares of at most `colluders` sites
    (Agarwal, Kairouz and Liu 2021).
    """

    mechanism: ClassVar[str] = "shared-skellam"
    noise_multiplier: float
    l2_sensitivity: int
    sampling_rate: float
    steps: int
    honest_shares: int
    colluders: int
    unit: Unit = "record"
    neighbouring: Neighbouring = "add/remove"

    def __post_init__(self) -> None:
        _check_noise(self.noise_multiplier)
        check_rate(self.sampling_rate)
        check_steps(self.steps)
        for name in ("l2_sensitivity", "honest_shares", "colluders"):
            value = getattr(self, name)
            if not _whole(value) or not 1 <= value <= MOST_SENSITIVITY:
                raise PrivacyError(
                    f"{name} is {_shown(value)} where sites share noise",
                    where=name,
                    fix=f"give a whole number from 1 to {MOST_SENSITIVITY:,}",
                )
        _check_relation(self.unit, self.neighbouring)

    @property
    def variance(self) -> float:
        """Variance that the honest shares give each coordinate of a sum, in squared steps of the grid."""
        return (self.noise_multiplier * self.l2_sensitivity) ** 2


Charge = DpSgdCharge | GaussianCharge | SharedNoiseCharge


@dataclass(frozen=True)
class DpSgd:
    """The rule of one stretch of DP-SGD: public constants of the study, never derived from its records.

    `expected_batch_size`, in units, is what the noised sum is divided by, whatever was drawn.
    `physical_batch_size` bounds the records in memory at once and changes nothing else. Where the unit is the
    patient, at most `max_records_per_patient` records of a drawn patient are used in a step, and all of them
    fit into memory together. Raises PrivacyError for settings that protect nobody.
    """

    noise_multiplier: float
    l2_clip_norm: float
    sampling_rate: float
    expected_batch_size: float
    steps: int
    learning_rate: float
    physical_batch_size: int = 128
    unit: Unit = "record"
    max_records_per_patient: int | None = None

    def __post_init__(self) -> None:
        _check_noise(self.noise_multiplier)
        check_rate(self.sampling_rate)
        check_steps(self.steps)
        for name in ("l2_clip_norm", "expected_batch_size", "learning_rate"):
            value = getattr(self, name)
            if not _positive(value):
                raise PrivacyError(
                    f"{name} is {value!r}", where=name, fix="give a positive number, the same at every site"
                )
        if not _whole(self.physical_batch_size) or self.physical_batch_size < 1:
            raise PrivacyError(
                f"physical_batch_size is {self.physical_batch_size!r}",
                where="physical_batch_size",
                fix="give the number of images that fit into memory at once, 1 or more",
            )
        _check_relation(self.unit, "add/remove")
        most = self.max_records_per_patient
        if (self.unit == "patient") != (most is not None):
            raise PrivacyError(
                f"max_records_per_patient is {most!r} where the unit is the {self.unit}",
                where="max_records_per_patient",
                fix="bound the images used of one patient, and only where the unit is the patient",
            )
        if most is not None and (not _whole(most) or not 1 <= most <= self.physical_batch_size):
            raise PrivacyError(
                f"{most!r} images of one patient cannot be taken together: {self.physical_batch_size:,} fit "
                "into memory at once",
                where="max_records_per_patient",
                fix="give a whole number from 1 to physical_batch_size",
            )

    @property
    def noise_std(self) -> float:
        """Standard deviation of the noise in each coordinate of one summed gradient, before any division."""
        return self.noise_multiplier * self.l2_clip_norm

    @property
    def charge(self) -> DpSgdCharge:
        """What these steps cost, whatever they draw: an empty batch costs what a full one does."""
        return DpSgdCharge(self.noise_multiplier, self.sampling_rate, self.steps, self.unit)


def check_epsilon(epsilon: float) -> None:
    """Raises PrivacyError for an epsilon that no noise can give."""
    if not _positive(epsilon):
        why = (
            "at 0 nothing may be learned from the records at all"
            if epsilon <= 0
            else "it has to be a finite number"
        )
        raise PrivacyError(
            f"epsilon {epsilon!r} cannot be reached: {why}",
            where="epsilon",
            fix="choose an epsilon above 0; 1 to 10 is usual for training, smaller protects more",
        )


def check_delta(delta: float, max_units: int | None = None, unit: Unit = "record") -> None:
    """Raises PrivacyError for a delta that means nothing, or that is too large for `max_units` at a site.

    `max_units` is a public upper bound, never a count of what is there.
    """
    if not _positive(delta) or delta >= 1:
        raise PrivacyError(
            f"delta {delta!r} is not a small probability above 0",
            where="delta",
            fix="choose the chance, such as 1e-6, with which the guarantee may fail; 0 cannot be had here",
        )
    if delta < SMALLEST_DELTA:
        raise PrivacyError(
            f"delta {delta:g} is smaller than the accountants compute reliably",
            where="delta",
            fix=f"choose {SMALLEST_DELTA:g} or more; that is small enough for 100 million {unit}s",
        )
    if max_units is None:
        return
    if not _whole(max_units) or max_units < 1:
        raise PrivacyError(
            f"at most {max_units!r} {unit}s at a site makes no sense",
            where="max_units_per_site",
            fix="give a public upper bound of 1 or more",
        )
    most = 1 / (100 * max_units)
    if delta > most * (1 + 1e-9):
        raise PrivacyError(
            f"delta {delta:g} is too large for up to {max_units:,} {unit}s: near one in that many, "
            "publishing somebody's data outright would count as private",
            where="delta",
            fix=f"choose {most:.2g} or less, which is 1 / (100 x {max_units:,})",
        )


def check_rate(rate: float) -> None:
    """Raises PrivacyError for a sampling rate outside (0, 1]."""
    if not _positive(rate) or rate > 1:
        raise PrivacyError(
            f"sampling rate {rate!r} is impossible: a step would use "
            + ("more records than there are" if rate > 1 else "no record at all"),
            where="sampling_rate",
            fix="give the chance of each record to take part in a step, above 0 and at most 1",
        )
    if rate < SMALLEST_RATE:
        raise PrivacyError(
            f"sampling rate {rate:g} is smaller than the accountants compute",
            where="sampling_rate",
            fix=f"give {SMALLEST_RATE:g} or more",
        )


def check_steps(steps: int) -> None:
    """Raises PrivacyError for a number of steps that is not a whole number from 1, or more than is accounted for."""
    if not _whole(steps) or not 1 <= steps <= MOST_STEPS:
        raise PrivacyError(
            f"{_shown(steps)} training steps are impossible",
            where="steps",
            fix=f"give a whole number from 1 to {MOST_STEPS:,}",
        )


def _check_noise(noise_multiplier: float) -> None:
    if _positive(noise_multiplier) and noise_multiplier > MOST_NOISE:
        raise PrivacyError(
            f"a noise multiplier above {MOST_NOISE:g} leaves nothing to learn",
            where="noise_multiplier",
            fix="choose an epsilon and let the noise follow from it",
        )
    if not _positive(noise_multiplier) or noise_multiplier < SMALLEST_NOISE:
        raise PrivacyError(
            f"noise multiplier {noise_multiplier!r} gives no protection that could be stated",
            where="noise_multiplier",
            fix="choose an epsilon and let the noise follow from it",
        )


def _check_relation(unit: str, neighbouring: str) -> None:
    if unit not in ("record", "patient") or neighbouring != "add/remove":
        raise PrivacyError(
            f"unit {unit!r} under neighbouring relation {neighbouring!r} is not accounted for here",
            where="charge",
            fix="charge per record or per patient, neighbours by adding or removing one",
        )


def _positive(value: float) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf


def _shown(value: object) -> str:
    return "a number too long to show" if isinstance(value, int) and abs(value) > 1e15 else repr(value)


def _whole(value: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
