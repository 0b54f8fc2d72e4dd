"""One real round, by real processes that train, of a study whose A is fitted to public images."""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors.numpy import load, load_file

from secure_triplay import loading
from secure_triplay.errors import AssetError, ConfigError
from secure_triplay.ledger.ledger import TRAINING, Ledger
from secure_triplay.ledger.study import CLASS_COUNTS

from .conftest import NAMES, Federation, running, study_content


@pytest.fixture
def made(tmp_path, monkeypatch):
    """Everybody has joined; the coordinator has computed A in float32, sites compute as their processor likes."""
    monkeypatch.setattr(loading, "compute_dtype", lambda study: torch.float32)
    content = study_content(1)
    content["adapter"] |= {"target_modules": r"attn\.proj|mlp\.fc2", "last_blocks": 1, "basis": "public"}
    content["adapter"] |= {"output_rank": 9}
    content["data"] |= {"records_per_site": 200, "holdout_per_site": 20, "test_images": 50}
    content["privacy"] |= {"expected_batch_size": 50}
    content["personal_bias"] = {"noise_multiplier": 2.0, "in_training": True}
    try:
        return Federation.make(tmp_path, rounds=1, content=content)
    except ConfigError as error:
        if isinstance(error.__cause__, AssetError):
            pytest.skip(f"weights or images cannot be had here: {error}")
        raise


def test_a_round_ends_with_the_bundles_a_and_one_b_at_every_site(made):
    with running(made):
        made.start_server()
        for name in NAMES:
            made.start(name, "trains", str(made.sites[name].path))
        made.start_run()
        assert made.ended("run") == 0
        made.until(lambda: all(any(e["event"] == "saved" for e in made.events(n)) for n in NAMES))
    carried = load(made.server.bundle.basis_bytes)
    adapters = [
        load_file(site.path / "studies" / "demo" / "adapter" / "adapter_model.safetensors")
        for site in made.sites.values()
    ]
    assert len(carried) == 4
    for layer, a in carried.items():
        if layer.endswith(".outputs"):
            (b,) = [n for n in adapters[0] if n.endswith(layer.replace(".outputs", ".lora_B.weight"))]
            left = adapters[0][b] - a.T.astype("<f4") @ (a.astype("<f4") @ adapters[0][b])
            assert abs(left).max() < 1e-2 * abs(adapters[0][b]).max()  # B lies in the bundle's directions
            continue
        (name,) = [name for name in adapters[0] if name.endswith(f"{layer}.lora_A.weight")]
        b = name.replace("lora_A", "lora_B")
        assert all(adapter[name].tobytes() == a.astype("<f4").tobytes() for adapter in adapters)
        assert all(adapter[b].tobytes() == adapters[0][b].tobytes() for adapter in adapters)
        assert adapters[0][b].any()
    personal = [
        load_file(site.path / "studies" / "demo" / "personal" / "adapter_model.safetensors")
        for site in made.sites.values()
    ]
    for own, shared in zip(personal, adapters, strict=True):
        assert own.keys() == shared.keys()
        for layer in shared:
            assert (own[layer] != shared[layer]).any() == ("lora_B" in layer)
    for name, site in made.sites.items():
        card = (site.path / "studies" / "demo" / "personal" / "README.md").read_text()
        assert f"Personal adapter of site {name}" in card
        shared_card = (site.path / "studies" / "demo" / "adapter" / "README.md").read_text()
        assert "# Adapter of study demo" in shared_card  # ours, and not the empty one of peft
        assert "after 1 round." in shared_card
        assert "trains with the bias of its classes" in [event["event"] for event in made.events(name)]
        (said,) = [event for event in made.events(name) if event["event"] == "personal"]
        assert (said["rounds"], said["holdout_total"]) == (1, 20)
        bias = json.loads((site.path / "studies" / "demo" / "personal" / "class_bias.json").read_text())[
            "bias"
        ]
        assert sum(math.exp(value / 1.5) for value in bias.values()) == pytest.approx(1)
        with Ledger.open(site.ledger, None) as ledger:
            charged = [each.what for each in ledger.books.reservations.values() if each.released_sha256]
        assert charged == [CLASS_COUNTS, TRAINING]
