"""What an adversary of an update has in hand: bytes that travelled, and the public constants of the model.

An attack's pure part takes these and nothing else. There is no image, label or key in them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from secure_triplay.attacks.inversion import Array, FirstBlock, first_block
from secure_triplay.model.blocks import INPUT_LAYERS

if TYPE_CHECKING:
    from secure_triplay.attacks.scene import Scene, Vector


@dataclass(frozen=True)
class Uploads:
    """What one site sent in one round or several: float32 updates, or messages full of ciphertexts."""

    contents: tuple[bytes, ...]
    encrypted: bool

    def updates(self, n_params: int) -> list[Vector]:
        """What an attacker takes each for: an update (n_params,) float32.

        Ciphertexts are read as 16-bit numbers, over and over where they are too few: nobody knows better.
        """
        if not self.encrypted:
            return [np.frombuffer(each, "<f4", n_params).astype(np.float32) for each in self.contents]
        words = [np.frombuffer(each[len(each) % 2 :], "<i2") for each in self.contents]
        return [np.resize(each.astype(np.float32) / 2.0**15, n_params) for each in words]


@dataclass(frozen=True, eq=False)
class PublicModel:
    """PUBLIC. How an update is laid out, the frozen A matrices (r, d) by name, and the first block."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    frozen: dict[str, Array]
    first: FirstBlock

    @classmethod
    def of(cls, scene: Scene) -> PublicModel:
        """The public part of a scene."""
        adapter, backbone = scene.model.adapter, scene.model.backbone
        frozen = {
            name.replace(".default.weight", ""): weight.detach().double().numpy()
            for name, weight in backbone.model.named_parameters()
            if ".lora_A." in name and not weight.requires_grad
        }
        return cls(adapter.names, adapter.shapes, frozen, first_block(backbone))

    @property
    def n_params(self) -> int:
        """Numbers in an update."""
        return sum(int(np.prod(shape)) for shape in self.shapes)

    def part(self, update: NDArray[np.floating], name: str) -> Array:
        """One weight's change, in its own shape."""
        index = self.names.index(name)
        start = sum(int(np.prod(shape)) for shape in self.shapes[:index])
        shape = self.shapes[index]
        return np.asarray(update[start : start + int(np.prod(shape))], np.float64).reshape(shape)

    def inputs_of_block(self, block: int) -> list[str]:
        """The layers of one image block that read its normed input: a fused `qkv`, or `q_proj` and so on."""
        return sorted(path for name in INPUT_LAYERS for path in self.layers_of_block(block, name))

    def layers_of_block(self, block: int, layer: str) -> list[str]:
        """The adapted layers of one image block that are called so, such as `attn.qkv`."""
        ends = (f".blocks.{block}.{layer}", f".resblocks.{block}.{layer}")
        paths = {name.rpartition(".lora_")[0] for name in self.names}
        return sorted(path for path in paths if path.startswith("visual.") and path.endswith(ends))
