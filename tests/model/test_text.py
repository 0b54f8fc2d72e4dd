from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from secure_triplay.config import ClassPrompts
from secure_triplay.errors import ConfigError
from secure_triplay.model.text import TextHead, class_embeddings

Make = Any
CLASSES = (
    ClassPrompts(name="cat", prompts=("a photo of a cat", "a small kitten on a sofa")),
    ClassPrompts(name="boot", prompts=("a photo of an ankle boot",)),
)


@pytest.mark.parametrize("kind", ["vit", "packaged"])
def test_each_class_is_the_unit_mean_of_its_unit_prompts(backbone: Make, kind: str) -> None:
    loaded = backbone(kind)
    got = class_embeddings(loaded, CLASSES)
    assert got.dtype == torch.float32
    assert not got.requires_grad
    torch.testing.assert_close(got.norm(dim=1), torch.ones(2))
    with torch.no_grad():
        for entry, row in zip(CLASSES, got, strict=True):
            alone = [
                F.normalize(loaded.model.encode_text(loaded.tokenizer([p]))[0], dim=0) for p in entry.prompts
            ]
            torch.testing.assert_close(
                row, F.normalize(torch.stack(alone).mean(0), dim=0), atol=1e-5, rtol=1e-4
            )


def test_a_text_head_gives_every_record_the_same_classes(backbone: Make) -> None:
    loaded = backbone("packaged")
    with torch.no_grad():
        got = TextHead(loaded, CLASSES)(3)
    for row in got:
        torch.testing.assert_close(row, class_embeddings(loaded, CLASSES), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("prompts", [(), ("  ",)])
def test_a_class_without_prompts_is_refused_by_name(backbone: Make, prompts: tuple[str, ...]) -> None:
    silent = ClassPrompts.model_construct(name="smudge cell", prompts=prompts)
    with pytest.raises(ConfigError, match="smudge cell"):
        class_embeddings(backbone("vit"), (*CLASSES, silent))
