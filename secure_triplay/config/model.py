"""The frozen model and what is trained on it."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from secure_triplay.config.kinds import Positive, Sha256
from secure_triplay.schema import Frozen

MAX_RANK = 256
"""Of an adapter, and of the directions that its outputs are kept to."""


class ClassPrompts(Frozen):
    """One class and the sentences that describe it to the text tower."""

    name: Annotated[str, Field(min_length=1, max_length=80)]
    prompts: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)]


class Backbone(Frozen):
    """The frozen model that every site must have, named by hash and licence."""

    source: Literal["packaged", "open_clip", "file"]
    name: str = Field(description="open_clip's model name, or dinov2-small-minilm-l6 for the packaged one")
    pretrained: str | None = Field(None, description="open_clip tag (source open_clip) or path (source file)")
    sha256: Sha256 | None = Field(None, description="of the weight file; packaged: of the image tower's file")
    text_sha256: Sha256 | None = Field(None, description="packaged only: of the text tower's file")
    licence: str
    allowed_licences: tuple[str, ...] = ("Apache-2.0", "MIT", "BSD-3-Clause")
    quantization: Literal["nf4", "int8", "none"] = "nf4"
    compute: Literal["float32", "bfloat16", "auto"] = Field(
        "float32", description="of nf4 layers' products; auto: bfloat16 where the processor has it"
    )
    image_size: Annotated[int, Field(ge=14, le=1024)] = 224
    align_ridge: Positive = Field(0.1, description="packaged only: ridge of the projection's alignment")
    unsafe_random_weights: bool = Field(False, description="for measuring size and speed only")

    @model_validator(mode="after")
    def _complete(self) -> Backbone:
        if self.licence not in self.allowed_licences:
            raise ValueError(
                f"the backbone's licence {self.licence!r} is not among allowed_licences "
                f"{list(self.allowed_licences)}; choose another backbone, or have the licence approved and add it"
            )
        if self.unsafe_random_weights:
            return self
        if self.sha256 is None:
            raise ValueError("sha256 of the weight file is missing; without it nobody knows what was trained")
        if self.source == "packaged" and self.text_sha256 is None:
            raise ValueError("text_sha256 is missing; the packaged backbone has two weight files")
        if self.source != "packaged" and not self.pretrained:
            raise ValueError("pretrained is missing; give open_clip's tag, or the path of the weight file")
        return self


class Adapter(Frozen):
    """The trained part: LoRA on the last blocks of the image tower."""

    kind: Literal["ffa", "lora"] = Field("ffa", description="ffa: A frozen, B trained and sent; lora: both")
    rank: Annotated[int, Field(ge=1, le=MAX_RANK)] = 4
    alpha: Positive = 8.0
    target_modules: str = Field(r"attn\.(qkv|proj)", description="regex, full match inside a block")
    last_blocks: Annotated[int, Field(ge=1, le=64)] = 4
    text_tower: bool = False
    basis: Literal["seed", "public"] = Field(
        "seed",
        description="ffa: A drawn from the public seed, or fitted to public images by who makes the study's bundle",
    )
    output_rank: Annotated[int, Field(ge=1, le=MAX_RANK)] | None = Field(
        None,
        description="with basis: public, B in so many directions of a layer's outputs, those in which public images' "
        "logits move (the number of classes less one is enough); left out: all, and as many more values are sent",
    )

    @model_validator(mode="after")
    def _basis_fits(self) -> Adapter:
        if self.basis == "public" and (self.kind != "ffa" or self.text_tower):
            raise ValueError(
                "basis: public is for a frozen A of the image tower; it needs kind: ffa, text_tower: false"
            )
        if self.output_rank is not None and self.basis != "public":
            raise ValueError(
                "output_rank needs basis: public, where both A and B's directions come from public images"
            )
        return self

    @field_validator("target_modules")
    @classmethod
    def _compiles(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"{value!r} is not a regular expression: {error}") from error
        return value
