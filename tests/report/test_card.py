from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from secure_triplay import config
from secure_triplay.describe import describe
from secure_triplay.errors import ConfigError
from secure_triplay.report.card import (
    adapter_card,
    loading_code,
    personal_card,
    study_card,
    write_adapter_card,
)
from secure_triplay.report.summary import Summary


def _parts(card: str) -> tuple[dict[str, Any], str]:
    empty, front, body = card.split("---\n", 2)
    assert empty == ""
    return yaml.safe_load(front), body


def test_the_card_replaces_the_one_peft_left(summary: Summary, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# Model Card for Model ID")
    assert write_adapter_card(summary, tmp_path) == tmp_path / "README.md"
    assert "Model ID" not in (tmp_path / "README.md").read_text(encoding="utf-8")


def test_the_card_states_the_exact_claim_and_what_is_not_covered(summary: Summary) -> None:
    front, body = _parts(adapter_card(summary))
    assert front["library_name"] == "peft"
    assert front["secure_triplay"]["epsilon_per_site"] == summary.privacy[0].epsilon
    assert "(7.98, 5×10⁻⁶)-differentially private for adding or removing one record of that site" in body
    assert "dp-accounting PLD" in body
    assert "The server together with one site" in body
    assert "for the sites to agree" in body
    assert "a consent that is withdrawn later cannot be taken out of it" in " ".join(body.split())
    assert "UNSAFE" not in body


def test_sites_with_different_claims_each_get_their_own(content: dict[str, Any]) -> None:
    content["privacy"][1]["epsilon"] = 3.0
    body = _parts(adapter_card(Summary.model_validate_json(json.dumps(content))))[1]
    assert "- **east**: (3.00," in body
    assert "- **north**: (7.98," in body


def test_without_dp_the_card_is_red_and_claims_nothing(unsafe: Summary) -> None:
    front, body = _parts(adapter_card(unsafe))
    assert front["secure_triplay"]["dp"] == "off"
    assert front["secure_triplay"]["epsilon_per_site"] is None
    assert body.index("> [!CAUTION]") < body.index("Accuracy on")
    assert "UNSAFE: TRAINED WITHOUT DIFFERENTIAL PRIVACY" in body
    assert "differentially private" not in body


@pytest.mark.parametrize(
    "change",
    [
        {},
        {
            "source": "open_clip",
            "name": "ViT-B-32",
            "pretrained": "openai",
            "licence": "MIT",
            "text_sha256": None,
        },
        {"source": "file", "name": "ViT-B-32", "pretrained": "x.safetensors", "text_sha256": None},
        {
            "source": "file",
            "name": "ViT-B-32",
            "pretrained": None,
            "licence": "their own",
            "text_sha256": None,
        },
        {"source": "open_clip", "sha256": "random", "unsafe_random_weights": True, "text_sha256": None},
    ],
)
def test_the_loading_code_names_a_backbone_that_the_config_accepts(
    content: dict[str, Any], change: dict[str, Any]
) -> None:
    content["backbone"] |= change
    summary = Summary.model_validate_json(json.dumps(content))
    code = loading_code(summary.backbone)
    assert f"```python\n{code}```" in adapter_card(summary)
    assert "PeftModel.from_pretrained(load_backbone(settings).model" in code
    expression = code[code.index("Backbone(\n") : code.index("\nmodel = ")]
    made = eval(expression, {"Backbone": config.Backbone})
    for key in ("source", "name", "text_sha256", "licence", "quantization", "image_size"):
        assert getattr(made, key) == getattr(summary.backbone, key)
    assert (made.sha256 or "random") == summary.backbone.sha256


def test_the_card_does_not_tell_where_a_weight_file_lay(content: dict[str, Any]) -> None:
    content["backbone"] |= {"source": "file", "pretrained": "/home/somebody/secret-project/clip.safetensors"}
    assert "somebody" not in adapter_card(Summary.model_validate_json(json.dumps(content)))


def test_no_name_can_forge_a_claim_or_markup(renamed: Callable[[str, str], Summary]) -> None:
    name = "north\n\n## Certified\n<script>alert(1)</script> | [x](y) **bold**"
    body = _parts(adapter_card(renamed("north", name)))[1]
    assert "\n## Certified" not in body
    assert "<script" not in body
    assert "[x](y)" not in body
    assert "**bold**" not in body


def test_no_study_name_can_break_the_front_matter(renamed: Callable[[str, str], Summary]) -> None:
    name = "demo\n---\nlicense: cc0-1.0"
    front, _ = _parts(adapter_card(renamed("demo", name)))
    assert front["secure_triplay"]["study"] == "demo --- license: cc0-1.0"
    assert "license" not in front


def test_no_backbone_name_can_end_the_code_block(renamed: Callable[[str, str], Summary]) -> None:
    body = _parts(adapter_card(renamed("dinov2-small-minilm-l6", "x```\n## Certified")))[1]
    assert body.count("```") == 2
    assert "\n## Certified" not in body


def test_a_personal_adapters_card_says_whose_it_is_that_it_stays_and_what_both_cost(
    demo: dict[str, Any],
) -> None:
    study = config.parse_study(demo)
    front, body = _parts(personal_card(study, "north", 30))
    said = front["secure_triplay"]
    assert (said["personal_adapter_of"], said["own_updates"]) == ("north", 30)
    assert study.dp is not None
    assert 0.9 * study.dp.epsilon < said["epsilon_of_site"] <= study.dp.epsilon
    flat = " ".join(body.replace("> ", "").split())
    for part in (
        "must not be shared as if it were",
        "meant to stay there",
        "may be worse than the study's adapter",
        "compare the two before you use it",
        "this one together are",
        "learned in 30 rounds",
    ):
        assert part in flat, part
    assert "load_backbone(settings)" in body


def test_no_site_can_forge_a_claim_on_a_personal_card(demo: dict[str, Any]) -> None:
    front, body = _parts(personal_card(config.parse_study(demo), "x\n---\n## Certified <b>", 1))
    assert front["secure_triplay"]["personal_adapter_of"] == "x --- ## Certified <b>"
    assert "\n## Certified" not in body
    assert "<b>" not in body
    assert "learned in 1 round." in body


def test_without_privacy_there_is_no_card_of_a_personal_adapter(demo: dict[str, Any]) -> None:
    rate = {name: demo["privacy"][name] for name in ("sampling_rate", "expected_batch_size")}
    content = {**demo, "privacy": {"unsafe_dp_off": True, **rate}, "codec": {"range": 1.0}}
    with pytest.raises(ConfigError):
        personal_card(config.parse_study(content), "north", 30)


def test_a_real_sites_card_claims_the_studys_epsilon_and_holds_no_measured_figure(
    demo: dict[str, Any],
) -> None:
    study = config.parse_study(demo)
    front, body = _parts(study_card(study, describe(study), 30))
    said = front["secure_triplay"]
    assert study.dp is not None
    assert 0.9 * study.dp.epsilon < said["epsilon_per_site"] <= study.dp.epsilon
    assert (said["dp"], said["rounds"], said["delta"]) == ("on", 30, study.dp.delta)
    flat = " ".join(body.split())
    assert (
        f"({said['epsilon_per_site']:.2f}, 5×10⁻⁶)-differentially private for adding or removing one record"
        in flat
    )
    assert "is in the evidence" in flat
    assert "Server and 2 sites together may read every site's updates" in flat  # as `config check` says
    assert "Sites shared their noise" not in flat
    assert "accuracy" not in flat.lower()
    assert "load_backbone(settings)" in body
    shared = demo | {"privacy": demo["privacy"] | {"noise": "shared"}}
    study = config.parse_study(shared)
    assert "**Sites shared their noise**" in study_card(study, describe(study), 30)


def test_a_real_sites_card_without_privacy_is_red_and_claims_nothing(demo: dict[str, Any]) -> None:
    rate = {name: demo["privacy"][name] for name in ("sampling_rate", "expected_batch_size")}
    study = config.parse_study({**demo, "privacy": {"unsafe_dp_off": True, **rate}, "codec": {"range": 1.0}})
    front, body = _parts(study_card(study, describe(study), 1))
    assert (front["secure_triplay"]["dp"], front["secure_triplay"]["epsilon_per_site"]) == ("off", None)
    assert "UNSAFE: TRAINED WITHOUT DIFFERENTIAL PRIVACY" in body
    assert "differentially private" not in body
    assert "after 1 round." in body


def test_a_real_sites_card_tells_no_path_of_the_site(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOSPITAL_DATA", "/where/records/lie")
    study = config.load_study(root / "configs" / "hospital.yaml")
    assert any(
        "/where/records/lie" in (site.manifest or "") for site in study.sites
    )  # as at a site that joined
    assert "/where" not in study_card(study, describe(study), 1)


def test_no_study_can_forge_a_claim_on_a_real_sites_card(demo: dict[str, Any]) -> None:
    study = config.parse_study(demo)
    _, body = _parts(study_card(study, [("Study", "x\n## Certified <b>")], 1))
    assert "\n## Certified" not in body
    assert "<b>" not in body
