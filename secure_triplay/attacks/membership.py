"""Membership inference on the released adapter: loss, reference, LiRA and RMIA, before and under DP.

The attacker knows the study, the frozen backbone, and a pool of records of which half were trained on; it
trains adapters of its own on random halves of that pool. The frozen blocks run once a record, so that a
shadow adapter costs seconds. Targets are drawn apart from shadows: where each adapter is a target once and a
shadow otherwise, and each record in exactly half of them, who is in the shadows tells who is in the target.

The pool is smaller than a site's share, so that each record weighs more: in the attacker's favour.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from secure_triplay.attacks.attack import Attack, Observable, Setting
from secure_triplay.attacks.finding import Arm, Control, Finding, Outcome, Verdict
from secure_triplay.attacks.roc import area, area_interval, curve, hit_rate
from secure_triplay.client.learner import Encoded, encode_records
from secure_triplay.client.optimiser import GlobalState, step
from secure_triplay.config import ServerOptimiser, Study
from secure_triplay.errors import DataError
from secure_triplay.planner.attacker import FALSE_ALARM_RATES, membership_ceiling
from secure_triplay.planner.losses import composed
from secure_triplay.prepare import Model, load_data, load_model, round_rule
from secure_triplay.privacy.noise import NoiseSource
from secure_triplay.privacy.training import train, train_unsafe_without_dp

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

GOAL_AREA, GOAL_HITS = 0.8, 0.25
"""Of the control, fixed before it was first run: area under the curve, and hits at 1 % false alarms."""

_GAMMA = 2.0  # RMIA's threshold of the ratio (Zarifzadeh, Liu and Shokri 2024)


@dataclass(frozen=True)
class Size:
    """How much is trained: records in the pool and in the population, and adapters."""

    pool: int
    population: int
    shadows: int
    targets: int


_SIZES = {False: Size(400, 100, 6, 4), True: Size(120, 60, 4, 2)}
_CONTROL, _CONTROL_ROUNDS = Size(40, 60, 4, 2), 35


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
    size, study = _SIZES[setting.quick], setting.study
    rng = np.random.default_rng([setting.seed, 0x3E3])
    kinds = {"lora": _loaded(study, setting.seed)}
    kinds["ffa"] = _frozen_a(kinds["lora"])
    pool, population = _records(study, kinds["lora"], size)
    arms = [Arm.NOTHING, Arm.DP] if study.dp else [Arm.NOTHING]
    done, total = 0, len(kinds) * (_adapters(_CONTROL) + _adapters(size) * len(arms))

    def ticked() -> None:
        nonlocal done
        done += 1
        setting.tell(done, total)

    controls, findings = [], []
    for kind, model in kinds.items():
        _only_trains(model)
        small = _mislabelled(_first(pool, _CONTROL.pool), len(study.classes))
        games = _Games(study, model, small, population, setting.seed, ticked)
        outcome = games.play(_CONTROL, rng, games.overfitted(_CONTROL_ROUNDS))
        control = _control(kind, _scores("lira", outcome))
        controls.append(control)
        for arm in arms:
            games = _Games(study, model, pool, population, setting.seed, ticked)
            trained = games.private if arm.private else games.as_stated
            outcome = games.play(size, rng, trained)
            for name in ATTACKERS:
                scored = _scores(name, outcome)
                findings.append(_finding(name, arm, kind, scored, study, control.valid, rng))
    return Outcome(
        tuple(controls),
        tuple(findings),
        (
            "membership in the updates of single rounds: `secure-triplay audit epsilon` tests it with canaries, "
            "which no record of a site is stronger than",
            "membership of a whole patient: each record is taken by itself",
        ),
    )


@dataclass(frozen=True)
class _Game:
    """All that a set of adapters shows, shadows first, and who was in which (k, n): the scorer's."""

    n_shadows: int
    confidences: Array
    backbone: Array
    population: Array
    members: Mask


@dataclass(frozen=True)
class _Games:
    """Adapters of one kind, trained on random halves of a pool."""

    study: Study
    model: Model
    pool: Encoded
    population: Encoded
    seed: int
    ticked: Callable[[], None]

    def play(
        self, size: Size, rng: np.random.Generator, training: Callable[[Encoded, NoiseSource], Array]
    ) -> _Game:
        """Shadows, each record in exactly half of them, and targets on halves of their own."""
        members = draw_members(size.shadows, size.targets, len(self.pool), rng)
        start = self.model.adapter.vector()
        seen, population = [], []
        backbone = self._confidence(self.pool)
        for row in members:
            chosen = torch.from_numpy(np.flatnonzero(row))
            noise = NoiseSource.unsafe_from_seed(int(rng.integers(2**31)))
            released = training(Encoded(self.pool.tokens[chosen], self.pool.labels[chosen]), noise)
            self.model.adapter.load_vector(released.astype(np.float32))
            seen.append(self._confidence(self.pool))
            population.append(self._confidence(self.population))
            self.model.adapter.load_vector(start)
            self.ticked()
        return _Game(size.shadows, np.asarray(seen), backbone, np.asarray(population), members)

    def private(self, records: Encoded, noise: NoiseSource) -> Array:
        """The study's own rule; each record is a unit of its own."""
        rule = round_rule(self.study)
        units = torch.arange(len(records)) if rule.unit == "patient" else None
        return self._rounds(
            self.study.training.rounds,
            self.study.server_optimiser,
            lambda: train(self.model.classifier, records.tokens, records.labels, rule, noise, units),
        )

    def as_stated(self, records: Encoded, noise: NoiseSource) -> Array:
        """The study's steps without clipping and noise; the normaliser fits the smaller pool."""
        rate, training = self.study.privacy.sampling_rate, self.study.training
        return self._rounds(
            training.rounds,
            self.study.server_optimiser,
            lambda: self._plain(
                records, noise, rate, rate * len(records), training.steps_per_round, training.learning_rate
            ),
        )

    def overfitted(self, rounds: int) -> Callable[[Encoded, NoiseSource], Array]:
        """Every record in every one of many steps: more than fit the labels."""

        def training(records: Encoded, noise: NoiseSource) -> Array:
            return self._rounds(
                rounds,
                ServerOptimiser(kind="fedadam", learning_rate=0.003, tau=1e-6),
                lambda: self._plain(records, noise, 1.0, float(len(records)), 1, 1.0),
            )

        return training

    def _plain(
        self, records: Encoded, noise: NoiseSource, rate: float, expected: float, steps: int, speed: float
    ) -> None:
        train_unsafe_without_dp(
            self.model.classifier,
            records.tokens,
            records.labels,
            sampling_rate=rate,
            expected_batch_size=expected,
            steps=steps,
            learning_rate=speed,
            physical_batch_size=self.study.training.physical_batch_size,
            noise=noise,
        )

    def _rounds(self, rounds: int, optimiser: ServerOptimiser, local: Callable[[], object]) -> Array:
        adapter = self.model.adapter
        state = GlobalState.start(adapter.vector())
        for _ in range(rounds):
            before = state.adapter.astype(np.float32)
            adapter.load_vector(before)
            local()
            state = step(state, (adapter.vector() - before).astype(np.float64), optimiser)
        return state.published.astype(np.float64)

    def _confidence(self, records: Encoded) -> Array:
        """log p(right class) - log(1 - p), (n,)."""
        parts = []
        with torch.no_grad():
            for start in range(0, len(records), 256):
                tokens, labels = records.tokens[start : start + 256], records.labels[start : start + 256]
                logits = self.model.classifier(tokens).double()
                right = logits.gather(1, labels[:, None])[:, 0]
                others = logits.scatter(1, labels[:, None], -torch.inf).logsumexp(1)
                parts.append(right - others)
        confidences: Array = torch.cat(parts).numpy()
        return confidences


def _adapters(size: Size) -> int:
    return size.shadows + size.targets


def draw_members(shadows: int, targets: int, records: int, rng: np.random.Generator) -> Mask:
    """Who is trained on in which adapter (shadows + targets, records); targets do not depend on shadows."""
    order = np.argsort(rng.random((shadows, records)), axis=0)
    halves = [rng.permutation(records) < records // 2 for _ in range(targets)]
    return np.concatenate([order < shadows // 2, np.asarray(halves)])


def _scores(name: str, game: _Game) -> tuple[Array, Array]:
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


def _control(kind: str, scored: tuple[Array, Array]) -> Control:
    found, hits = area(*scored), hit_rate(*scored, 0.01).value
    return Control(
        f"membership-{kind}",
        found >= GOAL_AREA and hits >= GOAL_HITS,
        f"LiRA on mislabelled records, overfitted without DP: area at least {GOAL_AREA:g}, "
        f"hits at least {GOAL_HITS:g} at 1 % false alarms",
        {"auc": round(found, 4), "tpr_at_1_percent": round(hits, 4), "scores": len(scored[0]) * 2},
    )


def _finding(
    name: str,
    arm: Arm,
    kind: str,
    scored: tuple[Array, Array],
    study: Study,
    valid: bool,
    rng: np.random.Generator,
) -> Finding:
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
    if not valid:
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
        note="encryption changes nothing here: the adapter is released in the clear",
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


def _loaded(study: Study, seed: int) -> Model:
    public = load_data(study, study.sites[0].name).public
    both = study.model_copy(update={"adapter": study.adapter.model_copy(update={"kind": "lora"})})
    return load_model(both, public, hashlib.sha256(f"membership {seed} {study.sha256}".encode()).digest())


def _frozen_a(model: Model) -> Model:
    """The same adapter with A frozen: only B is trained and released."""
    whole = model.adapter
    kept = [i for i, name in enumerate(whole.names) if ".lora_B" in name]
    part = replace(
        whole,
        names=tuple(whole.names[i] for i in kept),
        shapes=tuple(whole.shapes[i] for i in kept),
        weights=tuple(whole.weights[i] for i in kept),
    )
    return replace(model, adapter=part)


def _only_trains(model: Model) -> None:
    """Gradients for this adapter's weights, and for no others."""
    mine = {id(weight) for weight in model.adapter.weights}
    for name, weight in model.classifier.named_parameters():
        if "lora_" in name:
            weight.requires_grad_(id(weight) in mine)


def _records(study: Study, model: Model, size: Size) -> tuple[Encoded, Encoded]:
    """The pool and the population, from the first site's records."""
    site = study.sites[0].name
    mine = load_data(study, site).sites[site].train
    needed = size.pool + size.population
    if len(mine) < needed:
        raise DataError(
            f"membership inference needs {needed:,} records; site {site} has {len(mine):,}",
            where="data",
            fix="attack with --quick, or give the first site more records",
        )
    everything = encode_records(model, mine.take(np.arange(needed)), lambda done, total: None)
    pool = _first(everything, size.pool)
    return pool, Encoded(everything.tokens[size.pool :], everything.labels[size.pool :])


def _first(records: Encoded, n: int) -> Encoded:
    return Encoded(records.tokens[:n], records.labels[:n])


def _mislabelled(records: Encoded, n_classes: int) -> Encoded:
    """Wrong labels: only who was trained on them can have learnt them."""
    shift = 1 + torch.arange(len(records)) % (n_classes - 1)
    return Encoded(records.tokens, (records.labels + shift) % n_classes)


ATTACK = Attack(
    name="membership",
    title="Membership inference on the released adapter",
    source="Yeom 2018; Carlini 2022 (LiRA); Zarifzadeh 2024 (RMIA)",
    needs=frozenset({Observable.STUDY, Observable.RELEASED_ADAPTER}),
    run=run,
)
