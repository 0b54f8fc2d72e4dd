"""`load_backbone`: the frozen model that a study names, checked by hash and licence, ready for an adapter.

It is also what a user of a finished run calls: `PeftModel.from_pretrained(load_backbone(cfg).model, folder)`
loads the adapter onto the same split, quantized module that it was trained on.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import huggingface_hub.constants
import open_clip
import torch
from open_clip.transformer import PatchDropout
from timm.layers import DropPath
from torch import Tensor, nn

from secure_triplay import config
from secure_triplay.errors import AssetError, ConfigError
from secure_triplay.memory import keep_freed_memory
from secure_triplay.model import packaged, quantize
from secure_triplay.model.attention import split_attention
from secure_triplay.model.blocks import DualEncoder, image_stack


class PackagedFiles(Protocol):
    """Where the two packaged weight files lie."""

    @property
    def image_onnx(self) -> Path: ...

    @property
    def text_dir(self) -> Path: ...


@dataclass(frozen=True, eq=False)
class Backbone:
    """A frozen dual encoder with split attention and quantized blocks, and what is known about it.

    `projection` is the module path of the image projection where it must first be aligned, else None.
    Nothing in `model` needs gradients or draws random numbers, in training mode as in evaluation.
    """

    model: DualEncoder
    tokenizer: Callable[[list[str]], Tensor]
    name: str
    sha256: str
    text_sha256: str | None
    licence: str
    quantization: str
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize_mode: str
    interpolation: str
    projection: str | None = None

    @property
    def frozen_bytes(self) -> int:
        """Bytes of memory of the frozen weights of both towers."""
        return quantize.frozen_bytes(self.model)

    @property
    def image_frozen_bytes(self) -> int:
        """Bytes of memory of the image tower's frozen weights."""
        return quantize.frozen_bytes(self.model.visual)


def load_backbone(
    cfg: config.Backbone, files: PackagedFiles | None = None, *, compute_dtype: torch.dtype = torch.float32
) -> Backbone:
    """The backbone that the study names; loading it twice gives the same weights, bit by bit.

    `files` are the packaged weights (left out: found, or fetched and cached, by `assets`). A model hub is
    asked only for `source: open_clip` with a tag. `compute_dtype` is what NF4 layers multiply in: bfloat16 is
    faster where the processor has it, and makes features depend on that.

    Raises ConfigError for what cannot be built, AssetError for weights that are missing, not the ones named,
    or under another licence.
    """
    if cfg.licence not in cfg.allowed_licences:
        raise AssetError(
            f"licence {cfg.licence} is not among those allowed: {', '.join(cfg.allowed_licences)}",
            where="backbone.licence",
            fix="choose another backbone, or have the licence approved and add it to allowed_licences",
        )
    keep_freed_memory()  # the matrices of every step from here on are of the same sizes
    # Building a model draws from torch's global generator; fork_rng gives its state back to the caller.
    online = cfg.source == "open_clip" and not cfg.unsafe_random_weights
    with torch.random.fork_rng(devices=[]), quiet_root_logger(), _hub(online):
        torch.manual_seed(0)
        loaded = _SOURCES[cfg.source](cfg, files)
        model = loaded["model"]
        image_stack(model)
        split_attention(model)
        quantize.quantize_blocks(model, cfg.quantization, compute_dtype)
    freeze(model)
    return Backbone(name=cfg.name, licence=cfg.licence, quantization=cfg.quantization, **loaded)


def freeze(model: DualEncoder) -> None:
    """No gradients, no dropout: afterwards training and evaluation mode compute the same."""
    for weight in model.parameters():
        weight.requires_grad_(False)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(module, DropPath):
            module.drop_prob = 0.0
        elif isinstance(module, PatchDropout):
            module.prob = 0.0
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise ConfigError(
                f"{type(module).__name__} mixes the records of a batch, which no per-record privacy survives",
                where="backbone.name",
                fix="choose a model without batch normalisation, such as ViT-B-32",
            )
    model.eval()


def check_sha256(path: Path, expected: str | None, key: str) -> str:
    """The file's sha256. Raises AssetError where the file is missing or not the one that the study names."""
    try:
        with path.open("rb") as stream:
            got = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise AssetError(
            f"the weight file cannot be read: {error.strerror or error}",
            where=str(path),
            fix="check the path in backbone.pretrained, or empty the cache and run again",
        ) from error
    if got != expected:
        raise AssetError(
            f"the weight file is not the one that the study names: expected sha256 {expected}, got {got}",
            where=f"{path} (backbone.{key})",
            fix="get the file again; change the hash in the study only if every site agrees to other weights",
        )
    return got


def _packaged(cfg: config.Backbone, files: PackagedFiles | None) -> dict[str, Any]:
    if cfg.name != packaged.NAME or cfg.unsafe_random_weights:
        raise ConfigError(
            f"the packaged backbone is {packaged.NAME}, with its own weights",
            where="backbone.name",
            fix="for another model, or for random weights, take source: open_clip",
        )
    _check_licence(cfg, packaged.LICENCE)
    if files is None:
        from secure_triplay.assets import packaged_weights  # here, since only this source downloads anything

        files = packaged_weights()
    sha256 = check_sha256(files.image_onnx, cfg.sha256, "sha256")
    text_sha256 = check_sha256(files.text_dir / "model.safetensors", cfg.text_sha256, "text_sha256")
    return {
        "model": packaged.build(packaged.image_state(files.image_onnx), files.text_dir, cfg.image_size),
        "tokenizer": packaged.tokenizer(files.text_dir),
        "sha256": sha256,
        "text_sha256": text_sha256,
        "image_size": cfg.image_size,
        "mean": packaged.MEAN,
        "std": packaged.STD,
        "resize_mode": "shortest",
        "interpolation": "bicubic",
        "projection": packaged.PROJECTION,
    }


def _by_tag(cfg: config.Backbone, files: PackagedFiles | None) -> dict[str, Any]:
    if cfg.unsafe_random_weights:
        return _open_clip(cfg, None, {})
    tag = str(cfg.pretrained)
    preprocess = open_clip.get_pretrained_cfg(cfg.name, tag)
    if not preprocess:
        known = ", ".join(open_clip.list_pretrained_tags_by_model(cfg.name)) or "none: no such model"
        raise ConfigError(
            f"open_clip knows no weights {tag!r} for {cfg.name!r}",
            where="backbone.pretrained",
            fix=f"tags of this model: {known}",
        )
    _check_licence(cfg, next((held for start, held in _TAG_LICENCES.items() if tag.startswith(start)), None))
    try:
        path = Path(open_clip.download_pretrained(preprocess))
    except Exception as error:  # whatever the network, the hub or its client raises
        raise AssetError(
            f"the weights {tag!r} of {cfg.name} cannot be downloaded ({type(error).__name__})",
            where="backbone.pretrained",
            fix="check the network; without one, copy the file here and take source: file with its path",
        ) from error
    return _open_clip(cfg, path, preprocess)


def _by_file(cfg: config.Backbone, files: PackagedFiles | None) -> dict[str, Any]:
    if cfg.unsafe_random_weights:
        return _open_clip(cfg, None, {})
    path = Path(str(cfg.pretrained))
    if path.suffix not in _SAFE_SUFFIXES:
        raise ConfigError(
            f"a weight file ends in one of {', '.join(_SAFE_SUFFIXES)}, not {path.suffix or 'nothing'}",
            where=f"backbone.pretrained: {path}",
            fix="convert the weights to safetensors",
        )
    return _open_clip(cfg, path, {})


def _open_clip(cfg: config.Backbone, path: Path | None, preprocess: dict[str, Any]) -> dict[str, Any]:
    """An open_clip model by name, with a file's weights (nothing in it is executed) or random ones."""
    # A name with a colon would be looked up on a hub or in a folder, around the checks of this function.
    architecture = None if ":" in cfg.name else open_clip.get_model_config(cfg.name)
    if architecture is None:
        raise ConfigError(
            f"open_clip has no model {cfg.name!r}",
            where="backbone.name",
            fix="`python -c 'import open_clip; print(open_clip.list_models())'` prints the names",
        )
    sha256 = "random" if path is None else check_sha256(path, cfg.sha256, "sha256")
    # Weights of a tag were trained with the activation that the tag names; another one runs, only worse.
    quick_gelu = bool(preprocess.get("quick_gelu", architecture.get("quick_gelu", False)))
    keys = ("mean", "std", "interpolation", "resize_mode")
    try:
        model = open_clip.create_model(
            cfg.name,
            pretrained_hf=False,
            force_quick_gelu=quick_gelu,
            force_image_size=cfg.image_size,
            force_preprocess_cfg={key: preprocess[key] for key in keys if key in preprocess},
        )
        tokenizer = open_clip.get_tokenizer(cfg.name)
    except Exception as error:  # missing files of the hub raise types of several packages
        raise AssetError(
            f"{cfg.name} cannot be built: {_first_line(error)}",
            where="backbone.name",
            fix="its text tower may need files of a model hub; ViT-B-32, ViT-L-14 and the like need none",
        ) from error
    if path is not None:
        try:
            open_clip.load_checkpoint(model, str(path), strict=True, weights_only=True)
        except Exception as error:  # safetensors, pickle, zip and state errors have no base in common
            raise AssetError(
                f"the weights do not load into {cfg.name}: {_first_line(error)}",
                where=str(path),
                fix="name the model that the weights were trained for; files that would run code are refused",
            ) from error
    seen = model.visual.preprocess_cfg
    if seen["resize_mode"] not in ("shortest", "squash"):
        raise ConfigError(
            f"{cfg.name} wants its pictures padded ({seen['resize_mode']}), which is not supported",
            where="backbone.name",
            fix="choose another model",
        )
    return {
        "model": model,
        "tokenizer": tokenizer,
        "sha256": sha256,
        "text_sha256": None,
        "image_size": cfg.image_size,
        "mean": tuple(seen["mean"]),
        "std": tuple(seen["std"]),
        "resize_mode": seen["resize_mode"],
        "interpolation": seen["interpolation"],
    }


def _check_licence(cfg: config.Backbone, known: str | None) -> None:
    """Where the licence of named weights is known, the study must say the same; else its word stands."""
    if known is not None and cfg.licence != known:
        raise AssetError(
            f"the weights are under another licence than the study says: expected {cfg.licence}, got {known}",
            where="backbone.licence",
            fix=f"write licence: {known}, and check that your institution allows it",
        )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


@contextmanager
def _hub(allowed: bool) -> Iterator[None]:
    """Whether libraries below may ask a model hub; they read this constant at every request."""
    before = huggingface_hub.constants.HF_HUB_OFFLINE
    huggingface_hub.constants.HF_HUB_OFFLINE = before or not allowed
    try:
        yield
    finally:
        huggingface_hub.constants.HF_HUB_OFFLINE = before


@contextmanager
def quiet_root_logger() -> Iterator[None]:
    """open_clip logs through the root logger, which would otherwise be configured by its first message."""
    root, silent = logging.getLogger(), logging.NullHandler()
    root.addHandler(silent)
    try:
        yield
    finally:
        root.removeHandler(silent)


_SOURCES: dict[str, Callable[[config.Backbone, PackagedFiles | None], dict[str, Any]]] = {
    "packaged": _packaged,
    "open_clip": _by_tag,
    "file": _by_file,
}
_SAFE_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
_TAG_LICENCES = {  # as their publishers state them; open_clip itself records none
    "openai": "MIT",
    "laion": "MIT",
    "datacomp_": "MIT",
    "commonpool_": "MIT",
    "webli": "Apache-2.0",
    "metaclip": "CC-BY-NC-4.0",
    "dfn": "Apple-AMLR",
    "datacompdr": "Apple-AMLR",
}
