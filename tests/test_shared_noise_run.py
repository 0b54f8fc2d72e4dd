"""One small study with shared noise, run for real: workers, keys, masks, SuperLink, ciphertexts, ledgers."""

from __future__ import annotations

import copy
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from secure_triplay.config import parse_study
from secure_triplay.constants import epsilon_of_shares, share_rule
from secure_triplay.simulate import simulate

ROOT = Path(__file__).parent.parent


def small_study() -> dict:
    content = copy.deepcopy(yaml.safe_load((ROOT / "configs" / "demo.yaml").read_text()))
    content["data"] |= {
        "records_per_site": 80,
        "holdout_per_site": 10,
        "test_images": 40,
        "public_images": 70,
    }
    content["training"] |= {"rounds": 2}
    content["privacy"] |= {"expected_batch_size": 20, "noise": {"clip_steps": 450, "rounding_cost": 0.04}}
    content["server_optimiser"] |= {"average_last": 1}
    content["sites"] = content["sites"][:3]
    return content


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    simulate(parse_study(small_study()), folder)
    return folder, json.loads((folder / "summary.json").read_text())


def test_sites_end_alike_and_the_summary_says_what_the_guarantee_rests_on(run):
    """`summarise` refuses a run whose sites end with different adapters."""
    _, summary = run
    study = parse_study(small_study())
    for claim in summary["privacy"]:
        assert 7.9 < claim["epsilon"] <= 8.0
        assert claim["accountant"] == "Renyi (dp-accounting)"
        assert claim["epsilon_by_round"][-1] == claim["epsilon"]
        made = claim["shared_noise"]
        assert (made["colluders"], made["honest_shares"], made["l2_sensitivity"]) == (1, 2, 468)
        assert made["share_std"] == pytest.approx(math.sqrt(share_rule(study).share_variance))
        assert made["epsilon_alone"] == pytest.approx(epsilon_of_shares(study, 1))
        assert made["epsilon_alone"] > 8
    assert summary["federation"]["aggregation"] == "masked"
    assert summary["federation"]["uploads_refused"] == 0


def test_sites_that_share_their_noise_get_no_personal_adapter_and_their_journals_say_why(run):
    folder, summary = run
    for site in (folder / "sites").iterdir():
        assert not (site / "personal").exists()
        journal = [json.loads(line) for line in (site / "journal.jsonl").read_text().splitlines()]
        (said,) = [entry["what"] for entry in journal if entry["event"] == "no personal adapter"]
        assert "share their noise" in said
    assert all(each["personal"] is None for each in summary["accuracy"]["per_site"].values())
    assert ">Personal<" not in (folder / "report.html").read_text()


def test_report_and_card_do_not_claim_noise_of_a_sites_own(run):
    folder, _ = run
    for page in ("report.html", "adapter/README.md"):
        text = (folder / page).read_text()
        assert "Skellam" in text
        assert "colluding" in text
        assert "Gaussian noise" not in text
        assert "no more than 1 site colludes" in text


def test_evidence_of_every_site_verifies_offline(run):
    folder, _ = run
    bundles = [*sorted((folder / "sites").glob("*/evidence")), folder / "server" / "evidence"]
    command = [sys.executable, "-c", "from secure_triplay.cli import main; main()", "audit", "verify"]
    done = subprocess.run([*command, *map(str, bundles)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("arithmetic hold;") == 3
    evidence = json.loads((bundles[0] / "evidence.json").read_text())["evidence"]
    assert {charge["mechanism"] for charge in evidence["charges"]} == {"shared-skellam"}
