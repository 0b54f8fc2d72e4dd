"""open_clip's fused attention, split into four Linear layers that quantizer, LoRA and Opacus can see."""

from __future__ import annotations

import torch
from timm.models.eva import EvaAttention
from torch import Tensor, nn
from torch.nn import functional as F

from secure_triplay.errors import ConfigError


class SplitAttention(nn.Module):
    """Attention with `q_proj`, `k_proj`, `v_proj`, `out_proj`, called like `nn.MultiheadAttention`.

    `nn.MultiheadAttention` reads its projections as bare parameters, so a LoRA layer or a hook on them is
    silently passed by. Here every projection is called as a module.
    """

    def __init__(self, fused: nn.MultiheadAttention) -> None:
        super().__init__()
        if fused.bias_k is not None or fused.add_zero_attn:
            raise ConfigError(
                "attention with bias_k or add_zero_attn cannot be split",
                where="backbone.name",
                fix="choose another model; none that open_clip ships has these",
            )
        self.num_heads, self.batch_first = fused.num_heads, fused.batch_first
        weights: tuple[Tensor, ...] = (fused.q_proj_weight, fused.k_proj_weight, fused.v_proj_weight)
        if fused._qkv_same_embed_dim:
            weights = fused.in_proj_weight.chunk(3)
        biases = (None,) * 3 if fused.in_proj_bias is None else fused.in_proj_bias.chunk(3)
        self.q_proj, self.k_proj, self.v_proj = map(_linear, weights, biases)
        self.out_proj = _linear(fused.out_proj.weight, fused.out_proj.bias)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
    ) -> tuple[Tensor, None]:
        """Attended tokens of the query's shape; `attn_mask` as `nn.MultiheadAttention` takes it."""
        if need_weights:
            raise NotImplementedError("attention weights are never formed here")
        if not self.batch_first:
            query, key, value = (part.transpose(0, 1) for part in (query, key, value))
        out = self.out_proj(self.attend(query, key, value, attn_mask))
        return (out if self.batch_first else out.transpose(0, 1)), None

    def attend(self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """What `out_proj` is given: attended tokens (n, n_queries, width) of batch-first inputs."""
        tokens = (self.q_proj(query), self.k_proj(key), self.v_proj(value))
        heads = (self.num_heads, self.q_proj.out_features // self.num_heads)
        q, k, v = (part.view(*part.shape[:2], *heads).transpose(1, 2) for part in tokens)
        if attn_mask is not None:
            if attn_mask.dtype == torch.bool:
                # True hides a token from MultiheadAttention, and shows it to the function below.
                attn_mask = ~attn_mask
            if attn_mask.dim() == 3:
                attn_mask = attn_mask.view(len(q), self.num_heads, *attn_mask.shape[1:])
        return F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask).transpose(1, 2).flatten(2)


def split_attention(model: nn.Module) -> int:
    """Replace every fused attention of the model by a SplitAttention with its weights; returns how many.

    Outputs stay equal to rounding (measured: 2e-6). EVA's fused projection, whose weight is used without
    calling the layer where its bias is kept apart, gets that bias back.
    """
    found = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if type(child) is nn.MultiheadAttention
    ]
    for parent, name, child in found:
        setattr(parent, name, SplitAttention(child).train(child.training))
    for module in model.modules():
        if isinstance(module, EvaAttention) and module.qkv is not None and module.q_bias is not None:
            bias = torch.cat([module.q_bias, module.k_bias, module.v_bias]).detach()
            module.qkv.bias = nn.Parameter(bias, requires_grad=False)
            module.q_bias = module.k_bias = module.v_bias = None
    return len(found)


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
    return layer
