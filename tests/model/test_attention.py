from __future__ import annotations

import copy
from typing import Any

import open_clip
import pytest
import torch
from timm.models.eva import Eva
from torch import nn

from secure_triplay.errors import ConfigError
from secure_triplay.model.attention import SplitAttention, split_attention


@pytest.fixture(scope="module")
def clip() -> Any:
    torch.manual_seed(0)
    return open_clip.create_model("test-vit", force_image_size=64).eval()


def test_both_towers_compute_the_same_after_the_split(clip: Any) -> None:
    split = copy.deepcopy(clip)
    assert split_attention(split) == 6 + 3
    assert not any(isinstance(part, nn.MultiheadAttention) for part in split.modules())
    pixels = torch.randn(3, 3, 64, 64)
    tokens = open_clip.get_tokenizer("test-vit")(["a photo of a cell", "one two three four", ""])
    with torch.no_grad():
        torch.testing.assert_close(
            split.encode_image(pixels), clip.encode_image(pixels), atol=5e-6, rtol=1e-5
        )
        torch.testing.assert_close(split.encode_text(tokens), clip.encode_text(tokens), atol=5e-6, rtol=1e-5)


def test_the_text_tower_still_cannot_look_ahead(clip: Any) -> None:
    split = copy.deepcopy(clip)
    split_attention(split)
    x = torch.randn(1, 77, 64)
    later = x.clone()
    later[:, 40:] += 1.0
    with torch.no_grad():
        seen, changed = (split.transformer(part, attn_mask=split.attn_mask) for part in (x, later))
    assert torch.equal(seen[:, :40], changed[:, :40])
    assert (seen[:, 40:] - changed[:, 40:]).abs().max() > 0.1


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("mask", ["none", "float", "bool", "per head"])
def test_every_mask_means_what_it_meant(batch_first: bool, mask: str) -> None:
    torch.manual_seed(1)
    fused = nn.MultiheadAttention(32, 4, batch_first=batch_first).eval()
    nn.init.normal_(fused.in_proj_bias)
    x = torch.randn((2, 6, 32) if batch_first else (6, 2, 32))
    attn_mask = {
        "none": None,
        "float": torch.randn(6, 6),
        "bool": torch.ones(6, 6).triu(1).bool(),
        "per head": torch.randn(2 * 4, 6, 6),
    }[mask]
    with torch.no_grad():
        expected = fused(x, x, x, need_weights=False, attn_mask=attn_mask)[0]
        got = SplitAttention(fused)(x, x, x, need_weights=False, attn_mask=attn_mask)[0]
    torch.testing.assert_close(got, expected, atol=2e-6, rtol=1e-5)


def test_attention_between_different_widths_is_split_too() -> None:
    torch.manual_seed(2)
    fused = nn.MultiheadAttention(32, 4, kdim=24, vdim=16, batch_first=True).eval()
    query, key, value = torch.randn(2, 3, 32), torch.randn(2, 7, 24), torch.randn(2, 7, 16)
    with torch.no_grad():
        expected = fused(query, key, value, need_weights=False)[0]
        torch.testing.assert_close(
            SplitAttention(fused)(query, key, value)[0], expected, atol=2e-6, rtol=1e-5
        )


def test_attention_that_cannot_be_split_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot be split"):
        SplitAttention(nn.MultiheadAttention(8, 2, add_bias_kv=True))
    with pytest.raises(NotImplementedError):
        SplitAttention(nn.MultiheadAttention(8, 2))(*torch.zeros(3, 1, 2, 8), need_weights=True)


def test_the_fused_projection_of_eva_is_called_as_a_layer() -> None:
    torch.manual_seed(3)
    eva = Eva(
        img_size=32, patch_size=16, embed_dim=32, depth=2, num_heads=2, num_classes=0, qkv_fused=True
    ).eval()
    for block in eva.blocks:
        nn.init.normal_(block.attn.q_bias)
        nn.init.normal_(block.attn.v_bias)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = eva(x)
        split_attention(eva)
        calls: list[int] = []
        for block in eva.blocks:
            block.attn.qkv.register_forward_hook(lambda *_: calls.append(1))
        torch.testing.assert_close(eva(x), expected)
    assert len(calls) == 2
