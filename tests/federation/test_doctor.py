"""The doctor sees what is wrong with a line, a certificate, a clock and a folder."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate

import pytest

from secure_triplay.errors import ConfigError, RunError
from secure_triplay.federation import doctor
from secure_triplay.federation.ca import make_ca, make_server_certificate
from secure_triplay.federation.doctor import examine_server, examine_site, reach
from secure_triplay.federation.processes import free_port
from secure_triplay.ledger.export import export
from secure_triplay.ledger.verify import verify


@contextmanager
def answering(folder, issued, clock_s: float = 0.0) -> Iterator[str]:
    """A TLS server that tells a time that is `clock_s` off; yields host:port."""
    (folder / "crt").write_bytes(issued.certificate)
    (folder / "key").write_bytes(issued.key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "crt", folder / "key")
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            try:
                with listener.accept()[0] as plain, context.wrap_socket(plain, server_side=True) as line:
                    line.recv(1000)
                    head = f"HTTP/1.1 404\r\nDate: {formatdate(time.time() + clock_s, usegmt=True)}\r\n\r\n"
                    line.sendall(head.encode())
            except OSError:
                pass  # a client that does not trust us hangs up

        threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
def ca():
    return make_ca("study")


def verdicts(findings) -> dict[str, str]:
    return {finding.what: finding.verdict for finding in findings}


def test_a_server_with_the_studys_certificate_and_a_right_clock_is_well(tmp_path, ca):
    with answering(tmp_path, make_server_certificate(ca, ("127.0.0.1",))) as server:
        found = verdicts(reach(server, ca.certificate.decode()))
    assert found == {"server": "ok", "its certificate": "ok", "clock": "ok"}


def test_a_server_of_another_authority_is_told_from_one_that_is_down(tmp_path, ca):
    other = make_ca("study")
    with answering(tmp_path, make_server_certificate(other, ("127.0.0.1",))) as server:
        (found,) = reach(server, ca.certificate.decode())
    assert (found.verdict, "not the study's" in found.words) == ("wrong", True)
    (found,) = reach(f"127.0.0.1:{free_port()}", ca.certificate.decode())
    assert (found.verdict, "cannot be reached" in found.words) == ("wrong", True)


def test_a_certificate_for_another_host_is_refused(tmp_path, ca):
    with answering(tmp_path, make_server_certificate(ca, ("fl.example.org",))) as server:
        (found,) = reach(server, ca.certificate.decode())
    assert found.verdict == "wrong"


@pytest.mark.parametrize("off", [-600.0, 600.0])
def test_a_clock_that_is_off_is_seen(tmp_path, ca, off):
    with answering(tmp_path, make_server_certificate(ca, ("127.0.0.1",)), off) as server:
        found = {finding.what: finding for finding in reach(server, ca.certificate.decode())}
    assert found["clock"].verdict == "warning"
    assert ("behind" if off > 0 else "ahead") in found["clock"].words


def test_a_certificate_that_ends_soon_is_a_warning(tmp_path, ca, monkeypatch):
    monkeypatch.setattr("secure_triplay.federation.ca.SERVER_DAYS", 10)
    with answering(tmp_path, make_server_certificate(ca, ("127.0.0.1",))) as server:
        assert verdicts(reach(server, ca.certificate.decode()))["its certificate"] == "warning"


def test_at_a_site_everything_but_the_missing_server_is_well(world):
    world.join("north")
    found = verdicts(examine_site(world.sites["north"]))
    assert [what for what, verdict in found.items() if verdict != "ok"] == ["server"]


def test_a_site_can_read_out_both_fingerprints_for_which_others_ask(world, tmp_path):
    """A coordinator has that of the enrolment, an auditor that of the key which signs evidence."""
    world.join("north")
    site = world.sites["north"]
    (keys,) = [finding.words for finding in examine_site(site) if finding.what == "keys"]
    assert site.enrolment.fingerprint in keys
    export(site.ledger, tmp_path / "evidence", site.identity, second_accountant=False)
    (note,) = [note for note in verify(tmp_path / "evidence").notes if "Signed by" in note]
    assert note.partition("Signed by ")[2][:39] in keys


def test_what_was_broken_at_a_site_is_named(world, monkeypatch):
    world.join("north")
    site = world.sites["north"]
    (world.joined("north").folder / "trusted.yaml").write_text("{}")
    (site.ledger / "ledger.sqlite").unlink()
    monkeypatch.setattr(doctor, "LEAST_FREE_BYTES", 1 << 60)
    found = verdicts(examine_site(site))
    assert (found["app"], found["ledger"], found["free disk"]) == ("wrong", "wrong", "warning")


@pytest.mark.parametrize(
    ("name", "length"),
    [
        ("storage.key", 20),
        ("approval.key", 20),
        ("supernode.key", 20),
        ("approval.key", None),
        ("supernode.key", None),
    ],
)
def test_every_key_of_a_site_is_looked_at(world, name, length):
    """Cut short, or another site's."""
    world.join("north")
    site = world.sites["north"]
    (site.path / name).write_bytes((world.sites["east"].path / name).read_bytes()[:length])
    assert verdicts(examine_site(site))["keys"] == "wrong"


@pytest.mark.parametrize(
    ("name", "what", "fix"),
    [("local.key", "own certificate", "site join"), ("server-ca.crt", "app", "site join")],
)
def test_what_a_joined_study_connects_by_is_looked_at(world, name, what, fix):
    """Empty or another one's, these end the SuperNode again and again, in words that only its log has."""
    for site in ("north", "east"):
        world.join(site)
    file = world.joined("north").folder / name
    for content in (b"", (world.joined("east").folder / "local.key").read_bytes()):
        file.write_bytes(content)
        (found,) = [each for each in examine_site(world.sites["north"]) if each.what == what]
        assert found.verdict == "wrong"
        assert fix in found.fix


def test_a_server_certificate_with_another_ones_key_is_named(world):
    """As a stop between the two of a renewal leaves them."""
    _, _, key = world.server.tls
    before = key.read_bytes()
    world.server.renew_certificate()
    key.write_bytes(before)
    assert verdicts(examine_server(world.server))["server certificate"] == "wrong"
    world.server.renew_certificate()
    assert verdicts(examine_server(world.server))["server certificate"] == "ok"


def test_a_file_among_the_studies_is_no_study(world):
    world.join("north")
    (world.sites["north"].path / "studies" / ".DS_Store").write_text("made by a file browser")
    assert world.joined("north").study.study == world.server.study.study


@pytest.mark.parametrize("name", ["ca.crt", "ca.key"])
def test_a_damaged_authority_renews_nothing_and_says_so(world, name):
    before = [path.read_bytes() for path in world.server.tls[1:]]
    (world.server.path / name).write_bytes((world.server.path / name).read_bytes()[:20])
    with pytest.raises(ConfigError, match="authority"):
        world.server.renew_certificate()
    assert [path.read_bytes() for path in world.server.tls[1:]] == before


def test_a_certificate_that_a_full_disk_does_not_renew_stays_with_its_key(world, monkeypatch):
    before = [path.read_bytes() for path in world.server.tls]

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("secure_triplay.durable.os.fsync", full)
        with pytest.raises(RunError, match="No space left"):
            world.server.renew_certificate()
    assert [path.read_bytes() for path in world.server.tls] == before
    world.server.renew_certificate()
    assert all(path.read_bytes() != old for path, old in zip(world.server.tls[1:], before[1:], strict=True))
    assert world.server.tls[2].stat().st_mode & 0o777 == 0o600


def test_what_is_said_of_a_certificate_that_ends_renews_that_very_one(world, monkeypatch):
    world.join("north")
    north = world.sites["north"]
    certificate = world.joined("north").folder / "local.crt"
    before = certificate.read_bytes()
    monkeypatch.setattr(doctor, "WARN_DAYS", 10**4)
    fixes = {finding.what: finding.fix for finding in (*examine_site(north), *examine_server(world.server))}
    assert "server renew" in fixes["server certificate"]
    assert "not renewed" in fixes["study's authority"]
    assert "remove local.key" in fixes["own certificate"]
    assert "site join" in fixes["own certificate"]
    (certificate.parent / "local.key").unlink()
    world.join("north")
    assert certificate.read_bytes() != before


def test_at_the_server_a_missing_confirmation_is_named(world):
    world.server.take_confirmation(world.join("north"))
    found = {finding.what: finding for finding in examine_server(world.server)}
    assert found["confirmations"].verdict == "wrong"
    assert "east, south" in found["confirmations"].words
    assert found["server certificate"].verdict == "ok"


def test_a_renewed_certificate_is_taken_by_sites_that_joined_before(world, tmp_path):
    before = world.server.tls[1].read_bytes()
    world.server.renew_certificate()
    _, certificate, key = (path.read_bytes() for path in world.server.tls)
    assert certificate != before
    issued = type(make_ca("x"))(certificate, key)
    with answering(tmp_path, issued) as server:
        assert verdicts(reach(server, world.server.bundle.ca_certificate))["server"] == "ok"
