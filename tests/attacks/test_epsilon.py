"""The audit of epsilon: bounds that hold, canaries that are what they claim, and training bugs that show."""

from __future__ import annotations

import importlib.util
import json
import math
from functools import cache
from itertools import product

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from scipy.stats import norm
from torch import nn

from secure_triplay.attacks.epsilon import audit, audit_epsilon, audit_training
from secure_triplay.attacks.epsilon.bounds import (
    Gaussian,
    Guesses,
    SubsampledGaussian,
    fdp_bound,
    fdp_refuted,
    steinke_bound,
    steinke_p_value,
)
from secure_triplay.attacks.epsilon.canaries import Canaries, with_canaries
from secure_triplay.attacks.epsilon.estimate import estimate
from secure_triplay.attacks.epsilon.outside import CASES, compare
from secure_triplay.attacks.epsilon.scores import guess, ideal, likelihood_ratios
from secure_triplay.client.learner import Encoded
from secure_triplay.config import parse_study
from secure_triplay.constants import round_rule
from secure_triplay.errors import ConfigError, PrivacyError
from secure_triplay.loading import Model
from secure_triplay.model.adapter import Adapter
from secure_triplay.planner.losses import composed
from secure_triplay.privacy.mechanisms import DpSgd
from secure_triplay.privacy.per_record import backward_per_record, per_record_gradients
from secure_triplay.privacy.training import train

torch.set_num_threads(1)
DELTA = 5e-6


def rule(noise: float = 0.97362, **changes) -> DpSgd:
    settings = {"l2_clip_norm": 2.0, "sampling_rate": 0.25, "expected_batch_size": 50.0, "steps": 1}
    return DpSgd(noise_multiplier=noise, learning_rate=1.0, **(settings | changes))


class Tiny(nn.Module):
    """Tokens (n, 3, 8) -> logits (n, 4) through a frozen layer and a trained one of 64 x 20 weights."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.parts = nn.ModuleDict(
            {"a": nn.Linear(8, 20, bias=False), "b": nn.Linear(20, 64, bias=False), "c": nn.Linear(64, 4)}
        )
        for parameter in self.parameters():
            parameter.requires_grad_(False)
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
        self.parts["b"].weight.requires_grad_(True)

    def forward(self, tokens):
        return self.parts["c"](torch.tanh(self.parts["b"](torch.tanh(self.parts["a"](tokens))))).mean(1)


def tiny_model() -> Model:
    classifier = Tiny()
    weight = classifier.parts["b"].weight
    adapter = Adapter(None, ("b",), (tuple(weight.shape),), (weight,), 0, 1)
    return Model(None, adapter, None, classifier)


def tiny_records(n: int = 40) -> Encoded:
    generator = torch.Generator().manual_seed(2)
    return Encoded(
        torch.randn((n, 3, 8), generator=generator), torch.randint(0, 4, (n,), generator=generator)
    )


@pytest.fixture
def study_of(demo):
    def make(epsilon: float = 8.0, **privacy):
        demo["privacy"] |= {"epsilon": epsilon, "l2_clip_norm": 2.0} | privacy
        return parse_study(demo)

    return make


# -- the statistics -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("made", "correct"), [(1, 1), (5, 5), (7, 4), (6, 0)])
@pytest.mark.parametrize("epsilon", [0.0, 0.7, 3.0])
def test_p_value_is_the_chance_of_so_many_right_guesses_by_enumeration(made, correct, epsilon):
    right = math.exp(epsilon) / (1 + math.exp(epsilon))
    chance = dict.fromkeys(range(made + 1), 0.0)
    for outcome in product((0, 1), repeat=made):
        chance[sum(outcome)] += math.prod(right if hit else 1 - right for hit in outcome)
    tail = sum(value for k, value in chance.items() if k >= correct)
    assert steinke_p_value(Guesses(20, made, correct), epsilon, 0.0) == pytest.approx(min(1, tail))
    delta = 1e-3
    extra = max(
        (sum(chance[k] for k in range(correct - i, correct)) / i for i in range(1, correct + 1)), default=0
    )
    expected = min(1.0, tail + 2 * 20 * delta * extra)
    assert steinke_p_value(Guesses(20, made, correct), epsilon, delta) == pytest.approx(expected)


def most_mass_in_the_tail(slopes, canaries: int, made: int, correct: int) -> float:
    """The largest chance of at least `correct` right guesses that a curve allows, by linear programming.

    The curve is the least of lines `a + b x`. Unknown are the chances p_0 .. p_n.
    """
    rows, limits = [], []
    for j in range(1, made + 1):
        for offset, slope in slopes:
            row = np.zeros(made + 1)
            for k in range(made + 1):
                row[k] += (k / canaries) * (k >= j) - slope * ((made - k) / canaries) * (k >= j - 1)
            rows.append(row)
            limits.append(offset)
    objective = -(np.arange(made + 1) >= correct).astype(float)
    solved = linprog(
        objective, rows, limits, A_eq=[np.ones(made + 1)], b_eq=[1.0], bounds=(0, 1), method="highs"
    )
    return -solved.fun


@pytest.mark.parametrize(("canaries", "made"), [(6, 6), (40, 6), (9, 4)])
@pytest.mark.parametrize("slopes", [[(0, 2.0), (0.5, 0.5)], [(0.001, 9.0), (0.3, 2.0), (0.9, 0.1)]])
def test_f_dp_test_refutes_exactly_what_no_distribution_of_right_guesses_allows(canaries, made, slopes):
    def inverse(hits: float) -> float:
        return max(0.0, max((hits - offset) / slope for offset, slope in slopes))

    for correct in range(1, made + 1):
        most = most_mass_in_the_tail(slopes, canaries, made, correct)
        if most < 0.99:
            assert fdp_refuted(inverse, Guesses(canaries, made, correct), most * 1.02 + 1e-9)
        assert not fdp_refuted(inverse, Guesses(canaries, made, correct), most * 0.98)


def test_steinke_bound_covers_randomised_response_and_nearly_reaches_it():
    rng, truth = np.random.default_rng(0), 2.0
    right = math.exp(truth) / (1 + math.exp(truth))
    bounds = [
        steinke_bound(Guesses(2000, 2000, int(rng.binomial(2000, right))), 0.0, 0.05) for _ in range(200)
    ]
    assert 0.90 <= np.mean(np.array(bounds) <= truth) < 1
    assert np.median(bounds) > 0.9 * truth


def test_bounds_stay_below_the_epsilon_of_the_ideal_mechanism_and_above_a_floor():
    family, r = SubsampledGaussian(0.25, 16), rule()
    truth = family.epsilon(r.noise_multiplier, DELTA)
    bound = cache(lambda found: fdp_bound(family, found, DELTA, 0.05))
    rng = np.random.default_rng(3)
    found = []
    for _ in range(200):
        seen, included = ideal(r, 16, 2000, rng)
        found.append(bound(guess(likelihood_ratios(seen, r), included, 100)))
    assert 7.9 < truth <= 8
    assert np.mean(np.array(found) <= truth) >= 0.95
    assert np.median(found) > 2.8


def test_f_dp_bound_covers_where_every_canary_is_guessed():
    """Gaussian canaries, guessed at the threshold that tells most apart: the tightest this test gets."""
    noise = 0.5
    right = norm.cdf(1 / (2 * noise))
    truth = Gaussian().epsilon(noise, DELTA)
    rng = np.random.default_rng(4)
    bound = cache(lambda found: fdp_bound(Gaussian(), found, DELTA, 0.05))
    found = [bound(Guesses(3000, 3000, int(rng.binomial(3000, right)))) for _ in range(200)]
    assert np.mean(np.array(found) <= truth) >= 0.95
    assert np.median(found) > 2.5  # far below the truth of 10: naming all canaries is what costs


def test_the_curve_of_the_family_is_the_planners_own():
    pair = composed(0.97362, 0.25, 16)
    inverse = SubsampledGaussian(0.25, 16).inverse(0.97362)
    for alarms in (1e-4, 1e-2, 0.3):
        assert inverse(pair.hit_rate(alarms)) == pytest.approx(alarms, rel=1e-3)


def test_scores_are_the_likelihood_ratio_of_the_drawn_steps():
    r = rule(steps=2)
    seen = np.array([[0.3, 1.9], [2.2, -1.0]])
    spread = r.noise_multiplier * math.sqrt(2)
    weights = {0: 0.75**2, 1: 2 * 0.25 * 0.75, 2: 0.25**2}
    expected = [
        sum(
            math.log(sum(w * norm.pdf(x, j, spread) for j, w in weights.items()) / norm.pdf(x, 0, spread))
            for x in column
        )
        for column in seen.T
    ]
    assert likelihood_ratios(seen, r) == pytest.approx(expected)


def test_figures_of_other_peoples_code_agree():
    assert len(CASES) >= 3
    result = compare()
    assert result["agree"], result


def test_impossible_counts_are_refused():
    with pytest.raises(PrivacyError, match="impossible"):
        Guesses(10, 5, 6)


@pytest.mark.parametrize("true_noise", [0.97362, 0.5])
def test_estimate_covers_the_noise_that_is_there(true_noise):
    rng, claimed, covered = np.random.default_rng(5), rule(), 0
    truth = SubsampledGaussian(0.25, 16).epsilon(true_noise, DELTA)
    for _ in range(5):
        first, who = ideal(rule(true_noise), 16, 2000, rng)
        second = rng.binomial(1, 0.25, (16, 2000)) * ~who + rng.normal(0, true_noise, (16, 2000))
        measured = estimate((first, second), who, claimed, DELTA)
        covered += measured.interval[0] <= truth <= measured.interval[1]
        assert (measured.at_least > 8) == (true_noise < 0.9)
    assert covered >= 4


# -- the canaries ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def towers(root):
    """The small towers of the privacy tests: real ViT blocks, quantized and adapted."""
    spec = importlib.util.spec_from_file_location("towers", root / "tests" / "privacy" / "conftest.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.build


def gradients(classifier, weights, tokens, labels) -> torch.Tensor:
    with per_record_gradients(classifier):
        backward_per_record(classifier, weights, tokens, labels)
        return torch.cat([weight.grad_sample.flatten(1) for weight in weights], dim=1)


@pytest.mark.parametrize(("tower", "kind"), [("open_clip", "ffa"), ("timm", "lora")])
def test_a_canary_has_one_coordinate_and_leaves_real_records_alone(towers, tower, kind):
    classifier, adapter, tokens = towers(tower, kind=kind)
    labels = torch.arange(12) % 5
    alone = gradients(classifier, adapter.weights, tokens, labels)
    canaries = Canaries.draw(adapter.n_params, 40, np.random.default_rng(0))
    included = np.arange(40) % 3 != 0
    marked = canaries.tokens(included, tuple(tokens.shape[1:]))
    mixed = torch.cat([tokens[:5], marked, tokens[5:]])
    mixed_labels = torch.cat([labels[:5], torch.zeros(len(marked), dtype=torch.int64), labels[5:]])
    with with_canaries(classifier, adapter.weights, canaries, tokens[:1], 3.0) as wrapped:
        rows = gradients(wrapped, adapter.weights, mixed, mixed_labels)
        only = gradients(wrapped, adapter.weights, marked, torch.zeros(len(marked), dtype=torch.int64))
    real, found = rows[:12], rows[12:]  # inside a layer canaries come last, in every layer alike
    for row, coordinate in zip(found, canaries.coordinates[included], strict=True):
        assert row.nonzero()[:, 0].tolist() == [coordinate]
        assert row[coordinate] < -3.0 * 10  # far beyond the clip norm, and the step goes up
    assert torch.equal(found, only)
    assert ((real - alone).norm(dim=1) <= 1e-3 * alone.norm(dim=1) + 1e-6).all()


def test_layers_are_put_back_and_gradients_are_as_before(towers):
    classifier, adapter, tokens = towers("open_clip")
    labels = torch.arange(12) % 5
    before, names = (
        gradients(classifier, adapter.weights, tokens, labels),
        [n for n, _ in classifier.named_modules()],
    )
    canaries = Canaries.draw(adapter.n_params, 10, np.random.default_rng(0))
    with (
        pytest.raises(RuntimeError, match="stop"),
        with_canaries(classifier, adapter.weights, canaries, tokens[:1], 1.0),
    ):
        raise RuntimeError("stop")
    assert [name for name, _ in classifier.named_modules()] == names
    assert torch.equal(gradients(classifier, adapter.weights, tokens, labels), before)


# -- the audit ------------------------------------------------------------------------------------------------


def audited(study, seed: int = 0, trainer=train, canaries: int = 1280, ideal_runs: int = 1):
    return audit_training(
        study, tiny_model(), tiny_records(), canaries, seed, ideal_runs=ideal_runs, trainer=trainer
    )


def with_other_noise(factor: float):
    """Training whose noise is off by a factor, and whose rule does not say so."""

    def trainer(classifier, tokens, labels, stated, noise, patients):
        std = stated.noise_multiplier * factor
        actual = DpSgd(**{**vars(stated), "noise_multiplier": std})
        return train(classifier, tokens, labels, actual, noise, patients)

    return trainer


def test_honest_training_passes_with_a_bound_near_the_ideal_and_an_estimate_near_the_claim(study_of):
    result = audited(study_of(), ideal_runs=5).result
    assert result["verdict"] == "pass"
    assert result["control"]["valid"]
    assert result["control"]["lower_bound"] > 8
    f_dp = result["one_run"]["f_dp"]
    assert 1.5 < f_dp["lower_bound"] < 8
    assert abs(f_dp["lower_bound"] - f_dp["ideal_ceiling"]) < 1.2
    low, high = result["gradient_canary"]["interval"]
    assert 6 < result["gradient_canary"]["estimate"] < 9
    assert low < 8.0 < high + 0.8


def test_the_audit_repeats_itself(study_of):
    study = study_of()
    first, again = (audited(study, seed=4) for _ in range(2))
    assert again.result == first.result
    assert audited(study, seed=5).result != first.result


def test_a_claim_that_is_too_low_is_caught_by_the_formal_bound(study_of):
    """Claims epsilon 1, runs with the noise of epsilon 8."""
    study = study_of(1.0)
    factor = 0.97362 / round_rule(study).noise_multiplier
    result = audited(study, trainer=with_other_noise(factor)).result
    assert result["verdict"] == "fail"
    assert result["one_run"]["f_dp"]["lower_bound"] > 1


def test_training_that_forgets_its_noise_is_caught_by_the_formal_bound(study_of):
    result = audited(study_of(), trainer=with_other_noise(1e-3)).result
    assert result["verdict"] == "fail"
    assert result["one_run"]["f_dp"]["lower_bound"] > 8


def test_two_thirds_of_the_noise_is_caught_by_the_estimate(study_of):
    result = audited(study_of(), trainer=with_other_noise(2 / 3)).result
    assert result["one_run"]["f_dp"]["lower_bound"] < 8
    assert result["verdict"] == "fail"
    assert result["gradient_canary"]["four_errors_below"] > 8


def test_a_claim_beyond_what_the_control_sees_is_invalid_and_never_a_pass(study_of):
    result = audited(study_of(100.0)).result
    assert not result["control"]["valid"]
    assert result["verdict"] == "invalid"


def test_several_steps_a_round_are_scored_together(study_of, demo):
    demo["training"] |= {"rounds": 6, "steps_per_round": 3}
    demo["server_optimiser"]["average_last"] = 1
    result = audited(study_of()).result
    assert result["verdict"] == "pass"
    assert result["claimed"]["steps"] == 18
    assert 5.5 < result["gradient_canary"]["estimate"] < 9.5


def test_results_and_scores_are_written_and_hold_what_was_reported(study_of, tmp_path):
    study = study_of()
    found = audited(study)
    audit._write(tmp_path, found, round_rule(study), study)
    assert json.loads((tmp_path / "result.json").read_text()) == found.result
    scores = json.loads((tmp_path / "scores.json").read_text())
    f_dp = found.result["one_run"]["f_dp"]
    threshold = sorted(scores["in"] + scores["out"])[-f_dp["guesses"]]
    assert sum(value >= threshold for value in scores["in"]) == f_dp["correct"]
    assert (tmp_path / "roc.png").read_bytes().startswith(b"\x89PNG")


def test_few_output_directions_leave_no_fewer_canaries(attacked, monkeypatch):
    seen = {}

    def noted(study, model, records, canaries, seed, **_):
        seen.update(study=study, n_params=model.adapter.n_params, canaries=canaries)
        return audit.Audited({}, np.empty(0), np.empty(0, bool))

    monkeypatch.setattr(audit, "audit_training", noted)
    audit_epsilon(attacked, None)
    assert attacked.adapter.output_rank == 9
    assert seen["canaries"] == 20_000 <= seen["n_params"] == 2 * 384 * 64
    assert seen["study"] is attacked  # whose own constants are audited


def test_what_cannot_be_audited_is_refused(study_of, demo):
    with pytest.raises(ConfigError, match="too little"):
        audited(study_of(), canaries=999)
    with pytest.raises(ConfigError, match="canaries need"):
        audited(study_of(), canaries=5000)
    demo["privacy"] = {"unsafe_dp_off": True, "sampling_rate": 0.25, "expected_batch_size": 500}
    demo["codec"]["range"] = 1.0
    with pytest.raises(ConfigError, match="no epsilon to audit"):
        audit_epsilon(parse_study(demo), None)
