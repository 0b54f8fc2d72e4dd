"""Keys stay in the folder that made them; what goes out is public and signed."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from typer.testing import CliRunner

from secure_triplay.cli import app
from secure_triplay.errors import ConfigError, CryptoError, RunError
from secure_triplay.federation import join
from secure_triplay.federation.enrolment import Enrolment
from secure_triplay.federation.serverfolder import ServerFolder
from secure_triplay.federation.sitefolder import SiteFolder
from secure_triplay.federation.studybundle import Rules
from secure_triplay.ledger.ledger import Ledger
from secure_triplay.ledger.logbundle import verify_log
from secure_triplay.ledger.start import start

from .conftest import ROOT, make_site, policy_content


def secrets_of(site: SiteFolder) -> list[bytes]:
    """Every private key of a site, in the forms in which a file could hold it."""
    found = []
    for path in site.path.glob("*.key"):
        raw = path.read_bytes()
        found.append(raw)
        found.append(b"".join(raw.splitlines()[1:-1]))
        if b"PRIVATE KEY" in raw:
            load = (
                serialization.load_ssh_private_key
                if b"OPENSSH" in raw
                else serialization.load_pem_private_key
            )
            key = load(raw, None)
            if hasattr(key, "private_bytes_raw"):
                found.append(key.private_bytes_raw())
            else:
                found.append(key.private_numbers().private_value.to_bytes(48, "big"))
    return [form for one in found if len(one) >= 32 for form in (one, one.hex().encode())]


def test_no_private_key_is_in_any_file_that_leaves_a_site(world):
    public = [world.join("north"), world.server.public_bundle, world.sites["north"].enrolment_file]
    secrets = [form for site in world.sites.values() for form in secrets_of(site)]
    assert len(secrets) > 30
    for file in public:
        content = file.read_bytes()
        assert not [secret for secret in secrets if secret in content]


def test_only_its_user_can_read_a_sites_keys(world):
    for site in world.sites.values():
        assert stat.S_IMODE(site.path.stat().st_mode) == 0o700
        for key in site.path.glob("*.key"):
            assert stat.S_IMODE(key.stat().st_mode) == 0o600
    storage = world.sites["north"].path / "storage.key"
    storage.chmod(0o644)
    with pytest.raises(CryptoError, match="can read a key"):
        _ = world.sites["north"].storage_key


def test_a_folder_that_others_can_open_whatever_is_asked_for_gets_no_key(tmp_path, monkeypatch):
    """As on a mount whose owner, and not the program, chooses the modes of folders."""
    made = Path.mkdir

    def open_to_all(path: Path, *_: object, **asked: bool) -> None:
        made(path, parents=asked.get("parents", False), exist_ok=asked.get("exist_ok", False))
        path.chmod(0o755)

    monkeypatch.setattr(Path, "mkdir", open_to_all)
    with pytest.raises(RunError, match="other users of this machine can open this folder"):
        SiteFolder.init(tmp_path / "north", "north", None)
    assert list(tmp_path.iterdir()) == []


def test_what_a_new_folder_holds_is_on_disk_before_the_folder_has_its_name(tmp_path, monkeypatch):
    synced, real = [], os.fsync

    def note(descriptor: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    site = SiteFolder.init(tmp_path / "north", "north", None)
    for path in site.path.iterdir():
        if path.is_file():
            assert any(name.startswith((path.name, f".{path.name}.")) for name in synced), path.name


def test_no_key_is_ever_overwritten(world):
    with pytest.raises(RunError, match="not empty"):
        SiteFolder.init(world.sites["north"].path, "north")


def test_a_site_without_a_policy_of_its_own_starts_with_the_strict_one(tmp_path):
    site = SiteFolder.init(tmp_path / "a", "st-mary")
    assert site.policy_file.read_bytes() == (ROOT / "configs" / "policies" / "strict.yaml").read_bytes()
    start(site.path, site.policy_file, name="st-mary", approved_by="Dr. Weber")


def test_a_policy_without_limits_leaves_nothing_behind(tmp_path):
    content = policy_content()
    content["delta"]["most_records"] = None
    file = tmp_path / "policy.yaml"
    file.write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError, match="how many records"):
        SiteFolder.init(tmp_path / "a", "st-mary", file, with_ledger=True)
    assert not (tmp_path / "a").exists()


def test_a_name_that_is_no_name_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="no name for a site"):
        SiteFolder.init(tmp_path / "a", "St. Mary")


@pytest.mark.parametrize("name", ["North Clinic", "../north", "ward/north", ""])
def test_a_name_that_is_no_name_leaves_nothing_behind(tmp_path, name):
    with pytest.raises(ConfigError, match="no name for a site"):
        SiteFolder.init(tmp_path / "sites" / name, name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("nobody", ["", "  ", "Dr.\x1b[2J", "Dr. M\udcfcller", "x" * 201])
def test_nothing_is_started_where_nobody_answers_for_it(empty, world, nobody):
    with pytest.raises(ConfigError, match="name"):
        start(empty / "site", world.sites["north"].policy_file, name="north", approved_by=nobody)
    with pytest.raises(ConfigError, match="name"):
        create(empty / "coordinator", world, started_by=nobody)
    assert not list(empty.iterdir())
    entries = Ledger.open(world.sites["north"].ledger, None).chain.entries
    asked = world.look("north")
    with pytest.raises(ConfigError, match="name"):
        join.confirm(world.sites["north"], asked, code=asked.bundle.code, approved_by=nobody)
    assert Ledger.open(world.sites["north"].ledger, None).chain.entries == entries


@pytest.mark.parametrize(
    "server",
    ["fl.example.org", ":8443", "fl.example.org:0", "fl.example.org:65536", "fl.example.org:", "a..b:8443",
     "klinik-süd.example.org:8443", "https://fl.example.org:8443", "fl.example.org:8443 ", "-:1"],
)  # fmt: skip
def test_an_address_at_which_nobody_can_be_reached_makes_no_study(empty, world, server):
    with pytest.raises(ConfigError, match="no address"):
        create(empty / "coordinator", world, server=server)
    assert not list(empty.iterdir())


@pytest.mark.parametrize("server", ["10.0.0.1:8443", "[::1]:8443", "localhost:1", "fl-1.Example.org:65535"])
def test_names_and_addresses_of_both_kinds_make_a_study(empty, world, server):
    assert create(empty / "coordinator", world, server=server).bundle.server == server


@pytest.mark.parametrize(
    ("quorum", "deadline_s"), [(0, 60.0), (-1, 60.0), (2, float("nan")), (2, 0.0), (2, 1e9)]
)
def test_rules_by_which_no_round_could_end_are_refused_in_words(quorum, deadline_s):
    with pytest.raises(ConfigError, match="must be") as refused:
        Rules.stated(quorum, deadline_s)
    assert "quorum" in refused.value.where


def test_a_coordinators_folder_is_there_whole_or_not_at_all(empty, world, monkeypatch):
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ServerFolder, "add_epoch", stopped)
    with pytest.raises(KeyboardInterrupt):
        create(empty / "coordinator", world)
    assert not list(empty.iterdir())
    monkeypatch.undo()
    (empty / "coordinator").mkdir(mode=0o700)
    create(empty / "coordinator", world)
    assert ServerFolder.open(empty / "coordinator").bundle.epoch == 1
    assert [path.name for path in empty.iterdir()] == ["coordinator"]


@pytest.fixture
def empty(tmp_path):
    (tmp_path / "empty").mkdir()
    return tmp_path / "empty"


def create(path, world, **given):
    enrolments = [site.enrolment_file for site in world.sites.values()]
    return ServerFolder.create(
        path, world.server.path / "study.yaml", enrolments, **{"server": "fl.example.org:8443", **given}
    )


def test_a_changed_enrolment_is_refused(world):
    content = json.loads(world.sites["north"].enrolment_file.read_text())
    content["enrolment"]["site"] = "south"
    with pytest.raises(CryptoError, match="does not verify"):
        Enrolment.read(json.dumps(content).encode(), where="x")


@pytest.mark.parametrize("half", ["ed25519", "mldsa65"])
def test_both_signatures_of_a_document_have_to_verify(world, tmp_path, half):
    other = make_site(tmp_path, "other")
    content = json.loads(world.sites["north"].enrolment_file.read_text())
    content["enrolment"][half] = getattr(other.enrolment, half)
    with pytest.raises(CryptoError, match="does not verify"):
        Enrolment.read(json.dumps(content).encode(), where="x")


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[]", b'{"enrolment": 1}', b"\xff", b'{"enrolment":' * 2000]
)
def test_what_is_no_document_is_refused_in_words(content):
    with pytest.raises(ConfigError, match="no enrolment"):
        Enrolment.read(content, where="x")


def test_one_changed_bit_changes_the_fingerprint(world):
    prints = {site.enrolment.fingerprint for site in world.sites.values()}
    assert len(prints) == 3
    changed = world.sites["north"].enrolment.model_copy(update={"site": "norti"})
    assert changed.fingerprint not in prints


def test_the_server_proves_itself_by_the_studys_own_authority(world):
    ca, certificate, _ = (x509.load_pem_x509_certificate(path.read_bytes()) if path.suffix == ".crt" else None
                          for path in world.server.tls)  # fmt: skip
    certificate.verify_directly_issued_by(ca)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert "127.0.0.1" in {str(one.value) for one in names}
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_a_folder_with_another_sites_keys_is_refused(world):
    mine, other = world.sites["north"].path, world.sites["south"].path
    (mine / "mldsa.key").write_bytes((other / "mldsa.key").read_bytes())
    with pytest.raises(CryptoError, match="not those of its enrolment"):
        SiteFolder.open(mine)


def test_what_is_no_sites_folder_is_an_error_in_words(tmp_path: Path):
    with pytest.raises(ConfigError, match="no site's folder"):
        SiteFolder.open(tmp_path)


def test_an_auditor_gets_the_coordinators_log_as_it_stands(world, tmp_path):
    """Without it nothing that the coordinator noted is ever held against the sites' evidence."""
    out = tmp_path / "evidence"
    done = CliRunner().invoke(app, ["study", "export", "--dir", str(world.server.path), "--out", str(out)])
    assert done.exit_code == 0, done.output
    log = verify_log(out)
    assert (log.site, log.identity) == ("coordinator", world.server.identity.identity)
