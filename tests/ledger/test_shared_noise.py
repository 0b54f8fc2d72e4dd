"""Charges of shared noise in a ledger: recomputed by whoever verifies, composed, and told what they rest on."""

from __future__ import annotations

import json

import pytest

from secure_triplay.config import parse_study
from secure_triplay.crypto.identity import Purpose
from secure_triplay.errors import CryptoError, PrivacyError, SecureTriplayError
from secure_triplay.ledger.budget import (
    FILTER_ORDERS,
    Limits,
    Spend,
    charge_from_fields,
    charge_to_fields,
    figures,
    filter_epsilon,
)
from secure_triplay.ledger.entries import canonical
from secure_triplay.ledger.evidence import status
from secure_triplay.ledger.export import JSON_NAME, PAGE_NAME, export
from secure_triplay.ledger.ledger import TRAINING, Ledger, Release
from secure_triplay.ledger.study import simulated_limits, study_releases
from secure_triplay.ledger.verify import verify
from secure_triplay.privacy.accounting import epsilon
from secure_triplay.privacy.mechanisms import DpSgdCharge, GaussianCharge, SharedNoiseCharge
from secure_triplay.privacy.renyi import renyi_epsilon

CHARGE = SharedNoiseCharge(4.0, 1045, 0.5, 1, honest_shares=2, colluders=1)
STUDY, OTHER = "c" * 64, "d" * 64
LIMITS = Limits(epsilon_per_study=4.0, epsilon_per_year=8.0, delta=1e-6, max_units=1000, unit="record")


@pytest.fixture
def ledger(tmp_path, identity, clock):
    with Ledger.create(
        tmp_path / "shared", identity, site="shared", limits=LIMITS, approved_by="Dr. Officer", clock=clock
    ) as made:
        made.approve(STUDY, "shared noise", [Release(TRAINING, CHARGE, 6)], approved_by="Dr. Officer")
        yield made


def test_a_study_with_shared_noise_runs_to_its_last_round_and_no_further(demo, tmp_path, identity):
    demo["privacy"]["noise"] = "shared"
    study = parse_study(demo)
    (release,) = study_releases(study)
    assert isinstance(release.charge, SharedNoiseCharge)
    with Ledger.create(
        tmp_path / "site", identity, site="site", limits=simulated_limits(study), approved_by="simulation"
    ) as ledger:
        ledger.approve(study.sha256, study.study, [release], approved_by="simulation")
        for number in range(1, study.training.rounds + 1):
            ledger.reserve(release.charge, study=study.sha256, round=number)
        assert (
            0.99 * study.dp.epsilon
            < figures(ledger.books.spends, study.dp.delta).deciding
            <= study.dp.epsilon
        )
        with pytest.raises(PrivacyError):
            ledger.reserve(release.charge, study=study.sha256, round=study.training.rounds + 1)


def test_a_charge_is_read_as_it_was_written_and_no_other_way():
    fields = charge_to_fields(CHARGE)
    assert charge_from_fields(fields) == CHARGE
    for name in fields:
        with pytest.raises(PrivacyError):
            charge_from_fields({key: value for key, value in fields.items() if key != name})
    for change in ({"honest_shares": 0}, {"noise_multiplier": 0.0}, {"extra": 1}, {"l2_sensitivity": 10.5}):
        with pytest.raises(PrivacyError):
            charge_from_fields(fields | change)


def test_other_noise_than_was_approved_is_not_charged(ledger):
    cheaper = SharedNoiseCharge(4.0, 1045, 0.5, 1, honest_shares=3, colluders=1)
    with pytest.raises(PrivacyError, match="other noise"):
        ledger.reserve(cheaper, study=STUDY, round=1)


def test_evidence_is_recomputed_and_says_what_the_guarantee_rests_on(ledger, tmp_path, identity, clock):
    for number in (1, 2, 3):
        ledger.settle(ledger.reserve(CHARGE, study=STUDY, round=number), b"upload %d" % number)
    (row, *_) = status(ledger.books)
    assert row["epsilon_charged"] == pytest.approx(epsilon([CHARGE] * 3, LIMITS.delta))
    ledger.close()
    bundle = export(tmp_path / "shared", tmp_path / "bundle", identity, second_accountant=True, clock=clock)
    found = verify(bundle)
    assert found is not None
    signed = json.loads((bundle / JSON_NAME).read_text())
    told = {entry["title"]: entry["text"] for entry in signed["evidence"]["not_covered"]}
    assert "no more than 1 site colludes" in told["More than 1 sites that collude"]
    assert signed["evidence"]["figures"][0]["epsilon_prv"] is None
    assert signed["evidence"]["charges"][0]["mechanism"] == "shared-skellam"
    assert "Renyi" in (bundle / PAGE_NAME).read_text()


def test_a_figure_that_does_not_follow_from_the_charges_is_refused(ledger, tmp_path, identity, clock):
    ledger.settle(ledger.reserve(CHARGE, study=STUDY, round=1), b"upload")
    ledger.close()
    bundle = export(tmp_path / "shared", tmp_path / "bundle", identity, second_accountant=False, clock=clock)
    signed = json.loads((bundle / JSON_NAME).read_text())
    signed["evidence"]["figures"][0]["epsilon_charged"] *= 0.9
    content = canonical({"evidence": signed["evidence"], "files": signed["files"]})
    signed["signature"] = identity.sign(Purpose.EVIDENCE, content).hex()
    (bundle / JSON_NAME).write_text(json.dumps(signed))
    with pytest.raises(SecureTriplayError, match="follows from the charges"):
        verify(bundle)


def test_an_edited_charge_breaks_the_chain(ledger, tmp_path, identity, clock):
    ledger.settle(ledger.reserve(CHARGE, study=STUDY, round=1), b"upload")
    ledger.close()
    bundle = export(tmp_path / "shared", tmp_path / "bundle", identity, second_accountant=False, clock=clock)
    text = (bundle / JSON_NAME).read_text()
    assert '"honest_shares": 2' in text or '"honest_shares":2' in text
    signed = json.loads(text)
    for entry in signed["evidence"]["entries"]:
        if entry["kind"] == "reserved":
            entry["body"]["charge"]["honest_shares"] = 3
    content = canonical({"evidence": signed["evidence"], "files": signed["files"]})
    signed["signature"] = identity.sign(Purpose.EVIDENCE, content).hex()
    (bundle / JSON_NAME).write_text(json.dumps(signed))
    with pytest.raises(CryptoError):
        verify(bundle)


def test_other_studies_compose_with_it_by_the_adaptive_filter():
    rest = [Spend(OTHER, 2026, DpSgdCharge(4.0, 0.5, 1))] * 5 + [Spend(OTHER, 2026, GaussianCharge(20.0))]
    both = [*rest, *[Spend(STUDY, 2026, CHARGE)] * 5]
    found = figures(both, 1e-6)
    assert found.adaptive
    charges = [spend.charge for spend in both]
    share = 1e-6 / len(FILTER_ORDERS)
    assert found.filtered == pytest.approx(min(renyi_epsilon(charges, share, [a]) for a in FILTER_ORDERS))
    assert found.filtered > found.pld > figures(rest, 1e-6).pld
    assert filter_epsilon(charges, 1e-6) == pytest.approx(found.filtered)
