"""A grid's methods train with a site's class bias where their study says so, and nowhere else."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from secure_triplay.client.learner import Encoded
from secure_triplay.errors import ConfigError
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
    of_class = {"north": (90, 30), "south": (40, 160)}
    records = {
        site: Encoded(torch.zeros(sum(n), 1, 1), torch.repeat_interleave(torch.tensor(n)))
        for site, n in of_class.items()
    }
    taken, answered = {}, []

    def federate(study, model, given, *, biases, sent=None, **_):
        taken.update({site: biases[site].tolist() for site in given if site in biases})
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
    due = {site: [1.5 * math.log(each / sum(n)) for each in n] for site, n in of_class.items()}
    assert taken.keys() == (due.keys() if in_training else set())
    assert all(taken[site] == pytest.approx(due[site]) for site in taken)
    if cell.method.procedure == "own updates":
        assert all(answered[-1][site].tolist() == pytest.approx(due[site]) for site in due)


@pytest.mark.parametrize("name", ["adjusted", "tail-aware", "alternating"])
def test_a_method_with_steps_of_its_own_refuses_a_study_whose_sites_train_with_a_bias(grid_file, name):
    with pytest.raises(ConfigError, match=f"{name} on pictures: it trains without the bias"):
        load_grid(grid_file(methods=[name], seeds=[1], study={"personal_bias": {"in_training": True}}))
