"""B in few public output directions: an ordinary LoRA with fewer numbers, and directions from public images alone."""

from __future__ import annotations

import itertools
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from peft import PeftModel
from torch.nn import functional as F

from secure_triplay.config import Adapter as AdapterConfig
from secure_triplay.config import parse_study
from secure_triplay.data.split import load_public
from secure_triplay.errors import AssetError, ConfigError
from secure_triplay.loading import aligned_backbone
from secure_triplay.model.adapter import Adapter, attach_adapter
from secure_triplay.model.basis import install_public_basis, look, require_of_public_gradients
from secure_triplay.model.outputs import leading_directions, logit_gradients, shortfall
from secure_triplay.model.text import class_embeddings
from secure_triplay.model.tower import Classifier, ImageTower
from secure_triplay.privacy.per_record import check_per_record_gradients

LAYERS = r"attn\.out_proj|mlp\.c_proj"
WIDTH, RANK, DIRECTIONS, CLASSES = 128, 3, 2, 3


def embeddings() -> torch.Tensor:
    return F.normalize(torch.randn((CLASSES, 64), generator=torch.Generator().manual_seed(1)), dim=-1)


def prepared(loaded: Any, images: Any, output_rank: int | None) -> tuple[Adapter, ImageTower, Classifier]:
    rule = AdapterConfig(
        rank=RANK, target_modules=LAYERS, last_blocks=1, basis="public", output_rank=output_rank
    )
    adapter = attach_adapter(loaded, rule, b"seed")
    tower = ImageTower(loaded, adapter.first_block)
    classifier = Classifier(tower.suffix, embeddings(), 10.0)
    install_public_basis(adapter, tower, classifier, images)
    return adapter, tower, classifier


def parts(loaded: Any, layer: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A, U and S of a layer of the last block."""
    adapted = loaded.model.visual.transformer.resblocks[-1].get_submodule(layer)
    b = adapted.lora_B["default"]
    return adapted.lora_A["default"].weight.detach(), b.directions, b.inner.weight.detach()


def test_the_model_is_that_of_a_full_b_which_is_u_times_s(backbone: Any, images: Any) -> None:
    few, full = backbone("vit", "none"), backbone("vit", "none")
    small, tower, classifier = prepared(few, images, DIRECTIONS)
    large, _, plain = prepared(full, images, None)
    assert (small.n_params, large.n_params) == (2 * DIRECTIONS * RANK, 2 * WIDTH * RANK)
    assert small.names == large.names
    assert small.shapes == ((DIRECTIONS, RANK),) * 2
    values = np.random.default_rng(0).normal(size=small.n_params).astype(np.float32)
    small.load_vector(values)
    assert np.array_equal(small.vector(), values)
    whole = []
    for layer in ("attn.out_proj", "mlp.c_proj"):
        a, u, s = parts(few, layer)
        assert torch.equal(
            a, full.model.visual.transformer.resblocks[-1].get_submodule(layer).lora_A["default"].weight
        )
        whole.append((u.double() @ s.double()).numpy().reshape(-1))
    large.load_vector(np.concatenate(whole).astype(np.float32))
    tokens = tower.prefix(images)
    with torch.no_grad():
        assert classifier(tokens).numpy() == pytest.approx(plain(tokens).numpy(), abs=1e-4)
        small.load_vector(0 * values)
        assert (classifier(tokens) - plain(tokens)).abs().max() > 0.1


def test_the_gradient_is_that_of_a_full_b_seen_from_the_directions(backbone: Any, images: Any) -> None:
    few, full = backbone("vit", "none"), backbone("vit", "none")
    small, tower, classifier = prepared(few, images, DIRECTIONS)
    large, _, plain = prepared(full, images, None)
    tokens, labels = tower.prefix(images), torch.tensor([0, 1, 2, 0, 1])
    of_s = torch.autograd.grad(F.cross_entropy(classifier(tokens), labels), small.weights)
    of_b = torch.autograd.grad(F.cross_entropy(plain(tokens), labels), large.weights)
    for layer, s, b in zip(("attn.out_proj", "mlp.c_proj"), of_s, of_b, strict=True):
        assert s.numpy() == pytest.approx((parts(few, layer)[1].T @ b).numpy(), abs=1e-5)
        assert s.abs().max() > 1e-3
    assert check_per_record_gradients(classifier, tuple(tokens.shape[1:])) == CLASSES


@pytest.mark.parametrize("quantization", ["none", "nf4", "int8"])
def test_what_is_saved_is_an_ordinary_lora_that_plain_peft_loads(
    backbone: Any, images: Any, tmp_path: Path, quantization: str
) -> None:
    trained = backbone("vit", quantization)
    adapter, _, _ = prepared(trained, images, DIRECTIONS)
    adapter.load_vector(np.random.default_rng(0).normal(size=adapter.n_params).astype(np.float32))
    adapter.save(tmp_path / "adapter")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = PeftModel.from_pretrained(backbone("vit", quantization).model, str(tmp_path / "adapter"))
    pixels = ImageTower(trained, 0).pixels(images)
    with torch.no_grad():
        ours = trained.model.encode_image(pixels)
        assert loaded.encode_image(pixels).numpy() == pytest.approx(ours.numpy(), abs=1e-4)
        bare = backbone("vit", quantization).model.encode_image(pixels)
        assert (bare - ours).abs().max() > 0.01
        if quantization == "none":
            assert loaded.merge_and_unload().encode_image(pixels).numpy() == pytest.approx(
                ours.numpy(), abs=1e-4
            )


def test_directions_are_those_in_which_a_loss_of_any_label_moves(backbone: Any, images: Any) -> None:
    loaded = backbone("vit", "none")
    _, tower, classifier = prepared(loaded, images, DIRECTIONS)
    tokens = tower.prefix(images[:1])
    for layer in ("attn.out_proj", "mlp.c_proj"):
        module = loaded.model.visual.transformer.resblocks[-1].get_submodule(layer)
        c = logit_gradients({layer: module}, classifier, tokens)[layer]
        u = torch.from_numpy(leading_directions(c, CLASSES - 1)).T
        for label in range(CLASSES):  # of one image, so that as many directions as classes less one are all
            kept: list[torch.Tensor] = []
            hook = module.register_forward_hook(lambda _, __, output, kept=kept: kept.append(output))
            loss = F.cross_entropy(classifier(tokens), torch.tensor([label]))
            hook.remove()
            (gradient,) = torch.autograd.grad(loss, kept)
            gradient = gradient.reshape(-1)
            assert (gradient - u @ (u.T @ gradient)).norm() < 1e-4 * gradient.norm()


def test_gradients_of_logits_are_those_of_small_moves_of_the_output(backbone: Any, images: Any) -> None:
    loaded = backbone("vit", "none")
    _, tower, classifier = prepared(loaded, images, DIRECTIONS)
    module = loaded.model.visual.transformer.resblocks[-1].mlp.c_proj
    tokens = tower.prefix(images)
    found = logit_gradients({"x": module}, classifier, tokens)["x"]
    move, step = np.random.default_rng(0).normal(size=WIDTH), 1e-2
    logits = []
    for sign in (1, -1):
        offset = torch.from_numpy(sign * step * move).float()
        hook = module.register_forward_hook(lambda _, __, output, offset=offset: output + offset)
        with torch.no_grad():
            logits.append(classifier(tokens).double().numpy())
        hook.remove()
    slope = (logits[0] - logits[1]) / (2 * step)
    slope -= slope.mean(axis=1, keepdims=True)
    assert move @ found @ move == pytest.approx(np.square(slope).sum(), rel=0.01)


def test_every_public_image_counts_however_many_there_are(backbone: Any) -> None:
    many = np.random.default_rng(0).integers(0, 256, (130, 28, 28, 3)).astype(np.uint8)  # three batches
    loaded = backbone("vit", "none")
    _, tower, classifier = prepared(loaded, many, DIRECTIONS)
    layers = {"x": loaded.model.visual.transformer.resblocks[-1].mlp.c_proj}
    tokens = tower.prefix(many)
    whole = logit_gradients(layers, classifier, tokens)["x"]
    each = sum(logit_gradients(layers, classifier, one)["x"] for one in torch.split(tokens, 1))
    assert whole == pytest.approx(each, abs=1e-4 * np.trace(whole))


def gradients(seed: int = 0, d: int = 30) -> Any:
    draw = np.random.default_rng(seed)
    rows = draw.normal(size=(200, d)) * np.geomspace(10, 0.1, d)
    turned = rows @ np.linalg.qr(draw.normal(size=(d, d)))[0]
    return turned.T @ turned


def test_leading_directions_are_orthonormal_and_hold_the_most() -> None:
    c = gradients()
    u = leading_directions(c, 4).astype(np.float64)
    assert u @ u.T == pytest.approx(np.eye(4), abs=1e-6)
    held = np.trace(u @ c @ u.T)
    draw = np.random.default_rng(1)
    for _ in range(50):
        near = np.linalg.qr((u + 0.1 * draw.normal(size=u.shape)).T)[0].T
        assert np.trace(near @ c @ near.T) < held
    assert all(row[np.abs(row).argmax()] > 0 for row in u)


def test_more_directions_than_the_logits_move_along_are_refused() -> None:
    rows = np.random.default_rng(0).normal(size=(3, 10))
    leading_directions(rows.T @ rows, 3)
    for count in (4, 11):
        with pytest.raises(ConfigError, match=f"fewer than {count} directions"):
            leading_directions(rows.T @ rows, count)


def _refused(u: Any, c: Any) -> bool:
    try:
        require_of_public_gradients({"x.outputs": u.astype(np.float16)}, {"x": c})
    except ConfigError as error:
        return "not of the public images here" in error.what
    return False


def test_directions_of_the_public_images_pass_however_they_are_turned_and_others_are_refused() -> None:
    c = gradients()
    u = leading_directions(c, 4).astype(np.float64)
    turned = np.linalg.qr(np.random.default_rng(2).normal(size=(4, 4)))[0] @ u
    assert not _refused(u, c)
    assert not _refused(turned, c)
    assert not _refused(
        leading_directions(c * (1 + 1e-3 * np.random.default_rng(3).normal(size=c.shape)), 4), c
    )
    assert _refused(1.02 * u, c)
    assert _refused(np.concatenate([u[:3], u[:1]]), c)
    assert _refused(0 * u, c)
    assert _refused(leading_directions(gradients(1), 4), c)  # of somebody else's images
    last = np.linalg.eigh(c)[1][:, :1].T
    for place in range(
        4
    ):  # any direction exchanged for the least, be it the last, which holds next to nothing
        assert _refused(np.concatenate([u[:place], last, u[place + 1 :]]), c)


def test_small_directions_may_not_be_exchanged_however_little_they_hold() -> None:
    """The first of eight hold nearly all; the others together less than what may be missing."""
    frame = np.linalg.qr(np.random.default_rng(0).normal(size=(30, 30)))[0]
    values = np.concatenate([np.full(2, 100.0), np.full(6, 0.5), np.full(22, 0.01)])
    c = (frame * values) @ frame.T
    assert not _refused(frame.T[:8], c)
    assert not _refused(frame.T[[0, 1, 7, 6, 5, 4, 3, 2]], c)
    foreign = frame.T[[0, 1, 20, 21, 22, 23, 24, 25]]
    assert (6 * 0.5) / (2 * 100 + 6 * 0.5) < 0.02
    assert _refused(foreign, c)


def demos_gradients(root: Path, compute: str, seed: int) -> dict[str, Any]:
    """C of each adapted layer, of the demo's hundred public images at a seed, in one arithmetic."""
    content = yaml.safe_load((root / "configs" / "demo.yaml").read_text())
    content["backbone"]["compute"], content["seed"] = compute, seed
    study = parse_study(content)
    try:
        public = load_public(study)
        loaded = aligned_backbone(study, public)
    except AssetError as error:
        pytest.skip(f"weights or images cannot be had here: {error.what}")
    adapter = attach_adapter(loaded, study.adapter, b"seed")
    tower = ImageTower(loaded, adapter.first_block)
    classifier = Classifier(tower.suffix, class_embeddings(loaded, study.classes), study.training.logit_scale)
    return look(
        adapter, tower, classifier, public.images(np.arange(len(public)), loaded.image_size)
    ).gradients


def test_another_arithmetic_is_far_inside_the_bounds_and_other_images_far_outside(root: Path) -> None:
    """The figures that stand at `require_of_public_gradients`, on the demo's backbone and images."""
    own, other = (demos_gradients(root, "float32", seed) for seed in (0, 1))
    half = demos_gradients(root, "bfloat16", 0)
    for name, count in itertools.product(own, (2, 5, 9, 12, 20)):
        for here, there in ((own, half), (half, own)):
            carried = leading_directions(here[name], count).astype(np.float16).astype(np.float64)
            off, short, least = shortfall(carried, there[name])
            assert off <= 0.0004
            assert short <= 0.0009
            assert least >= 0.998
        foreign = leading_directions(other[name], count).astype(np.float64)
        assert shortfall(foreign, own[name])[1] >= 0.6


def test_few_outputs_need_a_public_basis() -> None:
    with pytest.raises(ValueError, match="output_rank needs basis: public"):
        AdapterConfig(output_rank=2)


def test_directions_that_were_never_installed_are_no_silent_nothing(backbone: Any, images: Any) -> None:
    loaded = backbone("vit", "none")
    rule = AdapterConfig(
        rank=RANK, target_modules=LAYERS, last_blocks=1, basis="public", output_rank=DIRECTIONS
    )
    adapter = attach_adapter(loaded, rule, b"seed")
    tower = ImageTower(loaded, adapter.first_block)
    tokens, classifier = tower.prefix(images), Classifier(tower.suffix, embeddings(), 10.0)
    with pytest.raises(ConfigError, match="has none yet"):  # what every training asks first
        check_per_record_gradients(classifier, tuple(tokens.shape[1:]))
    install_public_basis(adapter, tower, classifier, images)
    assert check_per_record_gradients(classifier, tuple(tokens.shape[1:])) == CLASSES
