"""What leaves a party is noted in its log, before anybody can find it; what could not be written is not noted."""

from __future__ import annotations

import os
import shutil
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from secure_triplay.errors import PrivacyError, RunError
from secure_triplay.ledger import export as export_module
from secure_triplay.ledger import handingout
from secure_triplay.ledger.export import export
from secure_triplay.ledger.ledger import Ledger
from secure_triplay.ledger.log import AuditLog
from secure_triplay.ledger.logbundle import export_log, verify_log
from secure_triplay.ledger.verify import verify


@pytest.fixture(params=["evidence", "log"])
def party(request, ledger, folder, tmp_path, identity, clock):
    """(hand out to a folder, verify it, how many exports the party's chain speaks of)."""
    ledger.close()
    if request.param == "log":
        folder = tmp_path / "server"
        AuditLog.create(folder, identity, party="server", started_by="Ms. Lead", clock=clock).close()

    def hand_out(out):
        if request.param == "log":
            return export_log(folder, out, identity, clock=clock)
        return export(folder, out, identity, second_accountant=False, clock=clock)

    def noted() -> int:
        opened = AuditLog.open(folder, None) if request.param == "log" else Ledger.open(folder, None)
        with opened as log:
            return sum(entry.kind == "exported" for entry in log.chain.entries)

    return hand_out, verify_log if request.param == "log" else verify, noted


def test_an_export_is_noted_once_it_is_there_and_verifies(party, tmp_path):
    hand_out, verified, noted = party
    for number in (1, 2):
        verified(hand_out(tmp_path / f"out-{number}"))
        assert noted() == number


@pytest.mark.parametrize("out", ["taken/out", "n" * 300])
def test_an_export_that_cannot_be_written_is_not_noted_and_leaves_nothing(party, tmp_path, out):
    hand_out, _, noted = party
    (tmp_path / "taken").write_text("a file, where a folder is due")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(RunError, match="cannot be written") as caught:
        hand_out(tmp_path / out)
    assert caught.value.fix
    assert noted() == 0
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("out", [".", "/"])
def test_a_folder_that_is_there_is_left_alone_and_not_noted(party, out):
    hand_out, _, noted = party
    with pytest.raises(RunError, match="nothing is overwritten"):
        hand_out(Path(out))
    assert noted() == 0


def test_a_disk_that_is_full_in_the_middle_is_not_noted_either(party, tmp_path, monkeypatch):
    hand_out, _, noted = party
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(RunError, match="No space left"):
        hand_out(tmp_path / "out")
    assert noted() == 0
    assert not list(tmp_path.glob("*out*"))


def test_a_bundle_that_cannot_be_noted_goes_again(party, tmp_path, clock):
    hand_out, _, noted = party
    clock.now -= timedelta(days=400)
    with pytest.raises(PrivacyError):
        hand_out(tmp_path / "out")
    assert noted() == 0
    assert not list(tmp_path.glob("*out*"))


def test_a_bundle_whose_entry_somebody_stopped_goes_again(party, tmp_path, monkeypatch):
    hand_out, _, noted = party

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    for log in (AuditLog, Ledger):
        monkeypatch.setattr(log, "record", stopped)
    with pytest.raises(KeyboardInterrupt):
        hand_out(tmp_path / "out")
    assert noted() == 0
    assert not list(tmp_path.glob("*out*"))


def test_where_the_target_cannot_be_written_no_accountant_is_asked(
    ledger, folder, tmp_path, identity, monkeypatch
):
    monkeypatch.setattr(export_module, "statement", lambda *_, **__: pytest.fail("minutes were spent"))
    (tmp_path / "taken").write_text("")
    with pytest.raises(RunError):
        export(folder, tmp_path / "taken" / "out", identity)


def test_a_kill_at_any_line_leaves_no_bundle_without_its_entry(ledger, folder, tmp_path, identity, clock):
    ledger.close()
    export(folder, tmp_path / "warm", identity, second_accountant=False, clock=clock)
    files = {export_module.__file__, handingout.__file__}
    seen = set()
    for last_line in range(1, 1000):
        site, out = tmp_path / f"site-{last_line}", tmp_path / f"out-{last_line}"
        shutil.copytree(folder, site)
        child = os.fork()
        if child == 0:
            lines = 0

            def trace(frame, event, argument):
                nonlocal lines
                if frame.f_code.co_filename not in files:
                    return None
                lines += event == "line"
                if lines == last_line:  # noqa: B023  (the child leaves this turn of the loop only by ending)
                    os.kill(os.getpid(), 9)
                return trace

            sys.settrace(trace)
            export(site, out, identity, second_accountant=False, clock=clock)
            os._exit(0)
        _, code = os.waitpid(child, 0)
        with Ledger.open(site, None) as again:
            noted = sum(entry.kind == "exported" for entry in again.chain.entries) - 1  # less the one before
        if out.exists():
            verify(out)
        assert noted >= out.exists()
        seen.add((noted, out.exists()))
        if code == 0:
            break
        assert os.WTERMSIG(code) == 9
    assert seen == {(0, False), (1, False), (1, True)}
    assert last_line > 20
