"""Small random models of both tower kinds, quantized and adapted by the package's own code."""

from __future__ import annotations

from collections.abc import Callable

import open_clip
import pytest
import torch
from torch import Tensor, nn

from secure_triplay import config
from secure_triplay.model.adapter import Adapter, attach_adapter
from secure_triplay.model.attention import split_attention
from secure_triplay.model.backbone import Backbone, freeze
from secure_triplay.model.quantize import quantize_blocks
from secure_triplay.model.text import TextHead
from secure_triplay.model.tower import Classifier, ImageTower

torch.set_num_threads(1)

N_CLASSES = 5
TEXT = {"context_length": 8, "vocab_size": 64, "width": 64, "heads": 2, "layers": 2}
TOWERS = {
    "open_clip": {"image_size": 32, "layers": 3, "width": 128, "head_width": 32, "patch_size": 8},
    "timm": {"image_size": 32, "timm_model_name": "vit_tiny_patch16_224", "timm_proj": "linear"},
}


def build(
    tower: str,
    *,
    kind: str = "ffa",
    quantization: str = "nf4",
    last_blocks: int = 2,
    text: bool = False,
    target_modules: str = r"attn\.(q_proj|v_proj|out_proj|qkv|proj)|mlp\.(c_fc|fc1)",
) -> tuple[Classifier, Adapter, Tensor]:
    """A classifier, its adapter with B away from zero, and tokens of 12 random images; always the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        make = open_clip.CLIP if tower == "open_clip" else open_clip.CustomTextCLIP
        model = make(embed_dim=64, vision_cfg=dict(TOWERS[tower]), text_cfg=dict(TEXT))
        if tower == "timm":
            model.visual.trunk.set_input_size(img_size=(32, 32))
        split_attention(model)
        quantize_blocks(model, quantization)
        freeze(model)
        backbone = Backbone(
            model=model,
            tokenizer=lambda texts: torch.tensor(
                [[62, 1 + len(text) % 60, 63, 0, 0, 0, 0, 0] for text in texts]
            ),
            name="test",
            sha256="random",
            text_sha256=None,
            licence="MIT",
            quantization=quantization,
            image_size=32,
            mean=(0.5,) * 3,
            std=(0.5,) * 3,
            resize_mode="shortest",
            interpolation="bicubic",
        )
        adapter = attach_adapter(
            backbone,
            config.Adapter(
                kind=kind, rank=3, target_modules=target_modules, last_blocks=last_blocks, text_tower=text
            ),
            b"seed",
        )
        with torch.no_grad():
            for name, weight in zip(adapter.names, adapter.weights, strict=True):
                if ".lora_B" in name:
                    weight.normal_(std=0.05)
        images = ImageTower(backbone, adapter.first_block)
        tokens = images.prefix(torch.randint(0, 256, (12, 32, 32, 3), dtype=torch.uint8).numpy())
        head = (
            TextHead(
                backbone, [config.ClassPrompts(name="a" * n, prompts=("b" * n, "c" * 9)) for n in (1, 2, 3)]
            )
            if text
            else nn.functional.normalize(torch.randn(N_CLASSES, 64), dim=-1)
        )
    return Classifier(images.suffix, head, 20.0), adapter, tokens


@pytest.fixture
def make_classifier() -> Callable[..., tuple[Classifier, Adapter, Tensor]]:
    return build
