from __future__ import annotations

import hashlib
import json
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from torch import nn

from secure_triplay.config import Adapter as AdapterConfig
from secure_triplay.errors import ConfigError, RunError
from secure_triplay.model.adapter import EVERY_BLOCK, attach_adapter, draw_a
from secure_triplay.model.align import install_projection
from secure_triplay.model.tower import ImageTower

Make = Any
A_SHA256 = "106fa02aa126a91c752cbc2c6ea72daefdfb299e7a8f57c7dbc58fc3b50045ef"
ATTENTION = r"attn\.(qkv|proj|[qkv]_proj|out_proj)"
BOTH = ["vit", "packaged"]


def _random_vector(n: int) -> Any:
    return (np.random.default_rng(5).normal(size=n) * 0.02).astype(np.float32)


def test_the_default_on_the_packaged_tower_trains_24576_numbers(backbone: Make) -> None:
    loaded = backbone("packaged")
    adapter = attach_adapter(loaded, AdapterConfig(), b"seed")
    assert adapter.n_params == len(adapter.vector()) == 24_576
    assert (adapter.first_block, adapter.n_blocks) == (8, 12)
    trainable = [name for name, weight in loaded.model.named_parameters() if weight.requires_grad]
    assert len(trainable) == 8
    assert all(
        re.fullmatch(r"visual\.trunk\.blocks\.(8|9|10|11)\.attn\.(qkv|proj)\.lora_B.*", n) for n in trainable
    )
    assert sum(w.numel() for w in loaded.model.parameters() if w.requires_grad) == adapter.n_params


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("adapter_kind", ["ffa", "lora"])
def test_only_what_is_sent_is_trained_and_counted(backbone: Make, kind: str, adapter_kind: str) -> None:
    loaded = backbone(kind)
    keys = {"kind": adapter_kind, "rank": 3, "target_modules": ATTENTION, "last_blocks": 2}
    cfg = AdapterConfig.model_validate(keys)
    adapter = attach_adapter(loaded, cfg, b"seed")
    layers = 2 * (2 if kind == "packaged" else 4)
    assert len(adapter.names) == layers * (2 if adapter_kind == "lora" else 1)
    assert list(adapter.names) == sorted(adapter.names)
    assert any("lora_A" in name for name in adapter.names) == (adapter_kind == "lora")
    trainable = {id(weight) for weight in loaded.model.parameters() if weight.requires_grad}
    assert trainable == {id(weight) for weight in adapter.weights}
    assert adapter.n_params == sum(int(np.prod(shape)) for shape in adapter.shapes)


@pytest.mark.parametrize("kind", BOTH)
def test_a_fresh_adapter_changes_nothing(backbone: Make, kind: str, images: Any) -> None:
    loaded = backbone(kind)
    before = ImageTower(loaded, 0).features(ImageTower(loaded, 0).prefix(images))
    adapter = attach_adapter(loaded, AdapterConfig(target_modules=ATTENTION), b"seed")
    tower = ImageTower(loaded, adapter.first_block)
    np.testing.assert_allclose(tower.features(tower.prefix(images)), before, atol=1e-6)
    assert not adapter.vector().any()


def test_a_comes_from_the_public_seed_alone(backbone: Make) -> None:
    # The same bytes on every machine: this hash was computed once and must never change.
    drawn = draw_a(b"seed", "visual.trunk.blocks.8.attn.qkv.lora_A", (4, 384))
    assert hashlib.sha256(drawn.tobytes()).hexdigest() == A_SHA256
    first = {}
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        loaded = backbone("packaged")
        attach_adapter(loaded, AdapterConfig(), b"seed")
        a = {n: w for n, w in loaded.model.named_parameters() if "lora_A" in n}
        assert first == {} or all(torch.equal(first[name], weight) for name, weight in a.items())
        first = a
    (qkv,) = [w for n, w in first.items() if "blocks.8.attn.qkv" in n]
    assert np.array_equal(qkv.detach().numpy(), drawn)
    assert len({w.detach().numpy().tobytes() for w in first.values()}) == len(first)
    assert not np.array_equal(draw_a(b"tree", "visual.trunk.blocks.8.attn.qkv.lora_A", (4, 384)), drawn)


def test_a_is_uniform_and_centred() -> None:
    drawn = draw_a(b"x", "layer", (64, 1024)) * np.sqrt(1024)
    assert np.abs(drawn).max() <= 1
    assert abs(drawn.mean()) < 0.01
    assert abs(drawn.var() - 1 / 3) < 0.01


@pytest.mark.parametrize("kind", BOTH)
def test_a_vector_comes_back_as_it_went_in_and_in_the_documented_order(backbone: Make, kind: str) -> None:
    cfg = AdapterConfig(kind="lora", target_modules=ATTENTION, last_blocks=2)
    adapter = attach_adapter(backbone(kind), cfg, b"seed")
    values = _random_vector(adapter.n_params)
    adapter.load_vector(values)
    assert np.array_equal(adapter.vector(), values)
    start = 0
    for name, shape in zip(adapter.names, adapter.shapes, strict=True):
        layer, _, part = name.rpartition(".")
        weight = adapter.peft.base_model.model.get_submodule(f"{layer}.{part}.default").weight
        size = int(np.prod(shape))
        assert np.array_equal(values[start : start + size].reshape(shape), weight.detach().numpy())
        start += size
    values[:] = 0
    assert adapter.vector().any()  # what was set is a copy


@pytest.mark.parametrize("wrong", ["short", "nan", "infinite", "two-dimensional"])
def test_a_vector_that_does_not_fit_is_refused_and_nothing_is_set(backbone: Make, wrong: str) -> None:
    adapter = attach_adapter(backbone("vit"), AdapterConfig(target_modules=ATTENTION, last_blocks=1), b"seed")
    good = _random_vector(adapter.n_params)
    adapter.load_vector(good)
    bad = {
        "short": good[:-1],
        "nan": np.where(np.arange(len(good)) == len(good) - 1, np.nan, 0.5).astype(np.float32),
        "infinite": np.full_like(good, np.inf),
        "two-dimensional": good[None],
    }[wrong]
    with pytest.raises(RunError, match="finite numbers"):
        adapter.load_vector(bad)
    assert np.array_equal(adapter.vector(), good)


CASES = [
    ("packaged", "nf4", {"kind": "ffa"}),
    ("packaged", "int8", {"kind": "lora"}),
    ("packaged", "none", {"kind": "ffa", "text_tower": True}),
    ("vit", "nf4", {"kind": "lora", "text_tower": True, "target_modules": ATTENTION + r"|mlp\..*"}),
    ("vit", "int8", {"kind": "ffa", "target_modules": ATTENTION}),
    ("vit", "none", {"kind": "ffa", "target_modules": ATTENTION}),
]


@pytest.mark.parametrize(("kind", "quantization", "keys"), CASES)
def test_plain_peft_loads_a_saved_adapter_without_a_missing_key(
    backbone: Make, kind: str, quantization: str, keys: dict[str, Any], images: Any, tmp_path: Path
) -> None:
    trained = backbone(kind, quantization)
    if trained.projection:
        rng = np.random.default_rng(1)
        install_projection(trained, rng.normal(size=(384, 384)).astype(np.float32))
    adapter = attach_adapter(trained, AdapterConfig(last_blocks=2, **keys), b"seed")
    adapter.load_vector(_random_vector(adapter.n_params))
    adapter.save(tmp_path / "adapter")
    assert sorted(path.name for path in (tmp_path / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    fresh = backbone(kind, quantization)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = PeftModel.from_pretrained(fresh.model, str(tmp_path / "adapter"))
    pixels = ImageTower(trained, 0).pixels(images)
    tokens = trained.tokenizer(["a photo of a bag"])
    with torch.no_grad():
        assert torch.equal(loaded.encode_image(pixels), trained.model.encode_image(pixels))
        assert torch.equal(loaded.encode_text(tokens), trained.model.encode_text(tokens))
        bare = backbone(kind, quantization).model
        assert (bare.encode_image(pixels) - trained.model.encode_image(pixels)).abs().max() > 1e-3
        text_moved = (bare.encode_text(tokens) - trained.model.encode_text(tokens)).abs().max() > 1e-3
    assert bool(text_moved) == bool(keys.get("text_tower"))


def test_a_saved_adapter_holds_the_frozen_a_and_no_weight_of_the_backbone(
    backbone: Make, tmp_path: Path
) -> None:
    attach_adapter(backbone("packaged"), AdapterConfig(), b"seed").save(tmp_path)
    with safe_open(tmp_path / "adapter_model.safetensors", "np") as file:
        names = list(file.keys())
        (qkv,) = [n for n in names if n.endswith("blocks.8.attn.qkv.lora_A.weight")]
        a = file.get_tensor(qkv)
    assert np.array_equal(a, draw_a(b"seed", "visual.trunk.blocks.8.attn.qkv.lora_A", (4, 384)))
    assert len(names) == 8 + 8 + 1
    assert [n for n in names if "lora_" not in n] == ["base_model.model.visual.head.proj.weight"]
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (settings["peft_type"], settings["r"], settings["inference_mode"]) == ("LORA", 4, True)


def test_a_target_inside_a_block_never_reaches_the_patch_embedding(backbone: Make) -> None:
    loaded = backbone("packaged")
    adapter = attach_adapter(loaded, AdapterConfig(target_modules=r".*proj", last_blocks=12), b"seed")
    assert len(adapter.names) == 12
    assert isinstance(loaded.model.visual.trunk.patch_embed.proj, nn.Conv2d)


def test_blocks_of_the_text_tower_are_left_alone_unless_asked_for(backbone: Make) -> None:
    # In a plain CLIP `transformer.resblocks.2` is the end of `visual.transformer.resblocks.2`.
    image_only = attach_adapter(backbone("vit"), AdapterConfig(target_modules=ATTENTION, last_blocks=1), b"s")
    assert all(name.startswith("visual.") for name in image_only.names)
    cfg = AdapterConfig(target_modules=ATTENTION, last_blocks=1, text_tower=True)
    both = attach_adapter(backbone("vit"), cfg, b"s")
    assert sum(name.startswith("transformer.resblocks.2.") for name in both.names) == 4
    assert {name.rpartition(".attn.")[0] for name in both.names} == {
        "visual.transformer.resblocks.5",
        "transformer.resblocks.2",
    }
    assert set(image_only.names) < set(both.names)


def test_an_expression_that_matches_nothing_is_answered_with_what_there_is(backbone: Make) -> None:
    with pytest.raises(ConfigError, match="matches no linear layer") as caught:
        attach_adapter(backbone("vit"), AdapterConfig(target_modules=r"attn\.qkv"), b"seed")
    assert "attn.q_proj" in caught.value.fix
    assert "mlp.c_fc" in caught.value.fix


def test_a_second_adapter_is_refused(backbone: Make) -> None:
    loaded = backbone("vit")
    cfg = AdapterConfig(target_modules=ATTENTION, last_blocks=1)
    attach_adapter(loaded, cfg, b"seed")
    with pytest.raises(ConfigError, match="adapter already"):
        attach_adapter(loaded, cfg, b"seed")


def test_a_layer_whose_weight_is_read_behind_its_back_is_refused(backbone: Make) -> None:
    loaded = backbone("vit", "none")
    block = loaded.model.visual.transformer.resblocks[5]
    bypassed = block.mlp.c_fc
    object.__setattr__(block.mlp, "forward", lambda x: block.mlp.c_proj(torch.relu(x @ bypassed.weight.T)))
    with pytest.raises(ConfigError, match=r"mlp\.c_fc takes no part"):
        attach_adapter(loaded, AdapterConfig(target_modules=r"mlp\..*", last_blocks=1), b"seed")


def test_every_block_is_all_that_there_are(backbone: Make) -> None:
    adapter = attach_adapter(
        backbone("vit"), AdapterConfig(target_modules=r"attn\.q_proj", last_blocks=EVERY_BLOCK), b"s"
    )
    assert (adapter.first_block, len(adapter.names)) == (0, 6)


@pytest.mark.parametrize("blocks", [7, 63])
def test_more_blocks_than_there_are_are_refused_with_how_many_there_are(backbone: Make, blocks: int) -> None:
    """Reports would say that so many were adapted, and costs of one block would be of a part of one."""
    cfg = AdapterConfig(target_modules=r"attn\.q_proj", last_blocks=blocks)
    with pytest.raises(ConfigError, match=f"backbone has 6 blocks.*{blocks}.*adapter.last_blocks.*1 to 6"):
        attach_adapter(backbone("vit"), cfg, b"s")


def test_a_text_tower_with_fewer_blocks_has_all_of_them_adapted(backbone: Make) -> None:
    cfg = AdapterConfig(target_modules=r"attn\.q_proj", last_blocks=6, text_tower=True)
    adapter = attach_adapter(backbone("vit"), cfg, b"s")
    assert sum(name.startswith("transformer.resblocks.") for name in adapter.names) == 3


def test_more_output_directions_than_a_layer_has_outputs_are_refused(backbone: Make) -> None:
    loaded = backbone("vit")
    outputs = loaded.model.visual.transformer.resblocks[5].attn.out_proj.out_features
    cfg = AdapterConfig(
        target_modules=r"attn\.out_proj", last_blocks=1, basis="public", output_rank=outputs + 1
    )
    with pytest.raises(ConfigError, match=f"has {outputs} outputs"):
        attach_adapter(loaded, cfg, b"s")
