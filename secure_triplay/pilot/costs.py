"""What a choice costs a site: bytes, hours and memory; and which of its limits that breaks.

Bytes follow from the encoding, exactly. Hours and memory are estimates from what was measured here: seconds of
one image in one private step, of one image through the frozen blocks, of one ciphertext; what the process held while
it loaded the model, and after. All sites are taken to be like this machine.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace

from secure_triplay.config import Study
from secure_triplay.constants import choose_codec, noise_multiplier
from secure_triplay.errors import ConfigError
from secure_triplay.pilot.choices import Choice, site_units
from secure_triplay.wire import sum_bytes, upload_bytes

_ACTIVATIONS = 14
"""Float32 numbers a token, channel and adapted block that a step keeps for its gradients: norms, q, k, v, attention,
the MLP's four-fold width twice, and the sums between (counted in timm's block)."""
_FACTORED_TOKENS = 2
"""Tokens of an image at the cut behind the last block's attention, where adapted layers see one a record."""
GIB = 2.0**30
_LIMIT_OPTIONS = {
    "line_mbit_per_s": "--line",
    "latency_ms": "--latency",
    "memory_gib": "--memory",
    "hours": "--hours",
    "epsilon": "--epsilon",
    "round_overhead_s": "--round-overhead",
}


@dataclass(frozen=True)
class SiteLimits:
    """What a site can give. `round_overhead_s`: seconds of a round's messages beyond their bytes.

    Stock SuperNodes poll and start a process a message; 15 to 18 s a round were seen on one machine.
    """

    line_mbit_per_s: float = 10.0
    latency_ms: float = 50.0
    memory_gib: float = 4.0
    hours: float = 12.0
    epsilon: float | None = None
    round_overhead_s: float = 18.0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            may_be_zero = name in ("latency_ms", "round_overhead_s")
            if value is not None and not (
                math.isfinite(value) and (value > 0 or (value == 0 and may_be_zero))
            ):
                raise ConfigError(
                    f"{name} is {value:g}, and no cost can be held against that",
                    where=_LIMIT_OPTIONS[name],
                    fix=f"give a finite number {'of zero or more' if may_be_zero else 'above zero'}",
                )


@dataclass(frozen=True)
class Speeds:
    """What was measured on this machine for one quantization, at `blocks` adapted blocks of rank `rank`.

    `params` is the adapter's size there (with all of B, where any choice has that), `layers` the adapted layers of a
    block, `tokens` what an image is after the cut. `loading_bytes` is the most that the process held while it loaded
    the model, `loaded_bytes` what it held then, its libraries in both. Seconds are of processor time a thread: by the
    clock on a machine that does nothing else.
    """

    blocks: int
    rank: int
    params: int
    layers: int
    tower_blocks: int
    tokens: int
    width: int
    step_s_per_image: float
    encode_s_per_image: float
    frozen_bytes: int
    loading_bytes: int
    loaded_bytes: int
    encrypt_s_per_chunk: float
    open_s_per_chunk: float

    def params_of(self, choice: Choice) -> int:
        """Trained values: each adapted block has as many, and each rank too."""
        if choice.output_rank is not None:
            return self.layers * choice.output_rank * choice.blocks * choice.rank
        return round(self.params / (self.blocks * self.rank)) * choice.blocks * choice.rank


@dataclass(frozen=True)
class Cost:
    """What one choice costs one site over the whole study."""

    n_params: int
    noise_multiplier: float
    upload_bytes_per_round: int
    download_bytes_per_round: int
    hours: float
    hours_training: float
    hours_line: float
    hours_messages: float
    memory_bytes: int

    def shares(self, limits: SiteLimits) -> dict[str, float]:
        """Each limit's share that is used; above 1 it is broken."""
        return {"hours": self.hours / limits.hours, "memory": self.memory_bytes / (limits.memory_gib * GIB)}


def cost(study: Study, choice: Choice, speeds: Speeds, limits: SiteLimits) -> Cost:
    """The cost of a study that has this choice in it. Raises PrivacyError where no noise is enough."""
    n_params, n_sites = speeds.params_of(choice), len(study.sites)
    codec = choose_codec(study, n_params)
    up, down = upload_bytes(codec.n_chunks), sum_bytes(codec.n_chunks, n_sites)
    dp = study.dp
    assert dp is not None  # `own_choice` refused it
    per_unit = dp.records_per_unit
    images = choice.batch * per_unit * study.training.steps_per_round
    training = choice.rounds * images * speeds.step_s_per_image * choice.blocks / speeds.blocks
    frozen = speeds.tower_blocks - choice.blocks
    encoding = site_units(study) * per_unit * speeds.encode_s_per_image
    encoding *= frozen / max(1, speeds.tower_blocks - speeds.blocks)
    crypto = choice.rounds * codec.n_chunks * (speeds.encrypt_s_per_chunk + speeds.open_s_per_chunk)
    line = choice.rounds * (8e-6 * (up + down) / limits.line_mbit_per_s + 4e-3 * limits.latency_ms)
    messages = choice.rounds * limits.round_overhead_s
    return Cost(
        n_params=n_params,
        noise_multiplier=noise_multiplier(study),
        upload_bytes_per_round=up,
        download_bytes_per_round=down,
        hours=(training + encoding + crypto + line + messages) / 3600,
        hours_training=(training + encoding + crypto) / 3600,
        hours_line=line / 3600,
        hours_messages=messages / 3600,
        memory_bytes=round(_memory(study, choice, speeds, n_params, per_unit)),
    )


def _memory(study: Study, choice: Choice, speeds: Speeds, n_params: int, per_unit: int) -> float:
    """The larger of what loading the model takes and of training on it, both with the process and its libraries."""
    together = min(study.training.physical_batch_size, 2 * choice.batch * per_unit)
    token_bytes = 4 * speeds.tokens * speeds.width
    cached = site_units(study) * per_unit * token_bytes
    gradients = together * 4 * gradient_values(study, choice, speeds, n_params)
    activations = together * token_bytes * choice.blocks * _ACTIVATIONS
    return max(speeds.loading_bytes, speeds.loaded_bytes + cached + gradients + activations)


def gradient_values(study: Study, choice: Choice, speeds: Speeds, n_params: int) -> float:
    """Numbers that a step holds of one record's gradients, until they are summed under their clipping factors.

    Each weight's gradient once; its two factors where every adapted layer sees one token a record
    (`privacy.per_record`). Sums per patient need whole gradients, and one weight's twice. With several tokens an
    image this is an upper bound: some layers of a last block may still see one.
    """
    weights = speeds.layers * choice.blocks * (2 if study.adapter.kind == "lora" else 1)
    if study.dp is not None and study.dp.unit == "patient":
        return n_params * (1 + 1 / weights)
    if speeds.tokens == _FACTORED_TOKENS and not study.adapter.text_tower:
        return n_params / choice.rank + weights * choice.rank  # a weight of d x rank: d and rank
    return n_params


def scaled_to(speeds: Speeds, choice: Choice, step_s_per_image: float) -> Speeds:
    """Speeds as measured by this very choice's own training."""
    return replace(
        speeds, blocks=choice.blocks, rank=choice.rank, params=speeds.params_of(choice),
        step_s_per_image=step_s_per_image,
        encode_s_per_image=speeds.encode_s_per_image
        * (speeds.tower_blocks - choice.blocks)
        / max(1, speeds.tower_blocks - speeds.blocks),
    )  # fmt: skip


def nothing_fits(costs: Mapping[Choice, Cost], limits: SiteLimits, no_noise: Iterable[Choice]) -> ConfigError:
    """Why no choice meets the limits: which limit binds, and what the best choice for it would need."""
    if not costs:
        return ConfigError(
            f"no choice meets the limits: epsilon binds; none of {len(list(no_noise))} choices has a noise that is "
            "enough",
            where="epsilon",
            fix="allow more epsilon, or fewer rounds (--rounds) and smaller batches (--batch)",
        )
    least = {
        name: min(costs.items(), key=lambda item: item[1].shares(limits)[name])
        for name in ("hours", "memory")
    }
    binding = [name for name, (_, spent) in least.items() if spent.shares(limits)[name] > 1]
    said = {
        "hours": lambda c: (
            f"{c.hours:.2g} h of {limits.hours:g} h (of it on the line {c.hours_line:.2g} h, in messages "
            f"{c.hours_messages:.2g} h)"
        ),
        "memory": lambda c: f"{c.memory_bytes / GIB:.2f} GiB of {limits.memory_gib:g} GiB",
    }
    if binding:
        listed = "; ".join(
            f"{name} binds: the choice that needs least ({least[name][0].words()}) takes {said[name](least[name][1])}"
            for name in binding
        )
    else:
        nearest = min(costs.items(), key=lambda item: max(item[1].shares(limits).values()))
        listed = (
            "hours and memory can each be met, but not together; nearest is "
            f"{nearest[0].words()}, which takes {said['hours'](nearest[1])} and {said['memory'](nearest[1])}"
        )
    mend = {"hours": "--hours or --line", "memory": "--memory"}
    return ConfigError(
        f"no choice meets the limits: {listed}",
        where="limits",
        fix=f"allow more ({' or '.join(mend[name] for name in binding or mend)}), or offer other values "
        "(--rounds, --rank, --blocks, --quantization, --batch)",
    )
