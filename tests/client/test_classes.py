"""A site's class counts: charged before they are counted, counted once in a study, and never counted again."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime

import numpy as np
import pytest

from secure_triplay.client.accounts import LedgerAccounts
from secure_triplay.client.classes import (
    carry_classes,
    count_classes,
    count_own_classes,
    kept_classes,
    train_with_own_bias,
)
from secure_triplay.client.journal import Journal
from secure_triplay.client.vault import Vault, new_storage_key
from secure_triplay.config import parse_study
from secure_triplay.constants import class_count_rule
from secure_triplay.crypto.identity import SigningIdentity
from secure_triplay.errors import CryptoError
from secure_triplay.ledger.ledger import Ledger
from secure_triplay.ledger.store import utc_now
from secure_triplay.ledger.study import CLASS_COUNTS, simulated_limits, study_releases
from secure_triplay.privacy.noise import NoiseSource
from secure_triplay.wire import SessionPlan, Site

LABELS = np.repeat([0, 1, 2], [50, 30, 20])


class KilledError(BaseException):
    """`kill -9`: only what is on disk is left."""


class Home:
    """One site's folder; each `visit` opens ledger and vault anew, as a restart does."""

    def __init__(self, folder, demo, asked=True):
        if asked:
            demo["personal_bias"] = {"noise_multiplier": 4.0}
        self.study, self.folder = parse_study(demo), folder
        self.identity, self.storage_key = SigningIdentity.generate(), new_storage_key()
        self.releases = study_releases(self.study)
        with Ledger.create(
            folder / "ledger", self.identity, site="a", limits=simulated_limits(self.study), approved_by="A"
        ) as ledger:
            ledger.approve(self.study.sha256, "demo", self.releases, approved_by="A")
        self.notes, self.clock = [], utc_now

    def vault(self, epoch=1):
        return Vault(self.folder / f"epoch-{epoch}", self.storage_key, study=self.study.sha256, epoch=epoch)

    def visit(self, kill_before=None):
        """Count; `kill_before` names the write at which the process dies."""
        rule = class_count_rule(self.study) or pytest.fail("the study counts no classes")
        plan = SessionPlan(self.study.sha256, bytes(32), 1, 1, (Site("a", self.identity.identity),))
        with Ledger.open(self.folder / "ledger", self.identity, clock=self.clock) as ledger:
            accounts = LedgerAccounts(ledger, self.identity, plan, self.releases)
            vault = self.vault()
            if kill_before == "keep":
                vault.save = dies
            if kill_before == "settle":
                accounts.settle = dies
            count_classes(vault, accounts, rule, LABELS, 10, NoiseSource(), self.note)

    def count_own(self, learner):
        """What a site's worker does before its first round."""
        plan = SessionPlan(self.study.sha256, bytes(32), 1, 1, (Site("a", self.identity.identity),))
        with Ledger.open(self.folder / "ledger", self.identity) as ledger:
            accounts = LedgerAccounts(ledger, self.identity, plan, self.releases)
            count_own_classes(self.study, self.vault(), accounts, learner, Journal(self.folder))
        train_with_own_bias(self.study, self.vault(), learner)

    def note(self, event, **fields):
        self.notes.append((event, fields))

    def charges(self):
        with Ledger.open(self.folder / "ledger", None) as ledger:
            return [
                made.released_sha256
                for made in ledger.books.reservations.values()
                if made.what == CLASS_COUNTS
            ]


def dies(*_):
    raise KilledError


@pytest.fixture
def home(tmp_path, demo):
    return Home(tmp_path, demo)


def test_a_count_is_charged_kept_and_settled_and_is_near_the_truth(home):
    home.visit()
    kept = kept_classes(home.vault(), 10)
    assert np.abs(kept - [50, 30, 20, *[0] * 7]).max() < 7 * 4
    assert home.charges() == [hashlib.sha256(kept.astype("<f8").tobytes()).hexdigest()]
    assert not home.notes


@pytest.mark.parametrize("at", ["keep", "settle"])
def test_a_site_that_dies_in_between_has_one_charge_and_one_count(home, at):
    with pytest.raises(KilledError):
        home.visit(kill_before=at)
    assert home.charges() == [None]  # charged before anything was counted
    before = kept_classes(home.vault(), 10)
    assert (before is None) == (at == "keep")
    for _ in range(2):
        home.visit()
        after = kept_classes(home.vault(), 10)
        assert before is None or (after == before).all()
        before = after
    assert home.charges() == [hashlib.sha256(after.astype("<f8").tobytes()).hexdigest()]


def test_counts_that_were_paid_for_outlive_a_clock_that_was_set_back(home):
    home.visit()
    before = kept_classes(home.vault(), 10)
    home.clock = lambda: datetime(2001, 1, 1, tzinfo=UTC)
    home.visit()
    assert not home.notes
    assert (kept_classes(home.vault(), 10) == before).all()


def test_counts_that_were_made_and_are_gone_are_not_made_again(home, monkeypatch):
    home.visit()
    charges = home.charges()
    home.vault().destroy("classes")
    monkeypatch.setattr("secure_triplay.client.classes.noised_class_counts", pytest.fail)
    home.visit()
    assert kept_classes(home.vault(), 10) is None
    assert home.charges() == charges
    assert [event for event, _ in home.notes] == ["no class counts"]


def test_other_counts_under_the_same_charge_are_not_used(home):
    home.visit()
    other = kept_classes(home.vault(), 10) + 1
    home.vault().save("classes", other.astype("<f8").tobytes())
    charges = home.charges()
    home.visit()
    assert kept_classes(home.vault(), 10) is None
    assert home.charges() == charges
    assert [event for event, _ in home.notes] == ["no class counts"]


@pytest.mark.parametrize(
    "content",
    [b"", bytes(79), bytes(88), np.full(10, np.nan).tobytes()],
    ids=["empty", "short", "long", "nan"],
)
def test_damaged_counts_are_an_error_and_no_new_beginning(home, content):
    home.visit()
    home.vault().save("classes", content)
    with pytest.raises(CryptoError, match="no class counts of this study"):
        home.visit()


def test_a_site_whose_study_plans_no_count_cannot_be_charged_for_one(tmp_path, demo):
    home = Home(tmp_path, demo, asked=False)
    demo["personal_bias"] = {}
    home.study = parse_study(demo)  # its ledger approved the other one
    home.visit()
    assert kept_classes(home.vault(), 10) is None
    assert home.charges() == []
    assert [event for event, _ in home.notes] == ["no class counts"]


class Learner:
    """What a site counts, and the bias with which it was told to train."""

    bias = None

    def class_labels(self, _rule):
        return LABELS

    def adjust(self, bias):
        self.bias = bias


@pytest.fixture
def biased(tmp_path, demo):
    """A site whose study has the bias in training."""
    demo["personal_bias"] = {"noise_multiplier": 4.0, "in_training": True}
    return Home(tmp_path, demo, asked=False)


def test_a_site_trains_with_the_bias_of_its_kept_counts_and_with_the_same_after_a_restart_and_a_key_change(
    biased,
):
    learner = Learner()
    biased.count_own(learner)
    counts = np.maximum(kept_classes(biased.vault(), 10), 4.0)
    assert learner.bias == pytest.approx(1.5 * np.log(counts / counts.sum()), abs=1e-5)
    again, later = Learner(), Learner()
    biased.count_own(again)
    carry_classes(biased.vault(), biased.vault(2))
    train_with_own_bias(biased.study, biased.vault(2), later)
    assert (again.bias == learner.bias).all()
    assert (later.bias == learner.bias).all()
    assert len(biased.charges()) == 1


def test_a_site_whose_counts_are_gone_trains_without_the_bias_that_it_had(biased):
    learner = Learner()
    biased.count_own(learner)
    biased.vault().destroy("classes")
    biased.count_own(learner)
    assert learner.bias is None
    assert len(biased.charges()) == 1


def test_a_site_that_is_refused_the_charge_trains_without_a_bias(biased, demo):
    demo["personal_bias"]["noise_multiplier"] = 3.0
    biased.study = parse_study(demo)  # its ledger approved the other one
    learner = Learner()
    biased.count_own(learner)
    assert learner.bias is None
    assert biased.charges() == []


def test_a_study_that_does_not_ask_for_it_has_no_bias_in_training(home):
    learner = Learner()
    home.count_own(learner)
    assert kept_classes(home.vault(), 10) is not None
    assert learner.bias is None


def test_counts_that_are_charged_after_a_round_are_countersigned_before_that_rounds_upload(tmp_path, demo):
    """They may stand in its training: a copy rolled back to the round's own head would count a second time."""
    demo["personal_bias"] = {"noise_multiplier": 4.0, "in_training": True}
    a, b = (Home(tmp_path / name, demo, asked=False) for name in "ab")
    sites = tuple(Site(name, home.identity.identity) for name, home in (("a", a), ("b", b)))
    plan = SessionPlan(a.study.sha256, bytes(32), 1, 1, sites)
    with (
        Ledger.open(a.folder / "ledger", a.identity) as ledger,
        Ledger.open(b.folder / "ledger", b.identity) as other,
    ):
        own = LedgerAccounts(ledger, a.identity, plan, a.releases)
        peer = LedgerAccounts(other, b.identity, plan, b.releases)
        reservation = own.reserve(1)
        own.take_in(*peer.countersign(own.heads(), pytest.fail))
        assert own.witnesses_of(reservation) == 1
        own.reserve_class_counts()
        assert own.witnesses_of(reservation) == 0
        own.take_in(*peer.countersign(own.heads(), pytest.fail))
        assert own.witnesses_of(reservation) == 1


def test_the_next_key_epoch_has_the_same_counts(home):
    home.visit()
    carry_classes(home.vault(), home.vault(2))
    assert (kept_classes(home.vault(2), 10) == kept_classes(home.vault(), 10)).all()
