"""Tokens are taken from the cache for the very frozen blocks that made them, and for no others."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from secure_triplay.config import parse_study
from secure_triplay.experiments import setting as module
from secure_triplay.experiments.grid import load_grid
from secure_triplay.experiments.setting import Setting
from secure_triplay.experiments.tokens import Tokens


@pytest.fixture
def towers(monkeypatch):
    """In place of each model a toy whose tokens say which backbone and cut made them; the list of all that did."""
    made: list[tuple[str, str]] = []

    def load(study, public, seed):
        said = (study.backbone.model_dump_json(), f"cut {study.adapter.last_blocks}")

        def prefix(images):
            made.append(said)
            return torch.full((len(images), 1, 1), float(sorted(set(made), key=made.index).index(said)))

        return SimpleNamespace(
            tower=SimpleNamespace(cut=said[1], prefix=prefix),
            backbone=SimpleNamespace(
                name="toy", quantization=study.backbone.quantization, image_size=8, image_frozen_bytes=7
            ),
            adapter=SimpleNamespace(vector=lambda: np.zeros(3, np.float32)),
        )

    monkeypatch.setattr(module, "load_model", load)
    return made


def changed(study, part, **changes):
    content = study.model_dump(mode="json")
    content[part] |= changes
    return parse_study(content)


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("backbone", {"image_size": 112}),
        ("backbone", {"compute": "bfloat16"}),
        ("backbone", {"quantization": "none"}),
        ("backbone", {"sha256": "0" * 64}),
        ("backbone", {"pretrained": "another"}),
        ("adapter", {"last_blocks": 2}),
    ],
)
@pytest.mark.parametrize("one_setting", [True, False])
def test_no_backbone_or_cut_is_given_the_tokens_of_another(grid_file, towers, part, change, one_setting):
    (cell,) = load_grid(grid_file(seeds=[1])).cells
    other = changed(cell.study, part, **change)
    tokens = Tokens()
    first = Setting(cell.study, tokens=tokens)
    before = first.encoded(first.model(cell.study), "test").tokens
    second = first if one_setting else Setting(other, tokens=tokens)
    after = second.encoded(second.model(other), "test").tokens
    assert before.unique().tolist() == [0.0]
    assert after.unique().tolist() == [1.0]


def test_an_image_runs_through_the_same_frozen_blocks_once_for_all_settings(grid_file, towers):
    """Another rank is another model, on the same blocks and at the same cut."""
    (cell,) = load_grid(grid_file(seeds=[1])).cells
    tokens = Tokens()
    for study in (cell.study, changed(cell.study, "adapter", rank=2)):
        setting = Setting(study, tokens=tokens)
        records = setting.encoded(setting.model(study), "test")
        assert len(records) == tokens.n_encoded == 12
    assert len(towers) == 1


def test_tokens_of_a_model_that_is_not_loaded_any_more_are_not_given(grid_file, towers):
    (cell,) = load_grid(grid_file(seeds=[1])).cells
    setting = Setting(cell.study)
    old = setting.model(cell.study)
    setting.model(changed(cell.study, "adapter", rank=2))
    with pytest.raises(ValueError, match="another model"):
        setting.encoded(old, "test")


def test_a_method_that_takes_no_model_has_none_of_the_frozen_weights_of_the_one_before(grid_file, towers):
    (cell,) = load_grid(grid_file(seeds=[1])).cells
    setting = Setting(cell.study)
    assert setting.image_frozen_bytes is None
    setting.model(cell.study)
    assert setting.image_frozen_bytes == 7
    setting.begin()  # the next method: a network of its own
    assert setting.image_frozen_bytes is None
    setting.begin()
    setting.model(cell.study)  # the same object, not loaded again
    assert setting.image_frozen_bytes == 7
