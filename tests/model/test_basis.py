"""A frozen A from public images: uncorrelated, of the size that random rows have, and from nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from secure_triplay.config import Adapter as AdapterConfig
from secure_triplay.errors import ConfigError
from secure_triplay.model.adapter import attach_adapter
from secure_triplay.model.basis import install_public_basis, whitened_directions
from secure_triplay.model.tower import ImageTower


def test_projections_are_uncorrelated_and_of_the_mean_square_that_random_rows_give() -> None:
    draw = np.random.default_rng(0)
    inputs = draw.normal(size=(200, 24)) * np.linspace(3, 0.1, 24)
    rows = whitened_directions(inputs, 6).astype(np.float64)
    seen = inputs @ rows.T
    random = draw.uniform(-1, 1, (20_000, 24)) / np.sqrt(24)
    expected = np.square(inputs @ random.T).mean()
    assert seen.T @ seen / 200 == pytest.approx(np.eye(6) * expected, abs=0.05 * expected)


def test_the_rows_are_the_directions_in_which_the_inputs_vary_most() -> None:
    axes = np.linalg.qr(np.random.default_rng(1).normal(size=(10, 10)))[0]
    inputs = np.random.default_rng(2).normal(size=(5_000, 10)) * [9, 7, 5, 1, 1, 1, 1, 1, 1, 1] @ axes.T
    rows = whitened_directions(inputs, 3)
    for row, axis in zip(rows, axes.T, strict=False):
        assert abs(row @ axis) > 0.99 * np.linalg.norm(row)
        assert row[np.abs(row).argmax()] > 0


@pytest.mark.parametrize("n", [3, 40])
def test_too_few_public_images_are_refused(n: int) -> None:
    inputs = np.random.default_rng(0).normal(size=(3, 10))[np.arange(n) % 3]  # many, but only three different
    with pytest.raises(ConfigError, match="span no 4 directions"):
        whitened_directions(inputs, 4)


def test_each_layer_gets_the_basis_of_its_own_inputs_and_the_model_is_as_before(
    backbone: Any, images: Any
) -> None:
    loaded = backbone("vit", "none")
    rule = AdapterConfig(rank=3, target_modules=r"attn\.out_proj|mlp\.c_proj", last_blocks=1)
    adapter = attach_adapter(loaded, rule, b"seed")
    tower = ImageTower(loaded, adapter.first_block)
    before = tower.features(tower.prefix(images))
    install_public_basis(adapter, tower, images)
    assert np.allclose(tower.features(tower.prefix(images)), before, atol=1e-6)  # B is zero still
    tokens, block = tower.prefix(images), loaded.model.visual.transformer.resblocks[-1]
    inputs = tokens[:, 1].double().numpy()  # what out_proj is given for the class token
    a = block.attn.out_proj.lora_A["default"].weight.detach()
    assert np.allclose(a.numpy(), whitened_directions(inputs, 3), atol=1e-5)
    seen = torch.from_numpy(inputs) @ a.double().T
    gram = (seen.T @ seen / len(images)).numpy()
    assert gram == pytest.approx(np.eye(3) * gram[0, 0], abs=1e-4 * gram[0, 0])


@pytest.mark.parametrize("change", [{"kind": "lora"}, {"text_tower": True}])
def test_a_basis_is_only_for_a_frozen_a_of_the_image_tower(change: Any) -> None:
    with pytest.raises(ValueError, match="frozen A of the image tower"):
        AdapterConfig.model_validate({"basis": "public"} | change)
