"""Rounds, local steps, and the step from the mean update to the next adapter."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from secure_triplay.config.kinds import Count, Positive, is_number
from secure_triplay.schema import Frozen


class Training(Frozen):
    """Rounds and local steps; all of it public."""

    rounds: Annotated[int, Field(ge=1, le=10000)]
    steps_per_round: Count = 1
    learning_rate: Positive = Field(1.0, description="of the local steps; the server optimiser has its own")
    logit_scale: Positive = Field(20.0, description="inverse temperature of the cosine head")
    physical_batch_size: Count = Field(128, description="images in memory at once; changes nothing else")

    @field_validator("rounds", mode="before")
    @classmethod
    def _possible(cls, value: Any) -> Any:
        if is_number(value) and not 1 <= value <= 10_000:
            raise ValueError(
                f"{value:,} rounds of training are impossible; give a whole number from 1 to 10,000 (fewer rounds "
                "cost less privacy)"
            )
        return value


class ServerOptimiser(Frozen):
    """The step from the mean update to the next adapter, the same at every site (Reddi 2021)."""

    kind: Literal["fedavg", "fedavgm", "fedadam"] = "fedavg"
    learning_rate: Positive = 1.0
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.99
    tau: Positive = Field(1e-8, description="added to the root of the second moment")
    average_last: Annotated[int, Field(ge=1)] = Field(
        1, description="publish the mean of the last N adapters"
    )


class PersonalBias(Frozen):
    """Each site's personal adapter with a bias of the logits, from its own class counts with noise; nothing is sent.

    Its charge counts against the study's epsilon, so the training gets a little more noise for it.
    """

    noise_multiplier: Annotated[float, Field(ge=1, le=1e6)] = Field(
        20.0, description="noise of each class count, relative to how far one record (or patient) moves them"
    )
    in_training: bool = Field(
        False,
        description="the same bias stands in the site's training, so that the shared adapter need not learn it",
    )


class PublishedAccuracy(Frozen):
    """After the last round: how many of all sites' held-back records the adapter gets right, with noise of its own.

    Its charge counts against the study's epsilon, so the training gets a little more noise for it.
    """

    noise_multiplier: Annotated[float, Field(ge=1, le=1e6)] = Field(
        5.0, description="noise of each site's counts, relative to how far one record (or patient) moves them"
    )
