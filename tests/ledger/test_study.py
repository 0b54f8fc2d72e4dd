"""A study's file and its ledger mean the same budget."""

from __future__ import annotations

import math
from functools import partial

import pytest

from secure_triplay import constants
from secure_triplay.config import parse_study
from secure_triplay.errors import PrivacyError
from secure_triplay.ledger.budget import Unprotected, figures
from secure_triplay.ledger.ledger import Ledger
from secure_triplay.ledger.study import policy_limits, simulated_limits, training_release
from secure_triplay.policy import load_policy
from secure_triplay.privacy.accounting import noise_multiplier_for
from secure_triplay.privacy.mechanisms import DpSgdCharge


def test_a_simulated_site_can_run_its_study_to_the_last_round_and_no_further(demo, tmp_path, identity):
    study = parse_study(demo)
    dp = study.dp
    release = training_release(study)
    with Ledger.create(
        tmp_path / "site", identity, site="site", limits=simulated_limits(study), approved_by="simulation"
    ) as ledger:
        ledger.approve(study.sha256, study.study, [release], approved_by="simulation")
        for number in range(1, study.training.rounds + 1):
            ledger.reserve(release.charge, study=study.sha256, round=number)
        assert 0.99 * dp.epsilon < figures(ledger.books.spends, dp.delta).deciding <= dp.epsilon
        with pytest.raises(PrivacyError):
            ledger.reserve(release.charge, study=study.sha256, round=study.training.rounds + 1)
        repeat = partial(ledger.reserve, release.charge, study=study.sha256, attempt=2)
        with pytest.raises(PrivacyError, match="0 more fit"):  # new attempts are charged anew
            [repeat(round=number) for number in (1, 2, 3)]


def test_a_study_without_privacy_is_charged_without_bound(demo, tmp_path, identity):
    dp = demo.pop("privacy")
    rate, size = dp["sampling_rate"], dp["expected_batch_size"]
    demo["privacy"] = {"unsafe_dp_off": True, "sampling_rate": rate, "expected_batch_size": size}
    demo.setdefault("codec", {})["range"] = 0.1
    study = parse_study(demo)
    release = training_release(study)
    assert isinstance(release.charge, Unprotected)
    with Ledger.create(
        tmp_path / "site", identity, site="site", limits=simulated_limits(study), approved_by="simulation"
    ) as ledger:
        ledger.approve(study.sha256, study.study, [release], approved_by="simulation")
        ledger.reserve(release.charge, study=study.sha256, round=1)
        assert math.isinf(figures(ledger.books.spends, 1e-6).deciding)


def test_each_round_is_charged_with_the_noise_that_the_site_adds(demo):
    study = parse_study(demo)
    charge, rule = training_release(study).charge, constants.round_rule(study)
    noise = noise_multiplier_for(study.dp.epsilon, study.dp.delta, study.dp.sampling_rate, study.total_steps)
    assert charge == DpSgdCharge(noise, study.dp.sampling_rate, study.training.steps_per_round, study.dp.unit)
    assert (charge.noise_multiplier, charge.steps) == (rule.noise_multiplier, rule.steps)


def test_a_private_study_without_noise_is_refused(demo, monkeypatch):
    monkeypatch.setattr(constants, "noise_multiplier", lambda study: 0.0)
    with pytest.raises(PrivacyError, match="gives no protection"):
        training_release(parse_study(demo))


@pytest.mark.parametrize("name", ["strict", "research", "public-data"])
def test_a_ledger_can_be_started_under_every_ready_made_policy(root, name):
    policy = load_policy(root / "configs" / "policies" / f"{name}.yaml")
    limits = policy_limits(policy)
    assert limits.unit == policy.smallest_privacy_unit
    assert limits.delta * limits.max_units * policy.delta.times_patients == pytest.approx(1)
    assert (limits.epsilon_per_study, limits.epsilon_per_year) == (
        policy.epsilon_per_study,
        policy.epsilon_per_year,
    )
