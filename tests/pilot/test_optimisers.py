"""Server optimisers are tried first, cost nothing, and are chosen by accuracy, with rare classes and errors in view."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import yaml

from secure_triplay.config import parse_study
from secure_triplay.errors import ConfigError
from secure_triplay.pilot.choices import Space, own_choice, with_choice
from secure_triplay.pilot.compare import compare
from secure_triplay.pilot.costs import Cost, SiteLimits
from secure_triplay.pilot.optimiser import USUAL, Optimiser
from secure_triplay.pilot.run import Request, run_pilot
from secure_triplay.pilot.search import Trial, WorstClass, decide, search, untried
from secure_triplay.pilot.trial import worst_class
from secure_triplay.report.words import standard_error

ADAM, SMALL, AVERAGE = Optimiser("fedadam", 0.01), Optimiser("fedadam", 0.003), Optimiser("fedavg", 0.3)
COST = Cost(n_params=1, noise_multiplier=1.0, upload_bytes_per_round=1, download_bytes_per_round=1, hours=1.0,
            hours_training=1.0, hours_line=0.0, hours_messages=0.0, memory_bytes=1)  # fmt: skip
LIMITS = SiteLimits(hours=10, memory_gib=100)
CLASSES = ["coat", "shirt"]


@pytest.fixture
def own(content):
    return own_choice(parse_study(content))


def trial(choice, accuracy, worst, *, hours=1.0, error=0.02, worst_error=0.05):
    rare = WorstClass(1, worst, worst_error, 80)
    return Trial(choice, replace(COST, hours=hours), accuracy, error, 0.5, 1.0, rare)


def by(own, optimiser, accuracy, worst, **more):
    return trial(replace(own, optimiser=optimiser), accuracy, worst, **more)


def test_an_optimiser_stands_in_the_study_with_the_studys_other_constants(content):
    content["server_optimiser"] = {
        "kind": "fedadam",
        "learning_rate": 0.02,
        "momentum": 0.8,
        "average_last": 2,
    }
    study = parse_study(content)
    made = with_choice(content, study, replace(own_choice(study), optimiser=AVERAGE), 8.0)
    assert made["server_optimiser"] == {
        "kind": "fedavg",
        "learning_rate": 0.3,
        "momentum": 0.8,
        "average_last": 2,
    }
    assert parse_study(made).sha256 != study.sha256
    assert parse_study(with_choice(content, study, own_choice(study), 8.0)).sha256 == study.sha256
    del content["server_optimiser"]  # the study says nothing of it
    study = parse_study(content)
    assert own_choice(study).optimiser == Optimiser("fedavg", 1.0)
    assert parse_study(with_choice(content, study, own_choice(study), 8.0)).sha256 == study.sha256


def test_the_studys_own_optimiser_is_always_among_those_tried_and_none_is_there_twice(content):
    assert Space.around(parse_study(content), {}).axes["optimiser"] == USUAL  # its own is one of them
    content["server_optimiser"]["learning_rate"] = 0.02
    study = parse_study(content)
    own = Optimiser("fedadam", 0.02)
    assert Space.around(study, {}).axes["optimiser"] == (*USUAL, own)
    assert Space.around(study, {"optimiser": (AVERAGE,)}).axes["optimiser"] == (AVERAGE, own)
    for optimiser in USUAL:  # a study takes each of them
        changed = parse_study(
            with_choice(content, study, replace(own_choice(study), optimiser=optimiser), 8.0)
        )
        assert own_choice(changed).optimiser == optimiser


@pytest.mark.parametrize("text", ["fedavg", "fedavg:", "fedavg 0.3", "0.3", "fedavg:a:1", ""])
def test_what_is_no_optimiser_with_its_step_is_refused_with_what_to_do(text):
    with pytest.raises(ConfigError, match=r"--optimiser.*KIND:STEP"):
        Optimiser.parse(text)
    assert Optimiser.parse("fedavg:0.3") == AVERAGE


def test_sites_that_share_their_noise_have_no_step_of_their_own_to_try(content, tmp_path):
    content["sites"] = [{"name": name} for name in ("north", "east", "south")]
    content["privacy"]["noise"] = "shared"
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError, match=r"sites share it.*noise: local"):
        run_pilot(tmp_path / "study.yaml", tmp_path / "out", Request(axes={"optimiser": (AVERAGE,)}))
    assert not (tmp_path / "out").exists()


def searched(own, axes, accuracy_of, limits=LIMITS, most=50, hours=1.0):
    """The trials in order, where `accuracy_of` is what a choice gives, and its worst class."""
    space = Space({name: (getattr(own, name),) for name in ("rounds", "batch", "output_rank", "rank", "blocks",
                   "value_bits", "quantization")} | axes)  # fmt: skip
    fits = dict.fromkeys(space.choices(), COST)
    return search(
        space, fits, own, lambda choice: trial(choice, *accuracy_of(choice), hours=hours), limits, most
    )


def test_optimisers_are_tried_before_all_else_and_the_others_with_the_one_found(own):
    axes = {"optimiser": (ADAM, SMALL, AVERAGE), "rounds": (own.rounds, 60), "rank": (own.rank, 32)}
    better = {ADAM: (0.6, 0.1), SMALL: (0.7, 0.1), AVERAGE: (0.8, 0.1)}
    found = searched(own, axes, lambda choice: better[choice.optimiser])
    assert [one.choice.optimiser for one in found] == [ADAM, SMALL, AVERAGE, AVERAGE, AVERAGE]
    assert {replace(one.choice, optimiser=ADAM) for one in found[:3]} == {own}
    few = searched(own, axes, lambda choice: better[choice.optimiser], most=3)
    fits = dict.fromkeys((one.choice for one in found), COST)
    assert untried(fits, few) == ("rounds", "rank")
    assert untried(fits, few[:1]) == ("optimiser", "rounds", "rank")


def test_an_optimiser_is_found_where_no_trial_fits_since_it_costs_nothing(own):
    """The first settings turn out too slow; fewer rounds are then tried with the optimiser that did best."""
    found = searched(
        own, {"optimiser": (ADAM, AVERAGE), "rounds": (own.rounds, 1)},
        lambda choice: (0.8 if choice.optimiser == AVERAGE else 0.5, 0.1), hours=11.0,
    )  # fmt: skip
    assert [one.choice.optimiser for one in found] == [ADAM, AVERAGE, AVERAGE]


def test_the_studys_own_optimiser_stays_unless_the_images_tell_that_another_is_better(own):
    """Errors of 2 points tell differences of accuracy from 2 x sqrt(2) x 2 = 5.7 points on."""
    mine = by(own, ADAM, 0.74, 0.3)
    assert decide([mine, by(own, AVERAGE, 0.79, 0.3)], LIMITS, ADAM).trial is mine
    above = by(own, AVERAGE, 0.80, 0.3)
    assert decide([mine, above], LIMITS, ADAM).trial is above
    found = decide([mine, by(own, AVERAGE, 0.79, 0.3), by(own, SMALL, 0.78, 0.3)], LIMITS, ADAM)
    assert "the best accuracy of the choices tried with fedadam 0.01 that fit" in found.reason
    compared = compare([mine, above], mine.choice, ADAM, CLASSES, 800)
    assert compared is not None
    assert "By this alone fedavg 0.3 would be taken" in compared.words


def test_no_tried_choice_with_the_same_optimiser_is_cheaper_and_better_than_the_one_taken(own):
    """An optimiser that is a little better, and not by what the images tell, sets no mark for the others' prices."""
    first = by(own, ADAM, 0.700, 0.3, hours=8.0)
    cheap = by(replace(own, rounds=15), ADAM, 0.712, 0.3, hours=4.0)
    long = by(replace(own, rounds=60), ADAM, 0.7185, 0.3, hours=9.0)
    found = decide([first, by(own, AVERAGE, 0.735, 0.3, hours=8.0), cheap, long], LIMITS, ADAM)
    assert found.trial is cheap
    assert found.best is long
    assert "with fedadam 0.01" in found.reason


def test_an_optimiser_level_with_the_best_is_better_where_its_worst_class_is(own):
    """Errors of 5 points tell differences between worst classes from 2 x sqrt(2) x 5 = 14.1 points on."""
    mine = by(own, ADAM, 0.80, 0.1)
    assert decide([mine, by(own, SMALL, 0.785, 0.24)], LIMITS, ADAM).trial is mine
    rare, worse = by(own, SMALL, 0.785, 0.25), by(own, AVERAGE, 0.77, 0.9)
    found = decide([mine, rare, worse], LIMITS, ADAM)  # 0.77 is more than one standard error (0.02) below
    assert found.trial is rare
    compared = compare([mine, rare, worse], rare.choice, ADAM, CLASSES, 800)
    assert compared is not None
    assert "The images tell that fedadam 0.003 is better than the study's own" in compared.words
    assert compared.not_told_apart == ()  # worst classes tell
    assert "NOT TOLD APART" not in compared.words


def test_where_the_studys_own_optimiser_was_not_tried_worst_classes_decide(own):
    best, rare = by(own, SMALL, 0.80, 0.1), by(own, AVERAGE, 0.785, 0.11)
    assert decide([best, rare], LIMITS, ADAM).trial is rare
    assert (
        decide([best, by(own, AVERAGE, 0.785, 0.1)], LIMITS, ADAM).trial is best
    )  # alike: the more accurate


def test_worst_classes_decide_between_optimisers_and_not_what_a_site_pays(own):
    """Cheaper settings are taken first, and a moment's difference in speed is none."""
    dear = by(replace(own, rounds=60), AVERAGE, 0.80, 0.9, hours=4.0)
    cheap = [by(own, ADAM, 0.795, 0.1, hours=1.0), by(own, AVERAGE, 0.79, 0.3, hours=1.01)]
    assert decide([dear, *cheap], LIMITS, ADAM).trial is cheap[1]


def test_the_worst_class_is_found_among_those_that_have_images():
    rng = np.random.default_rng(3)
    for n in (3, 24, 200):
        truth = rng.integers(0, 7, n)
        truth[truth == 2] = 3  # nobody has class 2
        right = rng.random(n) < 0.6
        found = worst_class(right, truth)
        tally: dict[int, list[bool]] = {}
        for label, hit in zip(truth.tolist(), right.tolist(), strict=True):
            tally.setdefault(label, []).append(hit)
        assert found.accuracy == min(sum(hits) / len(hits) for hits in tally.values())
        hits = tally[found.label]
        assert (found.accuracy, found.images) == (sum(hits) / len(hits), len(hits))


def test_an_error_is_not_zero_where_none_or_all_of_a_few_images_are_right():
    few = worst_class(np.zeros(3, bool), np.zeros(3, np.int64))
    assert (few.accuracy, few.images) == (0.0, 3)
    assert few.standard_error > 0.1
    assert standard_error(1.0, 3) == pytest.approx(few.standard_error)
    draws = np.random.default_rng(1).binomial(800, 0.7, 20_000) / 800
    assert standard_error(0.7, 800) == pytest.approx(draws.std(), rel=0.03)


def verdicts(own, shares, images, draws=2000):
    """How often two optimisers, right on these shares of so many images, are said to be told apart."""
    rng, apart = np.random.default_rng(7), 0
    for _ in range(draws):
        figures = rng.binomial(images, shares) / images
        pair = [
            by(own, one, float(p), 0.1, error=standard_error(float(p), images))
            for one, p in zip((ADAM, AVERAGE), figures, strict=True)
        ]
        found = compare(pair, pair[0].choice, ADAM, CLASSES, images)
        assert found is not None
        apart += not found.not_told_apart
    return apart / draws


@pytest.mark.parametrize("images", [24, 40, 800])
def test_equal_optimisers_are_seldom_said_to_be_told_apart(own, images):
    """Two standard errors: one time in twenty."""
    assert verdicts(own, (0.7, 0.7), images) < 0.06


@pytest.mark.parametrize("images", [40, 800])
def test_four_equal_optimisers_are_seldom_said_to_be_told_apart_on_the_same_images(own, images):
    """Four in ten of the images are hard for all alike, or easy; the best of the four is taken."""
    rng, apart, draws = np.random.default_rng(9), 0, 1000
    for _ in range(draws):
        easy, alike = rng.random(images) < 0.7, rng.random(images) < 0.4
        shares = [np.where(alike, easy, rng.random(images) < 0.7).mean() for _ in USUAL]
        four = [
            by(own, one, float(p), 0.1, error=standard_error(float(p), images))
            for one, p in zip(USUAL, shares, strict=True)
        ]
        best = max(four, key=lambda one: one.accuracy)
        found = compare(four, best.choice, ADAM, CLASSES, images)
        assert found is not None
        apart += len(found.not_told_apart) < 3
    assert apart / draws < 0.06


def test_few_images_do_not_tell_apart_what_many_do(own):
    assert verdicts(own, (0.75, 0.65), 24) < 0.3
    assert verdicts(own, (0.75, 0.65), 800) > 0.95


def test_what_a_sample_cannot_tell_is_said_beside_the_choice(own):
    pair = [by(own, ADAM, 0.70, 0.0, error=0.09, worst_error=0.17),
            by(own, AVERAGE, 0.68, 1 / 3, error=0.09, worst_error=0.18)]  # fmt: skip
    found = compare(pair, pair[1].choice, ADAM, CLASSES, 24)
    assert found is not None
    assert (found.level, found.not_told_apart) == ((ADAM, AVERAGE), (ADAM,))
    assert "fedadam 0.01 70.0% ± 9.0%, worst class shirt 0.0% ± 17.0%" in found.words
    assert (
        "NOT TOLD APART from it by 24 images, which tell differences from 25.5 points of accuracy on, nor by their "
        "worst class: fedadam 0.01; which of these is taken may be luck" in found.words
    )
    assert "may be luck" in found.words
    kept = compare(pair, pair[0].choice, ADAM, CLASSES, 24)
    assert kept is not None
    assert "luck" not in kept.words  # it stays by rule
    clear = [pair[0], by(own, AVERAGE, 0.68, 0.9, error=0.09, worst_error=0.1)]
    found = compare(clear, clear[1].choice, ADAM, CLASSES, 24)
    assert found is not None
    assert "luck" not in found.words  # the worst classes are
    far = [by(own, ADAM, 0.5, 0.1), by(own, AVERAGE, 0.8, 0.1)]
    found = compare(far, far[1].choice, ADAM, CLASSES, 800)
    assert found is not None
    assert (found.level, found.not_told_apart) == ((AVERAGE,), ())
    assert "NOT TOLD APART" not in found.words


def test_optimisers_are_compared_where_nothing_else_differs(own):
    pair = [by(own, ADAM, 0.6, 0.1), by(own, AVERAGE, 0.8, 0.1)]
    later = [by(replace(own, rounds=60), AVERAGE, 0.9, 0.2), by(replace(own, rank=32), AVERAGE, 0.1, 0.0)]
    found = compare([*pair, *later], later[0].choice, ADAM, CLASSES, 800)
    assert found is not None
    assert found.level == (AVERAGE,)
    assert "90.0%" not in found.words
    other = compare(
        [*pair, *later], pair[0].choice, ADAM, CLASSES, 800
    )  # as a site's own records may have it
    assert other is not None
    assert "By this alone fedavg 0.3 would be taken; fedadam 0.01 was for the reason above" in other.words
    assert compare(later, later[0].choice, ADAM, CLASSES, 800) is None
    assert compare(pair[:1], pair[0].choice, ADAM, CLASSES, 800) is None
