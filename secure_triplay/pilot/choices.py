"""What a pilot may choose, and how a choice stands in a study's file."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from secure_triplay.config import MAX_RANK, Study
from secure_triplay.constants import require_own_noise
from secure_triplay.errors import ConfigError, PrivacyError
from secure_triplay.pilot.optimiser import USUAL, Optimiser

QUANTIZATIONS = ("nf4", "int8", "none")
_SHARES = (0.05, 0.1, 0.2, 0.4)


@dataclass(frozen=True)
class Choice:
    """Eight settings of a study. `batch` is the expected number of units (records or patients) in one step.

    `output_rank` None is all of B.
    """

    rank: int
    blocks: int
    quantization: str
    value_bits: int
    batch: float
    rounds: int
    optimiser: Optimiser
    output_rank: int | None = None

    def words(self) -> str:
        """One line for a person."""
        few = "" if self.output_rank is None else f" in {self.output_rank} output directions"
        return (
            f"rank {self.rank}{few}, {self.blocks} block{'s' * (self.blocks != 1)}, {self.quantization}, "
            f"{self.value_bits} bits, batch {self.batch:g}, {self.rounds} rounds, "
            f"{self.optimiser.words()}"
        )

    def with_optimiser_of(self, other: Choice) -> Choice:
        """This choice with another's server optimiser: the same cost."""
        return replace(self, optimiser=other.optimiser)


@dataclass(frozen=True)
class Space:
    """The values among which each setting is chosen, by the name of `Choice`'s field."""

    axes: Mapping[str, tuple[Any, ...]]

    @classmethod
    def around(
        cls, study: Study, given: Mapping[str, tuple[Any, ...]], tower_blocks: int | None = None
    ) -> Space:
        """The values in `given`, the usual ones where it names none; the study's own is always among them.

        No usual number of blocks is above `tower_blocks`, where that is known. Raises PrivacyError for a study without
        privacy.
        """
        own = own_choice(study)
        units = site_units(study)
        usual: dict[str, tuple[Any, ...]] = {
            "optimiser": USUAL,
            "rounds": tuple(sorted({max(1, round(own.rounds * f)) for f in (0.5, 1, 2, 4)})),
            "batch": tuple(sorted({float(max(1, round(share * units))) for share in _SHARES} | {own.batch})),
            # of n classes' logits, n - 1 directions hold nearly all that moves them (`model.outputs`)
            "output_rank": (None, min(MAX_RANK, len(study.classes) - 1))
            if study.adapter.basis == "public"
            else (None,),
            "rank": (4, 8, 16, 32),
            "blocks": tuple(n for n in (1, 2, 4) if tower_blocks is None or n <= tower_blocks),
            "value_bits": (6, 8),
            "quantization": QUANTIZATIONS,
        }
        return cls(
            {
                name: tuple(dict.fromkeys((*(given.get(name) or values), getattr(own, name))))
                for name, values in usual.items()
            }
        )

    def choices(self) -> Iterator[Choice]:
        """Every combination."""
        for values in itertools.product(*self.axes.values()):
            yield Choice(**dict(zip(self.axes, values, strict=True)))

    def beside(self, choice: Choice, axis: str) -> Iterator[Choice]:
        """The choices that differ from one in one setting only."""
        for value in self.axes[axis]:
            if value != getattr(choice, axis):
                yield replace(choice, **{axis: value})


def own_choice(study: Study) -> Choice:
    """What the study's file says now. Raises PrivacyError for a study without privacy."""
    if study.dp is None:
        raise PrivacyError(
            "a pilot weighs noise against the rest, and this study runs without privacy",
            where="privacy",
            fix="give the study an epsilon in place of unsafe_dp_off",
        )
    require_own_noise(study)
    return Choice(
        rank=study.adapter.rank,
        blocks=study.adapter.last_blocks,
        quantization=study.backbone.quantization,
        value_bits=study.codec.value_bits,
        batch=float(study.dp.expected_batch_size),
        rounds=study.training.rounds,
        optimiser=Optimiser.of(study),
        output_rank=study.adapter.output_rank,
    )


def site_units(study: Study) -> float:
    """Units of the site that a study's public constants fit: expected batch over sampling rate. No count."""
    if study.dp is None:
        raise ConfigError("this study runs without privacy", where="privacy", fix="give it an epsilon")
    return study.dp.expected_batch_size / study.dp.sampling_rate


def with_choice(content: dict[str, Any], study: Study, choice: Choice, epsilon: float) -> dict[str, Any]:
    """A study file's content with the choice in it; the adapter's scale (alpha over rank) stays the same."""
    optimiser = {**(content.get("server_optimiser") or {}), **asdict(choice.optimiser)}
    if "average_last" in optimiser:
        optimiser["average_last"] = min(optimiser["average_last"], choice.rounds)
    rate = float(f"{min(1.0, choice.batch / site_units(study)):.6g}")
    parts: dict[str, dict[str, Any]] = {
        "backbone": {"quantization": choice.quantization},
        "adapter": {
            "rank": choice.rank,
            "alpha": study.adapter.alpha * choice.rank / study.adapter.rank,
            "last_blocks": choice.blocks,
            "output_rank": choice.output_rank,
        },
        "training": {"rounds": choice.rounds},
        "privacy": {"epsilon": epsilon, "expected_batch_size": choice.batch, "sampling_rate": rate},
        "codec": {"value_bits": choice.value_bits},
        "server_optimiser": optimiser,
    }
    changed = {**content, **{key: {**(content.get(key) or {}), **own} for key, own in parts.items()}}
    if choice.output_rank is None:
        del changed["adapter"]["output_rank"]
    return changed


def plain(choice: Choice) -> dict[str, Any]:
    """The choice as JSON-able content."""
    return asdict(choice)
