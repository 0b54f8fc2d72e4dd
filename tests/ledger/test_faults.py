"""Whatever fails, the spent budget never shrinks, the ledger opens again, and its chain verifies."""

from __future__ import annotations

import json
import os
import resource
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from secure_triplay.crypto.identity import SigningIdentity
from secure_triplay.errors import RunError, SecureTriplayError
from secure_triplay.ledger.budget import Limits
from secure_triplay.ledger.export import export
from secure_triplay.ledger.ledger import NAME, TRAINING, Ledger, Release
from secure_triplay.ledger.verify import verify
from secure_triplay.privacy.mechanisms import DpSgdCharge

CHARGE = DpSgdCharge(noise_multiplier=4.0, sampling_rate=0.5, steps=1, unit="patient")
STUDY = "a" * 64
LIMITS = Limits(epsilon_per_study=3.0, epsilon_per_year=6.0, delta=1e-6, max_units=1000, unit="patient")


def reserve(ledger, round):
    return ledger.reserve(CHARGE, study=STUDY, round=round)


def test_no_kill_between_reserve_and_release_gives_budget_back(root, tmp_path):
    run = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("crashing.py")), str(tmp_path), "4"],
        cwd=root,
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
    )
    assert run.returncode == 0, run.stderr
    outcome = json.loads(run.stdout)
    assert sum(outcome["kills"].values()) >= 200
    assert outcome["kills"]["line"] >= 0.8 * outcome["lines"] > 100
    assert outcome["kills"]["instruction"] >= 10
    assert outcome["kills"]["moment"] >= 10


def after_the_fault(folder, identity, charged, round):
    """The ledger opens, holds what it held, and goes on."""
    with Ledger.open(folder, identity) as again:
        assert len(again.books.spends) == charged
        reserve(again, round)


def test_a_full_disk_refuses_the_release_and_loses_nothing(ledger, folder, identity):
    reserve(ledger, 1)
    pages = ledger.chain._connection.execute("PRAGMA page_count").fetchone()[0]
    ledger.chain._connection.execute(f"PRAGMA max_page_count = {pages}")
    charged = 1
    what = ""
    while not what and charged < 10:
        try:
            reserve(ledger, charged + 1)
            charged += 1
        except RunError as error:
            what = error.what
    assert "the disk is full" in what
    assert "nothing may be released" in what
    ledger.chain._connection.execute("PRAGMA max_page_count = 100000")
    assert len(ledger.refresh().spends) == charged
    reserve(ledger, charged + 1)


def in_a_child(work) -> str:
    """What `work` returns or raises, from a process whose limits and rights it may change."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            text = work()
        except SecureTriplayError as error:
            text = f"{type(error).__name__}: {error.what}"
        except BaseException as error:
            text = f"UNEXPECTED {error!r}"
        os.write(writer, text.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    return said


@pytest.mark.parametrize("room", [0, 2000, 9000, 30000])
def test_a_disk_that_fills_up_while_writing_loses_nothing(ledger, folder, identity, room):
    reserve(ledger, 1)
    ledger.close()

    def work() -> str:
        done = 0
        try:
            with Ledger.open(folder, identity) as inside:
                resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
                for number in range(2, 9):
                    reserve(inside, number)
                    done += 1
        except RunError as error:
            return f"{done} {error.what}"
        return f"{done} no fault"

    done, what = in_a_child(work).split(" ", 1)
    assert ("nothing may be released" in what) or room == 30000, what
    after_the_fault(folder, identity, 1 + int(done), 2 + int(done))


def test_a_read_only_ledger_can_be_read_and_says_why_it_cannot_be_charged(identity):
    outside = Path(tempfile.mkdtemp())  # not under pytest's folder, which is closed to the other user
    try:
        folder = outside / "site"
        with Ledger.create(folder, identity, site="site", limits=LIMITS, approved_by="A") as made:
            made.approve(STUDY, "pilot", [Release(TRAINING, CHARGE, 5)], approved_by="A")
            reserve(made, 1)
        outside.chmod(0o555)
        (folder / NAME).chmod(0o444)
        folder.chmod(0o555)

        def work() -> str:
            if os.geteuid() == 0:
                os.setuid(65534)  # the system's nobody; root is refused by no mode
            with Ledger.open(folder, None) as reading:
                assert len(reading.books.spends) == 1
            with Ledger.open(folder, identity) as writing:
                reserve(writing, 2)
            return "charged"

        said = in_a_child(work)
        assert said.startswith("RunError"), said
        assert "read-only" in said or "cannot be opened" in said
        folder.chmod(0o700)
        (folder / NAME).chmod(0o600)
        after_the_fault(folder, identity, 1, 2)
    finally:
        outside.chmod(0o700)
        shutil.rmtree(outside)


def test_a_locked_ledger_is_waited_for_and_then_refused_in_words(ledger, folder, identity):
    other = sqlite3.connect(folder / NAME, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with Ledger.open(folder, identity, lock_timeout_s=0.1) as impatient:
        with pytest.raises(RunError, match="another process holds the ledger"):
            reserve(impatient, 1)
        other.execute("ROLLBACK")
        reserve(impatient, 1)
    other.close()


def test_a_killed_start_leaves_no_half_a_ledger(tmp_path, identity):
    def work() -> str:
        left = [30]

        def seen(frame, event, _):
            if frame.f_code.co_filename.endswith("ledger/store.py"):
                left[0] -= 1
                if left[0] == 0:
                    os.kill(os.getpid(), 9)
            return seen

        sys.settrace(seen)
        Ledger.create(tmp_path / "site", identity, site="site", limits=LIMITS, approved_by="A")
        return "made"

    assert in_a_child(work) == ""
    assert not (tmp_path / "site" / NAME).exists()
    with Ledger.create(tmp_path / "site", identity, site="site", limits=LIMITS, approved_by="A") as made:
        assert made.books.limits == LIMITS


def test_a_crashed_sites_ledger_can_be_exported(ledger, folder, identity, tmp_path, clock):
    reserve(ledger, 1)

    def work() -> str:
        with Ledger.open(folder, identity, clock=clock) as inside, inside.chain.writing() as append:
            append(inside.chain.entries[-1].body)
            os.kill(os.getpid(), 9)
        return ""

    in_a_child(work)
    bundle = export(folder, tmp_path / "out", identity, second_accountant=False, clock=clock)
    assert verify(bundle).charges == 1


@pytest.mark.parametrize("there", ["a backup", "nothing"])
def test_no_charge_goes_into_a_ledger_that_was_replaced_under_the_program(
    ledger, folder, identity, tmp_path, there
):
    backup = shutil.copytree(folder, tmp_path / "backup")
    shutil.rmtree(folder)
    if there == "a backup":
        shutil.copytree(backup, folder)
    with pytest.raises(RunError, match="moved, removed or replaced"):
        reserve(ledger, 1)


def test_a_leftover_log_of_a_crash_is_not_lost(ledger, folder, identity, tmp_path):
    """Entries that only the write-ahead log holds count: a copy of the folder has them."""
    made = reserve(ledger, 1)
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)  # with ledger.sqlite-wal, as a crash leaves it
    with Ledger.open(copy, identity) as again:
        assert made.counter in again.books.reservations


def test_a_strangers_key_opens_nothing(ledger, folder):
    with pytest.raises(SecureTriplayError) as caught:
        Ledger.open(folder, SigningIdentity.generate())
    assert caught.value.fix
