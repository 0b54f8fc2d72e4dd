"""LoRA on the last blocks, as one flat vector and in PEFT's own file format.

Default is FFA-LoRA (Sun et al. 2024, arXiv 2403.12313): A is frozen and drawn from a public seed, only B is
trained and sent, so that the mean of the sites' B is exactly the mean of their products. With `output_rank`, B is
kept to few public directions of a layer's outputs, and the small matrix that is left is trained (`model.outputs`).
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from secure_triplay import config
from secure_triplay.errors import ConfigError, RunError
from secure_triplay.model.blocks import BlockStack, DualEncoder, image_stack, require_blocks, text_stack
from secure_triplay.model.outputs import FewOutputs

if TYPE_CHECKING:
    from secure_triplay.model.backbone import Backbone

EVERY_BLOCK = 64
"""`last_blocks` at the most that a study may say: all blocks that there are. Other numbers mean themselves."""
_NAME = "default"
_TEXT_MODULES = r"attention\.(self\.(query|key|value)|output\.dense)"  # transformers' BERT-like towers


@dataclass(frozen=True, eq=False)
class Adapter:
    """The trained part of a model, in a fixed order: names sorted as strings, each array row by row.

    `peft` wraps the backbone's own module, which was changed in place. `names`, `shapes` and `weights` hold
    what is trained and sent, nothing else: with kind `ffa` the B's, or what is trained of them, with kind `lora` the
    A's and B's.
    """

    peft: Any
    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    weights: tuple[nn.Parameter, ...]
    first_block: int
    n_blocks: int

    @property
    def n_params(self) -> int:
        """How many numbers are trained and sent."""
        return sum(weight.numel() for weight in self.weights)

    def vector(self) -> NDArray[np.float32]:
        """(n_params,) float32, a copy."""
        return np.concatenate([weight.detach().numpy().reshape(-1) for weight in self.weights])

    def load_vector(self, values: NDArray[np.float32]) -> None:
        """Set what `vector` reads. Raises RunError, and sets nothing, where length or values are wrong."""
        finite = bool(np.isfinite(values).all())
        if values.shape != (self.n_params,) or not finite:
            raise RunError(
                f"the adapter takes {self.n_params:,} finite numbers; got shape {values.shape}"
                + ("" if finite else " with values that are not finite"),
                where="adapter",
                fix="use the study that the vector was trained with",
            )
        start = 0
        with torch.no_grad():
            for weight in self.weights:
                part = np.array(values[start : start + weight.numel()], dtype=np.float32)
                weight.copy_(torch.from_numpy(part).view_as(weight))
                start += weight.numel()

    def save(self, folder: Path) -> None:
        """Write PEFT's adapter_model.safetensors and adapter_config.json, frozen A's and projection too.

        `PeftModel.from_pretrained(load_backbone(cfg).model, folder)` then gives this model, no key missing.
        """
        from peft import get_peft_model_state_dict
        from safetensors.torch import save_file

        state = get_peft_model_state_dict(self.peft, save_embedding_layers=False)
        for name, module in self.peft.named_modules():
            if isinstance(module, FewOutputs):  # saved as the B that it stands for
                del state[f"{name}.inner.weight"]
                state[f"{name.removesuffix(f'.{_NAME}')}.weight"] = module.weight
        folder.mkdir(parents=True, exist_ok=True)
        save_file(
            {name: tensor.detach().contiguous().clone() for name, tensor in sorted(state.items())},
            folder / "adapter_model.safetensors",
            metadata={"format": "pt"},
        )
        settings = self.peft.peft_config[_NAME].to_dict() | {"inference_mode": True}
        type(self.peft.peft_config[_NAME])(**settings).save_pretrained(str(folder))


def attach_adapter(backbone: Backbone, cfg: config.Adapter, a_seed: bytes) -> Adapter:
    """Put LoRA into the backbone's module in place: zero B, and A's that everyone draws alike from `a_seed`.

    Targets are the Linear layers of the last `last_blocks` blocks whose path inside a block `target_modules`
    matches in full; with `text_tower`, those of as many of the text tower's last blocks, where it has them, too
    (where transformers built it, its attention projections). A fitted image projection is saved with the adapter, but
    not trained. Raises ConfigError where nothing matches, where the image tower has fewer blocks, or where an adapter
    is attached already.
    """
    from peft import LoraConfig, get_peft_model

    model = backbone.model
    if any("lora_" in name for name, _ in model.named_parameters()):
        raise ConfigError("the backbone has an adapter already", where="adapter", fix="load it again")
    stack = image_stack(model)
    targets = target_layers(model, cfg)
    first_block = _first_block(stack, cfg)
    pixels = torch.zeros(1, 3, backbone.image_size, backbone.image_size)
    require_called(model, targets, pixels, backbone.tokenizer(["a photo"]) if cfg.text_tower else None)
    wrapped = get_peft_model(
        model,
        LoraConfig(
            r=cfg.rank,
            lora_alpha=cfg.alpha,
            lora_dropout=0.0,
            bias="none",
            # Full paths in one expression: peft matches a list by suffix, and CLIP's text blocks are a suffix
            # of its image blocks.
            target_modules="|".join(map(re.escape, targets)),
            modules_to_save=[backbone.projection] if backbone.projection else None,
        ),
    )
    if cfg.output_rank is not None:
        for path in targets:
            layer: Any = model.get_submodule(path)
            layer.lora_B[_NAME] = FewOutputs(cfg.rank, layer.out_features, cfg.output_rank)
    trained: dict[str, nn.Parameter] = {}
    for name, weight in model.named_parameters():
        weight.requires_grad_(False)
        short = re.sub(rf"\.{_NAME}(\.inner)?\.weight$", "", name)
        if ".lora_A." in name:
            with torch.no_grad():
                rank, inputs = weight.shape
                weight.copy_(torch.from_numpy(draw_a(a_seed, short, (rank, inputs))))
        if ".lora_B." in name or (".lora_A." in name and cfg.kind == "lora"):
            weight.requires_grad_(True)
            trained[short] = weight
    wrapped.eval()  # as the backbone came; PEFT's layers come in training mode
    names = tuple(sorted(trained))
    weights = tuple(trained[name] for name in names)
    shapes = tuple(tuple(weight.shape) for weight in weights)
    return Adapter(wrapped, names, shapes, weights, first_block, len(stack.blocks))


def target_layers(model: DualEncoder, cfg: config.Adapter) -> list[str]:
    """Module paths of the layers that an adapter is put on; `model` needs no weights for that.

    Raises ConfigError where nothing matches, or the image tower has fewer blocks than are to be adapted or layers
    with fewer outputs than are to be trained.
    """
    stack = image_stack(model)
    if cfg.last_blocks != EVERY_BLOCK:
        require_blocks(len(stack.blocks), cfg.last_blocks)
    targets = _targets(stack, cfg, cfg.target_modules)
    narrow = [path for path in targets if model.get_submodule(path).out_features < (cfg.output_rank or 0)]
    if narrow:
        raise ConfigError(
            f"{narrow[0]} has {model.get_submodule(narrow[0]).out_features} outputs, and no {cfg.output_rank} "
            "directions of them",
            where="adapter.output_rank",
            fix="lower it to the number of classes less one, or leave it out",
        )
    if cfg.text_tower:
        text = text_stack(model)
        from_transformers = not text.path.endswith("transformer.resblocks")
        targets += _targets(text, cfg, _TEXT_MODULES if from_transformers else cfg.target_modules)
    return targets


def _first_block(stack: BlockStack, cfg: config.Adapter) -> int:
    return max(0, len(stack.blocks) - cfg.last_blocks)


def draw_a(seed: bytes, name: str, shape: tuple[int, int]) -> NDArray[np.float32]:
    """A public A matrix (rank, inputs) float32, uniform on +-1/sqrt(inputs), the same on every machine.

    SHAKE-256 of the seed and the layer's name, read as little-endian 32-bit integers; the distribution is the
    one that peft draws from (Hu et al. 2021, LoRA, leave it open).
    """
    rank, inputs = shape
    label = b"secure_triplay.adapter.A\x00" + len(seed).to_bytes(4, "big") + seed + name.encode()
    integers = np.frombuffer(hashlib.shake_256(label).digest(4 * rank * inputs), dtype="<u4")
    unit = (integers.astype(np.float64) + 0.5) / 2.0**31 - 1.0
    drawn: NDArray[np.float32] = (unit / np.sqrt(inputs)).astype(np.float32)
    return drawn.reshape(rank, inputs)


def _targets(stack: BlockStack, cfg: config.Adapter, pattern: str) -> list[str]:
    layers = stack.linears(_first_block(stack, cfg))
    linears = {path: path.removeprefix(f"{stack.path}.").partition(".")[2] for path in layers}
    found = [path for path, inside in linears.items() if re.fullmatch(pattern, inside)]
    if not found:
        raise ConfigError(
            f"{pattern!r} matches no linear layer inside a block of {stack.path}",
            where="adapter.target_modules",
            fix=f"layers there: {', '.join(dict.fromkeys(linears.values()))}",
        )
    return found


def require_called(
    model: DualEncoder, targets: list[str], pixels: torch.Tensor, words: torch.Tensor | None
) -> None:
    """Return nothing if the model calls each layer for an image, and for a text where there is one.

    Some towers read a layer's weight without calling the layer: LoRA on it would train and do nothing. Raises
    ConfigError.
    """
    called: set[str] = set()
    hooks = [
        model.get_submodule(path).register_forward_pre_hook(lambda *_, path=path: called.add(path))
        for path in targets
    ]
    try:
        with torch.no_grad():
            model.encode_image(pixels)
            if words is not None:
                model.encode_text(words)
    finally:
        for hook in hooks:
            hook.remove()
    bypassed = [path for path in targets if path not in called]
    if bypassed:
        raise ConfigError(
            f"{bypassed[0]} takes no part in this model as a layer, so an adapter on it would have no effect",
            where="adapter.target_modules",
            fix="leave it out of the expression",
        )
