"""One small study, run for real: workers, keys, SuperLink, ciphertexts. What it leaves is held against its claims."""

from __future__ import annotations

import copy
import errno
import hashlib
import itertools
import json
import math
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import dp_accounting
import numpy as np
import psutil
import pytest
import yaml
from dp_accounting.rdp import RdpAccountant
from safetensors.numpy import load_file

from secure_triplay import simulate as harness
from secure_triplay.config import parse_study
from secure_triplay.data.split import split_study
from secure_triplay.errors import RunError, SecureTriplayError
from secure_triplay.ledger.connection import explained
from secure_triplay.ledger.ledger import Ledger
from secure_triplay.ledger.study import CLASS_COUNTS
from secure_triplay.loading import load_study_backbone
from secure_triplay.runfolder import run_folder
from secure_triplay.simulate import simulate

ROOT = Path(__file__).parent.parent


def small_study() -> dict:
    content = yaml.safe_load((ROOT / "configs" / "demo.yaml").read_text())
    content["data"] |= {
        "records_per_site": 80,
        "holdout_per_site": 10,
        "test_images": 40,
        "public_images": 70,
    }
    # All of B: what is trained is then what the adapter's file holds, and can be looked for byte by byte.
    content["adapter"] |= {"output_rank": None}
    content["training"] |= {"rounds": 2}
    content["published_accuracy"] = {"noise_multiplier": 3.0}
    content["personal_bias"] = {"noise_multiplier": 2.0, "in_training": True}
    content["privacy"] |= {"expected_batch_size": 20}
    content["server_optimiser"] |= {"average_last": 1}
    content["sites"] = content["sites"][:3]
    return content


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(folder, summary) of a finished run, with everything kept that the server was given."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    simulate(parse_study(small_study()), folder, keep_received=True)
    return folder, json.loads((folder / "summary.json").read_text())


def test_a_finished_run_holds_what_the_readme_says(run):
    folder, _ = run
    assert {path.name for path in folder.iterdir()} == {
        "summary.json",
        "report.html",
        "adapter",
        "server",
        "sites",
        "study.json",
    }
    assert {path.name for path in (folder / "adapter").iterdir()} == {
        "adapter_model.safetensors",
        "adapter_config.json",
        "README.md",
    }
    assert not list(folder.parent.glob("*.partial"))
    assert {path.name for path in (folder / "sites" / "north").iterdir()} == {
        "journal.jsonl",
        "ledger",
        "evidence",
        "identity.key",
        "personal",
    }


def test_no_process_outlives_a_run(run):
    children = [child.name() for child in psutil.Process().children(recursive=True)]
    assert not [name for name in children if "flower" in name or "ray" in name]


def test_summary_adds_up(run):
    _, summary = run
    upload = summary["upload"]
    assert upload["plaintext_fp32_bytes"] == 4 * upload["n_params"] == 4 * 49_152
    assert upload["bytes_per_param"] == pytest.approx(upload["bytes_per_site_per_round"] / upload["n_params"])
    assert upload["bytes_per_param"] <= 3.5
    assert upload["download_bytes_per_param"] <= 5.5
    assert summary["rounds"] == 2
    assert len(summary["accuracy"]["per_round"]) == 2
    assert len(summary["privacy"]) == 3
    assert summary["backbone"]["sha256"] == small_study()["backbone"]["sha256"]


def test_claimed_epsilon_stands_before_another_accountant(run):
    """RDP bounds from above and loosely: it must lie above the PLD figure, and not far."""
    for claim in run[1]["privacy"]:
        assert claim["epsilon"] <= 8.0
        accountant = RdpAccountant(neighboring_relation=dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE)
        event = dp_accounting.PoissonSampledDpEvent(
            claim["sampling_rate"], dp_accounting.GaussianDpEvent(claim["noise_multiplier"])
        )
        accountant.compose(dp_accounting.SelfComposedDpEvent(event, claim["steps"]))
        accountant.compose(dp_accounting.GaussianDpEvent(3.0))  # the published accuracy
        assert claim["epsilon"] <= accountant.get_epsilon(claim["delta"]) <= 1.6 * claim["epsilon"]
        assert claim["steps"] == 2


def test_every_upload_was_accepted_and_none_refused(run):
    folder, summary = run
    events = [json.loads(line) for line in (folder / "server" / "events.jsonl").read_text().splitlines()]
    outcomes = [event["outcome"] for event in events if event["event"] == "received"]
    assert outcomes == ["accepted"] * 9  # two rounds of training, one of counts
    assert summary["federation"]["uploads_refused"] == 0


def test_budget_was_reserved_before_each_upload_left_and_settled_with_its_hash(run):
    folder, _ = run
    received = [path.read_bytes() for path in (folder / "server" / "received").iterdir()]
    hashes = {hashlib.sha256(content).hexdigest() for content in received}
    for site in (folder / "sites").iterdir():
        entries = json.loads((site / "evidence" / "evidence.json").read_text())["evidence"]["entries"]
        kept = [entry for entry in entries if entry["kind"] in ("reserved", "settled", "round closed")]
        (counted, noted), kept = kept[:2], kept[2:]  # classes: before everything, and nothing of it leaves
        assert (counted["body"]["what"], noted["body"]["reservation"]) == (CLASS_COUNTS, counted["counter"])
        assert noted["body"]["released_sha256"] not in hashes
        entries = entries[entries.index(noted) + 1 :]
        # A round is charged in the exchange before it, so that peers have countersigned it when it is trained.
        assert [entry["kind"] for entry in kept] == [
            *("reserved", "settled", "reserved"),
            *("round closed", "settled", "reserved"),
            *("round closed", "settled", "round closed"),
        ]
        kinds = [entry["kind"] for entry in entries]
        assert kinds.index("anchored") < kinds.index("settled")
        assert all(entry["body"]["released_sha256"] in hashes for entry in kept if entry["kind"] == "settled")


def test_evidence_of_every_site_verifies_offline_and_agrees_and_an_edit_does_not(run, tmp_path):
    bundles = [*sorted((run[0] / "sites").glob("*/evidence")), run[0] / "server" / "evidence"]
    command = [sys.executable, "-c", "from secure_triplay.cli import main; main()", "audit", "verify"]
    done = subprocess.run([*command, *map(str, bundles)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("arithmetic hold;") == 3
    assert "coordinator: signatures and chain" in done.stdout
    assert done.stdout.count("by 2 others; rollback is excluded") == 3
    assert "not excluded" not in done.stdout
    assert "Held against each other: 3 rounds, 1 key epoch, " in done.stdout
    assert "; they agree." in done.stdout
    assert " 0 " not in done.stdout
    edited = tmp_path / "evidence"
    shutil.copytree(bundles[0], edited)
    text = (edited / "evidence.json").read_text()
    (edited / "evidence.json").write_text(text.replace('"round": 2', '"round": 3'))
    done = subprocess.run([*command, str(edited)], capture_output=True, text=True, check=False)
    assert done.returncode in (6, 7, 9)
    assert "Traceback" not in done.stderr


def test_a_simulated_sites_budget_is_exported_again_like_a_real_ones(run, tmp_path):
    shutil.copytree(run[0] / "sites" / "east", tmp_path / "east")
    out = tmp_path / "again"
    command = [sys.executable, "-c", "from secure_triplay.cli import main; main()"]
    export = [*command, "budget", "export", "--site", str(tmp_path / "east"), "--out", str(out)]
    assert subprocess.run(export, capture_output=True, check=False).returncode == 0
    verify = [*command, "audit", "verify", str(out), str(run[0] / "sites" / "east" / "evidence")]
    assert subprocess.run(verify, capture_output=True, check=False).returncode == 0


def test_published_accuracy_is_the_sum_of_held_back_answers_within_its_noise(run):
    folder, summary = run
    said = summary["accuracy"]["published"]
    journals = [
        [json.loads(line) for line in (site / "journal.jsonl").read_text().splitlines()]
        for site in (folder / "sites").iterdir()
    ]
    last = [[entry for entry in journal if entry["event"] == "measured"][-1] for journal in journals]
    assert said["noise_std"] == pytest.approx(3.0 * math.sqrt(2) * math.sqrt(3))
    assert abs(said["correct"] - sum(entry["holdout_correct"] for entry in last)) < 7 * said["noise_std"]
    assert abs(said["records"] - sum(entry["holdout_total"] for entry in last)) < 7 * said["noise_std"]
    assert {
        round(entry["correct"], 6)
        for journal in journals
        for entry in journal
        if entry["event"] == "published"
    } == {round(said["correct"], 6)}


def needles(folder: Path) -> dict[str, list[bytes]]:
    """What must not be found: rows of pixels of sites' images, and rows of the adapter, as bytes."""
    split = split_study(parse_study(small_study()))
    images = [site.train.images([index])[0] for site in split.sites.values() for index in range(5)]
    rows = [row.tobytes() for image in images for row in image if len(np.unique(row)) > 8]
    weights = load_file(folder / "adapter" / "adapter_model.safetensors")
    trained = [value for name, value in weights.items() if "lora_B" in name]
    return {
        "image": rows,
        "adapter": [row.astype("<f4").tobytes() for value in trained for row in value[:100]],
        "personal": [
            row.astype(kind).tobytes()
            for site in split.sites
            for value, shared in zip(personal_of(folder, site), trained, strict=True)
            for row in (*value[:100], *(value - shared)[:100])
            for kind in ("<f4", "<f8")
        ],
        "class counts": [
            form
            for site in split.sites
            for values in itertools.pairwise(bias_of(folder, site).values())
            for form in (
                np.array(values, "<f4").tobytes(),
                np.array(values, "<f8").tobytes(),
                str(values[0])[:9].encode(),
            )
        ],
    }


def personal_of(folder: Path, site: str) -> list[np.ndarray]:
    weights = load_file(folder / "sites" / site / "personal" / "adapter_model.safetensors")
    return [value for name, value in weights.items() if "lora_B" in name]


def found(needle_rows: list[bytes], haystack: bytes) -> int:
    return sum(row in haystack for row in needle_rows)


def test_nothing_that_the_server_received_or_logged_holds_an_image_or_an_adapter(run):
    folder, _ = run
    wanted = needles(folder)
    received = [path.read_bytes() for path in (folder / "server").rglob("*") if path.is_file()]
    assert sum(map(len, received)) > 6 * 60_000
    assert all(found(rows, content) == 0 for rows in wanted.values() for content in received)
    # The search can find: the adapter in its file, an image in its own bytes.
    assert found(wanted["adapter"], (folder / "adapter" / "adapter_model.safetensors").read_bytes()) > 100
    personal = (folder / "sites" / "north" / "personal" / "adapter_model.safetensors").read_bytes()
    assert found(wanted["personal"], personal) > 100
    said = (folder / "sites" / "north" / "personal" / "class_bias.json").read_bytes()
    assert found(wanted["class counts"], said) >= 9
    assert found(wanted["image"], b"".join(wanted["image"])) == len(wanted["image"]) > 50


def test_what_the_server_received_has_the_entropy_of_random_bytes(run):
    folder, _ = run
    for path in (folder / "server" / "received").iterdir():
        body = path.read_bytes()[600:]
        counts = np.bincount(np.frombuffer(body, np.uint8), minlength=256) / len(body)
        assert -(counts[counts > 0] * np.log2(counts[counts > 0])).sum() > 7.99


def test_record_counts_do_not_stand_in_the_servers_log(run):
    text = (run[0] / "server" / "events.jsonl").read_text()
    assert "records" not in text
    assert not [word for word in ('": 80,', '": 80}') if word in text]


@pytest.mark.parametrize("made", ["adapter", "sites/north/personal"])
def test_adapter_loads_with_plain_peft_without_a_missing_key(run, tmp_path, made):
    from peft import PeftModel

    study = tmp_path / "study.yaml"
    study.write_text(yaml.safe_dump(small_study()))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", message=".*kernels.*")
        model = PeftModel.from_pretrained(load_study_backbone(study).model, run[0] / made)
    loaded = {name: value for name, value in model.named_parameters() if "lora_B" in name}
    assert loaded
    assert all(float(value.abs().max()) > 0 for value in loaded.values())


def test_each_site_has_a_personal_adapter_of_its_own_that_lies_two_thousandths_from_the_shared_one(run):
    """Two rounds of updates that are nearly all noise: one standard deviation of it is 0.002 a coordinate."""
    folder, _ = run
    shared = load_file(folder / "adapter" / "adapter_model.safetensors")
    names = [name for name in shared if "lora_B" in name]
    moved = {}
    for site in (folder / "sites").iterdir():
        own = load_file(site / "personal" / "adapter_model.safetensors")
        assert all((own[name] == shared[name]).all() for name in shared if name not in names)
        moved[site.name] = np.concatenate([(own[name] - shared[name]).ravel() for name in names])
        assert moved[site.name].std() == pytest.approx(0.002, rel=0.25)
        front, body = (site / "personal" / "README.md").read_text().split("---\n", 2)[1:]
        said = yaml.safe_load(front)["secure_triplay"]
        (claim,) = [one for one in run[1]["privacy"] if one["site"] == site.name]
        assert (said["epsilon_of_site"], said["own_updates"]) == (claim["epsilon"], 2)
        assert f"Personal adapter of site {site.name}" in body
    apart = np.corrcoef(list(moved.values()))
    assert np.abs(apart - np.eye(3)).max() < 0.3


def bias_of(folder: Path, site: str) -> dict:
    return json.loads((folder / "sites" / site / "personal" / "class_bias.json").read_text())["bias"]


def test_each_personal_adapter_has_a_bias_from_its_own_class_counts_which_are_charged_once(run):
    folder, _ = run
    study = parse_study(small_study())
    names = [entry.name for entry in study.classes]
    for name, site in split_study(study).sites.items():
        counts = np.bincount(site.train.labels, minlength=len(names))
        bias = bias_of(folder, name)
        assert list(bias) == names
        shares = np.exp(np.array(list(bias.values())) / 1.5)
        assert shares.sum() == pytest.approx(1)
        assert np.abs(shares * len(site.train) - counts).max() < 7 * 2  # noise of two records on each
        with Ledger.open(folder / "sites" / name / "ledger", None) as ledger:
            made = [each for each in ledger.books.reservations.values() if each.what == CLASS_COUNTS]
            first = min(each.counter for each in ledger.books.reservations.values())
        assert [each.counter for each in made] == [first]  # before the first round
        assert made[0].released_sha256 is not None
        front, body = (folder / "sites" / name / "personal" / "README.md").read_text().split("---\n", 2)[1:]
        assert yaml.safe_load(front)["secure_triplay"]["class_bias"] is True
        assert "`class_bias.json` with a number for each class" in body
        events = [
            json.loads(line) for line in (folder / "sites" / name / "journal.jsonl").read_text().splitlines()
        ]
        (trains,) = [each for each in events if each["event"] == "trains with the bias of its classes"]
        assert set(trains) == {"event", "time"}  # and nothing of the bias itself


def test_the_summary_has_both_accuracies_of_each_site_on_its_own_records(run):
    folder, summary = run
    for site in (folder / "sites").iterdir():
        journal = [json.loads(line) for line in (site / "journal.jsonl").read_text().splitlines()]
        (personal,) = [entry for entry in journal if entry["event"] == "personal"]
        shared = [entry for entry in journal if entry["event"] == "measured"][-1]
        said = summary["accuracy"]["per_site"][site.name]
        assert said["personal"] == personal["holdout_correct"] / personal["holdout_total"]
        assert said["final"] == shared["holdout_correct"] / shared["holdout_total"]
        assert personal["holdout_total"] == said["records"] == 10
        assert set(personal) == {"event", "time", "rounds", "holdout_correct", "holdout_total"}
    page = (folder / "report.html").read_text()
    assert ">Personal<" in page
    assert "is never sent" in page


def test_a_missing_manifest_ends_the_run_with_its_name_and_leaves_nothing(tmp_path):
    content = copy.deepcopy(small_study())
    content["data"] = {"kind": "manifest", "manifest": str(tmp_path / "none.csv"), "public_images": 10}
    with pytest.raises(SecureTriplayError) as caught:
        simulate(parse_study(content), tmp_path / "run")
    assert "none.csv" in str(caught.value)
    assert os.listdir(tmp_path) == []


def simulating(folder: Path, **environment: str) -> subprocess.Popen:
    """The command, with its study and its run in a folder, as the leader of a group of processes."""
    study = folder / "study.yaml"
    study.write_text(yaml.safe_dump(small_study()))
    command = [
        sys.executable,
        "-c",
        "from secure_triplay.cli import main; main()",
        "simulate",
        str(study),
        "--out",
        str(folder / "run"),
    ]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | environment,
        # a shell's background jobs, and what they start, ignore Ctrl-C
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def wait_for(process: subprocess.Popen, true) -> None:
    for _ in range(2400):
        if true():
            return
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.05)
    pytest.fail("it did not come to that in two minutes")


def test_ctrl_c_while_workers_are_being_started_is_one_line(tmp_path):
    """A terminal sends it to every process of the group: the one that imports what workers need is among them."""
    process = simulating(tmp_path)
    leader = psutil.Process(process.pid)
    wait_for(process, lambda: any("forkserver" in " ".join(each.cmdline()) for each in leader.children()))
    time.sleep(1)  # it is importing
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Stopped" in errors
    assert len(errors.splitlines()) <= 2
    assert sorted(os.listdir(tmp_path)) == ["study.yaml"]


def test_a_kill_leaves_no_process_and_what_it_leaves_is_in_the_runs_own_folder_where_the_next_run_removes_it(
    tmp_path,
):
    with tempfile.TemporaryDirectory() as temporary:  # its name is short: sockets of Python's own lie there
        process = simulating(tmp_path, TMPDIR=temporary)
        sites = tmp_path / "run.partial" / "sites"
        wait_for(
            process, lambda: sites.exists() and len(list(sites.iterdir())) == len(small_study()["sites"])
        )
        started = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.communicate(timeout=60)
        _, left = psutil.wait_procs(started, timeout=30)
        assert left == []
        assert not list(Path(temporary).glob("triplay-*"))
        assert list((tmp_path / "run.partial").glob(".scratch-*"))
        with run_folder(tmp_path / "run"):
            assert os.listdir(tmp_path / "run.partial") == [".secure-triplay-run"]


def test_a_full_disk_promises_nothing_of_a_run_that_is_removed(tmp_path, monkeypatch):
    """The words are the ledger's own, and hold for a real site as well."""

    def full(*_):
        with explained(tmp_path / "run.partial" / "ledger"):
            error = sqlite3.OperationalError("database or disk is full")
            error.sqlite_errorname = "SQLITE_FULL"
            raise error

    monkeypatch.setattr(harness, "fetch_assets", full)
    with pytest.raises(RunError, match="the disk is full") as failed:
        simulate(parse_study(small_study()), tmp_path / "run")
    assert "safe" not in failed.value.fix
    assert "free some space" in failed.value.fix
    assert os.listdir(tmp_path) == []


def test_where_a_file_system_holds_no_sockets_they_are_among_temporary_files(tmp_path, monkeypatch):
    def refused(path):
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    with harness._scratch(tmp_path) as scratch:
        assert scratch.parent == tmp_path
        assert os.listdir(scratch) == []
    monkeypatch.setattr(harness, "listening", refused)
    with harness._scratch(tmp_path) as scratch:
        assert scratch.parent == Path(tempfile.gettempdir())
    assert not scratch.exists()
    assert os.listdir(tmp_path) == []


def test_ctrl_c_in_the_middle_leaves_nothing_and_no_process(tmp_path):
    process = simulating(tmp_path)
    journal = tmp_path / "run.partial" / "sites" / "north" / "journal.jsonl"
    wait_for(process, lambda: journal.exists() and '"ready"' in journal.read_text())
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Stopped" in errors
    assert "Traceback" not in errors
    assert sorted(os.listdir(tmp_path)) == ["study.yaml"]
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive


def test_epsilon_rises_by_round_and_the_published_accuracy_comes_on_top(run):
    for claim in run[1]["privacy"]:
        series = claim["epsilon_by_round"]
        assert series == sorted(series)
        assert series[-1] < claim["epsilon"] <= 8.0
