from __future__ import annotations

import hashlib
import pickle
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from secure_triplay import config
from secure_triplay.errors import AssetError, ConfigError
from secure_triplay.model import backbone as module
from secure_triplay.model.backbone import freeze, load_backbone

Make = Any
NAME = "test-vit"


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _file_cfg(path: Path, sha256: str | None = None, **more: Any) -> config.Backbone:
    keys = {
        "source": "file",
        "name": NAME,
        "pretrained": str(path),
        "sha256": sha256 or _sha256(path),
        "licence": "MIT",
        "quantization": "none",
        "image_size": 64,
    }
    return config.Backbone.model_validate(keys | more)


@pytest.fixture(scope="module")
def original() -> nn.Module:
    torch.manual_seed(3)
    return open_clip.create_model(NAME).eval()


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_local_file_gives_the_model_it_was_saved_from(
    original: nn.Module, weights_folder: Path, suffix: str
) -> None:
    path = weights_folder / f"clip{suffix}"
    state = {name: value.clone() for name, value in original.state_dict().items()}
    save_file(state, path) if suffix == ".safetensors" else torch.save({"state_dict": state}, path)
    loaded = load_backbone(_file_cfg(path))
    pixels = torch.randn(2, 3, 64, 64)
    tokens = loaded.tokenizer(["a photo of a cell", "a dog"])
    with torch.no_grad():
        torch.testing.assert_close(
            loaded.model.encode_image(pixels), original.encode_image(pixels), atol=1e-5, rtol=1e-4
        )
        torch.testing.assert_close(
            loaded.model.encode_text(tokens), original.encode_text(tokens), atol=1e-5, rtol=1e-4
        )
    assert loaded.sha256 == _sha256(path)
    assert loaded.projection is None


def test_who_has_a_backbone_keeps_the_memory_that_its_steps_free(
    original: nn.Module, weights_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, asked = weights_folder / "kept.safetensors", []
    save_file({name: value.clone() for name, value in original.state_dict().items()}, path)
    monkeypatch.setattr(module, "keep_freed_memory", lambda: asked.append(1))
    load_backbone(_file_cfg(path))
    assert asked


def test_weights_with_another_hash_are_refused_with_both_hashes(weights_folder: Path) -> None:
    path = weights_folder / "clip.safetensors"
    path.write_bytes(b"tampered")
    with pytest.raises(AssetError) as caught:
        load_backbone(_file_cfg(path, sha256="0" * 64))
    assert f"expected sha256 {'0' * 64}, got {_sha256(path)}" in str(caught.value)
    assert str(path) in str(caught.value)


def test_packaged_weights_with_another_hash_are_refused(files: Any, packaged_cfg: Make) -> None:
    for key in ("sha256", "text_sha256"):
        with pytest.raises(AssetError, match=f"expected sha256 {'1' * 64}, got"):
            load_backbone(packaged_cfg(**{key: "1" * 64}), files)


def test_a_missing_weight_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(AssetError, match=r"nowhere\.pt"):
        load_backbone(_file_cfg(tmp_path / "nowhere.pt", sha256="0" * 64))


def test_weights_of_another_model_are_refused(weights_folder: Path) -> None:
    path = weights_folder / "other.safetensors"
    save_file({"visual.proj": torch.zeros(3, 3)}, path)
    with pytest.raises(AssetError, match=f"do not load into {NAME}"):
        load_backbone(_file_cfg(path))


class _RunsCode:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path(sys.argv[0]).with_name("should-not-exist-secure-triplay"),))


def test_a_weight_file_cannot_run_code(weights_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [str(weights_folder / "x")])
    path = weights_folder / "evil.pt"
    torch.save({"state_dict": _RunsCode()}, path)
    bare = weights_folder / "evil.bin"
    bare.write_bytes(pickle.dumps(_RunsCode()))
    for file in (path, bare):
        with pytest.raises(AssetError, match="do not load"):
            load_backbone(_file_cfg(file))
    assert not (weights_folder / "should-not-exist-secure-triplay").exists()


def test_only_weight_formats_that_hold_no_code_are_opened(weights_folder: Path) -> None:
    path = weights_folder / "weights.npz"
    path.write_bytes(b"PK")
    with pytest.raises(ConfigError, match="safetensors"):
        load_backbone(_file_cfg(path))


def test_a_licence_outside_the_allow_list_is_refused_even_if_the_config_was_not_validated(
    vit_cfg: Make,
) -> None:
    sneaked = vit_cfg().model_copy(update={"licence": "CC-BY-NC-4.0"})
    with pytest.raises(AssetError, match=r"CC-BY-NC-4\.0.*not among"):
        load_backbone(sneaked)


def test_a_study_cannot_call_known_weights_by_another_licence(files: Any, packaged_cfg: Make) -> None:
    with pytest.raises(AssetError, match=r"expected MIT, got Apache-2\.0"):
        load_backbone(packaged_cfg(licence="MIT"), files)
    cfg = _tag_cfg("metaclip_400m", licence="MIT")
    with pytest.raises(AssetError, match=r"expected MIT, got CC-BY-NC-4\.0"):
        load_backbone(cfg.model_copy(update={"name": "ViT-B-32-quickgelu"}))


def _tag_cfg(tag: str, **more: Any) -> config.Backbone:
    keys = {
        "source": "open_clip",
        "name": "ViT-B-32",
        "pretrained": tag,
        "sha256": "0" * 64,
        "licence": "MIT",
        "quantization": "none",
    }
    return config.Backbone.model_validate(keys | more)


def test_a_tag_brings_its_own_activation_and_normalisation_and_its_hash_is_checked(
    weights_folder: Path, monkeypatch: pytest.MonkeyPatch, original: nn.Module
) -> None:
    path = weights_folder / "download.safetensors"
    save_file({name: value.clone() for name, value in original.state_dict().items()}, path)
    tag = {"url": "none", "mean": (0.1, 0.2, 0.3), "std": (1.0, 1.0, 1.0), "quick_gelu": True}
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda *_: tag)
    monkeypatch.setattr(open_clip, "download_pretrained", lambda *_: str(path))
    cfg = _tag_cfg("openai", name=NAME, image_size=64)
    with pytest.raises(AssetError, match="expected sha256 0000"):
        load_backbone(cfg)
    loaded = load_backbone(cfg.model_copy(update={"sha256": _sha256(path)}))
    assert loaded.mean == (0.1, 0.2, 0.3)
    assert "QuickGELU" in repr(loaded.model.visual)


def test_a_download_that_fails_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any) -> str:
        raise ConnectionError("no route")

    monkeypatch.setattr(open_clip, "download_pretrained", offline)
    with pytest.raises(AssetError, match="cannot be downloaded") as caught:
        load_backbone(_tag_cfg("openai"))
    assert "source: file" in caught.value.fix


def test_an_unknown_tag_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="openai"):
        load_backbone(_tag_cfg("no-such-tag"))


@pytest.mark.parametrize("name", ["no-such-model", "hf-hub:laion/anything", "local-dir:/"])
def test_a_name_that_open_clip_does_not_ship_is_refused(vit_cfg: Make, name: str) -> None:
    with pytest.raises(ConfigError, match="no model"):
        load_backbone(vit_cfg(name=name))


@pytest.mark.parametrize("name", ["test-resnet", "test-convnext"])
def test_a_tower_that_is_no_plain_transformer_is_refused(vit_cfg: Make, name: str) -> None:
    with pytest.raises(ConfigError, match="not a plain vision transformer"):
        load_backbone(vit_cfg(name=name))


def test_batch_normalisation_is_refused() -> None:
    with pytest.raises(ConfigError, match="mixes the records"):
        freeze(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)))


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    tried: list[Any] = []

    def refuse(*args: Any, **_: Any) -> Any:
        tried.append(args)
        raise OSError("this test has no network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    return tried


def test_packaged_weights_load_without_any_network(
    files: Any, packaged_cfg: Make, no_network: list[Any]
) -> None:
    load_backbone(packaged_cfg("none"), files)
    assert no_network == []


def test_no_hub_is_asked_for_a_model_that_is_not_named_by_a_tag(vit_cfg: Make, no_network: list[Any]) -> None:
    with pytest.raises(AssetError, match="cannot be built"):
        load_backbone(vit_cfg(name="test-hub-text"))  # its text tower lies on a hub
    assert no_network == []


def test_loading_is_deterministic_and_leaves_the_callers_random_numbers_alone(vit_cfg: Make) -> None:
    torch.manual_seed(1)
    first = load_backbone(vit_cfg("none")).model.state_dict()
    drawn = torch.rand(3)
    torch.manual_seed(1)
    assert torch.equal(drawn, torch.rand(3))
    second = load_backbone(vit_cfg("none")).model.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("kind", ["vit", "packaged"])
def test_nothing_is_trainable_and_training_mode_changes_nothing(backbone: Make, kind: str) -> None:
    loaded = backbone(kind)
    assert not any(weight.requires_grad for weight in loaded.model.parameters())
    pixels = torch.randn(2, 3, loaded.image_size, loaded.image_size)
    tokens = loaded.tokenizer(["a photo of a coat"])
    with torch.no_grad():
        calm = loaded.model.eval().encode_image(pixels), loaded.model.encode_text(tokens)
        busy = loaded.model.train().encode_image(pixels), loaded.model.encode_text(tokens)
    assert torch.equal(calm[0], busy[0])
    assert torch.equal(calm[1], busy[1])


@pytest.mark.parametrize("module", ["model.quantize", "attacks.suite", "attacks.matching"])
def test_importing_the_model_layer_or_attacks_says_nothing_about_hubs(module: str) -> None:
    command = f"import secure_triplay.{module}"
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    assert "kernels" not in done.stderr + done.stdout


def test_what_is_recorded_about_a_backbone_is_what_was_loaded(backbone: Make, packaged_cfg: Make) -> None:
    loaded = backbone("packaged")
    assert (loaded.name, loaded.licence, loaded.quantization) == (
        "dinov2-small-minilm-l6",
        "Apache-2.0",
        "nf4",
    )
    assert (loaded.sha256, loaded.text_sha256) == (packaged_cfg().sha256, packaged_cfg().text_sha256)
    assert loaded.projection == "visual.head.proj"
    assert module.load_backbone is load_backbone
