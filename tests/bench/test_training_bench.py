"""The training bench compares ways that give one result; a way that trains on other records would be seen."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from secure_triplay.bench.training import _multiply_adds, run_training_bench
from secure_triplay.config import load_study
from secure_triplay.constants import update_noise_std


@pytest.fixture(scope="module")
def study(root):
    return load_study(root / "configs" / "demo.yaml")


def test_plain_opacus_and_ours_end_at_the_same_adapter(study):
    result = run_training_bench(study, records=192, quick=True)
    assert result["largest_update"] > 4 * update_noise_std(study)  # they moved, and not by noise alone
    assert result["largest_difference_of_adapters"] < 1e-4
    assert set(result["seconds_per_step"]) == {"ours", "plain_opacus", "no_privacy"}
    assert result["share_of_matrix_rate"] > 0


def test_the_comparison_sees_a_way_that_clips_otherwise(study, monkeypatch):
    from secure_triplay.bench import training

    plain = training._plain_opacus

    def clips_at_half(model, pixels, labels, rule, noise):
        from dataclasses import replace

        half = replace(rule, l2_clip_norm=rule.l2_clip_norm / 2, noise_multiplier=rule.noise_multiplier * 2)
        plain(model, pixels, labels, half, noise)

    monkeypatch.setattr(training, "_plain_opacus", clips_at_half)
    assert run_training_bench(study, records=96, quick=True)["largest_difference_of_adapters"] > 1e-4


def test_a_product_is_counted_again_only_where_the_gradient_of_its_inputs_is_taken():
    """Three layers of 4, 8, 8 and 3 on two tokens a record: what comes before the trained one runs forward alone."""
    first, trained, last = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3)
    for layer in (first, last):
        layer.requires_grad_(False)
    found = _multiply_adds(nn.Sequential(first, trained, last), torch.zeros(5, 2, 4))
    assert found * 1e9 == pytest.approx(2 * 4 * 8 + 2 * 8 * 8 + 2 * (2 * 8 * 3))
