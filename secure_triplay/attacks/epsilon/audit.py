"""Audit of a study's epsilon: two runs of its own training with canaries, a control without noise, a verdict.

Each canary takes a coordinate of the adapter. A study that keeps B to few output directions has too few of them to say
much, so it is audited with all of B: clipping, sampling, noise and steps are the same code with the same constants.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secure_triplay import __version__
from secure_triplay.attacks.epsilon.bounds import (
    Gaussian,
    Guesses,
    SubsampledGaussian,
    fdp_bound,
    steinke_bound,
)
from secure_triplay.attacks.epsilon.canaries import Canaries
from secure_triplay.attacks.epsilon.estimate import Estimate, estimate
from secure_triplay.attacks.epsilon.outside import compare
from secure_triplay.attacks.epsilon.picture import draw
from secure_triplay.attacks.epsilon.runs import NoNoise, Trainer, observe
from secure_triplay.attacks.epsilon.scores import guess, ideal, likelihood_ratios, roc
from secure_triplay.client.learner import Encoded, encode_records
from secure_triplay.config import Study
from secure_triplay.constants import round_rule
from secure_triplay.errors import ConfigError
from secure_triplay.loading import Model, load_data, load_model
from secure_triplay.privacy.mechanisms import DpSgd
from secure_triplay.privacy.noise import NoiseSource
from secure_triplay.privacy.training import train

SCHEMA = "secure-triplay/audit-epsilon/1"
CONFIDENCE = 0.95
FEWEST_CANARIES = 1000
NAMED = (0.01, 0.05, 0.4)
"""Shares of the canaries that are named as "was in", fixed before anything runs. The first two find a small
excess, the last no noise at all; each is tested at a third of the significance (Bonferroni)."""

_CANARIES = {False: 20_000, True: 2_000}  # by `quick`
_RECORDS = {False: 256, True: 128}
_IDEAL_RUNS = {False: 15, True: 7}

Tell = Callable[[int, int], None]
Result = dict[str, Any]


@dataclass(frozen=True)
class Bounds:
    """The best lower bound of each kind over the numbers of guesses, and the guesses that gave it."""

    steinke: tuple[float, Guesses]
    fdp: tuple[float, Guesses]
    fdp_gaussian: float


@dataclass(frozen=True)
class Audited:
    """A result, and the scores behind it: log-likelihood ratios (m,) of the first run, and who was in."""

    result: Result
    ratios: NDArray[np.float64]
    included: NDArray[np.bool_]


def audit_epsilon(
    study: Study, out: Path | None, seed: int = 0, quick: bool = False, tell: Tell = lambda done, total: None
) -> Result:
    """Audit a study's training on its first site's data; the result, also as files in the folder `out`.

    `out` gets result.json, scores.json (for any other implementation) and roc.png. The same seed gives the
    same result; noise is seeded, so that nothing of these runs may be released. `result["verdict"]` is
    "pass", "fail" where a bound is above the claim, or "invalid" where the control found nothing.

    Raises ConfigError for a study that the audit does not fit, DataError or AssetError.
    """
    _require_fit(study)
    site = study.sites[0].name
    split = load_data(study, site)
    adapter_seed = hashlib.sha256(f"audit {seed} {study.sha256}".encode()).digest()
    whole = study.model_copy(update={"adapter": study.adapter.model_copy(update={"output_rank": None})})
    model = load_model(whole, split.public, adapter_seed)
    mine = split.sites[site].train
    mine = mine.take(np.arange(min(len(mine), _RECORDS[quick])))
    records = encode_records(model, mine, lambda done, total: None)
    count = min(_CANARIES[quick], model.adapter.n_params)
    audited = audit_training(
        study, model, records, count, seed, ideal_runs=_IDEAL_RUNS[quick], quick=quick, tell=tell
    )
    if out is not None:
        _write(out, audited, round_rule(study), study)
    return audited.result


def audit_training(
    study: Study,
    model: Model,
    records: Encoded,
    canaries: int,
    seed: int,
    *,
    ideal_runs: int = 7,
    quick: bool = False,
    trainer: Trainer = train,
    tell: Tell = lambda done, total: None,
) -> Audited:
    """The audit on a given model and records; `trainer` is what stands in for `privacy.training.train`.

    Raises ConfigError where there are too few canaries to say anything.
    """
    dp = study.dp
    if dp is None or canaries < FEWEST_CANARIES:
        _refuse(study, canaries)
    assert dp is not None
    rule, rounds = round_rule(study), study.training.rounds
    rng = np.random.default_rng([seed, 0x5EED])
    drawn = Canaries.draw(model.adapter.n_params, canaries, rng)
    included = rng.random(canaries) < 0.5
    done, total = 0, 3 * rounds + ideal_runs

    def ticked() -> None:
        nonlocal done
        done += 1
        tell(done, total)

    def run(noise: NoiseSource, who: NDArray[np.bool_]) -> NDArray[np.float64]:
        return observe(study, model, records, drawn, who, noise, trainer=trainer, tell=ticked)

    first = run(NoiseSource.unsafe_from_seed(3 * seed), included)
    second = run(NoiseSource.unsafe_from_seed(3 * seed + 1), ~included)
    silent = run(NoNoise.unsafe_from_seed(3 * seed + 2), included)

    ratios = likelihood_ratios(first, rule)
    found = _bounds(ratios, included, rule, rounds, dp.delta)
    control = _bounds(likelihood_ratios(silent, rule), included, rule, rounds, dp.delta)
    measured = estimate((first, second), included, rule, dp.delta)
    ceilings = []
    for _ in range(ideal_runs):
        seen, who = ideal(rule, rounds, canaries, rng)
        best = _bounds(likelihood_ratios(seen, rule), who, rule, rounds, dp.delta)
        ceilings.append((best.steinke[0], best.fdp[0]))
        ticked()
    steinke_ceiling, fdp_ceiling = np.median(ceilings, axis=0)
    result = {
        "schema": SCHEMA,
        "seed": seed,
        "quick": quick,
        "versions": _versions(),
        "study": {
            "name": study.study,
            "sha256": study.sha256,
            "adapter": study.adapter.kind,
            "audited_with_all_of_b": study.adapter.output_rank is not None,
        },
        "claimed": {
            "epsilon": dp.epsilon,
            "delta": dp.delta,
            "unit": dp.unit,
            "noise_multiplier": rule.noise_multiplier,
            "sampling_rate": rule.sampling_rate,
            "steps": study.total_steps,
        },
        "trained": {
            "records": len(records),
            "canaries": canaries,
            "included": int(included.sum()),
            "rounds": rounds,
            "ideal_runs": ideal_runs,
            "canaries_are": "gradient canaries: each one coordinate of the adapter, at the clip norm",
            "real": "classifier, per-record gradients, clipping, sampling, noise, normaliser, server optimiser",
            "not_real": "the path of a canary through the backbone; a site that trains alone; seeded noise",
        },
        "one_run": {
            "steinke": _counts(*found.steinke) | {"ideal_ceiling": _short(steinke_ceiling)},
            "f_dp": _counts(*found.fdp)
            | {
                "ideal_ceiling": _short(fdp_ceiling),
                "family": "subsampled Gaussian of the study's rate and steps, noise open",
                "holds_for": "training whose trade-off curve is of that family",
                "gaussian_family_lower_bound": _short(found.fdp_gaussian),
            },
        },
        "gradient_canary": {
            "is": "an estimate by a Gaussian fit over two runs, not a bound",
            "estimate": _short(measured.epsilon),
            "interval": [_short(value) for value in measured.interval],
            "noise_multiplier": _short(measured.noise_multiplier),
            "four_errors_below": _short(measured.at_least),
            "observations": measured.observations,
        },
        "control": {
            "is": "the same audit of the same training with the noise left out",
            "goal": f"a lower bound above the claim of {dp.epsilon:g}",
            "lower_bound": _short(control.fdp[0]),
            "valid": control.fdp[0] > dp.epsilon,
        },
        "checked_with": compare(),
    }
    verdict, reason = _verdict(dp.epsilon, found, control, measured)
    return Audited(result | {"verdict": verdict, "reason": reason}, ratios, included)


def _verdict(claimed: float, found: Bounds, control: Bounds, measured: Estimate) -> tuple[str, str]:
    bound = max(found.fdp[0], found.steinke[0])
    if bound > claimed:
        return "fail", f"training leaks more than it claims: epsilon is at least {bound:.2f}, not {claimed:g}"
    if measured.at_least > claimed:
        return "fail", (
            f"training adds less noise than it claims: measured epsilon {measured.epsilon:.2f}, and "
            f"{measured.at_least:.2f} four standard errors below, where {claimed:g} is claimed"
        )
    if control.fdp[0] <= claimed:
        return "invalid", (
            f"without any noise the audit shows epsilon {control.fdp[0]:.2f} only, so it cannot test "
            f"{claimed:g}"
        )
    return "pass", f"nothing above the claim: at least {bound:.2f} shown, {claimed:g} claimed"


def _bounds(
    ratios: NDArray[np.float64], included: NDArray[np.bool_], rule: DpSgd, rounds: int, delta: float
) -> Bounds:
    made = [max(1, round(share * len(ratios))) for share in NAMED]
    tries = [guess(ratios, included, number) for number in made]
    each = (1 - CONFIDENCE) / len(tries)
    family = SubsampledGaussian(rule.sampling_rate, rule.steps * rounds)
    return Bounds(
        max(((steinke_bound(one, delta, each), one) for one in tries), key=lambda pair: pair[0]),
        max(((fdp_bound(family, one, delta, each), one) for one in tries), key=lambda pair: pair[0]),
        max(fdp_bound(Gaussian(), one, delta, each) for one in tries),
    )


def _counts(bound: float, found: Guesses) -> Result:
    return {
        "lower_bound": _short(bound),
        "canaries": found.canaries,
        "guesses": found.made,
        "correct": found.correct,
        "confidence": CONFIDENCE,
        "numbers_of_guesses_tried": len(NAMED),
    }


def _write(out: Path, audited: Audited, rule: DpSgd, study: Study) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / "result.json").write_text(json.dumps(audited.result, indent=2) + "\n")
    scores = {
        "schema": "secure-triplay/audit-scores/1",
        "is": "log-likelihood ratios of the one-run audit: canaries that were in, and that were out",
        "in": [round(float(value), 6) for value in audited.ratios[audited.included]],
        "out": [round(float(value), 6) for value in audited.ratios[~audited.included]],
    }
    (out / "scores.json").write_text(json.dumps(scores) + "\n")
    family = SubsampledGaussian(rule.sampling_rate, study.total_steps)
    draw(
        out / "roc.png",
        roc(audited.ratios, audited.included),
        family.inverse(rule.noise_multiplier),
        audited.result,
    )


def _require_fit(study: Study) -> None:
    if study.dp is None or study.adapter.text_tower:
        _refuse(study, FEWEST_CANARIES)


def _refuse(study: Study, canaries: int) -> None:
    if study.dp is None:
        raise ConfigError(
            "this study runs without privacy, so there is no epsilon to audit",
            where="privacy",
            fix="remove unsafe_dp_off, or run `secure-triplay attack`, which attacks it as it is",
        )
    if study.adapter.text_tower:
        raise ConfigError(
            "canaries reach the image tower only, and this study trains the text tower too",
            where="adapter.text_tower",
            fix="audit the study with text_tower: false",
        )
    raise ConfigError(
        f"{canaries:,} canaries say too little; each takes a parameter of the adapter",
        where="audit epsilon",
        fix=f"audit a study whose adapter has {FEWEST_CANARIES:,} parameters or more",
    )


def _versions() -> dict[str, str]:
    packages = ("torch", "opacus", "dp-accounting", "numpy", "scipy")
    return {"secure_triplay": __version__, "python": platform.python_version()} | {
        name: version(name) for name in packages
    }


def _short(value: float) -> float:
    return round(float(value), 4)
