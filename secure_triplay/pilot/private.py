"""Trials on one site's own records: charged to its ledger, or not made.

Each trial trains some rounds at that choice's own noise, and releases two noised counts (right answers, records)
over the site's held-back records. Training and counts are reserved before the first gradient, and settled with the
hash of what is written down after that; the ledger refuses what its limits do not allow. What is compared and kept
is nothing but the noised counts.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secure_triplay.client.learner import Learner, counted_records, encode_records, require_units
from secure_triplay.client.optimiser import GlobalState
from secure_triplay.config import Study
from secure_triplay.constants import choose_codec, round_rule
from secure_triplay.crypto.keyfile import load_identity
from secure_triplay.data.split import Split
from secure_triplay.errors import ConfigError, DataError, PrivacyError
from secure_triplay.experiments.federation import one_round
from secure_triplay.ledger.ledger import Ledger
from secure_triplay.ledger.persons import require_person
from secure_triplay.ledger.start import LEDGER
from secure_triplay.loading import load_data, load_model
from secure_triplay.pilot.choices import Choice
from secure_triplay.pilot.costs import SiteLimits
from secure_triplay.pilot.paid import PaidTrial
from secure_triplay.pilot.search import Decision, Trial
from secure_triplay.privacy.accounting import epsilon as epsilon_of
from secure_triplay.privacy.counts import CountRule, noised_counts
from secure_triplay.privacy.mechanisms import DpSgdCharge
from secure_triplay.privacy.noise import NoiseSource

StudyOf = Callable[[Choice], Study]

_CHANCE = 0.02  # of a switch between equal choices
_COUNT_NOISE = 5.0
"""Noise multiplier of the counts of right answers and of records."""
_ALONE = "The charge is in this site's ledger alone: no other site has countersigned it."


@dataclass(frozen=True)
class Private:
    """Which site's records, which ledger pays, and who allows it. `rounds` of each of `trials` are trained."""

    site: str
    folder: Path
    approved_by: str
    trials: int = 2
    rounds: int = 5


def require_payer(study: Study, asked: Private) -> None:
    """Return nothing if somebody allows the charge and the site's own ledger can pay it; before hours of public trials.

    Raises ConfigError where nobody answers for it or the study has no such site, PrivacyError where the ledger is
    another site's or the study has no privacy, RunError where there is no ledger.
    """
    if not asked.approved_by.strip():
        raise ConfigError(
            "trials on a site's own records cost its budget, and nobody allows them",
            where="--private",
            fix="name the person who does, with --approved-by, and who knows that no other site countersigns this "
            "charge; or leave --private out: public images cost nothing",
        )
    require_person(asked.approved_by, "--approved-by")
    names = [site.name for site in study.sites]
    if asked.site not in names:
        raise ConfigError(
            f"the study has no site {asked.site}", where="--site", fix=f"name one of {', '.join(names)}"
        )
    _rule(study)
    with Ledger.open(asked.folder / LEDGER, load_identity(asked.folder)) as ledger:
        _require_payer(ledger, asked)


def private_trials(
    study_of: StudyOf,
    public: list[Trial],
    decision: Decision,
    asked: Private,
    limits: SiteLimits,
    out: Path,
) -> tuple[dict[str, Any], Decision]:
    """Try the publicly best choices on the site's records -> what was charged and found, and the decision.

    The decision changes only where the counts say so by more than noise and chance. No other site countersigns
    these charges. Raises what `require_payer` raises, and PrivacyError where the ledger refuses, or has settled a
    result that is not in `out`.
    """
    require_payer(study_of(decision.trial.choice), asked)
    fitting = [one for one in public if max(one.cost.shares(limits).values()) <= 1]
    ranked = sorted(fitting, key=lambda one: (one is not decision.trial, -one.accuracy))[: asked.trials]
    studies = [study_of(trial.choice) for trial in ranked]
    rules = [_rule(study) for study in studies]
    words = [one.choice.words() for one in ranked]
    name = hashlib.sha256(
        json.dumps([studies[0].sha256, asked.site, words, asked.rounds]).encode()
    ).hexdigest()
    trials = [
        PaidTrial(name, number, _training(study, asked), rule.charge, out / "trials")
        for number, (study, rule) in enumerate(zip(studies, rules, strict=True), start=1)
    ]
    with Ledger.open(asked.folder / LEDGER, load_identity(asked.folder)) as ledger:
        _require_payer(ledger, asked)
        rows = [trial.kept(ledger) for trial in trials]
        missing = [place for place, row in enumerate(rows) if row is None]
        for place in missing:
            trials[place].refuse_released(ledger)
        if missing:
            split = _usable_data(studies[0], asked.site)
            releases = [release for trial in trials for release in trial.releases]
            ledger.approve(name, f"pilot of {studies[0].study}", releases, approved_by=asked.approved_by)
        for place in missing:
            held = trials[place].reserve(ledger)
            row = {"words": words[place], **_measure(studies[place], split, asked, rules[place])}
            trials[place].release(ledger, held, row)
            rows[place] = row
    found = [row for row in rows if row is not None]
    delta = studies[0].dp.delta if studies[0].dp else 0.0
    charges = [charge for trial in trials for charge in (trial.training, trial.counts)]
    charged = {
        "site": asked.site,
        "approved_by": asked.approved_by,
        "countersigned": False,
        "rounds": asked.rounds,
        "epsilon": round(epsilon_of(charges, delta), 4),
        "delta": delta,
        "ledger_study": name,
        "trials": found,
    }
    counts = np.array([(row["noised_correct"], row["noised_total"]) for row in found])
    best = clearly_better(counts, rules[0])
    if not best:
        reason = f"{decision.reason} The site's own records did not speak against it. {_ALONE}"
        return charged, replace(decision, reason=reason)
    shares = np.clip(counts[:, 0] / max(1.0, counts[:, 1].mean()), 0, 1)
    reason = (
        f"On {asked.site}'s own records it did better than the public choice by more than noise and chance "
        f"({shares[best]:.1%} against {shares[0]:.1%}). {_ALONE}"
    )
    return charged, Decision(ranked[best], decision.best, reason)


def clearly_better(counts: NDArray[np.float64], rule: CountRule) -> int:
    """The trial whose share of right answers is above that of trial 0 by more than noise and chance; 0: none.

    `counts` (trials, 2): noised right answers c_i and records, all over the same records, n of them: the mean of
    the noised ones. Of two shares c_i / n and c_0 / n with p between them, trial i is better where

        c_i - c_0 > z sqrt(2 s^2 + 2 k n p (1 - p)),

    with s the standard deviation of a count's noise, and k the most records of a patient, which may be right
    or wrong together. z is 2.05, or more with more than two trials: equal ones switch with a chance of 2 % at most.
    """
    n = max(1.0, float(counts[:, 1].mean()))
    best = int(counts[:, 0].argmax())
    if not best:
        return 0
    p = min(1.0, max(0.0, float(counts[[0, best], 0].mean()) / n))
    z = NormalDist().inv_cdf(1 - _CHANCE / (len(counts) - 1))
    bound = z * math.sqrt(2 * rule.noise_std**2 + 2 * rule.records_per_unit * n * p * (1 - p))
    return best if counts[best, 0] - counts[0, 0] > bound else 0


def _usable_data(study: Study, site: str) -> Split:
    """The site's records, every image read once: before anything is charged. Raises DataError, PrivacyError."""
    split = load_data(study, site)
    own = split.sites[site]
    require_units(study, len(own.train), own.train.patients)
    if not len(own.holdout):
        raise DataError(
            f"site {site} holds no records back, and trials are measured on those",
            where="data",
            fix="raise holdout_fraction (holdout_per_site for Fashion-MNIST)",
        )
    own.train.check()
    own.holdout.check()
    return split


def _require_payer(ledger: Ledger, asked: Private) -> None:
    party = ledger.books.opened.party
    if party != asked.site:
        raise PrivacyError(
            f"records of {asked.site} would be paid for by the ledger of {party}",
            where=str(asked.folder),
            fix=f"give --private the folder of {asked.site}, or --site {party}",
        )


def _training(study: Study, asked: Private) -> DpSgdCharge:
    return replace(round_rule(study).charge, steps=asked.rounds * study.training.steps_per_round)


def _rule(study: Study) -> CountRule:
    dp = study.dp
    if dp is None:
        raise PrivacyError("this study runs without privacy", where="privacy", fix="give it an epsilon")
    return CountRule(_COUNT_NOISE, dp.records_per_unit, dp.max_units_per_site, dp.unit)


def _measure(study: Study, split: Split, asked: Private, count: CountRule) -> dict[str, Any]:
    """Train on the site's records alone, and count right answers on those held back, with noise."""
    own, noise = split.sites[asked.site], NoiseSource()
    model = load_model(study, split.public, hashlib.sha256(b"secure_triplay.pilot").digest())
    records = encode_records(model, own.train, lambda *_: None)
    learner = Learner(study, model, noise, records)
    state = GlobalState.start(model.adapter.vector())
    codec = choose_codec(study, model.adapter.n_params)
    for _ in range(asked.rounds):
        state = one_round(state, {asked.site: learner}, {asked.site: noise}, codec, {asked.site: 1.0},
                          study.server_optimiser)  # fmt: skip
    held_back = counted_records(encode_records(model, own.holdout, lambda *_: None), count)
    score = learner.score(state.published, held_back)
    correct, total = noised_counts(score.correct, score.total, count, noise)
    accuracy = min(1.0, max(0.0, correct / max(total, 1.0)))
    return {
        "accuracy": round(float(accuracy), 5),
        "accuracy_noise": round(float(count.noise_std * 2**0.5 / max(total, 1.0)), 5),
        "noised_correct": round(float(correct), 2),
        "noised_total": round(float(total), 2),
    }
