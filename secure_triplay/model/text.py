"""Class prompts as a text head: one unit embedding a class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from open_clip.hf_model import HFTextEncoder
from torch import Tensor, nn
from torch.nn import functional as F

from secure_triplay import config
from secure_triplay.errors import ConfigError
from secure_triplay.model.blocks import DualEncoder, text_stack

if TYPE_CHECKING:
    from secure_triplay.model.backbone import Backbone


def class_embeddings(backbone: Backbone, classes: Sequence[config.ClassPrompts]) -> Tensor:
    """Unit embeddings (n_classes, d) float32 of the classes' prompts, each class the mean of its prompts'.

    Computed from the study alone, never from data (Radford et al. 2021, section 3.1.4).
    Raises ConfigError for a class without prompts.
    """
    with torch.no_grad():
        found: Tensor = TextHead(backbone, classes)(1)[0]
    return found


class TextHead(nn.Module):
    """The text tower over the classes' prompts; a module, so that an adapter inside it can be trained.

    Opacus' hooks take the first dimension of a layer's input for the records. So where the text tower has an
    adapter, `forward(n)` runs the prompts once for each of n records; grad samples then come as
    (n * n_prompts, ...), and `privacy.per_record.backward_per_record` sums them by record.
    """

    def __init__(self, backbone: Backbone, classes: Sequence[config.ClassPrompts]) -> None:
        super().__init__()
        for entry in classes:
            if not [prompt for prompt in entry.prompts if prompt.strip()]:
                raise ConfigError(
                    f"class {entry.name!r} has no prompts",
                    where="classes",
                    fix=f'give it at least one sentence, such as "a photo of a {entry.name}"',
                )
        # Only the text blocks are registered: were the whole model, its image blocks would be part of a
        # classifier twice, and Opacus would hook them twice and double their gradients without a word.
        self.blocks = nn.ModuleList(text_stack(backbone.model).blocks)
        self._model: tuple[DualEncoder] = (backbone.model,)
        prompts = [prompt for entry in classes for prompt in entry.prompts]
        self.n_prompts = len(prompts)
        # Plain attributes, since Opacus refuses modules with buffers.
        self._tokens = _trimmed(backbone.tokenizer(prompts), backbone.model)
        self._sizes = [len(entry.prompts) for entry in classes]

    def forward(self, n: int) -> Tensor:
        """(n, n_classes, d) unit embeddings, the same for each of the n records."""
        each = F.normalize(self._model[0].encode_text(self._tokens.repeat(n, 1)), dim=-1)
        by_class = torch.split(each.view(n, self.n_prompts, -1), self._sizes, dim=1)
        return F.normalize(torch.stack([group.mean(dim=1) for group in by_class], dim=1), dim=-1)


def _trimmed(tokens: Tensor, model: DualEncoder) -> Tensor:
    """Without the columns that are padding for every prompt, in a tower that masks padding anyway."""
    text = getattr(model, "text", None)
    if not isinstance(text, HFTextEncoder):
        return tokens
    return tokens[:, (tokens != text.config.pad_token_id).any(dim=0)]
