from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from secure_triplay.errors import AssetError, ConfigError
from secure_triplay.model import packaged

# First numbers of the class token and of token 200 after the last norm, for the input of `_wave`: computed
# once by running the ONNX graph itself with onnx.reference.ReferenceEvaluator.
GRAPH_CLASS_TOKEN = [1.07415, -0.16283, 1.47434, -4.7031, -0.7712, -1.20358]
GRAPH_TOKEN_200 = [1.72925, -1.27015, 0.09397, -4.86508, -1.60281, -2.67054]


def _wave() -> torch.Tensor:
    grid = np.arange(3 * 224 * 224, dtype=np.float64).reshape(1, 3, 224, 224)
    return torch.from_numpy(np.sin(grid * 0.001).astype(np.float32))


def test_image_tower_computes_what_the_packaged_graph_computes(files: Any) -> None:
    state = packaged.image_state(files.image_onnx)
    assert len(state) == 174
    trunk = packaged.build(state, files.text_dir, 224).visual.trunk.eval()
    with torch.no_grad():
        tokens = trunk.forward_features(_wave())[0]
    np.testing.assert_allclose(tokens[0, :6].numpy(), GRAPH_CLASS_TOKEN, atol=1e-4)
    np.testing.assert_allclose(tokens[200, :6].numpy(), GRAPH_TOKEN_200, atol=1e-4)


def test_text_tower_is_the_mean_of_its_unmasked_tokens(files: Any) -> None:
    from transformers import BertModel

    text = packaged.build(packaged.image_state(files.image_onnx), files.text_dir, 56).eval()
    tokens = packaged.tokenizer(files.text_dir)(["a photo of an ankle boot", "cat"])
    reference = BertModel.from_pretrained(files.text_dir, local_files_only=True).eval()
    with torch.no_grad():
        got = text.encode_text(tokens)
        for row, expected in zip(tokens, got, strict=True):
            real = row[row != 0][None]  # padding cut off instead of masked
            alone = reference(input_ids=real).last_hidden_state[0].mean(0)
            torch.testing.assert_close(expected, alone, atol=1e-4, rtol=1e-4)


def test_positions_are_interpolated_bicubically_without_antialiasing() -> None:
    positions = torch.randn(1, 1 + 37 * 37, 8, generator=torch.Generator().manual_seed(0))
    small = packaged.resize_positions(positions, 4)
    assert torch.equal(small[:, 0], positions[:, 0])
    square = positions[0, 1:].T.reshape(1, 8, 37, 37)
    plain = F.interpolate(square, size=(4, 4), mode="bicubic", antialias=False).reshape(8, 16).T
    smooth = F.interpolate(square, size=(4, 4), mode="bicubic", antialias=True).reshape(8, 16).T
    torch.testing.assert_close(small[0, 1:], plain)
    assert (small[0, 1:] - smooth).abs().max() > 0.1
    torch.testing.assert_close(packaged.resize_positions(positions, 37), positions)


def test_a_file_that_is_not_the_graph_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tower.onnx"
    for content in (b"", b"not onnx at all", bytes(range(256)) * 9):
        path.write_bytes(content)
        with pytest.raises(AssetError, match="image tower"):
            packaged.image_state(path)


def test_a_damaged_text_tower_is_refused(files: Any, tmp_path: Path) -> None:
    shutil.copytree(files.text_dir, tmp_path / "text")
    damaged = tmp_path / "text" / "model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:1000])
    with pytest.raises(AssetError, match="text tower"):
        packaged.text_state(damaged)


def test_left_over_or_missing_tensors_are_refused() -> None:
    layer = torch.nn.Linear(2, 2)
    state = dict(layer.state_dict())
    for wrong in ({"weight": state["weight"]}, state | {"more": state["bias"]}):
        with pytest.raises(AssetError, match="image tower"):
            packaged.load_exactly(layer, wrong, "image tower")


def test_an_image_size_that_cuts_patches_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="multiple") as caught:
        packaged.build({}, tmp_path, 60)
    assert "56" in caught.value.fix
