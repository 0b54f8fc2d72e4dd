"""Keys stay in the folder that made them; what goes out is public and signed."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from secure_triplay.errors import ConfigError, CryptoError, RunError
from secure_triplay.federation.enrolment import Enrolment
from secure_triplay.federation.sitefolder import SiteFolder
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


def test_one_changed_bit_changes_the_fingerprint(world, tmp_path):
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
