"""Server with one site, the network, the server's disk, and a malicious site: what each gets, with its control."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from secure_triplay.attacks import disk, malicious_site, network, shared_key
from secure_triplay.attacks.attack import Setting
from secure_triplay.attacks.finding import Verdict
from secure_triplay.attacks.memory import search_folder
from secure_triplay.attacks.scene import key_ceremony
from secure_triplay.config import load_study
from secure_triplay.crypto.codec import Codec
from secure_triplay.errors import CryptoError
from secure_triplay.privacy.noise import NoiseSource


@pytest.fixture
def setting(root, tmp_path: Path) -> Setting:
    return Setting(load_study(root / "configs" / "demo.yaml"), 0, True, tmp_path)


def test_server_and_one_site_read_another_sites_update(setting):
    sites = key_ceremony(setting.study, 5_000)
    truth = shared_key.victim_update(setting.study, sites.codec, 1)
    upload = sites.upload(truth, NoiseSource(), site="north").to_bytes()
    opened = shared_key.open_upload(shared_key.Seen(upload, sites.keys.ckks, sites.codec))
    assert np.abs(opened - truth).max() <= sites.codec.step * 1.001
    assert np.abs(truth).max() > 10 * sites.codec.step
    other = key_ceremony(setting.study, 5_000)
    with pytest.raises(CryptoError):
        shared_key.open_upload(shared_key.Seen(upload, other.keys.ckks, sites.codec))


def test_it_is_reported_as_a_leak_that_is_stated(setting):
    outcome = shared_key.open_one(setting)
    assert outcome.controls[0].valid
    shared, foreign = outcome.findings
    assert (shared.value, shared.verdict) == (1.0, Verdict.LEAKS_AS_STATED)
    assert (foreign.value, foreign.verdict) == (0.0, Verdict.NOTHING_FOUND)


def test_every_upload_of_a_study_has_one_length_whatever_it_holds(setting):
    sites = key_ceremony(setting.study, 5_000)
    content = network.updates(sites.codec, 0)
    sizes = network.sizes_of_ours(sites, content)
    assert len(sizes) == 4 * len(content)
    for site in sites.signers:
        assert len({sizes[site, what] for what in content}) == 1
    assert network.beyond_names(sizes) == 1
    outcome = network.run(setting)
    assert outcome.controls[0].valid
    assert outcome.findings[0].verdict is Verdict.NOTHING_FOUND


def test_a_length_that_depends_on_the_update_is_a_leak(setting, monkeypatch):
    monkeypatch.setattr(
        network,
        "sizes_of_ours",
        lambda sites, content: {
            ("north", what): size for what, size in network.sizes_compressed(content).items()
        },
    )
    assert network.run(setting).findings[0].verdict is Verdict.LEAKS


def test_the_servers_disk_holds_no_secret_and_the_search_finds_those_that_are_left_there(setting, tmp_path):
    sites = key_ceremony(setting.study, 5_000)
    rng = np.random.default_rng(0)
    updates = {site: rng.normal(0, 0.1, 5_000).astype(np.float32) for site in sites.signers}
    folder = tmp_path / "server"
    uploads = disk.uploads_of(sites, updates)
    needles = disk.needles_of(sites, updates, uploads)
    disk.serve_a_round(sites, uploads, folder)
    searched = search_folder(folder, needles)
    assert searched.hits == ()
    assert searched.bytes_searched > 4 * 30_000
    (folder / "log.txt").write_text(f"tag key {sites.keys.tag.to_envelope_bytes().hex()}")
    (folder / "update.bin").write_bytes(b"junk" + updates["west"].tobytes()[1_000:3_000])
    hits = search_folder(folder, needles).hits
    assert {(hit.what, hit.where) for hit in hits} == {
        ("the tag key", "server/log.txt"),
        ("the update of west", "server/update.bin"),
    }
    assert disk.run(setting).controls[0].valid
    assert disk.run(setting).findings[0].verdict is Verdict.NOTHING_FOUND


@pytest.mark.parametrize("form", ["integers", "slots"])
def test_an_update_on_the_servers_disk_is_found_as_it_was_encoded(setting, tmp_path, monkeypatch, form):
    """The oracle is what the encoder itself was given and gave, noted on its way into the ciphertext."""
    sites = key_ceremony(setting.study, 5_000)
    rng = np.random.default_rng(0)
    updates = {site: rng.normal(0, 0.01, 5_000).astype(np.float32) for site in sites.signers}
    noted = {"integers": [], "slots": []}
    quantise, to_slots = Codec.quantise, Codec.to_slots

    def note_integers(self, *given):
        noted["integers"].append(quantise(self, *given))
        return noted["integers"][-1]

    def note_slots(self, *given):
        noted["slots"].append(to_slots(self, *given))
        return noted["slots"][-1]

    monkeypatch.setattr(Codec, "quantise", note_integers)
    monkeypatch.setattr(Codec, "to_slots", note_slots)
    uploads = disk.uploads_of(sites, updates)
    needles = disk.needles_of(sites, updates, uploads)
    folder = tmp_path / "server"
    disk.serve_a_round(sites, uploads, folder)
    assert search_folder(folder, needles).hits == ()
    (folder / "debug.bin").write_bytes(b"junk" + noted[form][1].tobytes())
    hits = search_folder(folder, needles).hits
    assert {(hit.what, hit.form, hit.where) for hit in hits} == {
        (f"the update of {list(updates)[1]}", f"encoded {form}", "server/debug.bin")
    }


def test_a_malicious_site_moves_neighbouring_fields_unseen_and_only_within_reach(setting):
    outcome = malicious_site.try_encodings(setting)
    assert outcome.controls[0].valid
    carry, limit, far = outcome.findings
    assert carry.verdict is limit.verdict is Verdict.LEAKS_AS_STATED
    assert carry.value == pytest.approx(1 / 4, abs=0.01)  # one of four fields gets the carry
    assert limit.value > 1
    assert (far.value, far.verdict) == (0.0, Verdict.NOTHING_FOUND)


def test_figures_do_not_depend_on_keys_or_on_chance(setting):
    for attack in (shared_key.open_one, network.run, disk.run, malicious_site.try_encodings):
        first, second = attack(setting), attack(setting)
        assert [finding.value for finding in first.findings] == [finding.value for finding in second.findings]
        assert [finding.figures for finding in first.findings] == [
            finding.figures for finding in second.findings
        ]
