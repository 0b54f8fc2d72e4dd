from __future__ import annotations

import copy
from typing import Any

import bitsandbytes as bnb
import open_clip
import pytest
import torch
from torch import Tensor, nn

from secure_triplay.model.attention import split_attention
from secure_triplay.model.blocks import image_stack, text_stack
from secure_triplay.model.quantize import frozen_bytes, quantize_blocks

Make = Any
# The 16 values of NF4, from Dettmers et al. 2023 (QLoRA), appendix E.
NF4 = torch.tensor(
    [
        *(-1.0, -0.6961928, -0.5250731, -0.39491749, -0.28444138, -0.18477343, -0.09105004, 0.0),
        *(0.0795803, 0.16093020, 0.24611230, 0.33791524, 0.44070983, 0.56261700, 0.72295684, 1.0),
    ]
)


@pytest.fixture(scope="module")
def clip() -> Any:
    torch.manual_seed(0)
    model = open_clip.create_model("test-vit", force_image_size=64).eval().requires_grad_(False)
    split_attention(model)
    return model


def _nearest_nf4(weight: Tensor) -> Tensor:
    blocks = weight.reshape(-1, 64)
    largest = blocks.abs().amax(dim=1, keepdim=True)
    nearest = (blocks / largest)[..., None].sub(NF4).abs().argmin(dim=-1)
    return (NF4[nearest] * largest).reshape(weight.shape)


def test_nf4_weights_are_the_nearest_of_sixteen_values_by_block(clip: Any) -> None:
    small = copy.deepcopy(clip)
    assert quantize_blocks(small, "nf4") == (6 + 3) * 6
    for path, layer in image_stack(clip).linears(first=4).items():
        got = small.get_submodule(path)
        dense = bnb.functional.dequantize_4bit(got.weight.data, got.weight.quant_state)
        expected = _nearest_nf4(layer.weight)
        # The scales themselves are kept in 8 bits, which moves a weight by some thousandths of its scale.
        assert (dense - expected).abs().max() < 0.02 * layer.weight.abs().max()


def test_int8_weights_are_the_nearest_of_255_values_by_row(clip: Any) -> None:
    small = copy.deepcopy(clip)
    quantize_blocks(small, "int8")
    for path, layer in image_stack(clip).linears(first=5).items():
        got, x = small.get_submodule(path), torch.randn(3, layer.in_features)
        scale = layer.weight.abs().amax(dim=1, keepdim=True) / 127
        expected = nn.functional.linear(x, (layer.weight / scale).round() * scale, layer.bias)
        assert (got(x) - expected).abs().max() < 0.01 * expected.abs().max()


@pytest.mark.parametrize("mode", ["nf4", "int8"])
def test_only_the_linear_layers_inside_blocks_are_quantized(clip: Any, mode: Any) -> None:
    small = copy.deepcopy(clip)
    quantize_blocks(small, mode)
    inside = image_stack(clip).linears() | text_stack(clip).linears()
    quantized = {
        name for name, part in small.named_modules() if type(part).__module__ != "torch.nn.modules.linear"
    }
    assert set(inside) <= quantized
    before, after = dict(clip.named_parameters()), dict(small.named_parameters())
    for name, weight in before.items():
        if name.removesuffix(".weight") not in inside:
            assert torch.equal(weight, after[name]), name


def test_full_precision_stays_as_it_is(clip: Any) -> None:
    same = copy.deepcopy(clip)
    assert quantize_blocks(same, "none") == 0
    assert all(torch.equal(a, b) for a, b in zip(clip.parameters(), same.parameters(), strict=True))


@pytest.mark.parametrize("mode", ["nf4", "int8"])
@pytest.mark.parametrize("tower", ["image", "text"])
def test_a_quantized_tower_still_sees_the_same(clip: Any, mode: Any, tower: str) -> None:
    small = copy.deepcopy(clip)
    quantize_blocks(small, mode)
    tokens = open_clip.get_tokenizer("test-vit")(["a photo of a cat", "a chest x-ray", "a red car"])
    pixels = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        full, few = (
            m.encode_image(pixels) if tower == "image" else m.encode_text(tokens) for m in (clip, small)
        )
    assert torch.cosine_similarity(full, few).min() > 0.95


@pytest.mark.parametrize("mode", ["nf4", "int8"])
def test_outputs_do_not_depend_on_training_mode_or_gradients(clip: Any, mode: Any) -> None:
    small = copy.deepcopy(clip)
    quantize_blocks(small, mode)
    block, x = small.visual.transformer.resblocks[3], torch.randn(4, 5, 128)
    with torch.no_grad():
        seen = [block.eval()(x), block.train()(x)]
    for train in (False, True):
        leaf = x.clone().requires_grad_(True)
        out = block.train(train)(leaf)
        out.sum().backward()
        assert leaf.grad is not None
        assert leaf.grad.abs().sum() > 0
        seen.append(out.detach())
    assert all(torch.equal(seen[0], other) for other in seen[1:])


def test_a_backward_pass_after_an_evaluation_is_right(clip: Any) -> None:
    small = copy.deepcopy(clip)
    quantize_blocks(small, "nf4")
    layer = small.visual.transformer.resblocks[0].mlp.c_fc.eval()
    with torch.no_grad():
        layer(torch.randn(4, 128))
    x = torch.randn(4, 128, requires_grad=True)
    layer(x).sum().backward()
    dense = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    torch.testing.assert_close(x.grad, dense.sum(0).expand(4, -1), atol=1e-4, rtol=1e-4)


def test_multiplying_in_bfloat16_moves_features_only_a_little(clip: Any) -> None:
    exact, fast = copy.deepcopy(clip), copy.deepcopy(clip)
    quantize_blocks(exact, "nf4")
    quantize_blocks(fast, "nf4", torch.bfloat16)
    pixels = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        a, b = exact.encode_image(pixels), fast.encode_image(pixels)
    assert b.dtype == torch.float32
    assert not torch.equal(a, b)
    assert torch.cosine_similarity(a, b).min() > 0.999


class _Odd(nn.Module):
    """A model whose blocks have rows of 64 and of 96 weights."""

    def __init__(self) -> None:
        super().__init__()
        self.visual = open_clip.model.VisionTransformer(32, 16, 64, 1, 2, 1.5, output_dim=8)
        self.transformer = open_clip.transformer.Transformer(64, 1, 2)
        split_attention(self)


def test_rows_that_the_nf4_kernel_would_get_wrong_stay_in_full_precision() -> None:
    model = _Odd().requires_grad_(False)
    quantize_blocks(model, "nf4")
    mlp = model.visual.transformer.resblocks[0].mlp
    assert isinstance(mlp.c_fc, bnb.nn.Linear4bit)  # 64 -> 96
    assert type(mlp.c_proj) is nn.Linear  # 96 -> 64


def test_frozen_bytes_counts_every_tensor_once_and_no_trainable_one() -> None:
    layer = nn.Linear(8, 4).requires_grad_(False)
    twice = nn.ModuleDict({"a": layer, "b": layer, "c": nn.Linear(8, 4)})
    twice.register_buffer("view", layer.weight.data[:2])
    assert frozen_bytes(twice) == 4 * (8 * 4 + 4)


def test_frozen_bytes_of_a_quantized_layer_include_its_constants(clip: Any) -> None:
    small = copy.deepcopy(clip)
    quantize_blocks(small, "nf4")
    layer = small.visual.transformer.resblocks[0].attn.q_proj
    n, bias = 128 * 128, 4 * 128
    scales, codebooks, offset = n // 64, 4 * 16 + 4 * 256, 4
    scale_of_256_scales = 4
    assert frozen_bytes(layer) == n // 2 + scales + scale_of_256_scales + codebooks + offset + bias
    small = copy.deepcopy(clip)
    quantize_blocks(small, "int8")
    layer = small.visual.transformer.resblocks[0].attn.q_proj
    before = frozen_bytes(layer)
    layer(torch.randn(2, 128))
    assert frozen_bytes(layer) == before == n + 4 * 128 + bias


@pytest.mark.parametrize(("mode", "at_most"), [("nf4", 0.16), ("int8", 0.28), ("none", 1.0)])
def test_image_tower_takes_as_little_memory_as_claimed(backbone: Make, mode: str, at_most: float) -> None:
    full = backbone("packaged", "none").image_frozen_bytes
    assert backbone("packaged", mode).image_frozen_bytes <= at_most * full
