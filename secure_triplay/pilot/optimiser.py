"""The server optimisers that a pilot tries: kind and step. They cost a site no bytes, hours or memory."""

from __future__ import annotations

from dataclasses import dataclass

from secure_triplay.config import Study
from secure_triplay.errors import ConfigError


@dataclass(frozen=True)
class Optimiser:
    """The step from the mean update to the next adapter. Its other constants, such as momentum, are the study's."""

    kind: str
    learning_rate: float

    @classmethod
    def of(cls, study: Study) -> Optimiser:
        """The study's own."""
        return cls(study.server_optimiser.kind, study.server_optimiser.learning_rate)

    @classmethod
    def parse(cls, text: str) -> Optimiser:
        """`fedavg:0.3`. Raises ConfigError for what is not of this form; the study's rules say what may stand in it."""
        kind, _, learning_rate = text.partition(":")
        try:
            return cls(kind, float(learning_rate))
        except ValueError as error:
            raise ConfigError(
                f"{text!r} is no server optimiser with its step",
                where="--optimiser",
                fix="give KIND:STEP, such as fedavg:0.3",
            ) from error

    def text(self) -> str:
        """What `parse` reads."""
        return f"{self.kind}:{self.learning_rate:g}"

    def words(self) -> str:
        """`fedavg 0.3`."""
        return f"{self.kind} {self.learning_rate:g}"


USUAL = (
    Optimiser("fedadam", 0.01),
    Optimiser("fedadam", 0.003),
    Optimiser("fedavgm", 0.1),
    Optimiser("fedavg", 0.3),
)
"""Those that our own runs measured, at a local learning rate of 1 (`audits/adapters`): each was best, or level with the
best, somewhere. Local steps scale the mean update, and so what an averaging step does; FedAdam divides that out."""
