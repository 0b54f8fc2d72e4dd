"""What a study will do is said in plain words, and nothing that it trains is left out."""

from __future__ import annotations

from pathlib import Path

import yaml

from secure_triplay.config import parse_study
from secure_triplay.describe import describe

CONFIGS = Path(__file__).parents[1] / "configs"


def said(content: dict, topic: str) -> str:
    (sentence,) = [sentence for name, sentence in describe(parse_study(content)) if name == topic]
    return sentence


def test_a_share_below_one_percent_is_not_said_to_be_none(demo):
    demo["privacy"] |= {"sampling_rate": 0.004, "expected_batch_size": 8}
    assert "a random 0.4% of a site's records" in said(demo, "Training")


def test_everything_that_is_trained_is_said(demo):
    demo["adapter"] = {"kind": "lora", "rank": 4, "text_tower": True}
    assert "and of the text tower's" in said(demo, "Adapter")
    demo["adapter"] = {"kind": "ffa", "rank": 4}
    assert "text tower" not in said(demo, "Adapter")
    demo["sites"] = [{"name": "north"}, {"name": "south", "rank": 2}]
    assert "Site south trains 2 columns of B." in said(demo, "Adapter")
    assert "north" not in said(demo, "Adapter")


def test_how_records_are_held_back_at_a_site_of_its_own_is_said():
    content = yaml.safe_load((CONFIGS / "hospital.yaml").read_text())
    content["data"]["holdout_fraction"] = 0.15
    assert "About 15% of its patients" in said(content, "Data")


def test_what_is_tested_on_is_said_where_one_manifest_is_divided():
    content = yaml.safe_load((CONFIGS / "experiments" / "pacs.yaml").read_text())
    content["data"]["manifest"] = "manifest.csv"
    assert "all of domain sketch is the public test set" in said(content, "Data")
    del content["data"]["test_domain"]
    assert "20% of patients are the public test set" in said(content, "Data")
    content["data"]["public_images"] = 60
    assert "60 images of patients at no site count as public: nothing protects them" in said(content, "Data")
    content["data"]["test_manifest"] = "test.csv"
    assert "test.csv is the public test set" in said(content, "Data")
