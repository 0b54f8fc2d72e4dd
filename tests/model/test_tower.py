from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from secure_triplay.config import Adapter as AdapterConfig
from secure_triplay.config import ClassPrompts
from secure_triplay.errors import DataError
from secure_triplay.model.adapter import Adapter, attach_adapter
from secure_triplay.model.backbone import Backbone
from secure_triplay.model.text import TextHead
from secure_triplay.model.tower import Adjusted, Classifier, ImageTower
from secure_triplay.privacy.per_record import backward_per_record, per_record_gradients

Make = Any
ATTENTION = r"attn\.(qkv|proj|[qkv]_proj|out_proj)"
BOTH = ["vit", "packaged"]
LABELS = torch.tensor([0, 2, 1, 0, 1])


def _adapted(loaded: Backbone, **keys: Any) -> Adapter:
    adapter = attach_adapter(loaded, AdapterConfig(target_modules=ATTENTION, last_blocks=2, **keys), b"seed")
    adapter.load_vector((np.random.default_rng(5).normal(size=adapter.n_params) * 0.05).astype(np.float32))
    return adapter


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("quantization", ["nf4", "int8", "none"])
def test_prefix_then_suffix_is_the_models_own_features(
    backbone: Make, kind: str, quantization: str, images: Any
) -> None:
    loaded = backbone(kind, quantization)
    adapter = _adapted(loaded)
    with torch.no_grad():
        pixels = ImageTower(loaded, 0).pixels(images)
        expected = loaded.model.encode_image(pixels, normalize=True).numpy()
    for cut in (0, 1, adapter.first_block, adapter.n_blocks - 1, adapter.n_blocks):
        tower = ImageTower(loaded, cut)
        tokens = tower.prefix(images, batch_size=2)
        assert tokens.dtype == torch.float32
        assert not tokens.requires_grad
        np.testing.assert_allclose(tower.features(tokens, batch_size=3), expected, atol=2e-6)


@pytest.mark.parametrize(("name", "size"), [("test-eva", 56), ("test-gap", 64)])
def test_towers_with_rotary_positions_or_average_pooling_are_cut_rightly_too(
    vit_cfg: Make, images: Any, name: str, size: int
) -> None:
    from secure_triplay.model.backbone import load_backbone

    loaded = load_backbone(vit_cfg(name=name, image_size=size))
    adapter = _adapted(loaded)
    tower = ImageTower(loaded, adapter.first_block)
    with torch.no_grad():
        expected = loaded.model.encode_image(tower.pixels(images), normalize=True).numpy()
    np.testing.assert_allclose(tower.features(tower.prefix(images)), expected, atol=2e-6)


@pytest.mark.parametrize("kind", BOTH)
def test_tokens_do_not_depend_on_the_adapter(backbone: Make, kind: str, images: Any) -> None:
    loaded = backbone(kind)
    adapter = _adapted(loaded)
    tower = ImageTower(loaded, adapter.first_block)
    before = tower.prefix(images)
    adapter.load_vector(adapter.vector() + 1)
    assert torch.equal(tower.prefix(images), before)
    assert not np.allclose(tower.features(before), ImageTower(loaded, 0).features(before) * 0 + 1)


@pytest.mark.parametrize("kind", BOTH)
def test_an_image_is_two_tokens_where_nothing_before_the_last_attention_is_adapted(
    backbone: Make, kind: str, images: Any
) -> None:
    loaded = backbone(kind)
    after = r"attn\.(proj|out_proj)|mlp\.(fc2|c_proj)"
    adapter = attach_adapter(loaded, AdapterConfig(target_modules=after, last_blocks=1), b"seed")
    adapter.load_vector((np.random.default_rng(5).normal(size=adapter.n_params) * 0.05).astype(np.float32))
    tower = ImageTower(loaded, adapter.first_block)
    with torch.no_grad():
        expected = loaded.model.encode_image(tower.pixels(images), normalize=True).numpy()
    tokens = tower.prefix(images)
    assert tokens.shape[1] == 2
    np.testing.assert_allclose(tower.features(tokens), expected, atol=2e-6)
    adapter.load_vector(np.zeros(adapter.n_params, np.float32))
    assert torch.equal(tower.prefix(images), tokens)
    assert np.abs(tower.features(tokens) - expected).max() > 1e-3


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("adapter_kind", ["ffa", "lora"])
def test_each_per_sample_gradient_on_nf4_is_that_of_one_record_alone(
    backbone: Make, kind: str, adapter_kind: str, images: Any
) -> None:
    loaded = backbone(kind)
    adapter = _adapted(loaded, kind=adapter_kind)
    tower = ImageTower(loaded, adapter.first_block)
    tokens = tower.prefix(images)
    embeddings = F.normalize(torch.randn(3, tower.features(tokens).shape[1]), dim=1)
    classifier = Classifier(tower.suffix, embeddings, 20.0)
    expected = _one_by_one(classifier, adapter, tokens)
    assert torch.stack([gradient.norm() for gradient in expected]).min() > 1e-3
    got = _as_in_training(classifier, adapter, tokens)
    torch.testing.assert_close(got, torch.stack(expected), atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("kind", BOTH)
def test_each_per_sample_gradient_of_a_text_adapter_is_that_of_one_record_alone(
    backbone: Make, kind: str, images: Any
) -> None:
    loaded = backbone(kind)
    adapter = _adapted(loaded, text_tower=True)
    assert any(not name.startswith("visual") for name in adapter.names)
    tower = ImageTower(loaded, adapter.first_block)
    tokens = tower.prefix(images)
    classes = [
        ClassPrompts(name=n, prompts=(f"a photo of a {n}", f"one {n}")) for n in ("coat", "bag", "boot")
    ]
    classifier = Classifier(tower.suffix, TextHead(loaded, classes), 20.0)
    expected = _one_by_one(classifier, adapter, tokens)
    got = _as_in_training(classifier, adapter, tokens)
    torch.testing.assert_close(got, torch.stack(expected), atol=1e-5, rtol=1e-3)


def _one_by_one(classifier: Classifier, adapter: Adapter, tokens: torch.Tensor) -> list[torch.Tensor]:
    gradients = []
    for index in range(len(tokens)):
        loss = F.cross_entropy(classifier(tokens[index : index + 1]), LABELS[index : index + 1])
        gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, adapter.weights)]))
    return gradients


def _as_in_training(classifier: Classifier, adapter: Adapter, tokens: torch.Tensor) -> torch.Tensor:
    with per_record_gradients(classifier):
        backward_per_record(classifier, adapter.weights, tokens, LABELS)
        samples = [getattr(weight, "grad_sample") for weight in adapter.weights]  # noqa: B009
    return torch.cat([sample.flatten(1) for sample in samples], dim=1)


@pytest.mark.parametrize("kind", BOTH)
def test_a_records_logits_do_not_depend_on_its_neighbours(backbone: Make, kind: str, images: Any) -> None:
    loaded = backbone(kind)
    adapter = _adapted(loaded)
    tower = ImageTower(loaded, adapter.first_block)
    tokens = tower.prefix(images)
    classifier = Classifier(
        tower.suffix, F.normalize(torch.randn(3, tower.features(tokens).shape[1])), 20.0
    ).train()
    with torch.no_grad():
        together = classifier(tokens)
        alone = torch.cat([classifier(token[None]) for token in tokens])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", BOTH)
def test_only_adapter_weights_take_gradients_and_training_changes_no_buffer(
    backbone: Make, kind: str
) -> None:
    loaded = backbone(kind)
    adapter = _adapted(loaded)
    tower = ImageTower(loaded, adapter.first_block)
    tokens = tower.prefix(np.zeros((2, 28, 28, 3), np.uint8))
    classifier = Classifier(
        tower.suffix, F.normalize(torch.randn(2, tower.features(tokens).shape[1])), 20.0
    ).train()
    assert {id(w) for w in classifier.parameters() if w.requires_grad} == {id(w) for w in adapter.weights}
    frozen = {n: t.clone() for n, t in classifier.state_dict().items() if "lora_" not in n}
    F.cross_entropy(classifier(tokens), torch.tensor([0, 1])).backward()
    after = classifier.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in frozen.items())


@pytest.mark.parametrize("kind", BOTH)
def test_no_records_at_all_pass_through(backbone: Make, kind: str) -> None:
    tower = ImageTower(backbone(kind), 4)
    tokens = tower.prefix(np.zeros((0, 28, 28, 3), np.uint8))
    assert len(tokens) == 0
    assert tower.features(tokens).shape[0] == 0


@pytest.mark.parametrize("shape", [(2, 28, 28), (2, 28, 28, 1), (2, 3, 28, 28), (28, 28, 3)])
def test_images_of_another_layout_are_refused(backbone: Make, shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="uint8"):
        ImageTower(backbone("vit"), 4).prefix(np.zeros(shape, np.uint8))
    with pytest.raises(DataError, match="uint8"):
        ImageTower(backbone("vit"), 4).prefix(np.zeros((1, 28, 28, 3), np.float32))


def test_pixels_are_those_of_open_clips_own_preprocessing(backbone: Make) -> None:
    from open_clip.transform import image_transform
    from PIL import Image

    tower = ImageTower(backbone("vit"), 4)
    loaded = backbone("vit")
    preprocess = image_transform(64, is_train=False, mean=loaded.mean, std=loaded.std)
    ramp = np.linspace(0, 255, 90 * 70 * 3).reshape(90, 70, 3).astype(np.uint8)
    for picture in (ramp, ramp.transpose(1, 0, 2), ramp[:64, :64]):
        got = tower.pixels(picture[None])[0]
        expected = preprocess(Image.fromarray(np.ascontiguousarray(picture)))
        assert (got - expected).abs().max() < 0.03  # PIL rounds to 8 bits on the way


def test_pictures_may_be_squashed_where_a_model_was_trained_so(backbone: Make) -> None:
    from dataclasses import replace

    tower = ImageTower(replace(backbone("vit"), resize_mode="squash"), 4)
    half = np.zeros((1, 32, 128, 3), np.uint8)
    half[:, :, 64:] = 255
    columns = tower.pixels(half)[0, 0].mean(0)
    assert columns.shape == (64,)
    assert columns[:28].std() < 1e-3
    assert columns[36:].std() < 1e-3
    assert columns[63] > columns[0]


def test_adjusted_logits_differ_by_the_bias_and_no_weight_is_added():
    head = nn.Linear(8, 3)
    adjusted = Adjusted(head, np.array([0.5, -1.0, 2.0], np.float32))
    x = torch.randn(4, 8)
    assert torch.allclose(adjusted(x) - head(x), torch.tensor([0.5, -1.0, 2.0]).expand(4, 3), atol=1e-6)
    assert len(list(adjusted.parameters())) == 2
