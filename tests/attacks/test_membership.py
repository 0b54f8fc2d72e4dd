"""Membership inference: its statistics by brute force, and verdicts that follow from controls and ceilings."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import nn

from secure_triplay.attacks import games, membership, membership_rounds
from secure_triplay.attacks.attack import Observable
from secure_triplay.attacks.finding import Arm, Verdict
from secure_triplay.attacks.membership import ATTACK, ATTACKERS, Observation
from secure_triplay.attacks.roc import area, area_interval, curve, hit_rate
from secure_triplay.attacks.scoring import rate_interval
from secure_triplay.client.learner import Encoded
from secure_triplay.config import parse_study
from secure_triplay.loading import Model
from secure_triplay.model.adapter import Adapter
from secure_triplay.privacy.region import hit_rate_in_region

torch.set_num_threads(1)


# -- figures --------------------------------------------------------------------------------------------------


def test_area_is_the_share_of_pairs_in_the_right_order():
    rng = np.random.default_rng(0)
    members, others = rng.integers(0, 6, 30) + 1.0, rng.integers(0, 6, 20) * 1.0
    pairs = [(a > b) + 0.5 * (a == b) for a in members for b in others]
    assert area(members, others) == pytest.approx(np.mean(pairs))


def test_hit_rate_lets_no_more_outsiders_pass_than_allowed():
    rng = np.random.default_rng(1)
    members, others = rng.normal(1, 1, 400), rng.normal(0, 1, 300)
    for allowed in (0.0, 0.01, 0.1):
        best = max((members > t).mean() for t in [*members, *others, -9] if (others > t).mean() <= allowed)
        found = hit_rate(members, others, allowed)
        # the best threshold may also lie between two outsiders, at a member
        assert found.value == pytest.approx(best)


def test_scores_that_tie_with_outsiders_are_not_hits():
    assert hit_rate(np.ones(5), np.ones(5), 0.01).value == 0.0
    assert area(np.ones(5), np.ones(5)) == 0.5


@pytest.mark.parametrize(("hits", "tries"), [(0, 9), (3, 9), (9, 9)])
def test_interval_ends_where_the_binomial_tail_is_a_fortieth(hits, tries):
    def at_least(p: float) -> float:
        return sum(math.comb(tries, k) * p**k * (1 - p) ** (tries - k) for k in range(hits, tries + 1))

    def at_most(p: float) -> float:
        return sum(math.comb(tries, k) * p**k * (1 - p) ** (tries - k) for k in range(hits + 1))

    low, high = rate_interval(hits, tries)
    assert low == 0 if hits == 0 else at_least(low) == pytest.approx(0.025)
    assert high == 1 if hits == tries else at_most(high) == pytest.approx(0.025)


def test_area_interval_covers_the_truth():
    rng, truth = np.random.default_rng(2), norm.cdf(1 / math.sqrt(2))
    covered = 0
    for _ in range(40):
        low, high = area_interval(rng.normal(1, 1, 100), rng.normal(0, 1, 100), rng)
        covered += low <= truth <= high
    assert covered >= 34


def test_curve_rises_from_few_false_alarms_to_all():
    rng = np.random.default_rng(3)
    drawn = curve(rng.normal(1, 1, 2000), rng.normal(0, 1, 2000))
    assert drawn.fpr == tuple(sorted(drawn.fpr))
    assert drawn.tpr == tuple(sorted(drawn.tpr))
    assert drawn.fpr[0] <= 1e-3
    assert drawn.fpr[-1] == drawn.tpr[-1] == 1


# -- attackers ------------------------------------------------------------------------------------------------


def planted(effect: float, adapters: int = 9, records: int = 300, seed: int = 4) -> games.Game:
    """Confidences that a record's own difficulty decides, and by `effect` whether it was trained on."""
    rng = np.random.default_rng(seed)
    members = games.draw_members(adapters - 3, 3, records, rng)
    backbone = rng.normal(0, 3, records)
    confidences = backbone + effect * members + rng.normal(0, 0.5, (adapters, records))
    further = rng.normal(0, 3, 100) + rng.normal(0, 0.5, (adapters, 100))
    return games.Game(adapters - 3, confidences, backbone, further, members, np.empty((adapters, 0, records)))


@pytest.mark.parametrize("name", ATTACKERS)
def test_every_attacker_finds_planted_membership_and_nothing_where_nothing_is(name):
    found = area(*membership._scores(name, planted(2.0)))
    assert found > (0.62 if name == "loss" else 0.85)
    low, high = area_interval(*membership._scores(name, planted(0.0)), np.random.default_rng(5))
    assert low - 0.02 < 0.5 < high + 0.02


def test_who_is_in_a_target_does_not_follow_from_the_shadows():
    rng = np.random.default_rng(10)
    members = games.draw_members(4, 1, 4000, rng)
    assert (members[:4].sum(axis=0) == 2).all()
    for shadow in members[:4]:
        assert abs(members[4][shadow].mean() - 0.5) < 0.06
    assert members[4].sum() == 2000


def test_knowing_each_records_difficulty_beats_the_loss_alone():
    loss, lira = (hit_rate(*membership._scores(name, planted(2.0)), 0.01).value for name in ("loss", "lira"))
    assert lira > 5 * loss
    assert lira > 0.5


def test_lira_is_the_ratio_of_two_gaussians():
    game = planted(1.0, adapters=9, records=4)
    rest = slice(0, 6)
    seen = Observation(
        game.confidences[6],
        game.confidences[rest],
        game.members[rest],
        game.backbone,
        game.population[6],
        game.population[rest],
    )
    inside = [
        [s for s, m in zip(c, who, strict=True) if m]
        for c, who in zip(seen.shadows.T, seen.shadow_members.T, strict=True)
    ]
    outside = [
        [s for s, m in zip(c, who, strict=True) if not m]
        for c, who in zip(seen.shadows.T, seen.shadow_members.T, strict=True)
    ]

    def spread(groups):
        squares = sum(sum((v - np.mean(g)) ** 2 for v in g) for g in groups)
        return math.sqrt(squares / sum(len(g) - 1 for g in groups)) + 1e-6

    expected = [
        norm.logpdf(x, np.mean(i), spread(inside)) - norm.logpdf(x, np.mean(o), spread(outside))
        for x, i, o in zip(seen.target, inside, outside, strict=True)
    ]
    # ours leaves out the constant that both share
    assert membership.by_lira(seen) == pytest.approx(expected)


def test_the_attacker_is_not_given_who_was_in_its_target():
    names = {field.name for field in dataclasses.fields(Observation)}
    assert names == {
        "target",
        "shadows",
        "shadow_members",
        "backbone",
        "population",
        "shadow_population",
    }
    assert ATTACK.needs == {Observable.STUDY, Observable.RELEASED_ADAPTER}


# -- verdicts -------------------------------------------------------------------------------------------------


def finding(study, arm: Arm, scored, *, valid: bool = True):
    return membership.finding_of("lira", arm, "ffa", scored, study, valid, np.random.default_rng(6))


@pytest.fixture
def study(demo):
    return parse_study(demo)


APART = (np.linspace(5, 6, 800), np.linspace(0, 1, 800))
ALIKE = (np.linspace(0, 1, 800), np.linspace(0, 1, 800))


def test_more_hits_than_the_claimed_epsilon_allows_is_a_leak(study):
    found = finding(study, Arm.DP, APART)
    assert found.verdict is Verdict.LEAKS
    assert found.bound == pytest.approx(membership.ceiling(study, 0.01), abs=1e-4)
    assert 0.01 < found.bound <= hit_rate_in_region(0.01, 8.0, 5e-6)
    assert found.interval[0] > found.bound


def test_verdicts_follow_from_arm_figure_and_control(study):
    rng = np.random.default_rng(7)
    slightly = rng.normal(0.6, 1, 800), rng.normal(0, 1, 800)
    assert finding(study, Arm.DP, slightly).verdict is Verdict.WITHIN_BOUND
    assert finding(study, Arm.DP, ALIKE).verdict is Verdict.NOTHING_FOUND
    assert finding(study, Arm.NOTHING, APART).verdict is Verdict.LEAKS_AS_STATED
    assert finding(study, Arm.NOTHING, ALIKE).verdict is Verdict.NOTHING_FOUND
    for arm in (Arm.DP, Arm.NOTHING):
        assert finding(study, arm, APART, valid=False).verdict is Verdict.INVALID


def test_scores_that_are_no_numbers_are_invalid_and_never_nothing_found(study):
    for broken in (np.full(800, np.nan), np.append(np.nan, APART[0][1:])):
        for arm in (Arm.DP, Arm.NOTHING):
            assert finding(study, arm, (broken, ALIKE[1])).verdict is Verdict.INVALID


def test_a_control_below_its_goal_is_not_valid():
    assert membership.control_of("ffa", membership._scores("lira", planted(3.0))).valid
    assert not membership.control_of("ffa", membership._scores("lira", planted(0.1))).valid


# -- training -------------------------------------------------------------------------------------------------


SIZE = games.Size(40, 30, 4, 2)


class Small(nn.Module):
    """Tokens (n, 2, 6) -> logits (n, 10) through lora-like A and B beside a frozen layer."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.base, self.lora_A, self.lora_B = (
            nn.Linear(12, 10, bias=False),
            nn.Linear(12, 8, bias=False),
            nn.Linear(8, 10, bias=False),
        )
        for weight in self.parameters():
            weight.data = 0.5 * torch.randn(weight.shape, generator=generator)
        self.base.weight.requires_grad_(False)
        self.lora_B.weight.data.zero_()

    def forward(self, tokens):
        x = tokens.flatten(1)
        return self.base(x) + self.lora_B(self.lora_A(x))


def small_model() -> Model:
    classifier = Small()
    weights = (classifier.lora_A.weight, classifier.lora_B.weight)
    adapter = Adapter(None, ("x.lora_A", "x.lora_B"), tuple(tuple(w.shape) for w in weights), weights, 0, 1)
    return Model(None, adapter, None, classifier)


def drawn(n: int, seed: int) -> Encoded:
    generator = torch.Generator().manual_seed(seed)
    return Encoded(
        torch.randn((n, 2, 6), generator=generator), torch.randint(0, 10, (n,), generator=generator)
    )


def test_freezing_a_leaves_b_alone_to_be_trained_and_released():
    whole = small_model()
    part = games.frozen_a(whole)
    before = whole.classifier.lora_A.weight.clone()
    games.only_trains(part)
    assert part.adapter.names == ("x.lora_B",)
    assert [w.requires_grad for w in (whole.classifier.lora_A.weight, whole.classifier.lora_B.weight)] == [
        False,
        True,
    ]
    games.only_trains(whole)
    assert whole.classifier.lora_A.weight.requires_grad
    assert torch.equal(before, whole.classifier.lora_A.weight)


def test_overfitting_is_found_and_the_studys_noise_hides_it(study):
    model = small_model()
    games.only_trains(model)
    played = games.Games(study, model, drawn(40, 1), drawn(30, 2), lambda: None)
    start = model.adapter.vector()
    overfitted = played.play(SIZE, np.random.default_rng(8), played.overfitted(60))
    private = played.play(SIZE, np.random.default_rng(8), played.private)
    assert area(*membership._scores("lira", overfitted)) > 0.8
    assert area(*membership._scores("lira", private)) < 0.65
    assert np.array_equal(model.adapter.vector(), start)


def test_single_rounds_tell_more_than_all_of_them_together():
    """Each round draws some of the members, and everything moves by a lot from round to round."""
    rng = np.random.default_rng(12)
    rounds, records, effect = 12, 400, 1.5
    members = games.draw_members(6, 3, records, rng)
    drawn_in = members[:, None] & (rng.random((9, rounds, records)) < 0.3)
    common = np.linspace(0.2, 4, rounds)[None, :, None] * rng.normal(0, 1, (9, rounds, records))
    changes = common + effect * drawn_in
    nothing = np.zeros((9, records))
    game = games.Game(6, changes.sum(axis=1), nothing[0], nothing[:, :50], members, changes)
    one, together = membership_rounds.scores("lira of changes, added", game), membership._scores("lira", game)
    assert area(*one) > area(*together) + 0.1
    steady = members[:, None] * np.diff(np.full(rounds, 1.0), prepend=0)[None, :, None]  # a gain that stays
    seen_often = steady + np.diff(rng.normal(0, 0.7, (9, rounds, records)), axis=1, prepend=0)
    often = dataclasses.replace(game, changes=seen_often, confidences=seen_often.sum(axis=1))
    averaged = membership_rounds.scores("lira, rounds averaged", often)
    assert area(*averaged) > area(*membership._scores("lira", often)) + 0.05
    blind = dataclasses.replace(game, changes=common, confidences=common.sum(axis=1))
    for name in membership_rounds.ATTACKERS:
        low, high = area_interval(*membership_rounds.scores(name, blind), rng)
        assert low - 0.02 < 0.5 < high + 0.02


def test_what_single_rounds_did_adds_up_to_what_was_released(study):
    model = small_model()
    games.only_trains(model)
    played = games.Games(study, model, drawn(40, 1), drawn(30, 2), lambda: None, every_round=True)
    found = played.play(SIZE, np.random.default_rng(8), played.overfitted(30))
    assert found.changes.shape == (6, 30, 40)
    assert np.abs(found.backbone + found.changes.sum(axis=1) - found.confidences).max() < 1e-3
    assert area(*membership_rounds.scores("lira, rounds averaged", found)) > 0.8
    assert membership_rounds.ATTACK.needs == {Observable.STUDY, Observable.AGGREGATES}


def test_a_game_repeats_itself(study):
    model = small_model()
    games.only_trains(model)
    played = games.Games(study, model, drawn(20, 1), drawn(10, 2), lambda: None)
    first, second = (played.play(SIZE, np.random.default_rng(9), played.as_stated) for _ in range(2))
    assert np.array_equal(first.confidences, second.confidences)
    assert np.array_equal(first.members, second.members)
