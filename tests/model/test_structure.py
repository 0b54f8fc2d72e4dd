"""What cannot be adapted is told from a tower's structure alone, as loading the model would tell it."""

from __future__ import annotations

import pytest
import yaml

from secure_triplay.config import Adapter, Backbone, parse_study
from secure_triplay.errors import AssetError, ConfigError
from secure_triplay.model import structure
from secure_triplay.model.adapter import attach_adapter, target_layers
from secure_triplay.model.backbone import load_backbone
from secure_triplay.model.structure import require_adaptable, tower_blocks

ANY = r"attn\..*proj|attn\.qkv|mlp\..*"


def backbone(name: str, image_size: int = 224, **keys: str) -> Backbone:
    """One whose weights are not here, and are not looked for."""
    given = {
        "source": "file",
        "pretrained": "none-that-is-here.pt",
        "sha256": "0" * 64,
        "licence": "MIT",
    } | keys
    return Backbone(name=name, image_size=image_size, **given)


@pytest.fixture
def packaged(root) -> Backbone:
    return parse_study(yaml.safe_load((root / "configs" / "demo.yaml").read_text())).backbone


@pytest.mark.parametrize(("name", "blocks"), [("ViT-B-32", 12), ("ViT-B-16-SigLIP", 12), ("ViT-L-14", 24)])
@pytest.mark.parametrize("text_tower", [False, True])
def test_a_tower_without_a_weight_has_its_blocks_and_what_fits_it_is_no_fault(name, blocks, text_tower):
    assert tower_blocks(backbone(name)) == blocks
    require_adaptable(backbone(name), Adapter(target_modules=ANY, last_blocks=blocks, text_tower=text_tower))


@pytest.mark.parametrize(
    ("name", "adapter", "said"),
    [
        ("ViT-B-32", {"target_modules": "zzz"}, "'zzz' matches no linear layer"),
        ("ViT-B-32", {"target_modules": ANY, "last_blocks": 13}, "the backbone has 12 blocks"),
        ("ViT-B-32", {"target_modules": r"attn\.qkv"}, "matches no linear layer"),
        ("RN50", {"target_modules": ANY}, "is not a plain vision transformer"),
        ("ViT-B-23", {"target_modules": ANY}, "open_clip has no model 'ViT-B-23'"),
        ("a:b", {"target_modules": ANY}, "open_clip has no model 'a:b'"),
    ],
)
def test_what_no_tower_has_is_a_fault_though_no_weight_is_here(name, adapter, said):
    with pytest.raises(ConfigError, match=said):
        require_adaptable(backbone(name), Adapter(**adapter))


def test_images_that_a_tower_cannot_cut_into_patches_are_a_fault():
    with pytest.raises(ConfigError, match="takes no image of 14 pixels"):
        require_adaptable(backbone("ViT-B-32", 14), Adapter(target_modules=ANY))
    with pytest.raises(ConfigError, match="cannot be built for images of 14 pixels"):
        require_adaptable(backbone("ViT-B-16-SigLIP", 14), Adapter(target_modules=ANY))
    require_adaptable(backbone("ViT-B-32", 225), Adapter(target_modules=ANY))  # leaves a row and a column out


def test_weights_that_nobody_has_published_are_a_fault_and_others_are_not_fetched():
    fits = Adapter(target_modules=ANY)
    require_adaptable(backbone("ViT-B-32", source="open_clip", pretrained="openai"), fits)
    with pytest.raises(ConfigError, match="no weights 'opanai' for 'ViT-B-32'") as caught:
        require_adaptable(backbone("ViT-B-32", source="open_clip", pretrained="opanai"), fits)
    assert "openai" in caught.value.fix


def test_a_tower_is_run_once_for_all_ranks_and_kinds(monkeypatch):
    structure._require_called.cache_clear()
    real, ran = structure.require_called, []
    monkeypatch.setattr(structure, "require_called", lambda *given: ran.append(given) or real(*given))
    for rank in (1, 2, 3):
        for kind in ("ffa", "lora"):
            require_adaptable(backbone("ViT-B-32"), Adapter(target_modules=ANY, rank=rank, kind=kind))
    assert len(ran) == 1


def test_a_tower_whose_structure_is_on_a_hub_is_not_judged():
    assert tower_blocks(backbone("roberta-ViT-B-32")) is None
    require_adaptable(backbone("roberta-ViT-B-32"), Adapter(target_modules="zzz"))


@pytest.mark.parametrize(
    ("changes", "adapter", "said"),
    [
        ({"image_size": 30}, {}, "not a multiple of the packaged tower's patch"),
        ({"name": "ViT-B-32"}, {}, "the packaged backbone is"),
        ({"unsafe_random_weights": True}, {}, "with its own weights"),
        ({}, {"target_modules": "zzz"}, "matches no linear layer"),
        ({}, {"last_blocks": 20}, "the backbone has 12 blocks"),
    ],
)
def test_faults_of_the_packaged_tower_are_those_of_loading_it(packaged, changes, adapter, said):
    changed, wanted = packaged.model_copy(update=changes), Adapter(**adapter)
    with pytest.raises(ConfigError, match=said) as told:
        require_adaptable(changed, wanted)
    try:
        with pytest.raises(ConfigError, match=said) as loaded:
            attach_adapter(load_backbone(changed), wanted, b"seed")
    except AssetError as error:
        pytest.skip(f"the packaged weights cannot be had here: {error.what}")
    assert (told.value.what, told.value.where, told.value.fix) == (
        loaded.value.what,
        loaded.value.where,
        loaded.value.fix,
    )


def test_the_packaged_tower_without_weights_has_the_layers_of_the_loaded_one(packaged):
    try:
        loaded = load_backbone(packaged).model
    except AssetError as error:
        pytest.skip(f"the packaged weights cannot be had here: {error.what}")
    every = Adapter(target_modules=".*", last_blocks=12)
    made = structure._packaged(packaged)
    assert target_layers(made, every) == target_layers(loaded, every)
    for path in target_layers(made, every):
        ours, real = made.get_submodule(path), loaded.get_submodule(path)
        assert (ours.in_features, ours.out_features) == (real.in_features, real.out_features)
