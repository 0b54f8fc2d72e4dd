"""A budget plan: what noise a target needs, or what a noise gives, what it means and what it costs.

Nothing here looks at a record: every figure follows from public constants of the study. The figure that was
asked for comes from the authoritative accountant, the same that runs and ledgers use; the tables come from
`planner.losses`, an upper bound too, which in every setting tested lay above it by less than 1 %.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from secure_triplay.config import DpOn, Study
from secure_triplay.constants import counts_of, require_own_noise
from secure_triplay.errors import PrivacyError
from secure_triplay.planner.attacker import (
    FALSE_ALARM_RATES,
    GALLERIES,
    Ceiling,
    gallery_ceiling,
    group_guarantee,
    membership_ceiling,
)
from secure_triplay.planner.losses import composed, noise_for
from secure_triplay.planner.measured import Measured, Measurements, read_measurements
from secure_triplay.privacy.mechanisms import (
    DpSgdCharge,
    GaussianCharge,
    Unit,
    check_delta,
    check_epsilon,
    check_rate,
    check_steps,
)

EPSILONS = (0.5, 1.0, 3.0, 8.0, 16.0)
FAMILIES = (2, 3, 4)
MOST_ROUNDS = 10_000  # as in a study file
MOST_EPSILON = 100.0  # as in a study file
MAX_NOISE = 1e4  # gives an epsilon that no study may ask for

_ROUND_FACTORS = (0.5, 1, 4)
_SIZE_FACTORS = (0.5, 1, 2, 5)


@dataclass(frozen=True)
class Setting:
    """One point: so much noise over so many steps, each on this share of a site, costs this epsilon."""

    epsilon: float
    delta: float
    noise_multiplier: float
    sampling_rate: float
    rounds: int
    steps: int
    site_size: int


@dataclass(frozen=True)
class Meaning:
    """What one epsilon leaves to an attacker, and what it cost where that was measured."""

    epsilon: float
    noise_multiplier: float
    membership: tuple[tuple[float, Ceiling], ...]
    gallery: tuple[tuple[int, Ceiling], ...]
    measured: tuple[Measured, ...]


@dataclass(frozen=True)
class Family:
    """The guarantee for several units together: exact for this training, and by the general rule."""

    members: int
    epsilon: float
    rule_epsilon: float
    rule_delta: float


@dataclass(frozen=True)
class BudgetPlan:
    """Everything that `budget plan` prints; public constants only."""

    study: str
    unit: Unit
    question: Literal["noise for an epsilon", "epsilon of a noise"]
    chosen: Setting
    expected_batch_size: float
    steps_per_round: int
    epsilons: tuple[float, ...]
    table: tuple[Setting, ...]
    impossible_sizes: tuple[int, ...]
    meanings: tuple[Meaning, ...]
    families: tuple[Family, ...]
    by_noise: tuple[tuple[float, float], ...]
    by_rounds: tuple[tuple[int, float], ...]
    accuracy_source: str
    accuracy_missing: str
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON-able content; what is infinite becomes None."""
        content: dict[str, Any] = _plain(dataclasses.asdict(self))
        for meaning, own in zip(content["meanings"], self.meanings, strict=True):
            meaning["membership"] = [
                {"false_positive_rate": rate, **_ceiling(ceiling)} for rate, ceiling in own.membership
            ]
            meaning["gallery"] = [{"records": size, **_ceiling(ceiling)} for size, ceiling in own.gallery]
        content["accountants"] = {
            "chosen": "dp-accounting PLD",
            "tables": "planning PLD, an upper bound; within 1 % where tested",
        }
        return content

    @property
    def meaning(self) -> Meaning:
        """What the chosen setting means."""
        return next(entry for entry in self.meanings if entry.epsilon == self.chosen.epsilon)


def plan_budget(
    study: Study,
    *,
    epsilon: float | None = None,
    delta: float | None = None,
    rounds: int | None = None,
    noise_multiplier: float | None = None,
    measured: Path | None = None,
) -> BudgetPlan:
    """The plan of a study's budget; what is left out is as the study has it.

    Give `epsilon` and learn the noise, or `noise_multiplier` and learn the epsilon. Raises PrivacyError for
    what cannot be had, in a sentence for whoever decides on budgets.
    """
    if epsilon is not None and noise_multiplier is not None:
        raise PrivacyError(
            "both an epsilon and a noise were given, but one follows from the other",
            where="budget plan",
            fix="give --epsilon to learn the noise, or --noise to learn the epsilon",
        )
    dp = _private(study)
    delta = dp.delta if delta is None else delta
    rounds = study.training.rounds if rounds is None else rounds
    check_delta(delta, dp.max_units_per_site, dp.unit)
    steps = _checked_steps(rounds, study.training.steps_per_round)
    _check_batch(dp)
    wanted = dp.epsilon if epsilon is None else epsilon
    counts = counts_of(study)
    if noise_multiplier is None:
        spent, chosen_noise = wanted, _noise_of(wanted, delta, dp.sampling_rate, steps, counts)
    else:
        charge = DpSgdCharge(
            noise_multiplier, dp.sampling_rate, steps, dp.unit
        )  # refuses a noise that is none
        spent, chosen_noise = _epsilon_of(charge, delta, counts), noise_multiplier
    site_size = max(1, round(dp.expected_batch_size / dp.sampling_rate))
    chosen = Setting(spent, delta, chosen_noise, dp.sampling_rate, rounds, steps, site_size)

    epsilons = tuple(sorted({*EPSILONS, spent} if noise_multiplier is None else EPSILONS))
    sizes = tuple(sorted({max(1, round(site_size * factor)) for factor in _SIZE_FACTORS}))
    possible = tuple(size for size in sizes if size >= dp.expected_batch_size)
    ladder = sorted({min(MOST_ROUNDS, max(1, round(rounds * factor))) for factor in _ROUND_FACTORS})
    table = tuple(
        cell
        for size in possible
        for turns in ladder
        for cell in _cells(study, dp, epsilons, delta, turns, size, chosen)
    )
    source = read_measurements(measured)
    return BudgetPlan(
        study=study.study,
        unit=dp.unit,
        question="noise for an epsilon" if noise_multiplier is None else "epsilon of a noise",
        chosen=chosen,
        expected_batch_size=dp.expected_batch_size,
        steps_per_round=study.training.steps_per_round,
        epsilons=epsilons,
        table=table,
        impossible_sizes=tuple(size for size in sizes if size < dp.expected_batch_size),
        meanings=_meanings(epsilons, chosen, table, source, whole=not counts),
        families=tuple(_family(members, chosen) for members in FAMILIES),
        by_noise=_by_noise(chosen),
        by_rounds=_by_rounds(chosen, study.training.steps_per_round),
        accuracy_source=source.source,
        accuracy_missing=source.missing,
        notes=_notes(dp, chosen, table, counts),
    )


def _private(study: Study) -> DpOn:
    if study.dp is None:
        raise PrivacyError(
            f"study {study.study} runs without differential privacy: there is no budget to plan",
            where="privacy",
            fix="replace unsafe_dp_off by epsilon, delta and max_units_per_site in the study file",
        )
    require_own_noise(study)
    return study.dp


def _checked_steps(rounds: int, steps_per_round: int) -> int:
    if not isinstance(rounds, int) or isinstance(rounds, bool) or not 1 <= rounds <= MOST_ROUNDS:
        raise PrivacyError(
            f"{rounds!r} rounds of training are impossible",
            where="rounds",
            fix=f"give a whole number from 1 to {MOST_ROUNDS:,}; fewer rounds cost less privacy",
        )
    steps = rounds * steps_per_round
    check_steps(steps)
    return steps


def _check_batch(dp: DpOn) -> None:
    check_rate(dp.sampling_rate)
    if dp.expected_batch_size > dp.max_units_per_site:
        raise PrivacyError(
            f"a step would use {dp.expected_batch_size:,g} {dp.unit}s of a site on average, but no "
            "site has more than "
            f"{dp.max_units_per_site:,}",
            where="expected_batch_size",
            fix=f"ask for fewer {dp.unit}s a step, or correct max_units_per_site",
        )


def _noise_of(
    epsilon: float, delta: float, rate: float, steps: int, counts: tuple[GaussianCharge, ...]
) -> float:
    check_epsilon(epsilon)
    if epsilon > MOST_EPSILON:
        raise PrivacyError(
            f"epsilon {epsilon:g} protects nobody: an attacker could be certain",
            where="epsilon",
            fix=f"choose {MOST_EPSILON:g} or less; 1 to 10 is usual for training",
        )
    # Here and below, since an impossible request is answered without waiting for the accountant to load.
    from secure_triplay.privacy.accounting import noise_multiplier_for

    return noise_multiplier_for(float(epsilon), delta, rate, steps, counts)


def _epsilon_of(charge: DpSgdCharge, delta: float, counts: tuple[GaussianCharge, ...]) -> float:
    if charge.noise_multiplier > MAX_NOISE:
        raise PrivacyError(
            f"a noise multiplier of {charge.noise_multiplier:g} leaves nothing to learn, and its epsilon is smaller "
            "than the accountant resolves",
            where="noise_multiplier",
            fix=f"give {MAX_NOISE:g} or less; 0.5 to 10 is usual",
        )
    from secure_triplay.privacy.accounting import epsilon

    spent = epsilon([charge, *counts], delta)
    if math.isinf(spent):
        raise PrivacyError(
            f"a noise multiplier of {charge.noise_multiplier:g} over {charge.steps:,} steps protects nobody: "
            "no epsilon worth stating holds",
            where="noise_multiplier",
            fix="give more noise, usually 0.5 or more; or give an epsilon and let the noise follow",
        )
    return spent


def _cells(
    study: Study, dp: DpOn, epsilons: tuple[float, ...], delta: float, rounds: int, size: int, chosen: Setting
) -> list[Setting]:
    """One row of the table, computed from the largest epsilon down: each noise leads to the next."""
    rate = chosen.sampling_rate if size == chosen.site_size else dp.expected_batch_size / size
    delta = min(delta, 1 / (100 * size))
    steps = rounds * study.training.steps_per_round
    same = (rate, rounds, delta) == (chosen.sampling_rate, chosen.rounds, chosen.delta)
    row: list[Setting] = []
    noise, before = chosen.noise_multiplier, chosen.epsilon
    for epsilon in reversed(epsilons):
        if same and epsilon == chosen.epsilon:
            noise = chosen.noise_multiplier
        else:
            guess = noise * (before / epsilon) ** 0.8 if math.isfinite(noise) else 1.0
            noise = noise_for(epsilon, delta, rate, steps, guess)
        before = epsilon
        row.append(Setting(epsilon, delta, noise, rate, rounds, steps, size))
    return row[::-1]


def _meanings(
    epsilons: tuple[float, ...],
    chosen: Setting,
    table: tuple[Setting, ...],
    source: Measurements,
    *,
    whole: bool,
) -> tuple[Meaning, ...]:
    """`whole`: training is all that is released, so that its own trade-off is the attacker's."""
    known = {
        s.epsilon: s.noise_multiplier
        for s in table
        if dataclasses.replace(s, epsilon=chosen.epsilon, noise_multiplier=chosen.noise_multiplier) == chosen
    }
    meanings = []
    for epsilon in sorted({*epsilons, chosen.epsilon}):
        noise = chosen.noise_multiplier if epsilon == chosen.epsilon else known.get(epsilon)
        if noise is None:
            guess = chosen.noise_multiplier * (chosen.epsilon / epsilon) ** 0.8
            noise = noise_for(epsilon, chosen.delta, chosen.sampling_rate, chosen.steps, guess)
        losses = composed(noise, chosen.sampling_rate, chosen.steps) if whole else None
        meanings.append(
            Meaning(
                epsilon,
                noise,
                tuple(
                    (rate, membership_ceiling(rate, epsilon, chosen.delta, losses))
                    for rate in FALSE_ALARM_RATES
                ),
                tuple((size, gallery_ceiling(size, epsilon, chosen.delta, losses)) for size in GALLERIES),
                source.at(epsilon),
            )
        )
    return tuple(meanings)


def _family(members: int, chosen: Setting) -> Family:
    losses = composed(chosen.noise_multiplier, chosen.sampling_rate, chosen.steps, members)
    exact = losses.epsilon(chosen.delta) if losses else math.inf
    return Family(members, exact, *group_guarantee(chosen.epsilon, chosen.delta, members))


def _by_noise(chosen: Setting) -> tuple[tuple[float, float], ...]:
    """Epsilon for noises from a third to four times the chosen one, over the same steps."""
    noises = [chosen.noise_multiplier * 2 ** (i / 4) for i in range(-5, 9)]
    return tuple(
        (noise, losses.epsilon(chosen.delta))
        for noise in noises
        if (losses := composed(noise, chosen.sampling_rate, chosen.steps)) is not None
    )


def _by_rounds(chosen: Setting, steps_per_round: int) -> tuple[tuple[int, float], ...]:
    """Epsilon after every few rounds, to five times as many, at the chosen noise."""
    most = min(MOST_ROUNDS, 5 * chosen.rounds)
    turns = sorted({1, chosen.rounds, *(max(1, round(most * i / 14)) for i in range(1, 15))})
    points = []
    for count in turns:
        losses = composed(chosen.noise_multiplier, chosen.sampling_rate, count * steps_per_round)
        if losses is not None:
            points.append((count, losses.epsilon(chosen.delta)))
    return tuple(points)


def _notes(
    dp: DpOn, chosen: Setting, table: tuple[Setting, ...], counts: tuple[GaussianCharge, ...]
) -> tuple[str, ...]:
    unit = dp.unit
    notes = [
        f"Epsilon is per {unit} and per site, for adding or removing one {unit}. Somebody known to k "
        "sites spends k such budgets.",
        "It counts this study alone: trial runs, other studies and other published figures on the same "
        "records spend more.",
        f"Site size enters through the share of a site that one step uses: {dp.expected_batch_size:g} of "
        f"{chosen.site_size:,} is {chosen.sampling_rate:g}. The share is a public constant that "
        "everybody agrees on; the guarantee holds whatever a site really has, and no site's count is used.",
    ]
    if counts:
        notes.append(
            "Besides its training the study releases counts (published_accuracy, personal_bias). The answer counts "
            "them, and what an attacker reaches is by epsilon and delta alone; all else here is of the training alone."
        )
    if any(cell.delta < chosen.delta for cell in table):
        notes.append(f"Larger sites get a smaller delta in the table, 1 / (100 x {unit}s).")
    if unit == "record":
        notes.append(
            "The unit is one record: somebody with several records is protected as a family of that "
            "many is, below."
        )
    if chosen.site_size != dp.max_units_per_site:
        notes.append(
            f"The study bounds a site by {dp.max_units_per_site:,} {unit}s; its batch and share "
            f"fit a site of {chosen.site_size:,}."
        )
    return tuple(notes)


def _ceiling(ceiling: Ceiling) -> dict[str, float | None]:
    return {**dataclasses.asdict(ceiling), "ceiling": ceiling.tight}


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
