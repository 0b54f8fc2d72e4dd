"""A and B in turns: one half moves in a round, the other not at all, and only that half is sent."""

from __future__ import annotations

import numpy as np
import pytest

from secure_triplay.errors import AssetError
from secure_triplay.experiments import alternating
from secure_triplay.experiments.alternating import Half, alternate, is_b
from secure_triplay.experiments.grid import load_grid
from secure_triplay.experiments.setting import Setting
from secure_triplay.privacy import training


def test_a_half_trains_with_the_other_half_in_place_and_gives_back_its_own():
    mine = np.array([True, False, True, False])
    seen = []

    class Learner:
        def update(self, adapter):
            seen.append(adapter.copy())
            return np.arange(4, dtype=np.float32)

    def whole(part):
        vector = np.full(4, 7.0, np.float32)
        vector[mine] = part
        return vector

    half = Half(Learner(), mine, whole)
    assert half.update(np.array([1.0, 2.0], np.float32)).tolist() == [0.0, 2.0]
    assert seen[0].tolist() == [1.0, 7.0, 2.0, 7.0]


def test_b_moves_in_odd_rounds_and_a_in_even_ones(grid_file, monkeypatch):
    file = grid_file({"training": {"rounds": 3}}, methods=["alternating"], seeds=[1])
    (cell,) = load_grid(file).cells
    setting = Setting(cell.study)
    try:
        model = setting.model(cell.study)
    except AssetError as error:
        pytest.skip(f"the packaged weights cannot be had here: {error.what}")
    records, start, b = setting.train(model), setting.start(model), is_b(model)
    assert 0 < b.sum() < len(b)
    assert not start[b].any()
    assert start[~b].any()
    sent = []
    real = alternating.one_round

    def watched(state, learners, noises, codec, *rest):
        after = real(state, learners, noises, codec, *rest)
        sent.append((codec.n_params, float(np.abs(after.adapter - state.adapter).max())))
        return after

    monkeypatch.setattr(alternating, "one_round", watched)
    checked = []
    check = training.check_per_record_gradients

    def noted(classifier, shape):
        checked.append(
            {".lora_B" in n for n, weight in classifier.named_parameters() if weight.requires_grad}
        )
        return check(classifier, shape)

    monkeypatch.setattr(training, "check_per_record_gradients", noted)
    adapter, largest = alternate(cell.study, model, records, start=start)
    assert [n for n, _ in sent] == [b.sum(), (~b).sum(), b.sum()]
    assert all(moved > 0 for _, moved in sent)
    assert checked == [{True}, {False}]  # B's gradients of single records, then A's, before either trains
    assert largest == max(b.sum(), (~b).sum())
    assert np.abs(adapter - start)[b].max() > 0
    assert np.abs(adapter - start)[~b].max() > 0
    assert all(weight.requires_grad for weight in model.adapter.weights)
