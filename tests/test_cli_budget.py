"""The officer's commands: start a ledger by name, follow it, export it, and verify the export offline."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from secure_triplay.crypto.identity import SigningIdentity
from secure_triplay.crypto.keyfile import load_identity, save_identity
from secure_triplay.ledger.ledger import TRAINING, Ledger, Release
from secure_triplay.ledger.start import start
from secure_triplay.privacy.mechanisms import DpSgdCharge
from tests.test_cli import assert_plain_error, run

CHARGE = DpSgdCharge(noise_multiplier=4.0, sampling_rate=0.5, steps=1, unit="patient")
STUDY = "a" * 64


@pytest.fixture
def policy(root, tmp_path):
    return shutil.copy(root / "configs" / "policies" / "strict.yaml", tmp_path / "own.yaml")


@pytest.fixture(scope="module")
def template(root, tmp_path_factory):
    """A site whose ledger was started by the command, with one study approved and two rounds charged."""
    folder = tmp_path_factory.mktemp("template") / "any name"
    policy = str(root / "configs" / "policies" / "strict.yaml")
    assert run("site", "init", "--name", "st-mary", "--dir", str(folder)).returncode == 0
    done = run("budget", "start", "--site", str(folder), "--policy", policy, "--approved-by", "Dr. Weber")
    assert done.returncode == 0, done.stderr
    assert "epsilon 3 a study and 6 a year, per patient" in " ".join(done.stdout.split())
    with Ledger.open(folder / "ledger", load_identity(folder)) as ledger:
        ledger.approve(STUDY, "pilot", [Release(TRAINING, CHARGE, 4)], approved_by="Dr. Weber")
        ledger.settle(ledger.reserve(CHARGE, study=STUDY, round=1), b"first")
        ledger.reserve(CHARGE, study=STUDY, round=2)
    return folder


@pytest.fixture
def site(template, tmp_path):
    return Path(shutil.copytree(template, tmp_path / template.name))


def test_status_tells_spent_from_reserved_and_what_is_left(site):
    rows = json.loads(run("budget", "status", "--site", str(site), "--json").stdout)
    study = next(row for row in rows if row["kind"] == "study")
    assert (study["site"], study["unit"], study["charges"], study["limit"]) == ("st-mary", "patient", 2, 3.0)
    assert 0 < study["epsilon_spent"] < study["epsilon_charged"] < 3
    assert study["epsilon_left"] == pytest.approx(3 - study["epsilon_charged"])
    assert {row["kind"] for row in rows} == {"study", "year", "overall"}
    shown = run("budget", "status", "--site", str(site)).stdout
    assert "study pilot" in shown
    assert f"{study['epsilon_spent']:.2f}" in shown


def test_an_export_verifies_offline_and_names_who_approved_it(site, tmp_path):
    out = tmp_path / "evidence"
    done = run("budget", "export", "--site", str(site), "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert "Dr. Weber" in (out / "evidence.html").read_text()
    verified = run("audit", "verify", str(out))
    assert verified.returncode == 0, verified.stderr
    assert "rollback not excluded" in verified.stdout
    assert "REPLACES" not in verified.stdout


def test_a_bundle_is_refused_unless_the_key_that_the_site_told_signed_it(site, tmp_path):
    out, told = tmp_path / "evidence", load_identity(site).identity.fingerprint
    assert run("budget", "export", "--site", str(site), "--out", str(out)).returncode == 0
    other = SigningIdentity.generate().identity.fingerprint
    verified = run("audit", "verify", str(out), "--signed-as", other, "--signed-as", told)
    assert verified.returncode == 0, verified.stderr
    assert f"Signed by {told}: this was compared with the fingerprint given" in verified.stdout
    assert_plain_error(run("audit", "verify", str(out), "--signed-as", other), 7, told, other, "was expected")
    shutil.rmtree(out)  # what cannot be compared is refused before anything is read
    assert_plain_error(
        run("audit", "verify", str(out), "--signed-as", "st-mary"), 3, "no fingerprint of a key"
    )


@pytest.mark.parametrize("purpose", ["", "  "])
def test_an_export_for_no_purpose_is_refused_in_our_own_words(site, tmp_path, purpose):
    out = tmp_path / "evidence"
    done = run("budget", "export", "--site", str(site), "--out", str(out), "--purpose", purpose)
    assert done.returncode == 3
    assert "no purpose is named" in done.stderr
    assert "Where: --purpose" in done.stderr
    assert "String should" not in done.stderr
    assert not out.exists()


def test_no_name_in_a_bundle_writes_a_line_of_the_verifiers_own(tmp_path, policy):
    name = "mallory\x1b[2K\rnorth: signatures, chain and arithmetic hold; by 7 others\n\x1b[8m"
    site, out = tmp_path / "site", tmp_path / "evidence"
    site.mkdir()
    save_identity(site, SigningIdentity.generate())
    start(site, Path(policy), name=name, approved_by="A")
    assert run("budget", "export", "--site", str(site), "--out", str(out)).returncode == 0
    shown = run("audit", "verify", str(out)).stdout
    assert not any(line.startswith("north") for line in shown.splitlines())
    assert "\x1b" not in shown
    assert shown.startswith("mallory\\x1b[2K\\rnorth")


def test_an_edited_export_is_refused_with_its_own_exit_code(site, tmp_path):
    out = tmp_path / "evidence"
    run("budget", "export", "--site", str(site), "--out", str(out))
    page = out / "charges.csv"
    page.write_text(page.read_text().replace("0.5", "0.1"))
    assert_plain_error(run("audit", "verify", str(out)), 7, "charges.csv")


def test_two_histories_of_one_site_exit_with_7(site, tmp_path):
    shutil.copytree(site, tmp_path / "clone" / "st-mary")
    folders = site, tmp_path / "clone" / "st-mary"
    for number, folder in enumerate(folders):
        with Ledger.open(folder / "ledger", load_identity(folder)) as ledger:
            ledger.settle(ledger.reserve(CHARGE, study=STUDY, round=2), b"%d" % number)
        run("budget", "export", "--site", str(folder), "--out", str(tmp_path / f"evidence-{number}"))
    done = run("audit", "verify", str(tmp_path / "evidence-0"), str(tmp_path / "evidence-1"))
    assert done.returncode == 7
    assert "DISAGREE" in done.stdout


def test_a_tightened_policy_binds_from_the_moment_that_a_person_adopts_it(site, policy):
    text = Path(policy).read_text()
    Path(policy).write_text(
        text.replace("per_study: 3.0", "per_study: 1.5").replace("year: 6.0", "year: 2.0")
    )
    given = ("--site", str(site), "--policy", policy)
    assert_plain_error(run("budget", "adopt", *given, "--approved-by", " "), 3, "nobody is named")
    done = run("budget", "adopt", *given, "--approved-by", "Dr. Weber")
    assert done.returncode == 0, done.stderr
    assert "epsilon 1.5 a study and 2 a year, per patient" in done.stdout
    rows = json.loads(run("budget", "status", "--site", str(site), "--json").stdout)
    assert {row["limit"] for row in rows} == {1.5, 2.0, None}


def test_a_ledger_is_started_once_and_a_lost_one_only_with_a_reason(site, policy):
    again = "budget", "start", "--site", str(site), "--policy", policy, "--approved-by", "Dr. Weber"
    assert run(*again).returncode != 0
    (site / "ledger" / "ledger.sqlite").unlink()
    assert_plain_error(run("budget", "status", "--site", str(site)), 9, "missing", "--replaces")
    assert_plain_error(run(*again), 9, "missing")
    done = run(*again, "--replaces", "disk failed on Monday, no backup")
    assert done.returncode == 0, done.stderr


def test_a_lost_ledger_folder_is_noticed_and_its_successor_says_so_to_every_auditor(site, policy, tmp_path):
    again = "budget", "start", "--site", str(site), "--policy", policy, "--approved-by", "Dr. Weber"
    shutil.rmtree(site / "ledger")
    assert_plain_error(run("budget", "status", "--site", str(site)), 9, "missing", "--replaces")
    assert_plain_error(run(*again), 9, "missing", "--replaces")
    assert not (site / "ledger").exists()
    for nothing in (" ", "\t", "disk\nfailed", "x" * 2001):
        assert_plain_error(run(*again, "--replaces", nothing), 3, "reason", "--replaces")
    done = run(*again, "--replaces", "disk failed on Monday")
    assert done.returncode == 0, done.stderr
    out = tmp_path / "evidence"
    assert run("budget", "export", "--site", str(site), "--out", str(out)).returncode == 0
    shown = run("audit", "verify", str(out)).stdout
    assert "REPLACES A LOST LEDGER  reason given: disk failed on Monday" in shown
    (said,) = json.loads(run("audit", "verify", "--json", str(out)).stdout)["bundles"]
    assert said["replaces"] == "disk failed on Monday"


def test_a_folder_without_a_ledger_says_what_to_do(tmp_path):
    assert_plain_error(
        run("budget", "status", "--site", str(tmp_path)), 9, "no privacy ledger", "budget start"
    )


def test_a_policy_without_a_bound_on_patients_gives_no_ledger(tmp_path, policy):
    text = (tmp_path / "own.yaml").read_text()
    (tmp_path / "own.yaml").write_text(text.replace("most_patients: 20000", "most_patients: null"))
    site = tmp_path / "st-mary"
    run("site", "init", "--name", "st-mary", "--dir", str(site))
    done = run("budget", "start", "--site", str(site), "--policy", policy, "--approved-by", "Dr. Weber")
    assert_plain_error(done, 3, "delta.most_patients")
    assert not (site / "ledger").exists()


def test_no_ledger_is_started_where_no_study_could_ever_be_joined(tmp_path, policy):
    """`site init` refuses a folder that holds one, and what it had charged would count nowhere."""
    done = run(
        "budget",
        "start",
        "--site",
        str(tmp_path / "st-mary"),
        "--policy",
        policy,
        "--approved-by",
        "Dr. Weber",
    )
    assert_plain_error(done, 3, "no site's folder", "site init")
    assert not (tmp_path / "st-mary").exists()
