"""Frozen block weights in 4 or 8 bits by bitsandbytes, and the bytes that they really take.

Only the Linear layers inside transformer blocks are quantized. Patch and token embeddings, norms and
projections keep full precision.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from secure_triplay.model.blocks import DualEncoder, image_stack, text_stack

# While imported, bitsandbytes looks for CPU kernels on a model hub and, where the package for that is missing
# (as it must be here), logs a warning that sends people to install it. Only that message's logger is
# quietened.
_hub_hint = logging.getLogger("bitsandbytes.backends.cpu.ops")
_level = _hub_hint.level
_hub_hint.setLevel(logging.ERROR)
import bitsandbytes as bnb  # noqa: E402

_hub_hint.setLevel(_level)

Mode = Literal["nf4", "int8", "none"]
NF4_BLOCK = 64


class Int8Linear(bnb.nn.Linear8bitLt):  # type: ignore[misc]
    """An 8-bit weight with float activations, in training and in evaluation alike.

    In evaluation mode bitsandbytes rounds activations to 8 bits too. Here features must not depend on the
    mode, since what is cached in one is trained on in the other.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) float32 -> (..., out_features) float32."""
        if self.weight.CB is not None:
            self.init_8bit_state()
        self.state.is_training = True
        out: Tensor = bnb.matmul(x, self.weight, bias=self.bias, state=self.state)
        return out


def quantize_blocks(model: DualEncoder, mode: Mode, compute_dtype: torch.dtype = torch.float32) -> int:
    """Quantize the Linear layers inside both towers' blocks in place; returns how many were.

    The outputs of a quantized model are the same in training and evaluation, with and without gradients. NF4
    (Dettmers et al. 2023) leaves a layer in full precision whose rows are no whole number of 64-weight
    blocks: bitsandbytes' AVX-512 kernel gives wrong weights for it (seen with 0.50.2 at 4,304 inputs, SigLIP
    So400m). `compute_dtype` is what NF4 layers multiply in; activations outside them stay float32.
    """
    make = _MAKERS[mode]
    if make is None:
        return 0
    layers = image_stack(model).linears() | text_stack(model).linears()
    count = 0
    for path, layer in layers.items():
        if mode == "nf4" and layer.in_features % NF4_BLOCK:
            continue
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, make(layer, compute_dtype))
        count += 1
    for module in model.modules():
        if hasattr(module, "get_cast_dtype"):
            # open_clip casts text embeddings to the dtype of the first block's weight, which is now uint8.
            module.get_cast_dtype = _float32
    flag = {"nf4": "is_loaded_in_4bit", "int8": "is_loaded_in_8bit"}[mode]
    setattr(model, flag, True)  # peft reads this to choose its layer for quantized weights
    return count


def frozen_bytes(model: nn.Module) -> int:
    """Bytes of memory of all frozen weights, buffers and quantization constants, each counted once."""
    storages: dict[int, int] = {}
    for tensor in _frozen_tensors(model):
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def _frozen_tensors(model: nn.Module) -> Iterator[Tensor]:
    yield from (weight for weight in model.parameters() if not weight.requires_grad)
    yield from model.buffers()
    for module in model.modules():
        constants: list[Any] = []
        if isinstance(module, bnb.nn.Linear4bit):
            state = module.weight.quant_state
            while state is not None:
                constants += [state.absmax, state.code, state.offset]
                state = state.state2
        elif isinstance(module, bnb.nn.Linear8bitLt):
            constants = [module.state.CB, module.state.SCB, module.weight.CB, module.weight.SCB]
        yield from (part for part in constants if isinstance(part, Tensor))


def _nf4(layer: nn.Linear, compute_dtype: torch.dtype) -> nn.Module:
    small = bnb.nn.Linear4bit(
        layer.in_features,
        layer.out_features,
        layer.bias is not None,
        compute_dtype,
        quant_type="nf4",
        device="meta",
    )
    small.weight = bnb.nn.Params4bit(
        layer.weight.detach(),
        requires_grad=False,
        blocksize=NF4_BLOCK,
        compress_statistics=True,
        quant_type="nf4",
        module=small,
    ).to("cpu")
    small.bias = layer.bias
    # Where the processor has AVX512-BF16, evaluation without gradients would repack the weight for another
    # kernel: outputs change (0.012 at scale 3.2), and a later backward pass through the layer fails.
    small.support_avx512bf16_for_cpu = False
    return _frozen(small, layer)


def _int8(layer: nn.Linear, compute_dtype: torch.dtype) -> nn.Module:
    small = Int8Linear(
        layer.in_features, layer.out_features, layer.bias is not None, has_fp16_weights=False, device="meta"
    )
    weight = bnb.nn.Int8Params(layer.weight.detach(), requires_grad=False, has_fp16_weights=False)
    small.weight = weight.to("cpu")
    small.bias = layer.bias
    return _frozen(small, layer)


def _frozen(small: nn.Module, layer: nn.Linear) -> nn.Module:
    for weight in small.parameters():
        weight.requires_grad_(False)
    return small.train(layer.training)


def _float32() -> torch.dtype:
    return torch.float32


_MAKERS: dict[str, Callable[[nn.Linear, torch.dtype], nn.Module] | None] = {
    "nf4": _nf4,
    "int8": _int8,
    "none": None,
}


def dequantize(tower: nn.Module) -> None:
    """Put plain layers in place of a tower's 4-bit ones, with the weights that these stand for."""
    for module in list(tower.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, bnb.nn.Linear4bit):
                setattr(module, name, _full_precision(child))


def _full_precision(layer: Any) -> nn.Linear:
    plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
    weight = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    plain.weight = nn.Parameter(weight.float(), requires_grad=False)
    if layer.bias is not None:
        plain.bias = nn.Parameter(layer.bias.detach().float(), requires_grad=False)
    return plain
