"""Backbones: small ones with random weights, and the packaged one where it can be had."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch

from secure_triplay import config
from secure_triplay.errors import AssetError
from secure_triplay.model.backbone import Backbone, load_backbone

torch.set_num_threads(1)

IMAGE_SHA256 = "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"
TEXT_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 3}
VISION = {
    "test-vit": {"image_size": 64, "layers": 6, "width": 128, "patch_size": 16, "head_width": 32},
    "test-gap": {"image_size": 64, "timm_model_name": "vit_tiny_patch16_224", "timm_pool": "avg"},
    "test-eva": {"image_size": 56, "timm_model_name": "eva02_tiny_patch14_224", "timm_pool": "token"},
    "test-convnext": {"image_size": 64, "timm_model_name": "convnext_atto"},
    "test-resnet": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16},
    "test-hub-text": {"image_size": 64, "layers": 1, "width": 64, "patch_size": 32},
}
Make = Callable[..., Any]


@pytest.fixture(scope="session", autouse=True)
def small_models(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Models of a second's size under names of open_clip's own registry."""
    folder = tmp_path_factory.mktemp("models")
    for name, vision in VISION.items():
        text = (
            {"hf_model_name": "roberta-base", "hf_proj_type": "linear"} if name == "test-hub-text" else TEXT
        )
        content = {"embed_dim": 64, "vision_cfg": vision, "text_cfg": text}
        (folder / f"{name}.json").write_text(json.dumps(content))
    open_clip.add_model_config(folder)


@cache
def _packaged_files() -> Any:
    from secure_triplay.assets import packaged_weights

    try:
        return packaged_weights()
    except AssetError as error:
        return str(error)


@cache
def _loaded(cfg: config.Backbone) -> Backbone:
    return load_backbone(cfg, _packaged_files() if cfg.source == "packaged" else None)


@pytest.fixture
def files() -> Any:
    found = _packaged_files()
    if isinstance(found, str):
        pytest.skip(f"the packaged weights cannot be had here: {found}")
    return found


@pytest.fixture
def packaged_cfg() -> Make:
    def make(quantization: str = "nf4", **more: Any) -> config.Backbone:
        keys = {
            "source": "packaged",
            "name": "dinov2-small-minilm-l6",
            "sha256": IMAGE_SHA256,
            "text_sha256": TEXT_SHA256,
            "licence": "Apache-2.0",
            "image_size": 56,
        }
        return config.Backbone.model_validate(keys | {"quantization": quantization} | more)

    return make


@pytest.fixture
def vit_cfg() -> Make:
    """open_clip's own ViT (6 blocks, fused attention, class token) at 64 pixels, random weights."""

    def make(quantization: str = "nf4", **more: Any) -> config.Backbone:
        keys = {
            "source": "open_clip",
            "name": "test-vit",
            "licence": "MIT",
            "image_size": 64,
            "unsafe_random_weights": True,
        }
        return config.Backbone.model_validate(keys | {"quantization": quantization} | more)

    return make


@pytest.fixture
def backbone(request: pytest.FixtureRequest, packaged_cfg: Make, vit_cfg: Make) -> Make:
    """A backbone of either tower kind that a test may change: loaded once, copied for each call."""

    def make(kind: str, quantization: str = "nf4") -> Backbone:
        if kind == "packaged":
            request.getfixturevalue("files")
        pristine = _loaded((packaged_cfg if kind == "packaged" else vit_cfg)(quantization))
        return replace(pristine, model=copy.deepcopy(pristine.model))

    return make


@pytest.fixture
def images() -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(7).integers(0, 256, (5, 28, 28, 3), dtype=np.uint8)


@pytest.fixture
def weights_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "weights"
    folder.mkdir()
    return folder
