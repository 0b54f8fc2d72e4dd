"""A frozen A from public images: uncorrelated, of the size that random rows have, and from nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from secure_triplay.config import Adapter as AdapterConfig
from secure_triplay.errors import ConfigError
from secure_triplay.model.adapter import attach_adapter
from secure_triplay.model.basis import (
    deviations,
    install_public_basis,
    require_of_public_images,
    whitened_directions,
)
from secure_triplay.model.tower import Classifier, ImageTower


def classifier_of(tower: ImageTower) -> Classifier:
    return Classifier(tower.suffix, torch.eye(3, 64), 1.0)


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
    install_public_basis(adapter, tower, classifier_of(tower), images)
    assert np.allclose(tower.features(tower.prefix(images)), before, atol=1e-6)  # B is zero still
    tokens, block = tower.prefix(images), loaded.model.visual.transformer.resblocks[-1]
    inputs = tokens[:, 1].double().numpy()  # what out_proj is given for the class token
    a = block.attn.out_proj.lora_A["default"].weight.detach()
    assert np.array_equal(a.numpy(), whitened_directions(inputs, 3).astype(np.float16).astype(np.float32))
    seen = torch.from_numpy(inputs) @ a.double().T
    gram = (seen.T @ seen / len(images)).numpy()
    assert gram == pytest.approx(np.eye(3) * gram[0, 0], abs=1e-3 * gram[0, 0])  # float16


def test_every_public_image_counts_however_many_there_are(backbone: Any) -> None:
    loaded = backbone("vit", "none")
    rule = AdapterConfig(rank=3, target_modules=r"attn\.out_proj", last_blocks=1)
    adapter = attach_adapter(loaded, rule, b"seed")
    tower = ImageTower(loaded, adapter.first_block)
    many = (
        np.random.default_rng(0).integers(0, 256, (260, 28, 28, 3)).astype(np.uint8)
    )  # two of the tower's batches
    install_public_basis(adapter, tower, classifier_of(tower), many)
    inputs = tower.prefix(many)[:, 1].double().numpy()
    a = loaded.model.visual.transformer.resblocks[-1].attn.out_proj.lora_A["default"].weight.detach().numpy()
    gram = a.astype(np.float64) @ inputs.T @ inputs @ a.T.astype(np.float64) / len(inputs)
    due = np.square(inputs).sum() / len(inputs) / (3 * inputs.shape[1])
    assert gram == pytest.approx(np.eye(3) * due, abs=0.01 * due)


def _public(seed: int, n: int = 30, d: int = 40) -> Any:
    draw = np.random.default_rng(seed)
    return draw.normal(size=(n, d)) * np.linspace(3, 0.3, n)[:, None]


def _refused(a: Any, inputs: Any) -> bool:
    try:
        require_of_public_images({"x": a.astype(np.float16)}, {"x": inputs.astype(np.float32)})
    except ConfigError as error:
        return "not of the public images here" in error.what
    return False


def test_an_honest_basis_passes_also_where_it_was_computed_with_errors_of_bfloat16() -> None:
    inputs = _public(0)
    coarse = torch.from_numpy(inputs).bfloat16().double().numpy()
    assert np.abs(coarse / inputs - 1).max() > 1e-3
    assert not _refused(whitened_directions(inputs, 6), inputs)
    assert not _refused(whitened_directions(coarse, 6), inputs)


def test_rows_that_public_images_do_not_span_are_refused() -> None:
    inputs = _public(0)
    a = whitened_directions(inputs, 6).astype(np.float64)
    beyond = np.linalg.svd(inputs)[2][len(inputs) :]  # orthogonal to every input
    assert np.abs(inputs @ beyond.T).max() < 1e-9
    for row in (0, 5):  # unseen by every public image, so that only the span tells
        changed = a.copy()
        changed[row] += 0.5 * np.linalg.norm(a[row]) * beyond[0]
        assert _refused(changed, inputs)
    assert _refused(whitened_directions(_public(1), 6), inputs)  # somebody else's images


@pytest.mark.parametrize("factor", [0.0, 0.8, 1.25, 100.0])
def test_rows_of_another_scale_are_refused(factor: float) -> None:
    inputs = _public(0)
    a = whitened_directions(inputs, 6)
    a[2] *= factor
    assert _refused(a, inputs)


def test_rows_that_see_the_same_are_refused() -> None:
    inputs = _public(0)
    a = whitened_directions(inputs, 6)
    a[3] = a[2]
    assert _refused(a, inputs)


def test_directions_in_which_public_images_hardly_vary_are_refused_also_where_they_span_everything() -> None:
    draw = np.random.default_rng(0)
    inputs = draw.normal(size=(200, 24)) * np.linspace(3, 0.1, 24)
    _, values, rows = np.linalg.svd(inputs, full_matrices=False)
    reach = np.sqrt(np.square(inputs).sum() / (3 * 24))
    a = rows[:6] * (reach / values[:6])[:, None]
    assert not _refused(a, inputs)
    a[5] = rows[-1] * reach / values[-1]
    outside, off, _ = deviations(a, inputs)
    assert max(outside, off) < 1e-9  # neither of the other bounds sees it
    assert _refused(a, inputs)


@pytest.mark.parametrize("change", [{"kind": "lora"}, {"text_tower": True}])
def test_a_basis_is_only_for_a_frozen_a_of_the_image_tower(change: Any) -> None:
    with pytest.raises(ValueError, match="frozen A of the image tower"):
        AdapterConfig.model_validate({"basis": "public"} | change)
