"""Equal charges that are long together still have a figure, which is never too small."""

from __future__ import annotations

import dataclasses
import math

import pytest

from secure_triplay.errors import PrivacyError
from secure_triplay.ledger import budget, evidence
from secure_triplay.ledger.budget import Scope, Spend
from secure_triplay.ledger.compare import verify_any
from secure_triplay.ledger.evidence import status
from secure_triplay.ledger.export import PAGE_NAME, export
from secure_triplay.ledger.ledger import TRAINING, Release
from secure_triplay.privacy import accounting
from secure_triplay.privacy.mechanisms import MOST_STEPS, DpSgdCharge, GaussianCharge, SharedNoiseCharge
from tests.ledger.conftest import LIMITS, OTHER

COUNTS = GaussianCharge(noise_multiplier=4000.0, releases=600_000, unit="patient")
LONG = DpSgdCharge(noise_multiplier=4.0, sampling_rate=0.001, steps=600_000, unit="patient")
DELTA = 1e-6


def figures(charge, times):
    return budget.figures([Spend(OTHER, 2026, charge)] * times, DELTA)


def test_two_studies_with_one_equal_long_charge_are_reserved_shown_exported_and_verified(
    make, tmp_path, identity, clock
):
    with make() as ledger:
        for study in (OTHER, "c" * 64):
            ledger.approve(study, f"study {study[0]}", [Release(TRAINING, COUNTS, 1)], approved_by="A")
            ledger.settle(ledger.reserve(COUNTS, study=study, round=1), study.encode())
        rows = {(row["kind"], row["key"]): row for row in status(ledger.books)}
    year = rows["year", "2026"]
    assert rows["study", OTHER]["epsilon_charged"] < year["epsilon_pld"] < year["epsilon_filter"] < 3
    out = export(tmp_path / "site", tmp_path / "out", identity, second_accountant=False, clock=clock)
    assert verify_any(out).figures[-1]["epsilon_charged"] == year["epsilon_charged"]
    assert (
        "1,000,000 steps, Renyi accounting, an upper bound as well, stands" in (out / PAGE_NAME).read_text()
    )


def test_the_second_accountant_is_not_asked_for_what_it_would_compute_for_hours():
    spends = tuple(Spend(study, 2026, LONG) for study in (OTHER, "c" * 64))
    assert evidence._prv(Scope("overall", "", "all years", None, spends), DELTA) is None


def test_the_figure_of_a_long_history_is_not_below_that_of_its_loss_distribution():
    found = figures(LONG, 2).pld
    exact = accounting.epsilon([LONG, LONG], DELTA)
    assert exact <= found <= 1.2 * exact


@pytest.mark.parametrize(
    "charge",
    [
        LONG,
        GaussianCharge(20_000.0, 700_000),
        SharedNoiseCharge(50.0, 1 << 10, 0.001, 700_000, honest_shares=2, colluders=1),
    ],
)
def test_more_of_a_long_charge_costs_more(charge):
    found = [figures(charge, times).deciding for times in (1, 2, 3, 10)]
    assert found == sorted(set(found))
    assert math.isfinite(found[-1])


def test_parts_of_a_long_charge_are_all_of_it_and_none_is_longer_than_a_charge_may_be():
    for times in (1, 2, 5, 7):
        parts = budget._parts(LONG, times)
        assert sum(part.steps for part in parts) == LONG.steps * times
        assert max(part.steps for part in parts) <= MOST_STEPS


def test_what_is_too_long_for_any_figure_is_unbounded_and_refused(make):
    whole = dataclasses.replace(LONG, steps=MOST_STEPS)
    assert figures(whole, 101).deciding == math.inf
    with make(limits=LIMITS) as ledger, pytest.raises(PrivacyError, match="no bound at all"):
        ledger.approve(OTHER, "long", [Release(TRAINING, whole, 101)], approved_by="A")


def test_long_charges_of_two_units_do_not_compose():
    record = dataclasses.replace(LONG, unit="record")
    with pytest.raises(PrivacyError, match="stand in one history"):
        budget.figures([Spend(OTHER, 2026, each) for each in (LONG, LONG, record)], DELTA)
