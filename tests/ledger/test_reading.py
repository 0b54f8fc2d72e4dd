"""What an auditor is handed is read within bounds, and an error says which bundle it is about and what to do there."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3

import pytest

from secure_triplay.crypto.identity import Purpose, SigningIdentity
from secure_triplay.errors import CryptoError, PrivacyError, RunError
from secure_triplay.ledger.compare import verify_any
from secure_triplay.ledger.entries import canonical
from secure_triplay.ledger.export import JSON_NAME, export
from secure_triplay.ledger.ledger import NAME, Ledger
from secure_triplay.ledger.log import AuditLog
from secure_triplay.ledger.logbundle import LOG_NAME, export_log
from secure_triplay.ledger.reading import read_handed_over
from tests.test_cli import assert_plain_error, run

NAMES = {"evidence": JSON_NAME, "log": LOG_NAME}


@pytest.fixture
def bundles(make, tmp_path, identity, clock):
    """A site's evidence and a coordinator's log, as they were handed over."""
    with make("site"):
        pass
    coordinator = SigningIdentity.generate()
    AuditLog.create(
        tmp_path / "server", coordinator, party="coordinator", started_by="L", clock=clock
    ).close()
    out = tmp_path / "handed over"
    return {
        "evidence": export(tmp_path / "site", out / "site", identity, second_accountant=False, clock=clock),
        "log": export_log(tmp_path / "server", out / "server", coordinator, clock=clock),
    }


@pytest.fixture(params=NAMES)
def handed(bundles, request):
    """A bundle, and the signed file in it."""
    return bundles[request.param], bundles[request.param] / NAMES[request.param]


@pytest.mark.timeout(30)
@pytest.mark.parametrize("what", ["a device", "a pipe", "a folder"])
def test_no_device_pipe_or_folder_is_read_in_a_files_place(handed, what):
    bundle, path = handed
    path.unlink()
    if what == "a device":
        path.symlink_to("/dev/zero")
    elif what == "a pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    with pytest.raises(RunError) as refused:
        verify_any(bundle)
    assert refused.value.where == str(path)


def test_no_more_of_a_file_is_read_than_was_agreed(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"x" * 1000)
    assert read_handed_over(path, 1000) == b"x" * 1000
    with pytest.raises(RunError, match="larger than any real one"):
        read_handed_over(path, 999)


def test_the_files_of_a_bundle_share_one_bound(bundles, monkeypatch):
    bundle = bundles["evidence"]
    size = sum(path.stat().st_size for path in bundle.iterdir())
    monkeypatch.setattr("secure_triplay.ledger.verify.MAX_BUNDLE_BYTES", size)
    verify_any(bundle)
    monkeypatch.setattr("secure_triplay.ledger.verify.MAX_BUNDLE_BYTES", size - 1)
    with pytest.raises(RunError, match="larger than any real one"):
        verify_any(bundle)


def resigned(path, change, signer):
    """A file whose content was changed, and signed again by whoever has a key."""
    content = json.loads(path.read_text())
    signature = content.pop("signature")
    of = content.get("evidence", content)
    of["public_key"] = signer.identity.public_bytes.hex()
    change(of)
    signature = signer.sign(Purpose.EVIDENCE, canonical(content)).hex()
    path.write_text(json.dumps({**content, "signature": signature}))


def drop_a_nonce(content):
    del content["entries"][0]["nonce"]


def no_entries(content):
    content["entries"] = []


def as_it_is(content):
    pass


@pytest.mark.parametrize("change", [drop_a_nonce, no_entries, as_it_is])
def test_a_broken_chain_is_said_to_be_of_that_bundle_in_words_for_an_auditor(handed, change):
    bundle, path = handed
    resigned(path, change, SigningIdentity.generate())
    with pytest.raises(CryptoError) as refused:
        verify_any(bundle)
    assert refused.value.where.startswith(str(path))
    assert "ask its party for another one" in refused.value.fix
    assert "stop releasing" not in refused.value.fix


def test_a_key_that_is_none_is_said_to_be_of_that_bundle(handed):
    bundle, path = handed
    content = json.loads(path.read_text())
    content.get("evidence", content)["public_key"] = "00" * 32
    path.write_text(json.dumps(content))
    with pytest.raises(CryptoError, match="small order") as refused:
        verify_any(bundle)
    assert refused.value.where.startswith(str(path))
    assert "enrolment" not in refused.value.fix


def test_of_several_bundles_the_broken_one_is_named(bundles):
    resigned(bundles["log"] / LOG_NAME, drop_a_nonce, SigningIdentity.generate())
    done = run("audit", "verify", str(bundles["evidence"]), str(bundles["log"]))
    assert_plain_error(done, 7, "entry 1 cannot be read", str(bundles["log"] / LOG_NAME), "rely on nothing")


def edited(path, sql):
    """A ledger's file, changed by somebody who takes its triggers away."""
    with sqlite3.connect(path) as raw:
        for (name,) in raw.execute("SELECT name FROM sqlite_schema WHERE type = 'trigger'").fetchall():
            raw.execute(f"DROP TRIGGER {name}")
        raw.execute(sql)
    raw.close()


def test_status_says_whose_ledger_is_broken_and_what_its_owner_does(make, tmp_path):
    for name in ("north", "south"):
        with make(f"sites/{name}/ledger"):
            pass
    path = tmp_path / "sites" / "south" / "ledger" / NAME
    edited(path, "UPDATE entries SET content = x'00' WHERE counter = 1")
    done = run("budget", "status", "--site", str(tmp_path))
    assert_plain_error(done, 7, "entry 1", str(path), "stop releasing anything")


def test_a_ledger_that_breaks_a_rule_is_named(make, tmp_path, identity, clock):
    folder = tmp_path / "site"
    with AuditLog.create(folder, identity, party="site", started_by="L", clock=clock):
        pass
    shutil.move(folder / "log.sqlite", folder / NAME)
    with pytest.raises(PrivacyError, match="names no policy") as refused:
        Ledger.open(folder, identity)
    assert refused.value.where.startswith(str(folder / NAME))


@pytest.mark.parametrize("content", ["", "\n", "cut", "\xff"])
def test_an_empty_or_truncated_file_is_not_said_to_be_of_another_version(handed, content):
    bundle, path = handed
    path.write_bytes(path.read_bytes()[:-100] if content == "cut" else content.encode("latin-1"))
    with pytest.raises(
        RunError, match="is empty" if not content.strip() else "damaged or was cut short"
    ) as refused:
        verify_any(bundle)
    assert refused.value.where == str(path)
    assert "version" not in refused.value.fix


def test_an_empty_ledger_is_said_to_be_empty(make, tmp_path):
    with make("site") as ledger:
        path = ledger.chain.path
    path.write_bytes(b"")
    with pytest.raises(RunError, match="file is empty") as refused:
        Ledger.open(tmp_path / "site", None)
    assert "backup" in refused.value.fix


@pytest.mark.timeout(30)
@pytest.mark.parametrize("what", ["folder", "pipe"])
def test_what_is_no_file_in_a_ledgers_place_is_said_so(make, tmp_path, what):
    with make("site") as ledger:
        path = ledger.chain.path
    path.unlink()
    path.mkdir() if what == "folder" else os.mkfifo(path)
    with pytest.raises(RunError, match=f"{what} stands where the ledger's file belongs"):
        Ledger.open(tmp_path / "site", None)


def test_of_two_exports_under_one_name_the_later_says_that_something_is_there(
    make, tmp_path, identity, clock, monkeypatch
):
    with make("site"):
        pass
    out = tmp_path / "out"

    def meanwhile(self, body):
        out.mkdir()
        (out / "evidence.json").write_text("of another export")

    monkeypatch.setattr(Ledger, "record", meanwhile)
    with pytest.raises(RunError, match="something was put under this name") as refused:
        export(tmp_path / "site", out, identity, second_accountant=False, clock=clock)
    assert "another --out" in refused.value.fix
    assert (out / "evidence.json").read_text() == "of another export"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "site"]
