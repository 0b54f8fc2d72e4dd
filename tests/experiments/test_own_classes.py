"""A grid's methods train with a site's class bias where their study says so, and nowhere else."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from secure_triplay.client.learner import Encoded
from secure_triplay.experiments import ours
from secure_triplay.experiments.grid import load_grid
from secure_triplay.experiments.procedures import PROCEDURES
from secure_triplay.experiments.scores import Answers
from secure_triplay.privacy.noise import NoiseSource


@pytest.mark.parametrize(
    ("name", "own", "in_training"),
    [
        ("personalised", {}, False),
        ("calibrated", {}, True),
        ("eps8", {"personal_bias": {"in_training": True}}, True),
        ("eps8", {"personal_bias": {}}, False),
        ("alone-eps8", {"personal_bias": {"in_training": True}}, True),
        (
            "no-dp",
            {"personal_bias": {"in_training": True}},
            False,
        ),  # it has no counts: nothing would be charged
    ],
)
def test_sites_train_with_their_class_bias_in_those_methods_whose_study_says_so(
    grid_file, monkeypatch, name, own, in_training
):
    (cell,) = load_grid(grid_file(methods=[name], seeds=[1], study=own)).cells
    labels = torch.tensor([0, 0, 0, 1])
    records = {site.name: Encoded(torch.zeros(4, 1, 1), labels) for site in cell.study.sites}
    taken, answered = [], []

    def federate(study, model, given, *, biases, sent=None, **_):
        taken.extend(biases[site] for site in given if site in biases)
        for site in given if sent else ():
            sent(site, np.ones(3, np.float32))
        return SimpleNamespace(published=np.zeros(3, np.float32))

    monkeypatch.setattr(ours, "federate", federate)
    monkeypatch.setattr(ours, "_telling", lambda *_: None)
    monkeypatch.setattr(ours, "_sent", lambda answers, *_: answers)
    monkeypatch.setattr(NoiseSource, "gaussian", lambda self, shape, std: np.zeros(shape))
    setting = SimpleNamespace(
        model=lambda study: SimpleNamespace(adapter=SimpleNamespace(n_params=3)),
        start=lambda model: np.zeros(3, np.float32),
        train=lambda model: records,
        answers=lambda model, adapters, biases=None: answered.append(biases) or Answers({}, {}),
    )
    PROCEDURES[cell.method.procedure](setting, cell.study)
    due = [1.5 * math.log(20 / 40)] * 2  # counts below the noise of 20 tell nothing
    assert [bias.tolist()[:2] == pytest.approx(due) for bias in taken] == [True] * len(records) * in_training
    if cell.method.procedure == "own updates":
        assert answered[-1].keys() == records.keys()
