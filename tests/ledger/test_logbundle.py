"""The coordinator's log as a file: verifies whole, and holds sites to what they took part in."""

from __future__ import annotations

import json

import pytest

from secure_triplay.crypto.identity import SigningIdentity
from secure_triplay.errors import CryptoError, RunError
from secure_triplay.ledger.compare import compare, verify_any
from secure_triplay.ledger.entries import Decided, RoundClosed
from secure_triplay.ledger.export import PAGE_NAME, export
from secure_triplay.ledger.log import AuditLog
from secure_triplay.ledger.logbundle import LOG_NAME, export_log, verify_log
from tests.ledger.conftest import CHARGE, STUDY


@pytest.fixture
def coordinator():
    return SigningIdentity.generate()


@pytest.fixture
def log(tmp_path, coordinator, clock):
    with AuditLog.create(
        tmp_path / "server", coordinator, party="coordinator", started_by="Ms. Lead", clock=clock
    ) as made:
        made.record(Decided(what="removed site east: it asked to leave", by="Ms. Lead"))
        made.record(RoundClosed(study=STUDY, epoch=1, round=1, took_part=("site",), sum_sha256="c" * 64))
    return tmp_path / "server"


def test_a_log_verifies_with_every_decision_in_it(log, tmp_path, coordinator, clock):
    found = verify_any(export_log(log, tmp_path / "out", coordinator, clock=clock))
    assert found.site == "coordinator"
    assert found.identity == coordinator.identity
    assert [entry.kind for entry in found.chain] == ["opened", "decided", "round closed"]


def test_a_log_of_another_key_than_was_told_is_refused(log, tmp_path, coordinator, clock):
    out = export_log(log, tmp_path / "out", coordinator, clock=clock)
    other = SigningIdentity.generate().identity.fingerprint
    told = frozenset({coordinator.identity.fingerprint, other})
    assert verify_any(out, signed_as=told).site == "coordinator"
    with pytest.raises(CryptoError, match="was expected"):
        verify_any(out, signed_as=frozenset({other}))


def test_a_log_that_a_full_disk_cuts_short_leaves_no_folder(log, tmp_path, coordinator, clock, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("secure_triplay.durable.os.fsync", full)
    with pytest.raises(RunError, match="No space left") as refused:
        export_log(log, tmp_path / "out", coordinator, clock=clock)
    assert refused.value.where == str(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["server"]


@pytest.mark.parametrize("change", ["edit", "drop the end", "reorder", "sign with another key"])
def test_a_changed_log_is_refused(log, tmp_path, coordinator, clock, change):
    out = export_log(log, tmp_path / "out", coordinator, clock=clock)
    content = json.loads((out / LOG_NAME).read_text())
    entries = content["entries"]
    if change == "edit":
        entries[1]["body"]["what"] = "nothing happened"
    elif change == "drop the end":
        entries.pop()
    elif change == "reorder":
        entries[1], entries[2] = entries[2], entries[1]
    else:
        content["public_key"] = SigningIdentity.generate().identity.public_bytes.hex()
    (out / LOG_NAME).write_text(json.dumps(content))
    with pytest.raises(CryptoError):
        verify_log(out)


def test_a_decision_slipped_in_beside_the_signed_one_is_refused(log, tmp_path, coordinator, clock):
    out = export_log(log, tmp_path / "out", coordinator, clock=clock)
    path, signed = out / LOG_NAME, '"what": '
    path.write_text(path.read_text().replace(signed, f'{signed}"nothing happened", {signed}', 1))
    with pytest.raises(RunError):
        verify_log(out)


@pytest.mark.parametrize("content", ["[]", "{}", '{"signature": 3}'])
def test_what_is_no_log_is_said_so(tmp_path, content):
    (tmp_path / LOG_NAME).write_text(content)
    with pytest.raises(RunError, match="no audit log"):
        verify_log(tmp_path)


def test_a_site_that_took_part_without_a_charge_is_found_by_the_coordinators_log(
    log, ledger, folder, tmp_path, coordinator, identity, clock
):
    ledger.close()
    server = verify_log(export_log(log, tmp_path / "log", coordinator, clock=clock))

    def site(name):
        return verify_any(export(folder, tmp_path / name, identity, second_accountant=False, clock=clock))

    assert "no settled charge" in compare([server, site("before")])[0].what
    from secure_triplay.ledger.ledger import Ledger

    with Ledger.open(folder, identity, clock=clock) as again:
        again.settle(again.reserve(CHARGE, study=STUDY, round=1), b"upload")
    assert compare([server, site("after")]) == ()


def test_no_log_beside_it_lets_evidence_pass_unverified(
    ledger, folder, log, tmp_path, identity, coordinator, clock
):
    ledger.close()
    evidence = export(folder, tmp_path / "evidence", identity, second_accountant=False, clock=clock)
    (evidence / PAGE_NAME).write_text("nothing was spent")
    out = export_log(log, tmp_path / "out", coordinator, clock=clock)
    (evidence / LOG_NAME).write_bytes((out / LOG_NAME).read_bytes())
    with pytest.raises(RunError, match="and a party's log"):
        verify_any(evidence)
