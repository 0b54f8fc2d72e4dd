"""The image tower cut in two: what never changes runs once an image, what is trained runs every step.

`prefix` covers resizing, patch embedding and the frozen blocks below the lowest adapted one; `suffix` does
the rest. Where nothing before the attended class token of the last block is adapted, the cut lies there: an image is
then two tokens, and a step costs a few products for one token.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from timm.layers import Attention
from timm.models.eva import Eva
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F

from secure_triplay.errors import DataError
from secure_triplay.model.attention import SplitAttention
from secure_triplay.model.blocks import image_stack
from secure_triplay.model.text import TextHead

if TYPE_CHECKING:
    from secure_triplay.model.backbone import Backbone

Images = NDArray[np.uint8]


class ImageTower:
    """A backbone's image tower, cut below block `first_block`; prefix, then suffix, equals `encode_image`."""

    def __init__(self, backbone: Backbone, first_block: int) -> None:
        self._backbone = backbone
        self._visual = backbone.model.visual
        self._blocks = image_stack(backbone.model).blocks
        self.first_block = first_block
        self._ropes = self._rotary()
        self._attended = _attended_cut(self._visual, self._blocks[first_block:])
        self.cut = f"{first_block}{'+attention' if self._attended else ''}"
        """Where the tower is cut: cached tokens of one cut are of no use at another."""
        self.suffix = Suffix(
            self._visual, self._blocks[first_block:], self._ropes[first_block:], self._attended is not None
        )

    def pixels(self, images: Images) -> Tensor:
        """Model input (n, 3, size, size) float32 of uint8 images (n, H, W, 3). Raises DataError."""
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
            raise DataError(
                f"images must be (n, H, W, 3) uint8; got {images.shape} {images.dtype}",
                where="image tower",
                fix="convert them to 8-bit RGB",
            )
        seen = self._backbone
        x = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 255
        x = _resize(x, seen.image_size, seen.resize_mode, seen.interpolation)
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (seen.mean, seen.std))
        return (x - mean) / std

    def prefix(self, images: Images, batch_size: int = 128) -> Tensor:
        """Tokens (n, n_tokens, width) float32 of (n, H, W, 3) uint8 images; cache them, they never change."""
        # Towers reshape with -1, which fails for no records at all: a picture stands in, and is cut off.
        given = images if len(images) else np.zeros((1, 8, 8, 3), np.uint8)
        starts = range(0, len(given), batch_size)
        with torch.no_grad():
            parts = [self.below(self.pixels(given[start : start + batch_size])) for start in starts]
        return torch.cat(parts)[: len(images)]

    def features(self, tokens: Tensor, batch_size: int = 256) -> NDArray[np.float32]:
        """Unit features (n, d) float32 of cached tokens, without gradients."""
        with torch.no_grad():
            parts = [self.suffix(part) for part in torch.split(tokens, batch_size)]
        features: NDArray[np.float32] = torch.cat(parts).numpy()
        return features

    def below(self, x: Tensor) -> Tensor:
        """Tokens of model input (n, 3, size, size), as `prefix` caches them, with gradients where x has them."""
        x = _embed(self._visual, x)
        for block, rope in zip(self._blocks[: self.first_block], self._ropes, strict=False):
            x = _run(block, x, rope)
        if self._attended is None:
            return x
        return torch.cat([x[:, :1], self._attended(self._blocks[-1], x)], dim=1)

    def _rotary(self) -> list[Tensor | None]:
        """Rotary embeddings by block; they depend on the grid alone."""
        trunk = getattr(self._visual, "trunk", None)
        if not isinstance(trunk, Eva):
            return [None] * len(self._blocks)
        size = self._backbone.image_size
        with torch.no_grad():
            _, rope = trunk._pos_embed(trunk.patch_embed(torch.zeros(1, 3, size, size)))
        if rope is not None and getattr(trunk, "rope_mixed", False):
            return list(rope)
        return [rope] * len(self._blocks)


class Suffix(nn.Module):
    """Adapted blocks, norm, pooling and projection: tokens (n, n_tokens, width) -> unit features (n, d)."""

    def __init__(
        self, visual: Any, blocks: tuple[nn.Module, ...], ropes: list[Tensor | None], attended: bool = False
    ) -> None:
        """`attended`: tokens are the last block's class token and what it attended to, (n, 2, width)."""
        super().__init__()
        self.visual, self._attended = visual, attended
        # Tuples, so that the blocks are registered once, under the paths that the backbone gives them.
        self._blocks, self._ropes = blocks, ropes
        self._last = _class_token_block(visual, blocks[-1]) if blocks else None

    def forward(self, tokens: Tensor) -> Tensor:
        """Unit features (n, d), equal to the model's own normalised `encode_image` to rounding."""
        whole = len(self._blocks) - (self._last is not None)
        for block, rope in zip(self._blocks[:whole], self._ropes, strict=False):
            tokens = _run(block, tokens, rope)
        if self._last is not None:
            last = self._blocks[-1]
            attended = tokens[:, 1:] if self._attended else self._last.attend(last, tokens)
            tokens = self._last.finish(last, tokens[:, :1], attended)
        return F.normalize(_pool(self.visual, tokens), dim=-1)


class Classifier(nn.Module):
    """Tokens (n, n_tokens, width) -> logits (n, n_classes): scaled cosines to the class embeddings.

    Only adapter weights need gradients, and each record's logits depend on that record alone, so that
    `privacy.per_record` gives each record's own. With a TextHead in place of embeddings (n_classes, d) the text
    tower's adapter is trained too.
    """

    def __init__(self, suffix: Suffix, head: Tensor | TextHead, logit_scale: float) -> None:
        super().__init__()
        self.suffix, self.logit_scale = suffix, logit_scale
        self.text = head if isinstance(head, TextHead) else None
        self._embeddings = None if isinstance(head, TextHead) else head

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (n, n_classes) float32."""
        features = self.suffix(tokens)
        if self._embeddings is not None:
            return self.logit_scale * F.linear(features, self._embeddings)
        assert self.text is not None
        return self.logit_scale * torch.einsum("nd,ncd->nc", features, self.text(len(tokens)))


class Adjusted(nn.Module):
    """A classifier whose logits have a constant (n_classes,) added: what a site trains, and nobody publishes."""

    def __init__(self, classifier: nn.Module, bias: NDArray[np.float32]) -> None:
        super().__init__()
        self.classifier = classifier
        self._bias = torch.from_numpy(bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """(n, n_tokens, width) -> (n, n_classes)."""
        adjusted: Tensor = self.classifier(tokens) + self._bias
        return adjusted


class WholeTower(nn.Module):
    """Pixels (n, 3, size, size) -> logits (n, n_classes), by the model's own forward: nothing cut, nothing cached."""

    def __init__(self, visual: nn.Module, embeddings: Tensor, logit_scale: float) -> None:
        super().__init__()
        self.visual, self._embeddings, self._scale = visual, embeddings, logit_scale

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits (n, n_classes)."""
        return self._scale * F.linear(F.normalize(self.visual(pixels), dim=-1), self._embeddings)


def _embed(visual: Any, x: Any) -> Any:
    if isinstance(visual, VisionTransformer):
        return visual._embeds(x)
    trunk = visual.trunk
    x = trunk._pos_embed(trunk.patch_embed(x))
    return trunk.norm_pre(x[0] if isinstance(trunk, Eva) else x)


def _run(block: nn.Module, x: Tensor, rope: Tensor | None) -> Any:
    return block(x) if rope is None else block(x, rope=rope)


def _pool(visual: Any, x: Tensor) -> Any:
    if isinstance(visual, VisionTransformer):
        pooled, _ = visual._pool(x)
        return pooled if visual.proj is None else pooled @ visual.proj
    return visual.head(visual.trunk.forward_head(visual.trunk.norm(x)))


@dataclass(frozen=True)
class _ClassTokenBlock:
    """A last block for the class token alone: what it attends to, (n, 1, width), and the rest of the block."""

    attend: Callable[[Any, Tensor], Any]
    finish: Callable[[Any, Tensor, Any], Any]


def _class_token_block(visual: Any, block: Any) -> _ClassTokenBlock | None:
    """Where the tower pools its class token: the last block for that token alone, equal and cheaper.

    Exact types only, since these functions repeat what the block's own forward does.
    """
    if isinstance(visual, VisionTransformer):
        plain = type(block) is ResidualAttentionBlock and type(block.attn) is SplitAttention
        takes_token = visual.attn_pool is None and visual.pool_type == "tok"
        return _ClassTokenBlock(_open_clip_attend, _open_clip_finish) if plain and takes_token else None
    plain = type(block) is Block and type(block.attn) is Attention and block.attn.gate is None
    takes_token = visual.trunk.global_pool == "token" and visual.trunk.attn_pool is None
    return _ClassTokenBlock(_timm_attend, _timm_finish) if plain and takes_token else None


_AFTER_ATTENTION = ("attn.proj.", "attn.out_proj.", "mlp.")


def _attended_cut(visual: Any, blocks: tuple[nn.Module, ...]) -> Callable[[Any, Tensor], Any] | None:
    """What a lone last block attends to, where none of its adapted layers comes before that; else nothing."""
    last = _class_token_block(visual, blocks[-1]) if len(blocks) == 1 else None
    if last is None:
        return None
    adapted = [name for name, weight in blocks[0].named_parameters() if weight.requires_grad]
    return last.attend if adapted and all(name.startswith(_AFTER_ATTENTION) for name in adapted) else None


def _open_clip_attend(block: Any, x: Tensor) -> Any:
    y = block.ln_1(x)
    return block.attn.attend(y[:, :1], y, y)


def _open_clip_finish(block: Any, x: Tensor, attended: Any) -> Any:
    x = x + block.ls_1(block.attn.out_proj(attended))
    return x + block.ls_2(block.mlp(block.ln_2(x)))


def _timm_attend(block: Any, x: Tensor) -> Any:
    attn = block.attn
    qkv = attn.qkv(block.norm1(x)).unflatten(-1, (3, attn.num_heads, attn.head_dim))
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    y = F.scaled_dot_product_attention(attn.q_norm(q[:, :, :1]), attn.k_norm(k), v)
    return attn.norm(y.transpose(1, 2).flatten(2))


def _timm_finish(block: Any, x: Tensor, attended: Any) -> Any:
    x = x + block.ls1(block.attn.proj(attended))
    return x + block.ls2(block.mlp(block.norm2(x)))


def _resize(x: Tensor, size: int, mode: str, interpolation: str) -> Tensor:
    """Pictures (n, 3, H, W) in [0, 1] at size x size: shortest side to size and centre crop, or squashed."""
    height, width = x.shape[-2:]
    short = min(height, width)
    target = (size, size) if mode == "squash" else (size * height // short, size * width // short)
    if target != (height, width):
        x = F.interpolate(x, size=target, mode=interpolation, antialias=True, align_corners=False).clamp(0, 1)
    top, left = round((target[0] - size) / 2), round((target[1] - size) / 2)
    return x[..., top : top + size, left : left + size]
