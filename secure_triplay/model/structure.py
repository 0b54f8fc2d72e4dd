"""Whether an adapter can be put on a backbone: told from the towers' structure, before any weight is fetched or loaded.

Towers are built on torch's `meta` device, where a weight has a shape and no values: a tenth of a second each. What
needs a file of a model hub even for its structure is not judged here; it shows when the model is loaded.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import open_clip
import torch
from open_clip.timm_model import TimmModel
from torch import nn

from secure_triplay import config
from secure_triplay.errors import ConfigError
from secure_triplay.model import packaged
from secure_triplay.model.adapter import require_called, target_layers
from secure_triplay.model.attention import split_attention
from secure_triplay.model.backbone import quiet_root_logger
from secure_triplay.model.blocks import image_stack

_SIZE = "give the size that the model was made for, or a multiple of its patch"


def require_adaptable(backbone: config.Backbone, adapter: config.Adapter) -> None:
    """Return nothing if the backbone is known, and its towers have what the adapter names and take images of that size.

    Raises ConfigError as loading the model would.
    """
    model = _structure(backbone)
    if model is None:
        return
    if backbone.source == "packaged":  # its text tower's layers are not the study's to name
        target_layers(model, adapter.model_copy(update={"text_tower": False}))
        return
    _require_called(
        backbone.name, backbone.image_size, tuple(target_layers(model, adapter)), adapter.text_tower
    )


@lru_cache(maxsize=256)
def _require_called(name: str, size: int, targets: tuple[str, ...], text_tower: bool) -> None:
    """`require_called` with an image of `size` pixels; once for all ranks, kinds and seeds of a grid."""
    model = _by_name(name, size)
    with torch.device("meta"):
        words = torch.zeros(1, _context(model), dtype=torch.long) if text_tower else None
        try:
            require_called(model, list(targets), torch.zeros(1, 3, size, size), words)
        except (AssertionError, RuntimeError) as error:
            if _of_meta(error):
                return
            raise ConfigError(
                f"{name} takes no image of {size} pixels: {error}", where="backbone.image_size", fix=_SIZE
            ) from error


def tower_blocks(backbone: config.Backbone) -> int | None:
    """How many blocks the image tower has; None where that shows only once it is loaded. Raises ConfigError."""
    model = _structure(backbone)
    return None if model is None else len(image_stack(model).blocks)


def _structure(backbone: config.Backbone) -> Any:
    """The towers without values, or None where a hub's files are needed for them. Raises ConfigError."""
    if backbone.source == "packaged":
        return _packaged(backbone)
    model = _by_name(backbone.name, backbone.image_size)
    if backbone.source == "open_clip" and not backbone.unsafe_random_weights:
        _require_tag(backbone.name, str(backbone.pretrained))
    if model is not None:
        image_stack(model)
    return model


def _require_tag(name: str, tag: str) -> None:
    if not open_clip.get_pretrained_cfg(name, tag):
        known = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none"
        raise ConfigError(
            f"open_clip knows no weights {tag!r} for {name!r}",
            where="backbone.pretrained",
            fix=f"tags of this model: {known}",
        )


def _packaged(backbone: config.Backbone) -> nn.Module:
    """The packaged image tower alone."""
    if backbone.name != packaged.NAME or backbone.unsafe_random_weights:
        raise ConfigError(
            f"the packaged backbone is {packaged.NAME}, with its own weights",
            where="backbone.name",
            fix="for another model, or for random weights, take source: open_clip",
        )
    if backbone.image_size % packaged.PATCH:
        raise ConfigError(
            f"image_size {backbone.image_size} is not a multiple of the packaged tower's patch of {packaged.PATCH} "
            "pixels",
            where="backbone.image_size",
            fix=f"take {max(packaged.PATCH, backbone.image_size // packaged.PATCH * packaged.PATCH)}",
        )
    return _packaged_tower(backbone.image_size)


@lru_cache(maxsize=8)
def _packaged_tower(image_size: int) -> nn.Module:
    model = nn.Module()
    with torch.device("meta"):
        model.visual = TimmModel("vit_small_patch14_dinov2", packaged.WIDTH, image_size, "token", "linear")
    return model


@lru_cache(maxsize=8)
def _by_name(name: str, image_size: int) -> Any:
    architecture = None if ":" in name else open_clip.get_model_config(name)
    if architecture is None:
        raise ConfigError(
            f"open_clip has no model {name!r}",
            where="backbone.name",
            fix="`python -c 'import open_clip; print(open_clip.list_models())'` prints the names",
        )
    if "hf_model_name" in architecture.get("text_cfg", {}):
        return None
    with torch.device("meta"), quiet_root_logger():
        try:
            model = open_clip.create_model(
                name, pretrained_hf=False, load_weights=False, force_image_size=image_size, device="meta"
            )
        except OSError:
            return None  # a hub's file
        except Exception as error:  # whatever its packages raise, as when it is loaded
            if _of_meta(error):
                return None
            raise ConfigError(
                f"{name} cannot be built for images of {image_size} pixels: {error}",
                where="backbone",
                fix=_SIZE,
            ) from error
        split_attention(model)
    return model.eval()


def _of_meta(error: Exception) -> bool:
    """Whether a step needed values, which nothing has here."""
    return "meta" in str(error).lower()


def _context(model: Any) -> int:
    return int(getattr(model, "context_length", None) or model.text.context_length)
