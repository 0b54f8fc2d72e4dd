"""Trials on a site's own records: charged before, released once, and heeded only where they say more than noise."""

from __future__ import annotations

import hashlib
import itertools
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml

from secure_triplay.client.learner import Encoded, Score
from secure_triplay.config import parse_study
from secure_triplay.crypto.identity import SigningIdentity
from secure_triplay.crypto.keyfile import save_identity
from secure_triplay.data.records import ArrayRecords
from secure_triplay.data.split import SiteData, Split
from secure_triplay.errors import AssetError, ConfigError, DataError, PrivacyError, RunError
from secure_triplay.ledger.budget import Limits, figures
from secure_triplay.ledger.ledger import Ledger
from secure_triplay.pilot import paid, private, run
from secure_triplay.pilot.choices import own_choice, with_choice
from secure_triplay.pilot.costs import Cost, SiteLimits
from secure_triplay.pilot.private import Private, clearly_better, private_trials
from secure_triplay.pilot.run import Request, run_pilot
from secure_triplay.pilot.search import Decision, Trial, WorstClass
from secure_triplay.privacy.counts import CountRule
from secure_triplay.privacy.mechanisms import DpSgdCharge

ROOMY = SiteLimits(hours=1000, memory_gib=100)
COST = Cost(n_params=1, noise_multiplier=1.0, upload_bytes_per_round=1, download_bytes_per_round=1, hours=1.0,
            hours_training=1.0, hours_line=0.0, hours_messages=0.0, memory_bytes=1)  # fmt: skip


def ledger_at(folder: Path, epsilon: float, site: str = "north") -> Path:
    identity = SigningIdentity.generate()
    folder.mkdir()
    save_identity(folder, identity)
    limits = Limits(epsilon, epsilon, delta=1e-5, max_units=100, unit="record")
    Ledger.create(folder / "ledger", identity, site=site, limits=limits, approved_by="Dr. Weber").close()
    return folder


def books_of(folder: Path):
    with Ledger.open(folder / "ledger", None) as ledger:
        return ledger.books


@pytest.fixture
def searching(content, tmp_path):
    """Calls the private part of a pilot on site north of the small study, with results in `tmp_path / out`."""

    def run(asked: Private, out: str = "out"):
        study = parse_study(content)
        choices = [own_choice(study), replace(own_choice(study), rank=2)]
        trials = [Trial(choice, COST, 0.6, 0.01, 0.5, 1.0, WorstClass(6, 0.2, 0.1, 20)) for choice in choices]
        (tmp_path / out / "trials").mkdir(parents=True, exist_ok=True)
        return private_trials(
            lambda choice: parse_study(with_choice(content, study, choice, 8.0)),
            trials,
            Decision(trials[0], trials[0], "public"),
            asked,
            ROOMY,
            tmp_path / out,
        )

    return run


@pytest.fixture
def measured(monkeypatch):
    """Every measurement, in place of training: another noised count each time. Holds how many there were."""
    count = itertools.count(1)
    made: list[int] = []

    def measure(study, split, asked, rule):
        made.append(next(count))
        return {"accuracy": 0.5, "noised_correct": 10.0 + made[-1], "noised_total": 20.0}

    monkeypatch.setattr(private, "_usable_data", lambda study, site: None)
    monkeypatch.setattr(private, "_measure", measure)
    return made


def written(tmp_path: Path) -> list[Path]:
    return sorted(tmp_path.glob("*/trials/private-*"))


def test_a_search_on_private_records_is_reserved_and_settled_with_what_it_wrote(searching, tmp_path):
    asked = Private("north", ledger_at(tmp_path / "north", 50.0), "Dr. Weber", trials=1, rounds=1)
    try:
        found, decision = searching(asked)
    except AssetError as error:
        pytest.skip(f"weights or images cannot be had here: {error.what}")
    charged = list(books_of(tmp_path / "north").reservations.values())
    assert sorted(one.what for one in charged) == ["pilot counts 1", "pilot training 1"]
    (file,) = written(tmp_path)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert {one.released_sha256 for one in charged} == {digest}
    assert 0 < found["epsilon"] < 50
    assert decision.trial.accuracy == 0.6
    again, _ = searching(asked)  # the same search again reads what it wrote, and pays nothing
    assert again == found
    assert len(books_of(tmp_path / "north").reservations) == 2


def test_a_stop_between_settling_and_writing_loses_the_result_and_releases_no_other(
    searching, measured, tmp_path, monkeypatch
):
    asked = Private("north", ledger_at(tmp_path / "north", 50.0), "Dr. Weber", trials=1, rounds=1)

    def stop(path, text):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(paid, "write_text", stop)
        with pytest.raises(KeyboardInterrupt):
            searching(asked)
    charged = books_of(tmp_path / "north").reservations
    assert all(one.released_sha256 for one in charged.values())  # settled, and nothing is written
    for out in ("out", "other"):
        with pytest.raises(PrivacyError, match=r"settled already.*not measured again.*--private-rounds"):
            searching(asked, out)
    assert measured == [1]
    assert not written(tmp_path)
    assert len(books_of(tmp_path / "north").reservations) == len(charged)
    searching(replace(asked, rounds=2))  # what the message says to do: another search, and another charge
    assert len(books_of(tmp_path / "north").reservations) == 2 * len(charged)


def test_a_stop_between_the_two_settlements_releases_nothing(searching, measured, tmp_path, monkeypatch):
    asked = Private("north", ledger_at(tmp_path / "north", 50.0), "Dr. Weber", trials=1, rounds=1)
    settle, calls = Ledger.settle, itertools.count()

    def stop(self, reservation, released):
        if next(calls):
            raise KeyboardInterrupt
        settle(self, reservation, released)

    with monkeypatch.context() as patched:
        patched.setattr(Ledger, "settle", stop)
        with pytest.raises(KeyboardInterrupt):
            searching(asked)
    with pytest.raises(PrivacyError, match="settled already"):
        searching(asked)
    assert not written(tmp_path)


def test_of_two_searches_at_once_under_one_charge_one_releases(searching, measured, tmp_path, monkeypatch):
    asked = Private("north", ledger_at(tmp_path / "north", 50.0), "Dr. Weber", trials=1, rounds=1)
    once = private._measure

    def meanwhile(*given):
        """While the first one measures, another one with another folder begins and ends."""
        monkeypatch.setattr(private, "_measure", once)
        searching(asked, "second")
        return once(*given)

    monkeypatch.setattr(private, "_measure", meanwhile)
    with pytest.raises(PrivacyError, match="settled already"):
        searching(asked, "first")
    assert len(measured) == 2  # both were measured
    (file,) = written(tmp_path)
    assert file.parts[-3] == "second"
    charged = books_of(tmp_path / "north").reservations.values()
    assert {one.released_sha256 for one in charged} == {hashlib.sha256(file.read_bytes()).hexdigest()}
    assert len(charged) == 2


def test_a_search_that_was_stopped_before_it_settled_goes_on_under_its_old_charge(
    searching, measured, tmp_path, monkeypatch
):
    asked = Private("north", ledger_at(tmp_path / "north", 50.0), "Dr. Weber", rounds=1)

    def stop(*given):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(private, "_measure", stop)
        with pytest.raises(KeyboardInterrupt):
            searching(asked, "first")
    searching(asked, "second")
    assert len(books_of(tmp_path / "north").reservations) == 4  # two trials, two charges each


def test_a_result_that_the_ledger_has_not_settled_is_not_read(searching, measured, tmp_path):
    asked = Private("north", ledger_at(tmp_path / "north", 50.0), "Dr. Weber", trials=1, rounds=1)
    searching(asked)
    (file,) = written(tmp_path)
    shutil.move(tmp_path / "north", tmp_path / "old")
    ledger_at(tmp_path / "north", 50.0)
    with pytest.raises(PrivacyError, match="not one that the site's ledger has a charge for"):
        searching(asked)
    shutil.rmtree(tmp_path / "north")
    shutil.move(tmp_path / "old", tmp_path / "north")
    searching(asked)
    file.write_text(file.read_text().replace("11.0", "19.0"))
    with pytest.raises(PrivacyError, match="not one that the site's ledger has a charge for"):
        searching(asked)


def test_what_a_search_says_it_cost_is_what_the_ledger_was_charged_for_every_round_and_count(
    searching, measured, content, tmp_path
):
    asked = Private("north", ledger_at(tmp_path / "north", 50.0), "Dr. Weber", trials=2, rounds=3)
    found, _ = searching(asked)
    spends = books_of(tmp_path / "north").spends
    steps = [spend.charge.steps for spend in spends if isinstance(spend.charge, DpSgdCharge)]
    assert steps == [3 * parse_study(content).training.steps_per_round] * 2
    assert len(spends) == 4
    assert found["epsilon"] == pytest.approx(figures(spends, found["delta"]).pld, abs=1e-4)


def test_no_more_records_of_a_patient_are_counted_than_the_noise_is_made_for(content, monkeypatch):
    """Five records held back of one patient, one of another, and two of each may count."""
    patients = torch.tensor([0, 0, 0, 0, 0, 1])
    encoded = Encoded(torch.zeros(6, 1, 1), torch.zeros(6, dtype=torch.int64), patients)
    counted, trained = [], []

    class Right:
        def __init__(self, *_):
            pass

        def score(self, adapter, records):
            return Score(len(records), len(records))

    def counts(correct, total, rule, noise):
        counted.append((correct, total))
        return np.array([correct, total], np.float64)

    def one_round(state, *_):
        trained.append(state)
        return state

    adapter = SimpleNamespace(vector=lambda: np.zeros(1, np.float32), n_params=1)
    for name, made in {
        "load_model": lambda *_: SimpleNamespace(adapter=adapter),
        "encode_records": lambda *_: encoded,
        "choose_codec": lambda *_: None,
        "one_round": one_round,
        "Learner": Right,
        "noised_counts": counts,
    }.items():
        monkeypatch.setattr(private, name, made)
    nothing = ArrayRecords(np.zeros((0, 8, 8), np.uint8), np.zeros(0, np.int64))
    split = Split(nothing, nothing, {"north": SiteData(nothing, nothing)})
    asked = Private("north", Path(), "Dr. Weber", rounds=3)
    private._measure(parse_study(content), split, asked, CountRule(5.0, 2, 100, "patient"))
    assert counted == [(3, 3)]
    assert len(trained) == 3  # as many as are charged


def test_a_charge_that_no_other_site_countersigns_says_so(searching, measured, tmp_path):
    asked = Private("north", ledger_at(tmp_path / "north", 50.0), "Dr. Weber", trials=1, rounds=1)
    found, decision = searching(asked)
    assert found["countersigned"] is False
    assert "no other site has countersigned" in decision.reason
    with pytest.raises(ConfigError, match="no other site countersigns"):
        searching(replace(asked, approved_by=" "))


def test_a_ledger_pays_for_its_own_sites_records_only(searching, measured, tmp_path):
    asked = Private("north", ledger_at(tmp_path / "east", 50.0, site="east"), "Dr. Weber", rounds=1)
    with pytest.raises(PrivacyError, match=r"records of north.*by the ledger of east.*--site east"):
        searching(asked)
    assert not measured
    assert not books_of(tmp_path / "east").approvals


@pytest.mark.parametrize(
    ("part", "key", "value", "kind", "said"),
    [
        ("privacy", "max_units_per_site", 50, PrivacyError, "this site has 80 records"),
        ("data", "holdout_per_site", 0, DataError, "holds no records back"),
    ],
)
def test_records_that_do_not_fit_are_refused_before_anything_is_charged(
    searching, content, tmp_path, part, key, value, kind, said
):
    content[part][key] = value
    asked = Private("north", ledger_at(tmp_path / "north", 50.0), "Dr. Weber", trials=1, rounds=1)
    try:
        with pytest.raises(kind, match=said):
            searching(asked)
    except AssetError as error:
        pytest.skip(f"images cannot be had here: {error.what}")
    assert not books_of(tmp_path / "north").approvals
    assert not books_of(tmp_path / "north").reservations


@pytest.mark.parametrize("part", ["train", "holdout"])
def test_an_image_that_cannot_be_read_is_known_before_anything_is_charged(
    searching, tmp_path, monkeypatch, part
):
    class Unreadable(ArrayRecords):
        def check(self) -> None:
            raise DataError("the image cannot be read")

    pixels, labels = np.zeros((4, 8, 8), np.uint8), np.zeros(4, np.int64)
    good = ArrayRecords(pixels, labels)
    own = replace(SiteData(good, good), **{part: Unreadable(pixels, labels)})
    monkeypatch.setattr(private, "load_data", lambda study, site: Split(good, good, {site: own}))
    asked = Private("north", ledger_at(tmp_path / "north", 50.0), "Dr. Weber", trials=1, rounds=1)
    with pytest.raises(DataError, match="cannot be read"):
        searching(asked)
    assert not books_of(tmp_path / "north").approvals


def test_a_search_that_the_budget_does_not_hold_is_refused_before_anything_is_measured(
    searching, measured, tmp_path
):
    asked = Private("north", ledger_at(tmp_path / "north", 0.01), "Dr. Weber", trials=1, rounds=1)
    with pytest.raises(PrivacyError, match="was not approved"):
        searching(asked)
    assert not measured
    assert not written(tmp_path)
    assert not books_of(tmp_path / "north").reservations


def test_a_search_that_nobody_allows_or_no_ledger_pays_for_is_refused(searching, tmp_path):
    with pytest.raises(ConfigError, match="nobody allows"):
        searching(Private("north", ledger_at(tmp_path / "north", 50.0), " "))
    shutil.rmtree(tmp_path / "north" / "ledger")
    with pytest.raises(RunError, match="no privacy ledger"):
        searching(Private("north", tmp_path / "north", "Dr. Weber"))


@pytest.mark.parametrize(
    ("site", "approved_by", "kind"),
    [("north", " ", ConfigError), ("south", "Dr. Weber", ConfigError), ("east", "Dr. Weber", PrivacyError),
     ("north", "Dr. Weber", RunError)],
)  # fmt: skip
def test_who_cannot_pay_is_told_before_hours_go_into_public_trials(
    content, tmp_path, monkeypatch, site, approved_by, kind
):
    """Nobody allows it; the study has no such site; the ledger is another's; there is none."""
    monkeypatch.setattr(run, "public_sample", lambda *_, **__: pytest.fail("public images were drawn"))
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(content))
    folder = ledger_at(tmp_path / "north", 50.0)
    if kind is RunError:
        shutil.rmtree(folder / "ledger")
    with pytest.raises(kind):
        run_pilot(
            tmp_path / "study.yaml", tmp_path / "out", Request(private=Private(site, folder, approved_by))
        )
    assert not (tmp_path / "out").exists()


def switched(shares: list[float], records: int, draws: int = 3000) -> float:
    """How often the counts change the decision, where trials are right on these shares of so many records."""
    rng, rule = np.random.default_rng(5), CountRule(5.0, 1, 10_000, "record")
    found = 0
    for _ in range(draws):
        right = rng.binomial(records, shares)
        noised = np.stack([right, np.full(len(shares), records)], axis=1).astype(float)
        noised += rng.normal(0, rule.noise_std, noised.shape)
        found += clearly_better(noised, rule) > 0
    return found / draws


@pytest.mark.parametrize("records", [20, 120, 3000])
@pytest.mark.parametrize("shares", [[0.6, 0.6], [0.97, 0.97], [0.6] * 5])
def test_noise_and_chance_do_not_change_the_decision_between_equal_choices(shares, records):
    assert switched(shares, records) < 0.03


def test_a_choice_that_is_clearly_better_on_the_sites_records_is_taken():
    assert switched([0.6, 0.8], 1000, draws=200) > 0.99
    assert switched([0.8, 0.6], 1000, draws=200) == 0
    rule = CountRule(5.0, 1, 10_000, "record")
    counts = np.array([[600.0, 1000], [800, 1000], [790, 1000]])
    assert clearly_better(counts, rule) == 1
    # records of one patient may all be right or wrong together
    patients = CountRule(5.0 / 400, 400, 10_000, "patient")
    assert patients.noise_std == pytest.approx(rule.noise_std)
    assert clearly_better(counts, patients) == 0
