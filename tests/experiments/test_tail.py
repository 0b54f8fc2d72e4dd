"""What is done for rare classes costs what it says, and does what it says, by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from secure_triplay.client.learner import Encoded
from secure_triplay.constants import round_rule
from secure_triplay.experiments import ours, tail
from secure_triplay.experiments.grid import load_grid
from secure_triplay.experiments.procedures import PROCEDURES
from secure_triplay.experiments.scores import Result
from secure_triplay.experiments.tail import Directions, noised_sums, synthesise
from secure_triplay.privacy.accounting import epsilon
from secure_triplay.privacy.counts import ClassCountRule
from secure_triplay.privacy.mechanisms import GaussianCharge
from secure_triplay.privacy.noise import NoiseSource


class Silent:
    """A source without noise, so that what is summed can be seen."""

    def gaussian(self, shape, std):
        return np.zeros(shape)


RECORD = ClassCountRule(tail.NOISE, 1, "record")


def blobs(per_class: list[int], seed: int = 0) -> Encoded:
    """Tokens (n, 2, 8) around a mean of each class."""
    draw = np.random.default_rng(seed)
    means = np.random.default_rng(9).normal(0, 2, (len(per_class), 2, 8))
    labels = np.repeat(np.arange(len(per_class)), per_class)
    tokens = means[labels] + draw.normal(0, 0.3, (len(labels), 2, 8))
    return Encoded(torch.from_numpy(tokens.astype(np.float32)), torch.from_numpy(labels))


def test_one_record_moves_the_statistics_by_no_more_than_the_noise_is_made_for():
    public = blobs([10, 10, 10])
    where = Directions.of(public, k=4)
    full = blobs([20, 20, 20], seed=1)
    far = Encoded(
        torch.cat([full.tokens, 1e4 * torch.ones(1, 2, 8)]), torch.cat([full.labels, torch.tensor([2])])
    )
    one, more = (noised_sums(part, where, 3, RECORD, Silent()) for part in (full, far))
    moved = float(np.linalg.norm(more - one))
    assert moved <= math.sqrt(2) * (1 + 1e-9)
    assert moved == pytest.approx(math.sqrt(2))  # the farthest record that there can be
    assert not (more - one)[:2].any()


def test_a_patients_records_beyond_the_bound_are_not_counted():
    public = blobs([10, 10])
    where = Directions.of(public, k=2)
    own = blobs([6, 0])
    patients = Encoded(own.tokens, own.labels, torch.tensor([0, 0, 0, 0, 1, 1]))
    assert noised_sums(patients, where, 2, ClassCountRule(tail.NOISE, 3, "patient"), Silent())[
        :, -1
    ].tolist() == [5.0, 0.0]


def test_a_patients_records_beyond_the_bound_do_not_adjust_the_logits(monkeypatch):
    seen = []

    def counts(labels, n_classes, rule, noise):
        seen.append((labels.tolist(), rule.noise_std))
        return np.ones(n_classes)

    monkeypatch.setattr(tail, "noised_class_counts", counts)
    own = blobs([5, 1])
    patients = Encoded(own.tokens, own.labels, torch.tensor([0, 0, 0, 0, 0, 1]))
    rule = ClassCountRule(tail.NOISE, 3, "patient")
    tail.class_counts({"north": patients}, 2, rule)
    assert seen == [([0, 0, 0, 1], 3 * tail.NOISE)]


def test_the_noise_on_every_figure_is_what_is_charged():
    public = blobs([10, 10])
    where = Directions.of(public, k=3)
    empty, rule = Encoded(public.tokens[:0], public.labels[:0]), ClassCountRule(tail.NOISE, 4, "patient")
    drawn = np.stack([noised_sums(empty, where, 2, rule, NoiseSource()) for _ in range(400)])
    assert drawn.shape == (400, 2, 4)
    assert drawn.std() == pytest.approx(tail.NOISE * math.sqrt(2) * 4, rel=0.05)


def test_synthetic_records_lie_at_the_private_mean_where_counts_are_large_and_at_the_public_one_where_they_are_noise():
    public, private = blobs([15, 15, 15]), blobs([900, 300, 300], seed=3)
    where = Directions.of(public, k=4)
    shifted = Encoded(private.tokens + 0.4, private.labels)  # private classes lie elsewhere than public ones
    sums = noised_sums(shifted, where, 3, RECORD, Silent())
    made = synthesise(sums, 1e-6, where, public, np.random.default_rng(0))
    assert set(made.labels.tolist()) == {1, 2}  # the commonest class gets none
    target = where.coordinates(shifted.tokens[shifted.labels == 1]).mean(axis=0)
    before = where.coordinates(public.tokens[public.labels == 1]).mean(axis=0)
    got = where.coordinates(made.tokens[made.labels == 1]).mean(axis=0)
    assert np.linalg.norm(got - target) < 0.5 * np.linalg.norm(before - target)
    blind = synthesise(sums, 1e6, where, public, np.random.default_rng(0))
    assert not len(blind)  # where every count is noise no class is known to be rare


@pytest.mark.parametrize(("name", "releases"), [("adjusted", 1), ("synthesised", 1), ("tail-aware", 2)])
def test_a_cells_epsilon_is_that_of_its_training_and_of_each_release_that_a_site_made_besides(
    grid_file, monkeypatch, name, releases
):
    """Releases are counted where their noise is drawn; nothing is trained."""
    (cell,) = load_grid(grid_file(methods=[name], seeds=[1])).cells
    made, draw = [], NoiseSource.gaussian

    def drawn(self, shape, std):
        made.append(std)
        return draw(self, shape, std)

    monkeypatch.setattr(NoiseSource, "gaussian", drawn)
    monkeypatch.setattr(ours, "federate", lambda *_, **__: SimpleNamespace(published=None))
    monkeypatch.setattr(ours, "_telling", lambda *_: None)
    monkeypatch.setattr(ours, "_sent", lambda answers, *_: Result(answers))
    setting = SimpleNamespace(
        model=lambda study: SimpleNamespace(),
        train=lambda model: {"north": blobs([4, 8])},
        start=lambda model: None,
        encoded=lambda model, what: blobs([10, 10]),
        answers=lambda *_: None,
    )
    found = PROCEDURES[cell.method.procedure](setting, cell.study)
    assert len(made) == releases
    training = replace(round_rule(cell.study).charge, steps=cell.study.total_steps)
    charges = [training, *[GaussianCharge(tail.NOISE)] * releases]
    assert found.epsilon == pytest.approx(epsilon(charges, cell.study.dp.delta))


def test_what_is_released_for_rare_classes_stays_within_the_methods_epsilon(grid_file):
    grid = load_grid(grid_file(methods=["adjusted", "synthesised", "tail-aware"], seeds=[1]))
    for cell in grid.cells:
        releases = 2 if cell.method.name == "tail-aware" else 1
        training = replace(round_rule(cell.study).charge, steps=cell.study.total_steps)
        spent = epsilon([training] + [GaussianCharge(tail.NOISE)] * releases, cell.study.dp.delta)
        assert 7.7 < spent <= 8.0
