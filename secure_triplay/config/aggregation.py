"""How updates become integers, and who together could see one."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from secure_triplay.config.kinds import Positive
from secure_triplay.schema import Frozen


class Codec(Frozen):
    """How an update becomes integers: public range, bits a value.

    In the derived range a step of eight bits is 16/127 of the noise's standard deviation. Stochastic rounding has a
    variance of at most a quarter of a step squared: it adds at most 0.4 % to that of the noise; at six bits 6.7 %.
    """

    value_bits: Annotated[int, Field(ge=2, le=20)] = 8
    range: Positive | None = Field(None, description="largest |update|; left out: derived from the DP noise")
    range_noise_stds: Positive = Field(
        16.0, description="derived range, in standard deviations of one update (noise: local)"
    )


class Masked(Frozen):
    """Updates are masked before they are encrypted: server and up to `colluders` sites together learn only the sum.

    What is left out follows from the number of sites n: `dropouts` is three in ten, rounded down, and `colluders` as
    many as then can be, n - 2 x dropouts - 1, but at most n - 2. Where only one of the numbers stands, the others are
    as large as it allows. What cannot be had together is refused.
    """

    kind: Literal["masked"] = "masked"
    colluders: Annotated[int, Field(ge=0, le=998)] | None = Field(
        None, description="sites that may help the server, and still nobody sees another site's update"
    )
    dropouts: Annotated[int, Field(ge=0, le=999)] | None = Field(
        None, description="sites that may vanish in a round, and it is still completed"
    )
    threshold: Annotated[int, Field(ge=1, le=1000)] | None = Field(
        None,
        description="sites that make and sign a sum, and give a mask back; more than (n + colluders) / 2",
    )


class SharedKey(Frozen):
    """Updates are encrypted and no more: the server together with one site can read every update."""

    kind: Literal["shared-key"] = "shared-key"
