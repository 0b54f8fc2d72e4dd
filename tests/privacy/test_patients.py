"""With the patient as unit, one whole patient moves the clipped sum by at most C, whatever their images."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from secure_triplay.errors import DataError, PrivacyError
from secure_triplay.privacy.mechanisms import DpSgd, DpSgdCharge
from secure_triplay.privacy.noise import NoiseSource
from secure_triplay.privacy.patients import Patients
from secure_triplay.privacy.training import train

RULE = DpSgd(
    noise_multiplier=1.0,
    l2_clip_norm=0.5,
    sampling_rate=0.5,
    expected_batch_size=4.0,
    steps=3,
    learning_rate=0.8,
    physical_batch_size=8,
    unit="patient",
    max_records_per_patient=4,
)
# Only clipping is left: everybody is drawn, the noise is next to nothing, and the weights move by minus the sum.
SUM_ONLY = dataclasses.replace(
    RULE, noise_multiplier=1e-12, sampling_rate=1.0, expected_batch_size=1.0, steps=1, learning_rate=1.0
)


class Everybody(NoiseSource):
    """Draws every patient and spends no randomness on it, so that a patient more shifts nobody's choice."""

    def poisson_mask(self, n, rate):
        return np.ones(n, dtype=bool)


class Toy(nn.Module):
    """(n, 3, 8) tokens -> (n, 4) logits through two layers, so that one norm has to span several weights."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 4, bias=False)
        with torch.no_grad():
            for weight in self.parameters():
                weight.copy_(0.4 * torch.randn(weight.shape, generator=generator))

    def forward(self, tokens):
        return 3 * self.second(torch.tanh(self.first(tokens))).mean(dim=1)


def smears(counts, seed=0):
    """Records of patients with these many images, shuffled, and each record's patient."""
    generator = torch.Generator().manual_seed(seed)
    patients = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    order = torch.randperm(len(patients), generator=generator)
    # images of one patient are alike, so that their gradients add up instead of cancelling
    centre = torch.randn((len(counts), 3, 8), generator=generator)
    tokens = centre[patients] + 0.3 * torch.randn((len(patients), 3, 8), generator=generator)
    labels = torch.randint(0, 4, (len(counts),), generator=generator)[patients]
    return tokens[order], labels[order], patients[order]


def flat(weights) -> np.ndarray:
    return torch.cat([weight.detach().reshape(-1) for weight in weights]).double().numpy()


def trainable(model):
    return [weight for weight in model.parameters() if weight.requires_grad]


def naive_patient_dp_sgd(model, tokens, labels, rule, noise, patients) -> None:
    """One patient at a time, one image at a time, by autograd, in float64."""
    weights = trainable(model)
    people = sorted(set(patients.tolist()))
    for _ in range(rule.steps):
        total = [torch.zeros(weight.shape, dtype=torch.float64) for weight in weights]
        for person in np.flatnonzero(noise.poisson_mask(len(people), rule.sampling_rate)):
            own = [i for i, owner in enumerate(patients.tolist()) if owner == people[person]]
            if len(own) > rule.max_records_per_patient:
                own = [own[k] for k in noise.subset(len(own), rule.max_records_per_patient)]
            gradient = [torch.zeros(weight.shape, dtype=torch.float64) for weight in weights]
            for i in own:
                loss = nn.functional.cross_entropy(model(tokens[i : i + 1]), labels[i : i + 1])
                for part, one in zip(gradient, torch.autograd.grad(loss, weights), strict=True):
                    part += one.double()
            norm = math.sqrt(sum(float(part.square().sum()) for part in gradient))
            for part, one in zip(total, gradient, strict=True):
                part += min(1.0, rule.l2_clip_norm / (norm + 1e-6)) * one
        with torch.no_grad():
            for weight, part in zip(weights, total, strict=True):
                part += torch.from_numpy(noise.gaussian(tuple(weight.shape), rule.noise_std))
                weight -= (rule.learning_rate * part / rule.expected_batch_size).float()


@pytest.mark.parametrize("physical", [64, 7, 4])
def test_training_is_the_plain_formula_one_patient_at_a_time(physical):
    data = smears([1, 9, 2, 4, 5, 1, 3, 8])
    rule = dataclasses.replace(RULE, physical_batch_size=physical, steps=5)
    ours, oracle = Toy(), Toy()
    # The oracle chooses a patient's images while it adds up, the code before: the order of draws is the same.
    train(ours, *data[:2], rule, NoiseSource.unsafe_from_seed(4), data[2])
    naive_patient_dp_sgd(oracle, *data[:2], rule, NoiseSource.unsafe_from_seed(4), data[2])
    assert np.abs(flat(oracle.parameters()) - flat(Toy().parameters())).max() > 0.05
    assert np.abs(flat(ours.parameters()) - flat(oracle.parameters())).max() < 1e-6
    assert rule.charge == DpSgdCharge(1.0, 0.5, 5, unit="patient")


@pytest.mark.parametrize(("tower", "kind"), [("open_clip", "lora"), ("timm", "ffa")])
def test_training_a_4_bit_tower_is_the_plain_formula(make_classifier, tower, kind):
    patients = torch.tensor([0, 1, 1, 2, 2, 2, 2, 2, 3, 4, 4, 5])
    rule = dataclasses.replace(RULE, l2_clip_norm=0.3, physical_batch_size=4, learning_rate=0.3, steps=2)
    results = []
    for run in (train, naive_patient_dp_sgd):
        classifier, adapter, tokens = make_classifier(tower, kind=kind)
        before = adapter.vector()
        run(classifier, tokens, torch.arange(12) % 5, rule, NoiseSource.unsafe_from_seed(6), patients)
        results.append(adapter.vector())
    assert np.abs(results[0] - results[1]).max() < 1e-5 < 1e-2 < np.abs(results[0] - before).max()


def clipped_sum(weights_of, model, tokens, labels, rule, patients, seed=0) -> np.ndarray:
    """What one step of the real training adds up, before noise; the weights are put back."""
    before = flat(weights_of(model))
    kept = [weight.detach().clone() for weight in weights_of(model)]
    train(model, tokens, labels, rule, Everybody.unsafe_from_seed(seed), patients)
    moved = before - flat(weights_of(model))
    with torch.no_grad():
        for weight, value in zip(weights_of(model), kept, strict=True):
            weight.copy_(value)
    return moved


@pytest.mark.parametrize("clip", [0.05, 0.5, 5.0])
@pytest.mark.parametrize(("most", "physical"), [(4, 4), (4, 9), (30, 30)])
def test_one_whole_patient_moves_the_clipped_sum_by_at_most_the_bound(clip, most, physical):
    """Adding or removing one patient: C. Replacing one by another: 2C. Numbers of images are unequal."""
    model, generator = Toy(), np.random.default_rng(0)
    rule = dataclasses.replace(
        SUM_ONLY, l2_clip_norm=clip, max_records_per_patient=most, physical_batch_size=physical
    )
    moved, replaced = [], []
    for trial in range(20):
        counts = generator.integers(1, 13, size=int(generator.integers(2, 7))).tolist()
        tokens, labels, patients = smears([*counts, 12], seed=trial)
        other = -tokens.where(
            (patients == len(counts))[:, None, None], -tokens
        )  # the last one's images change
        without = patients < len(counts)
        whole = clipped_sum(trainable, model, tokens, labels, rule, patients)
        less = clipped_sum(trainable, model, tokens[without], labels[without], rule, patients[without])
        swapped = clipped_sum(
            trainable, model, other, (labels + 1) % 4 * ~without + labels * without, rule, patients
        )
        moved.append(np.linalg.norm(whole - less))
        replaced.append(np.linalg.norm(whole - swapped))
    slack = 1e-5 * clip + 2e-6  # float32 weights
    assert 0.95 * clip < max(moved) <= clip + slack
    assert max(replaced) <= 2 * clip + 2 * slack
    assert max(replaced) > 1.2 * clip


def test_the_bound_holds_on_a_4_bit_tower_and_patients_there_do_exceed_it(make_classifier):
    classifier, adapter, tokens = make_classifier("timm")
    labels = torch.zeros(12, dtype=torch.int64)
    patients = torch.tensor([7, 1, 1, 2, 2, 2, 2, 7, 7, 9, 7, 7])  # codes are names, not positions

    def norm_alone(i: int, clip: float) -> float:
        mine = patients == i
        rule = dataclasses.replace(SUM_ONLY, l2_clip_norm=clip, max_records_per_patient=5)
        return float(np.linalg.norm(total(rule, mine)))

    def total(rule: DpSgd, mine: torch.Tensor) -> np.ndarray:
        return clipped_sum(
            lambda _: adapter.weights, classifier, tokens[mine], labels[mine], rule, patients[mine]
        )

    free = {i: norm_alone(i, 1e9) for i in (1, 2, 7, 9)}
    clip = sorted(free.values())[1]
    rule = dataclasses.replace(SUM_ONLY, l2_clip_norm=clip, max_records_per_patient=5)
    whole = total(rule, patients >= 0)
    for i, alone in free.items():
        change = np.linalg.norm(whole - total(rule, patients != i))
        assert change <= clip * (1 + 1e-5)
        assert change == pytest.approx(min(alone, clip), rel=2e-3)
    assert max(free.values()) > 1.2 * clip


def test_no_patient_is_cut_in_two_and_every_part_fits_into_memory():
    counts = [3, 1, 4, 12, 2, 2, 7, 1, 1, 4]
    owners = Patients.of(smears(counts)[2], sum(counts))
    drawn = torch.tensor([0, 2, 3, 4, 6, 9])
    parts = list(owners.parts(drawn, 4, 6, NoiseSource()))
    seen: list[list[int]] = []
    for records, sizes in parts:
        assert len(records) == int(sizes.sum()) <= 6
        seen += [part.tolist() for part in torch.split(records, sizes.tolist())]
    assert [len(own) for own in seen] == [3, 4, 4, 2, 4, 4]
    for patient, own in zip(drawn.tolist(), seen, strict=True):
        assert set(own) <= set(owners.records[patient].tolist())
        assert len(set(own)) == len(own)
    assert [len(records) for records, _ in parts] == [3, 4, 6, 4, 4]  # filled, not one part a patient


def test_every_image_of_a_patient_takes_part_alike_over_the_steps():
    """A fresh choice of 2 of 4 each time: all six pairs are equally frequent."""
    owners = Patients.of(torch.zeros(4, dtype=torch.int64), 4)
    noise, pairs = NoiseSource.unsafe_from_seed(2), dict.fromkeys(itertools.combinations(range(4), 2), 0)
    for _ in range(1800):
        ((records, _),) = owners.parts(torch.tensor([0]), 2, 8, noise)
        pairs[tuple(records.tolist())] += 1
    assert stats.chisquare(list(pairs.values())).pvalue > 1e-6


def test_patients_are_drawn_at_the_public_rate_whatever_they_brought():
    tokens, labels, patients = smears([1, 30] * 30)
    rule = dataclasses.replace(RULE, sampling_rate=0.2, steps=300)
    sizes = np.array(
        train(Toy(), tokens, labels, rule, NoiseSource.unsafe_from_seed(3), patients).batch_sizes
    )
    mean, variance = 60 * 0.2, 60 * 0.2 * 0.8
    assert abs(sizes.mean() - mean) < 5 * math.sqrt(variance / 300)
    low, high = (stats.chi2.ppf(p, 299) / 299 for p in (1e-6, 1 - 1e-6))
    assert low < sizes.var(ddof=1) / variance < high


def test_steps_that_drew_nobody_are_noised_and_charged():
    tokens, labels, patients = smears([2, 3])
    rule = dataclasses.replace(RULE, sampling_rate=1e-7, steps=20)
    model = Toy()
    report = train(model, tokens, labels, rule, NoiseSource(), patients)
    assert report.batch_sizes == (0,) * 20
    assert (flat(model.parameters()) != flat(Toy().parameters())).all()
    assert rule.charge.steps == 20


def test_patients_with_one_image_each_are_trained_on_as_records_are():
    tokens, labels, patients = smears([1] * 20)
    results = []
    for unit, most in (("patient", 1), ("record", None)):
        model = Toy()
        rule = dataclasses.replace(RULE, unit=unit, max_records_per_patient=most)
        order = torch.argsort(patients)
        train(model, tokens[order], labels[order], rule, NoiseSource.unsafe_from_seed(5), patients[order])
        results.append(flat(model.parameters()))
    assert np.abs(results[0] - results[1]).max() < 1e-6


@pytest.mark.parametrize(
    "patients",
    [None, torch.zeros(9, dtype=torch.int64), torch.zeros(10), torch.zeros((10, 1), dtype=torch.int64)],
    ids=["missing", "too few", "not whole", "a table"],
)
def test_records_that_do_not_say_whose_they_are_are_refused(patients):
    tokens, labels, _ = smears([5, 5])
    model = Toy()
    with pytest.raises(DataError):
        train(model, tokens, labels, RULE, NoiseSource(), patients)
    assert (flat(model.parameters()) == flat(Toy().parameters())).all()


@pytest.mark.parametrize(
    "changes",
    [
        {"max_records_per_patient": None},
        {"max_records_per_patient": 0},
        {"max_records_per_patient": 9},  # more than fit into memory at once
        {"max_records_per_patient": 2.5},
        {"unit": "record"},
        {"unit": "household"},
    ],
)
def test_a_rule_that_cannot_bound_a_patient_is_refused(changes):
    with pytest.raises(PrivacyError):
        dataclasses.replace(RULE, **changes)


def test_who_owns_what_is_not_printed():
    assert "tensor" not in repr(Patients.of(torch.zeros(3, dtype=torch.int64), 3))
