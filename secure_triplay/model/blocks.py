"""Where a model keeps its transformer blocks: the one place that knows the towers' layouts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from open_clip.hf_model import HFTextEncoder
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer as TimmVisionTransformer
from torch import nn

from secure_triplay.errors import ConfigError

INPUT_LAYERS = ("attn.qkv", "attn.q_proj", "attn.k_proj", "attn.v_proj")
"""What reads a block's normed input, fused or apart."""

DualEncoder = Any  # open_clip's CLIP, CustomTextCLIP or CoCa, whose attributes no type describes


@dataclass(frozen=True)
class BlockStack:
    """The blocks of one tower in order, and their module path, such as `visual.trunk.blocks`."""

    path: str
    blocks: tuple[nn.Module, ...]

    def linears(self, first: int = 0) -> dict[str, nn.Linear]:
        """Linear layers of the blocks from `first` on, by their full module path."""
        return {
            f"{self.path}.{index}.{name}": module
            for index, block in enumerate(self.blocks)
            if index >= first
            for name, module in block.named_modules()
            if isinstance(module, nn.Linear)
        }


def image_stack(model: DualEncoder) -> BlockStack:
    """The image tower's blocks.

    Raises ConfigError where the tower is not a plain transformer (ResNet, ConvNeXt, Swin, ...).
    """
    visual = model.visual
    if type(visual) is VisionTransformer:
        return BlockStack("visual.transformer.resblocks", tuple(visual.transformer.resblocks))
    # Exact types: a subclass may hand its blocks more than the tokens, and would be run wrongly.
    if isinstance(visual, TimmModel) and type(visual.trunk) in (TimmVisionTransformer, Eva):
        return BlockStack("visual.trunk.blocks", tuple(visual.trunk.blocks))
    kind = type(getattr(visual, "trunk", visual)).__name__
    raise ConfigError(
        f"the image tower {kind} is not a plain vision transformer",
        where="backbone.name",
        fix="choose a ViT, SigLIP or EVA model of open_clip, or the packaged backbone",
    )


def text_stack(model: DualEncoder) -> BlockStack:
    """The text tower's blocks, in open_clip's own tower or in one of transformers'."""
    text = getattr(model, "text", None)
    if text is None:
        return BlockStack("transformer.resblocks", tuple(model.transformer.resblocks))
    if not isinstance(text, HFTextEncoder):
        return BlockStack("text.transformer.resblocks", tuple(text.transformer.resblocks))
    lists = {name: part for name, part in text.transformer.named_modules() if isinstance(part, nn.ModuleList)}
    name = max(lists, key=lambda key: sum(isinstance(part, nn.Linear) for part in lists[key].modules()))
    return BlockStack(f"text.transformer.{name}", tuple(lists[name]))


def require_blocks(there: int, last_blocks: int, where: str = "adapter.last_blocks") -> None:
    """Return nothing if a tower of `there` blocks has as many last ones. Raises ConfigError."""
    if last_blocks > there:
        raise ConfigError(
            f"the backbone has {there} blocks, of which no last {last_blocks} can be adapted",
            where=where,
            fix=f"give a number from 1 to {there}",
        )
