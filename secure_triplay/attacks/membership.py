"""Membership inference on the released adapter: loss, reference, LiRA and RMIA, before and under DP.

The attacker knows the study, the frozen backbone, and a pool of records of which half were trained on; it
trains adapters of its own on random halves of that pool. The frozen blocks run once a record, so that a
shadow adapter costs seconds.

The pool is smaller than a site's share, so that each record weighs more: in the attacker's favour.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from secure_triplay.attacks.attack import Attack, Observable, Setting
from secure_triplay.attacks.finding import Arm, Control, Finding, Outcome, Verdict
from secure_triplay.attacks.games import (
    Array,
    Game,
    Games,
    Mask,
    Size,
    adapters_of,
    both_matrices,
    first_of,
    frozen_a,
    mislabelled,
    only_trains,
    pool_and_population,
)
from secure_triplay.attacks.roc import area, area_interval, curve, hit_rate
from secure_triplay.config import Study
from secure_triplay.constants import round_rule
from secure_triplay.planner.attacker import FALSE_ALARM_RATES, membership_ceiling
from secure_triplay.planner.losses import composed

GOAL_AREA, GOAL_HITS = 0.8, 0.25
"""Of the control, fixed before it was first run: area under the curve, and hits at 1 % false alarms."""

_GAMMA = 2.0  # RMIA's threshold of the ratio (Zarifzadeh, Liu and Shokri 2024)


_SIZES = {False: Size(400, 100, 6, 4), True: Size(120, 60, 4, 2)}
CONTROLS, CONTROL_ROUNDS = {False: Size(40, 60, 24, 10), True: Size(40, 60, 12, 6)}, 80
"""Ten targets: with two, 1 % of the others' 40 scores was not one false alarm, and one odd record decided."""


@dataclass(frozen=True)
class Observation:
    """What the attacker has of one target: confidences, as log-odds of the right class.

    `target` (n,) by the released adapter, `shadows` (k, n) by its own adapters, `shadow_members` (k, n) what
    it trained them on, `backbone` (n,) before any adapter; `population` (z,) and `shadow_population` (k, z)
    of further records that nobody trained on.
    """

    target: Array
    shadows: Array
    shadow_members: Mask
    backbone: Array
    population: Array
    shadow_population: Array


def by_loss(seen: Observation) -> Array:
    """Confidence alone (Yeom et al. 2018)."""
    return seen.target


def by_reference(seen: Observation) -> Array:
    """Confidence gained over the frozen backbone: no shadow adapter is needed (Watson et al. 2022)."""
    return seen.target - seen.backbone


def by_lira(seen: Observation) -> Array:
    """Online likelihood ratio of Gaussians with a common spread (Carlini et al. 2022, algorithm 1)."""
    inside, outside = _split(seen)
    mean_in, mean_out = np.nanmean(inside, axis=0), np.nanmean(outside, axis=0)
    spread_in, spread_out = _spread(inside), _spread(outside)
    score: Array = (
        ((seen.target - mean_out) / spread_out) ** 2 / 2
        - ((seen.target - mean_in) / spread_in) ** 2 / 2
        + np.log(spread_out / spread_in)
    )
    return score


def by_lira_offline(seen: Observation) -> Array:
    """How far above shadows that never saw the record, in their spread (Carlini et al. 2022, section VI-A)."""
    _, outside = _split(seen)
    score: Array = (seen.target - np.nanmean(outside, axis=0)) / _spread(outside)
    return score


def by_rmia(seen: Observation) -> Array:
    """Share of the population that the record beats by a factor, relative to shadows (Zarifzadeh 2024)."""
    own = np.log(_odds_to_p(seen.target)) - np.log(_odds_to_p(seen.shadows).mean(axis=0))
    theirs = np.log(_odds_to_p(seen.population)) - np.log(_odds_to_p(seen.shadow_population).mean(axis=0))
    share: Array = (own[:, None] >= theirs[None, :] + np.log(_GAMMA)).mean(axis=1)
    score: Array = share + 1e-6 * own  # the share has steps; the ratio itself orders what ties
    return score


ATTACKERS: dict[str, Callable[[Observation], Array]] = {
    "loss": by_loss,
    "reference": by_reference,
    "lira": by_lira,
    "lira offline": by_lira_offline,
    "rmia": by_rmia,
}


def run(setting: Setting) -> Outcome:
    """Controls by overfitting without DP, then the study's own training without and with DP, LoRA and FFA.

    Raises DataError where the first site has too few records.
    """
    return tried(setting, _CONTEST)


@dataclass(frozen=True)
class Contest:
    """Who tells members from others by what: `scores(attacker, game)` is of members and of others, higher for members.

    `for_control` is the attacker that has to find what is planted; `stream` keeps draws apart from other contests'.
    """

    name: str
    sizes: Mapping[bool, Size]
    scores: Callable[[str, Game], tuple[Array, Array]]
    attackers: Iterable[str]
    for_control: str
    stream: int
    note: str
    not_tested: tuple[str, ...]
    every_round: bool = False


def tried(setting: Setting, contest: Contest) -> Outcome:
    """Every attacker's findings, LoRA and FFA, without and with DP, once the control found what was planted."""
    study, size, control_size = setting.study, contest.sizes[setting.quick], CONTROLS[setting.quick]
    rng = np.random.default_rng([setting.seed, contest.stream])
    kinds = {"lora": both_matrices(study, setting.seed)}
    kinds["ffa"] = frozen_a(kinds["lora"])
    pool, population = pool_and_population(study, kinds["lora"], size)
    arms = [Arm.NOTHING, Arm.DP] if study.dp else [Arm.NOTHING]
    done, total = 0, len(kinds) * (adapters_of(control_size) + adapters_of(size) * len(arms))

    def ticked() -> None:
        nonlocal done
        done += 1
        setting.tell(done, total)

    controls, findings = [], []
    for kind, model in kinds.items():
        only_trains(model)
        games = partial(Games, study, model, population=population, ticked=ticked,
                        every_round=contest.every_round)  # fmt: skip
        planted = games(pool=mislabelled(first_of(pool, control_size.pool), len(study.classes)))
        outcome = planted.play(control_size, rng, planted.overfitted(CONTROL_ROUNDS))
        control = control_of(kind, contest.scores(contest.for_control, outcome), contest.name)
        controls.append(control)
        for arm in arms:
            played = games(pool=pool)
            outcome = played.play(size, rng, played.private if arm.private else played.as_stated)
            findings += [
                finding_of(
                    attacker,
                    arm,
                    kind,
                    contest.scores(attacker, outcome),
                    study,
                    control.valid,
                    rng,
                    contest.note,
                )
                for attacker in contest.attackers
            ]
    return Outcome(tuple(controls), tuple(findings), contest.not_tested)


def _scores(name: str, game: Game) -> tuple[Array, Array]:
    """Scores of members and of others over all targets."""
    members, others, k = [], [], game.n_shadows
    for target in range(k, len(game.members)):
        seen = Observation(
            game.confidences[target],
            game.confidences[:k],
            game.members[:k],
            game.backbone,
            game.population[target],
            game.population[:k],
        )
        scores = ATTACKERS[name](seen)
        members.append(scores[game.members[target]])
        others.append(scores[~game.members[target]])
    return np.concatenate(members), np.concatenate(others)


def control_of(kind: str, scored: tuple[Array, Array], name: str = "membership") -> Control:
    """Whether planted membership is found as well as the goal says."""
    found, hits = area(*scored), hit_rate(*scored, 0.01).value
    return Control(
        f"{name}-{kind}",
        found >= GOAL_AREA and hits >= GOAL_HITS,
        f"LiRA on mislabelled records, overfitted without DP: area at least {GOAL_AREA:g}, "
        f"hits at least {GOAL_HITS:g} at 1 % false alarms",
        {"auc": round(found, 4), "tpr_at_1_percent": round(hits, 4), "scores": len(scored[0]) * 2},
    )


def finding_of(
    name: str,
    arm: Arm,
    kind: str,
    scored: tuple[Array, Array],
    study: Study,
    valid: bool,
    rng: np.random.Generator,
    note: str = "",
) -> Finding:
    """Hits at 1 % false alarms as the figure, with area, other rates, and what the claimed epsilon allows."""
    rates = {rate: hit_rate(*scored, rate) for rate in FALSE_ALARM_RATES}
    interval = area_interval(*scored, rng)
    figures = {
        "auc": area(*scored),
        "auc_low": interval[0],
        "auc_high": interval[1],
        "scores": len(scored[0]),
    }
    bounds = {rate: ceiling(study, rate) for rate in rates} if arm.private else {}
    for rate, hit in rates.items():
        word = f"{100 * rate:g}_percent".replace(".", "_")
        figures |= {f"tpr_at_{word}": hit.value}
        figures |= {f"tpr_at_{word}_low": hit.interval[0], f"tpr_at_{word}_high": hit.interval[1]}
        if bounds:
            figures[f"ceiling_at_{word}"] = bounds[rate]
    noticed = interval[0] > 0.5 or any(hit.interval[0] > rate for rate, hit in rates.items())
    above = any(rates[rate].interval[0] > bound for rate, bound in bounds.items())
    if (
        not valid or not np.isfinite(np.concatenate(scored)).all()
    ):  # what is no number is below every threshold
        verdict = Verdict.INVALID
    elif above:
        verdict = Verdict.LEAKS
    elif not noticed:
        verdict = Verdict.NOTHING_FOUND
    else:
        verdict = Verdict.WITHIN_BOUND if arm.private else Verdict.LEAKS_AS_STATED
    main = rates[0.01]
    return Finding(
        attack="membership",
        arm=arm,
        adapter="lora" if kind == "lora" else "ffa",
        metric=f"hits at 1 % false alarms ({name})",
        value=round(main.value, 4),
        verdict=verdict,
        interval=(round(main.interval[0], 4), round(main.interval[1], 4)),
        bound=round(bounds[0.01], 4) if bounds else None,
        bound_is=f"the most that epsilon {study.dp.epsilon:g} allows" if bounds and study.dp else "",
        note=note,
        curve=curve(*scored),
        figures={key: round(float(value), 4) for key, value in figures.items()},
    )


def ceiling(study: Study, false_alarm_rate: float) -> float:
    """Hits that the study's claimed privacy allows at a false alarm rate."""
    dp, rule = study.dp, round_rule(study)
    assert dp is not None
    losses = composed(rule.noise_multiplier, rule.sampling_rate, study.total_steps)
    return membership_ceiling(false_alarm_rate, dp.epsilon, dp.delta, losses).tight


def _split(seen: Observation) -> tuple[Array, Array]:
    """Shadows' confidences (k, n) where the record was in, and where it was out; NaN elsewhere."""
    return (
        np.where(seen.shadow_members, seen.shadows, np.nan),
        np.where(seen.shadow_members, np.nan, seen.shadows),
    )


def _spread(values: Array) -> float:
    """One spread for all records: shadows are few (Carlini et al. 2022, section VI-C)."""
    centred = values - np.nanmean(values, axis=0)
    freedom = np.count_nonzero(~np.isnan(centred)) - values.shape[1]
    return float(np.sqrt(np.nansum(centred**2) / max(1, freedom))) + 1e-6


def _odds_to_p(log_odds: Array) -> Array:
    p: Array = 1 / (1 + np.exp(-np.clip(log_odds, -60, 60)))
    return p


_CONTEST = Contest(
    name="membership",
    sizes=_SIZES,
    scores=_scores,
    attackers=ATTACKERS,
    for_control="lira",
    stream=0x3E3,
    note="encryption changes nothing here: the adapter is released in the clear",
    not_tested=("membership of a whole patient: each record is taken by itself",),
)

ATTACK = Attack(
    name="membership",
    title="Membership inference on the released adapter",
    source="Yeom 2018; Carlini 2022 (LiRA); Zarifzadeh 2024 (RMIA)",
    needs=frozenset({Observable.STUDY, Observable.RELEASED_ADAPTER}),
    run=run,
)
