"""Differential privacy of each site: by its own noise, or by shares of it."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from secure_triplay.config.kinds import Count, Positive, is_number
from secure_triplay.schema import Frozen


class LocalNoise(Frozen):
    """Each site's noise is enough by itself, whoever else is honest."""

    kind: Literal["local"] = "local"


class SharedNoise(Frozen):
    """Each site adds a share of integer noise, and the shares of a masked sum are enough together.

    The guarantee then holds against those who see sums alone: the server and up to `aggregation.colluders` sites.
    Against more of them it is weaker; `config check` says by how much. Needs masks, one step a round, equal sites.
    """

    kind: Literal["shared"] = "shared"
    clip_steps: Annotated[int, Field(ge=8, le=1 << 20)] = Field(
        1024,
        description="steps of the integer grid in l2_clip_norm; gradients are rounded to it before the noise",
    )
    rounding_cost: Annotated[float, Field(ge=0.001, le=0.5)] = Field(
        0.02,
        description="share by which rounding may lengthen a record's gradient, and so what it adds to the noise",
    )

    @property
    def l2_sensitivity(self) -> int:
        """The longest that one record's rounded gradient can be, in steps of the grid."""
        return math.ceil((1 + self.rounding_cost) * self.clip_steps)


_NOISES: dict[str, type[LocalNoise] | type[SharedNoise]] = {"local": LocalNoise, "shared": SharedNoise}


class DpOn(Frozen):
    """Differential privacy of each site's records or patients; the noise follows from epsilon.

    `sampling_rate` and `expected_batch_size` count units: where the unit is the patient, the share of a
    site's patients that one step draws, and how many that is meant to be.
    """

    epsilon: Annotated[float, Field(ge=0.001, le=100)]
    delta: Annotated[float, Field(gt=0, lt=1)]
    unit: Literal["record", "patient"] = "record"
    max_units_per_site: Count = Field(
        description="public upper bound on records (or patients) that any site trains on, beside those held back"
    )
    max_records_per_patient: Count | None = Field(
        None, description="unit patient: images used of one patient"
    )
    sampling_rate: Annotated[float, Field(gt=0, le=1)]
    expected_batch_size: Positive = Field(
        description="public normaliser of the summed gradients, in records (or patients)"
    )
    l2_clip_norm: Positive = Field(description="bound on the gradient of one record (or one patient)")
    noise: LocalNoise | SharedNoise = Field(
        LocalNoise(), description="local, or shared between sites (only where updates are masked)"
    )

    @field_validator("noise", mode="before")
    @classmethod
    def _which_noise(cls, value: Any) -> Any:
        if isinstance(value, (LocalNoise, SharedNoise)):
            return value
        kind = value.get("kind", "shared") if isinstance(value, dict) else value
        if not isinstance(kind, str) or kind not in _NOISES:
            raise ValueError("noise is local or shared, or `{kind: shared, clip_steps: ...}`")
        return _NOISES[kind].model_validate(value if isinstance(value, dict) else {})

    @field_validator("epsilon", mode="before")
    @classmethod
    def _epsilon_can_be_had(cls, value: Any) -> Any:
        if is_number(value) and not value >= 0.001:
            raise ValueError(
                f"epsilon {value:g} cannot be had: at 0 nothing may be learned from anybody, and no noise is "
                "enough; choose one above 0 (1 to 10 is usual, smaller protects more)"
            )
        if is_number(value) and not value <= 100:
            raise ValueError(
                f"epsilon {value:g} protects nobody: an attacker could be certain; choose 100 or less "
                "(1 to 10 is usual)"
            )
        return value

    @field_validator("delta", mode="before")
    @classmethod
    def _delta_means_something(cls, value: Any) -> Any:
        if is_number(value) and not 0 < value < 1:
            raise ValueError(
                f"delta {value:g} is not a small chance above 0; it is the chance with which the guarantee may fail: "
                "choose 1 / (100 x max_units_per_site) or less; 0 cannot be had with Gaussian noise"
            )
        return value

    @field_validator("sampling_rate", mode="before")
    @classmethod
    def _rate_is_a_share(cls, value: Any) -> Any:
        if is_number(value) and not 0 < value <= 1:
            raise ValueError(
                f"a step cannot use {value:.4g} of a site: that is "
                + ("more than there is" if value > 1 else "nobody at all")
                + "; give a share above 0 and at most 1"
            )
        return value

    @model_validator(mode="after")
    def _sound(self) -> DpOn:
        most = 1 / (100 * self.max_units_per_site)
        if self.delta > most * (1 + 1e-9):
            raise ValueError(
                f"delta {self.delta:g} is too large: with at most {self.max_units_per_site:,} {self.unit}s at a site "
                f"it may be {most:.2g} at most (1 / (100 x max_units_per_site))"
            )
        if self.expected_batch_size > self.max_units_per_site:
            raise ValueError(
                f"expected_batch_size {self.expected_batch_size:,g} is more {self.unit}s a step than exist: no site "
                f"has more than {self.max_units_per_site:,} (max_units_per_site); ask for fewer, or correct the bound"
            )
        if (self.unit == "patient") != (self.max_records_per_patient is not None):
            raise ValueError("max_records_per_patient belongs to unit: patient, and unit: patient needs it")
        return self

    @property
    def records_per_unit(self) -> int:
        """How many records of one unit are used at most."""
        return self.max_records_per_patient or 1


class DpOff(Frozen):
    """No privacy at all: what an adapter reveals is then unbounded. Marked in red wherever it shows."""

    unsafe_dp_off: Literal[True]
    sampling_rate: Annotated[float, Field(gt=0, le=1)]
    expected_batch_size: Positive
