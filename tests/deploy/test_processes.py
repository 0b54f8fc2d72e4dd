"""What is kept alive, and who may ask a SuperLink for what."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from secure_triplay.client import answering
from secure_triplay.client.answering import listening, serve_one
from secure_triplay.client.app import ask_worker
from secure_triplay.client.frames import receive_frame, send_frame
from secure_triplay.deploy.processes import Kept
from secure_triplay.deploy.server.superlinkmain import may_pass
from secure_triplay.deploy.site.ending import ending_plainly
from secure_triplay.deploy.site.worker import REPLY_AFTER_S
from secure_triplay.errors import RunError
from secure_triplay.wire import Declined, Train, Witness


def kept(tmp_path, code: str) -> Kept:
    (tmp_path / "empty").mkdir()
    return Kept("thing", [sys.executable, "-c", code], tmp_path, dict(os.environ))


def look_until(one: Kept, true, seconds: float = 20) -> list[str]:
    said: list[str] = []
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        one.look(said.append)
        time.sleep(0.02)
    return said


def test_what_is_killed_is_started_again(tmp_path, monkeypatch):
    monkeypatch.setattr("secure_triplay.deploy.processes._FIRST_PAUSE_S", 0.05)
    one = kept(tmp_path, "import time; time.sleep(60)")
    one._pause_s = 0.05
    look_until(one, lambda: one.pid is not None)
    first = one.pid
    os.kill(first, 9)
    said = look_until(one, lambda: one.pid not in (None, first))
    assert "is started again" in said[0]
    assert str(one.log) in said[0]
    one.stop()
    assert one.pid is None


def test_what_has_done_its_work_is_not_started_again(tmp_path):
    one = kept(tmp_path, "pass")
    look_until(one, lambda: one.ended)
    one.look(print)
    assert (one.pid, one.restarts) == (None, 0)


def test_what_is_lasting_is_started_again_also_where_it_says_that_all_is_well(tmp_path):
    one = kept(tmp_path, "pass")
    one.lasting, one._pause_s = True, 0.05
    look_until(one, lambda: one.restarts >= 2)
    assert not one.ended
    one.stop()


def test_what_a_killed_supervisor_left_behind_is_ended_before_another_one_starts(tmp_path):
    first = kept(tmp_path, "import time; time.sleep(60)")
    first.start()
    left = first.pid
    second = Kept("thing", [sys.executable, "-c", "import time; time.sleep(61)"], tmp_path, dict(os.environ))
    second.start()
    assert first.pid is None
    assert second.pid not in (None, left)
    second.stop()


def test_a_leftover_whose_command_cannot_be_read_yet_is_ended_too(tmp_path, monkeypatch):
    """Between fork and exec a process has none; two of them would share keys, ports and books."""
    first = kept(tmp_path, "import time; time.sleep(60)")
    first.start()
    reads, read = [], Path.read_bytes

    def late(path: Path) -> bytes:
        reads.append(path)
        return b"" if path.name == "cmdline" and len(reads) < 3 else read(path)

    monkeypatch.setattr(Path, "read_bytes", late)
    second = Kept("thing", [sys.executable, "-c", "import time; time.sleep(61)"], tmp_path, dict(os.environ))
    second.start()
    assert first.pid is None
    assert len(reads) == 3
    second.stop()


def test_a_number_that_is_another_process_now_is_left_alone(tmp_path):
    bystander = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True
    )
    one = kept(tmp_path, "import time; time.sleep(62)")
    (tmp_path / "thing.pid").write_text(json.dumps({"pid": bystander.pid, "command": one.command}))
    one.start()
    assert bystander.poll() is None
    one.stop()
    bystander.kill()
    bystander.wait()


def test_an_error_in_words_is_passed_on_instead_of_repeated(tmp_path):
    one = kept(tmp_path, "import sys; sys.stderr.write('no data here'); sys.exit(4)")
    with pytest.raises(RunError, match="no data here"):
        look_until(one, lambda: False)


@pytest.mark.parametrize(
    "path", ["/v1/control/start-run", "/v1/runtime/pull-task-input", "/", "/v1/fleet", "/docs"]
)
def test_from_another_machine_only_supernodes_requests_pass(path):
    assert not may_pass("http", path, ("10.1.2.3", 1))
    assert not may_pass("http", path, None)
    assert may_pass("http", path, ("127.0.0.1", 1))
    assert may_pass("http", "/v1/fleet/pull-messages", ("10.1.2.3", 1))


@pytest.mark.parametrize("path", ["/v1/fleet/../control/start-run", "/v1/control/x?/v1/fleet/"])
def test_no_way_round_through_a_path(path):
    assert not may_pass("http", path, ("10.1.2.3", 1))


def test_a_websocket_from_another_machine_does_not_pass():
    assert not may_pass("websocket", "/v1/fleet/x", ("10.1.2.3", 1))


def test_the_serverapp_loads_nothing_that_trains_or_decrypts(fresh_imports):
    loaded = fresh_imports("secure_triplay.deploy.server.app")
    assert "secure_triplay.federation.relay" in loaded
    forbidden = ("torch", "tenseal", "peft", "opacus", "PIL", "secure_triplay.client", "secure_triplay.model")
    assert not [name for name in loaded if name.startswith(forbidden)]


@pytest.mark.parametrize("took", [0.0, 0.1, 0.4])
@pytest.mark.parametrize("reply", [b"signed", Declined().to_bytes()])
def test_a_real_sites_answer_to_a_sum_leaves_at_a_fixed_time_however_long_its_checks_took(
    monkeypatch, took, reply
):
    """On a clock of the test's own. Other questions are answered at once: their answers tell of no check."""
    now = [100.0]

    def pass_by(seconds: float) -> None:
        now[0] += seconds

    def answer(request: bytes) -> bytes:
        pass_by(took)
        return reply

    def left_after(request: bytes) -> float:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            send_frame(ours, request)
            arrived = now[0]
            serve_one(SimpleNamespace(accept=lambda: (theirs, None)), answer, REPLY_AFTER_S)
            assert receive_frame(ours) == reply
        return now[0] - arrived

    monkeypatch.setattr(answering, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=pass_by))
    assert left_after(Witness("ab" * 32, 1, 1, ()).to_bytes()) == pytest.approx(REPLY_AFTER_S)
    assert left_after(Train("ab" * 32, 1, 1).to_bytes()) == pytest.approx(took)


def test_a_full_disk_behind_an_answer_is_told_and_a_shim_that_hangs_up_is_passed_over():
    def full(request: bytes) -> bytes:
        raise OSError(errno.ENOSPC, "No space left on device")

    for answer, expected in ((full, pytest.raises(OSError, match="No space")), (bytes, nullcontext())):
        ours, theirs = socket.socketpair()
        with theirs:
            send_frame(ours, b"abc")
            ours.close()  # nobody waits for the reply
            with expected:
                serve_one(SimpleNamespace(accept=lambda theirs=theirs: (theirs, None)), answer, 0.0)


def test_a_full_disk_ends_a_worker_with_a_line_and_a_code_after_which_it_is_started_again(capsys):
    with pytest.raises(SystemExit) as ended, ending_plainly():
        raise OSError(errno.ENOSPC, "No space left on device")
    assert ended.value.code == 1
    assert capsys.readouterr().err == "[Errno 28] No space left on device\n"


def test_a_site_may_lie_in_a_folder_with_a_long_path(tmp_path):
    folder = tmp_path / ("long-" * 40) / ("path-" * 20)
    folder.mkdir(parents=True)
    with listening(folder / "worker.sock") as listener:
        assert (folder / "worker.sock").stat().st_mode & 0o077 == 0

        def echo() -> None:
            with listener.accept()[0] as connection:
                send_frame(connection, receive_frame(connection)[::-1])

        thread = threading.Thread(target=echo)
        thread.start()
        assert ask_worker(folder / "worker.sock", b"abc") == b"cba"
        thread.join()
