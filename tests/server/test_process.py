import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from secure_triplay.errors import ConfigError, RunError
from secure_triplay.server import process as process_module
from secure_triplay.server.inbox import Reason, Refusal
from secure_triplay.server.process import SummingProcess
from secure_triplay.server.round import Round
from secure_triplay.wire import Declined, SumMessage


def events_in(folder):
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


def is_alive(pid):
    """Whether a process runs (a zombie does not)."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def wait_until_gone(pid, seconds=10):
    deadline = time.monotonic() + seconds
    while is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not is_alive(pid)


def test_child_sums_exactly_as_the_round_does(federation):
    uploads = [federation.upload(name).to_bytes() for name in federation.names]
    here = Round.open(federation.plan, 1, 4)
    for upload in uploads:
        here, _ = here.offer(upload)
    with SummingProcess(federation.plan, quorum=4) as summing:
        summing.open(1)
        assert [summing.offer(upload) for upload in uploads] == [None] * 4
        assert summing.close(last=False) == here.close("train").to_bytes()
        summing.open(2)
        for name in federation.names:
            assert summing.offer(federation.upload(name, 2).to_bytes()) is None
        assert SumMessage.from_bytes(summing.close(last=True)).last


def test_stats_count_what_came_and_why_it_was_refused(federation):
    good = federation.upload("site-0000").to_bytes()
    with SummingProcess(federation.plan, quorum=1) as summing:
        summing.open(1)
        answers = [summing.offer(content) for content in (good, good, b"", b"", Declined().to_bytes())]
        summing.close(last=False)
        stats = summing.stats()
    assert answers == [
        None,
        Refusal(Reason.DUPLICATE, "site-0000"),
        Refusal(Reason.NOT_A_MESSAGE),
        Refusal(Reason.NOT_A_MESSAGE),
        Refusal(Reason.DECLINED),
    ]
    assert stats.refused == {"duplicate": 1, "not-a-message": 2, "declined": 1}
    assert (stats.accepted, stats.accepted_bytes, stats.rounds_closed) == (1, len(good), 1)
    assert stats.received_bytes == 2 * len(good) + len(Declined().to_bytes())
    assert 0 < stats.sum_s < 10


def test_peak_memory_is_small_and_the_kernels_own(federation):
    with SummingProcess(federation.plan, quorum=1) as summing:
        stats = summing.stats()
        status = Path(f"/proc/{summing.pid}/status").read_text()
    kernel = int(status.split("VmHWM:")[1].split()[0]) * 1024
    assert stats.peak_rss_bytes <= kernel < 300 << 20


def test_two_gigabytes_of_zeros_are_refused_in_flat_memory_and_the_round_goes_on(federation):
    with SummingProcess(federation.plan, quorum=2) as summing:
        summing.open(1)
        assert summing.offer(federation.upload("site-0000").to_bytes()) is None
        before = summing.stats().peak_rss_bytes
        assert summing.offer(bytes(2 << 30)) == Refusal(Reason.OVERSIZED)
        assert summing.stats().peak_rss_bytes - before < 16 << 20
        assert summing.offer(federation.upload("site-0001").to_bytes()) is None
        assert SumMessage.from_bytes(summing.close(last=False)).verify(federation.plan, 1, fewest=2) is None


def test_what_comes_when_no_round_is_open_is_refused(federation):
    upload = federation.upload("site-0000").to_bytes()
    with SummingProcess(federation.plan, quorum=1) as summing:
        assert summing.offer(upload) == Refusal(Reason.NO_OPEN_ROUND)
        summing.open(1)
        assert summing.offer(upload) is None
        summing.close(last=False)
        assert summing.offer(federation.upload("site-0001").to_bytes()) == Refusal(Reason.NO_OPEN_ROUND)


def test_a_closed_round_is_never_opened_again_and_a_failed_one_can_be(federation):
    with SummingProcess(federation.plan, quorum=1) as summing:
        summing.open(1)
        with pytest.raises(RunError, match="one is open"):
            summing.open(2)
        with pytest.raises(RunError, match="0 uploads are valid"):
            summing.close(last=False)
        summing.open(1)
        assert summing.offer(federation.upload("site-0000").to_bytes()) is None
        summing.close(last=False)
        with pytest.raises(RunError, match="no round is open"):
            summing.close(last=False)
        with pytest.raises(RunError, match="closed before"):
            summing.open(1)
        summing.open(2)


def test_a_round_that_failed_keeps_what_came_for_its_next_attempt(federation):
    with SummingProcess(federation.plan, quorum=2) as summing:
        summing.open(1)
        summing.offer(federation.upload("site-0000").to_bytes())
        with pytest.raises(RunError, match="1 uploads are valid"):
            summing.close(last=False)
        summing.open(1)
        assert summing.offer(federation.upload("site-0001").to_bytes()) is None
        with pytest.raises(RunError, match="keys of their next masks"):
            summing.close(last=False, ready=False)
        summing.open(1)
        total = SumMessage.from_bytes(summing.close(last=False))
        assert total.names == ("site-0000", "site-0001")
        total.verify(federation.plan, 1, fewest=2)


def test_error_of_the_child_arrives_with_its_own_type_and_leaves_no_child(federation):
    summing = SummingProcess(federation.plan, quorum=9)
    with pytest.raises(ConfigError, match="quorum of 9") as caught, summing:
        pytest.fail("it started")
    assert caught.value.fix
    with pytest.raises(RunError, match="not running"):
        _ = summing.pid


def test_death_of_the_child_is_an_error_that_says_so(federation):
    with SummingProcess(federation.plan, quorum=1) as summing:
        summing.open(1)
        os.kill(summing.pid, signal.SIGKILL)
        with pytest.raises(RunError, match="ended or does not answer"):
            summing.offer(federation.upload("site-0000").to_bytes())


def test_what_the_child_said_last_is_in_the_error(federation, tmp_path):
    """A log that cannot be written ends the process: nothing is summed unrecorded."""
    (tmp_path / "events.jsonl").symlink_to("/dev/full")
    with (
        pytest.raises(RunError, match="No space left on device"),
        SummingProcess(federation.plan, quorum=1, log_folder=tmp_path),
    ):
        pytest.fail("it started")


def test_child_ends_with_the_block_whatever_happens(federation):
    def fails():
        with summing:
            pids.append(summing.pid)
            raise ZeroDivisionError

    summing, pids = SummingProcess(federation.plan, quorum=1), []
    with pytest.raises(ZeroDivisionError):
        fails()
    assert not is_alive(pids[0])
    summing.stop()
    with pytest.raises(RunError, match="not running"):
        summing.stats()


def test_child_in_the_middle_of_a_frame_is_stopped_without_waiting(federation):
    with SummingProcess(federation.plan, quorum=1) as summing:
        pid = summing.pid
        summing._socket.sendall(process_module._FRAME.pack(process_module._OFFER, 1000) + b"half")
        started = time.monotonic()
    assert not is_alive(pid)
    assert time.monotonic() - started < 5


def test_child_that_hangs_is_killed(federation, monkeypatch):
    monkeypatch.setattr(process_module, "_STOP_TIMEOUT_S", 0.3)
    with SummingProcess(federation.plan, quorum=1) as summing:
        pid = summing.pid
        os.kill(pid, signal.SIGSTOP)
    assert not is_alive(pid)


def test_child_does_not_outlive_a_killed_parent():
    script = (
        f"import sys, time; sys.path.insert(0, {str(Path(process_module.__file__).parents[2])!r})\n"
        "from secure_triplay.crypto.identity import SigningIdentity\n"
        "from secure_triplay.server.process import SummingProcess\n"
        "from secure_triplay.wire import SessionPlan, Site\n"
        "sites = (Site('a', SigningIdentity.generate().identity),)\n"
        "s = SummingProcess(SessionPlan('5a' * 32, bytes(32), 1, 1, sites), quorum=1)\n"
        "s.start(); print(s.pid, flush=True); time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    try:
        pid = int(parent.stdout.readline())
        assert is_alive(pid)
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()
    assert wait_until_gone(pid)


def test_ctrl_c_is_left_to_the_parent(federation):
    with SummingProcess(federation.plan, quorum=1) as summing:
        os.kill(summing.pid, signal.SIGINT)
        summing.open(1)
        assert summing.offer(federation.upload("site-0000").to_bytes()) is None


def test_control_frame_above_its_bound_ends_the_child(federation):
    with SummingProcess(federation.plan, quorum=1) as summing:
        summing._socket.sendall(process_module._FRAME.pack(process_module._OPEN, 1 << 40))
        assert wait_until_gone(summing.pid)
        with pytest.raises(RunError, match="a frame claims"):
            summing.stats()


def test_log_says_what_came_and_what_became_of_it(federation, tmp_path):
    folder = tmp_path / "server"
    good = federation.upload("site-0002").to_bytes()
    with SummingProcess(federation.plan, quorum=1, log_folder=folder) as summing:
        summing.open(1)
        for content in (good, good, b"rubbish", federation.upload("site-0001", 7).to_bytes()):
            summing.offer(content)
        summing.close(last=False)
        summing.open(2)
        with pytest.raises(RunError):
            summing.close(last=True)
    events = events_in(folder)
    assert [event["event"] for event in events] == [
        "started",
        "opened",
        "received",
        "received",
        "received",
        "received",
        "closed",
        "opened",
        "failed",
        "stopped",
    ]
    received = [event for event in events if event["event"] == "received"]
    assert [event["outcome"] for event in received] == [
        "accepted",
        "duplicate",
        "not-a-message",
        "wrong-round",
    ]
    assert [event.get("site") for event in received] == ["site-0002", None, None, None]
    assert [event.get("claimed_site") for event in received] == [None, "site-0002", None, "site-0001"]
    assert received[0]["bytes"] == len(good)
    assert events[6]["survivors"] == ["site-0002"]
    assert events[-1]["stats"]["refused"] == {"duplicate": 1, "not-a-message": 1, "wrong-round": 1}
    assert (folder / "events.jsonl").stat().st_mode & 0o777 == 0o600
    assert b"rubbish" not in (folder / "events.jsonl").read_bytes()
    assert sorted(path.name for path in folder.iterdir()) == ["events.jsonl"]


def test_log_is_appended_to_by_a_later_process(federation, tmp_path):
    for _ in range(2):
        with SummingProcess(federation.plan, quorum=1, log_folder=tmp_path, keep_received=True) as summing:
            summing.offer(b"x")
    assert [event["event"] for event in events_in(tmp_path)] == ["started", "received", "stopped"] * 2
    assert len(list((tmp_path / "received").iterdir())) == 2


def test_every_received_byte_is_kept_where_that_is_asked_for(federation, tmp_path):
    good = federation.upload("site-0000").to_bytes()
    contents = [b"early", good, b"", os.urandom(3 << 20)]
    with SummingProcess(federation.plan, quorum=1, log_folder=tmp_path, keep_received=True) as summing:
        summing.offer(contents[0])
        summing.open(1)
        for content in contents[1:]:
            summing.offer(content)
        summing.close(last=True)
    kept = sorted((tmp_path / "received").iterdir())
    assert [path.read_bytes() for path in kept] == contents
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in kept)
    assert (tmp_path / "received").stat().st_mode & 0o777 == 0o700


def test_what_is_received_cannot_be_kept_nowhere(federation):
    with pytest.raises(RunError):
        SummingProcess(federation.plan, quorum=1, keep_received=True)


def test_memory_of_the_process_does_not_grow_with_the_number_of_sites(make_federation):
    """Forty sites cost what four cost, but for their headers (a few hundred bytes each)."""
    peaks = []
    for n_sites in (4, 40):
        federation = make_federation(n_sites, 16)
        with SummingProcess(federation.plan, quorum=n_sites) as summing:
            summing.open(1)
            for name in federation.names:
                assert summing.offer(federation.upload(name).to_bytes()) is None
            summing.close(last=False)
            peaks.append(summing.stats().peak_rss_bytes)
    assert peaks[1] - peaks[0] < 3 << 20


def test_socket_of_a_stopped_process_is_closed(federation):
    with SummingProcess(federation.plan, quorum=1) as summing:
        connection = summing._socket
        assert isinstance(connection, socket.socket)
    assert connection.fileno() == -1
