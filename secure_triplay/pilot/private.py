"""Trials on one site's own records: charged to its ledger, or not made.

Each trial trains some rounds at that choice's own noise, and releases two noised counts (right answers, records)
over the site's held-back records. Training and counts are reserved before the first gradient and settled with the
hash of what is then written down; the ledger refuses what its limits do not allow. What is compared and kept is
nothing but the noised counts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from secure_triplay.client.learner import Learner, counted_records, encode_records
from secure_triplay.client.optimiser import GlobalState
from secure_triplay.config import Study
from secure_triplay.crypto.keyfile import load_identity
from secure_triplay.errors import ConfigError, PrivacyError
from secure_triplay.experiments.federation import one_round
from secure_triplay.ledger.books import Release, Reservation
from secure_triplay.ledger.ledger import Ledger
from secure_triplay.ledger.start import LEDGER
from secure_triplay.pilot.choices import Choice
from secure_triplay.pilot.costs import SiteLimits
from secure_triplay.pilot.search import Decision, Trial
from secure_triplay.prepare import choose_codec, load_data, load_model, round_rule
from secure_triplay.privacy.accounting import epsilon as epsilon_of
from secure_triplay.privacy.counts import CountRule, noised_counts
from secure_triplay.privacy.mechanisms import Charge
from secure_triplay.privacy.noise import NoiseSource
from secure_triplay.report.summary import write_text

StudyOf = Callable[[Choice], Study]


@dataclass(frozen=True)
class Private:
    """Which site's records, which ledger pays, and who allows it. `rounds` of each of `trials` are trained."""

    site: str
    folder: Path
    approved_by: str
    trials: int = 2
    rounds: int = 5
    count_noise: float = 5.0


def private_trials(
    study_of: StudyOf,
    public: list[Trial],
    decision: Decision,
    asked: Private,
    limits: SiteLimits,
    out: Path,
) -> tuple[dict[str, Any], Decision]:
    """Try the publicly best choices on the site's records -> what was charged and found, and the decision.

    The decision changes only where the counts say so by more than their noise. Raises PrivacyError where the
    ledger refuses, RunError where there is no ledger, ConfigError where nobody answers for the charge.
    """
    if not asked.approved_by.strip():
        raise ConfigError(
            "trials on a site's own records cost its budget, and nobody allows them",
            where="--private",
            fix="name the person who does, with --approved-by; or leave --private out: public images cost nothing",
        )
    fitting = [one for one in public if max(one.cost.shares(limits).values()) <= 1]
    ranked = sorted(fitting, key=lambda one: (one is not decision.trial, -one.accuracy))[: asked.trials]
    studies = [study_of(trial.choice) for trial in ranked]
    rules = [_rule(study, asked) for study in studies]
    name = hashlib.sha256(
        json.dumps(
            [studies[0].sha256, asked.site, [one.choice.words() for one in ranked], asked.rounds]
        ).encode()
    ).hexdigest()
    rows: list[dict[str, Any]] = []
    with Ledger.open(asked.folder / LEDGER, load_identity(asked.folder)) as ledger:
        releases, charges = [], list[Charge]()
        for number, (study, count) in enumerate(zip(studies, rules, strict=True), start=1):
            training = replace(round_rule(study).charge, steps=asked.rounds * study.training.steps_per_round)
            charges += [training, count.charge]
            releases.append(
                (
                    Release(f"pilot training {number}", training, 1),
                    Release(f"pilot counts {number}", count.charge, 1),
                )
            )
        flat = [release for pair in releases for release in pair]
        ledger.approve(name, f"pilot of {studies[0].study}", flat, approved_by=asked.approved_by)
        for number, (trial, study, count, pair) in enumerate(
            zip(ranked, studies, rules, releases, strict=True), start=1
        ):
            path = out / "trials" / f"private-{name[:16]}-{number}.json"
            if not path.exists():
                # Reserved first. A trial that was stopped half-way released nothing, and runs under its old charge.
                held = [ledger.reserve(one.charge, study=name, round=1, what=one.what) for one in pair]
                row = {"words": trial.choice.words(), **_measure(study, asked, count)}
                write_text(path, json.dumps(row, indent=2) + "\n")
            else:
                held = [_reserved(ledger, name, one.what) for one in pair]
            text = path.read_text(encoding="utf-8")
            for reservation in held:
                ledger.settle(reservation, text.encode())
            rows.append(json.loads(text))
    delta = studies[0].dp.delta if studies[0].dp else 0.0
    spent = epsilon_of(charges, delta)
    best = max(range(len(rows)), key=lambda i: rows[i]["accuracy"])
    found = {
        "site": asked.site,
        "approved_by": asked.approved_by,
        "rounds": asked.rounds,
        "epsilon": round(spent, 4),
        "delta": delta,
        "ledger_study": name,
        "trials": rows,
    }
    if best and rows[best]["accuracy"] - rows[0]["accuracy"] > rows[best]["accuracy_noise"]:
        reason = (
            f"On {asked.site}'s own records it did better than the public choice by more than the noise of the counts "
            f"({rows[best]['accuracy']:.1%} against {rows[0]['accuracy']:.1%})."
        )
        return found, Decision(ranked[best], decision.best, reason)
    return found, replace(
        decision, reason=f"{decision.reason} The site's own records did not speak against it."
    )


def _rule(study: Study, asked: Private) -> CountRule:
    dp = study.dp
    if dp is None:
        raise PrivacyError("this study runs without privacy", where="privacy", fix="give it an epsilon")
    return CountRule(asked.count_noise, dp.max_records_per_patient or 1, dp.max_units_per_site, dp.unit)


def _measure(study: Study, asked: Private, count: CountRule) -> dict[str, Any]:
    """Train on the site's records alone, and count right answers on those held back, with noise."""
    split = load_data(study, asked.site)
    own, noise = split.sites[asked.site], NoiseSource()
    model = load_model(study, split.public, hashlib.sha256(b"secure_triplay.pilot").digest())
    records = encode_records(model, own.train, lambda *_: None)
    learner = Learner(study, model, noise, records)
    state = GlobalState.start(model.adapter.vector())
    codec = choose_codec(study, model.adapter.n_params)
    for _ in range(asked.rounds):
        state = one_round(state, {asked.site: learner}, {asked.site: noise}, codec, {asked.site: 1.0},
                          study.server_optimiser)  # fmt: skip
    held_back = counted_records(encode_records(model, own.holdout, lambda *_: None), count.records_per_unit)
    score = learner.score(state.published, held_back)
    correct, total = noised_counts(score.correct, score.total, count, noise)
    accuracy = min(1.0, max(0.0, correct / max(total, 1.0)))
    return {
        "accuracy": round(float(accuracy), 5),
        "accuracy_noise": round(float(count.noise_std * 2**0.5 / max(total, 1.0)), 5),
        "noised_correct": round(float(correct), 2),
        "noised_total": round(float(total), 2),
    }


def _reserved(ledger: Ledger, study: str, what: str) -> Reservation:
    found = ledger.refresh().reservation((study, 1, what, 1))
    if found is None:
        raise PrivacyError(
            f"there is a result of {what}, and no charge for it in this ledger",
            where=str(ledger.chain.path),
            fix="give the ledger that paid for it, or another --out",
        )
    return found
