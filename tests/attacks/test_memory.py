"""The search finds a secret where there is one, in memory and on disk, and nowhere else."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager

import numpy as np
import pytest

from secure_triplay.attacks.memory import WINDOW_BYTES, Needle, children, search_folder, search_process
from secure_triplay.errors import RunError

SECRET = os.urandom(4096)


@contextmanager
def process_that_read(path):
    """Another interpreter that holds a file's content, and says when it does."""
    code = "import sys; kept = open(sys.argv[1], 'rb').read(); print('ready', flush=True); sys.stdin.read()"
    running = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert running.stdout.readline() == b"ready\n"
        yield running.pid
    finally:
        running.kill()
        running.communicate()


@pytest.fixture
def needles():
    return (Needle.of("key", "bytes", SECRET), Needle.of("other", "bytes", os.urandom(4096)))


def test_a_secret_in_another_process_is_found_and_what_is_not_there_is_not(tmp_path, needles):
    (tmp_path / "secret").write_bytes(SECRET)
    with process_that_read(tmp_path / "secret") as pid:
        found = search_process(pid, needles)
    assert [(hit.what, hit.windows) for hit in found.hits] == [("key", len(needles[0].windows))]
    assert found.bytes_searched > 1 << 20


def test_a_process_that_never_had_it_gives_no_hit(tmp_path, needles):
    (tmp_path / "harmless").write_bytes(os.urandom(4096))
    with process_that_read(tmp_path / "harmless") as pid:
        assert search_process(pid, needles).hits == ()


def test_half_a_secret_on_disk_is_found_even_across_the_searchs_own_pieces(tmp_path, needles, monkeypatch):
    monkeypatch.setattr("secure_triplay.attacks.memory._PIECE_BYTES", 100)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "database").write_bytes(b"x" * 77 + SECRET[:2048] + b"y" * 77)
    (hit,) = search_folder(tmp_path, needles).hits
    assert hit.what == "key"
    assert hit.where.endswith("a/database")
    assert 0 < hit.windows < len(needles[0].windows)


def test_a_window_that_stands_everywhere_is_never_a_needle():
    content = bytes(4096) + os.urandom(WINDOW_BYTES * 40)
    assert all(len(set(window)) > 8 for window in Needle.of("adapter", "float32", content).windows)
    with pytest.raises(RunError, match="no window"):
        Needle.of("adapter", "float32", np.zeros(5000, np.float32))


def test_a_process_that_is_gone_is_an_error_and_no_pass(needles):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    with pytest.raises(RunError, match="cannot be read"):
        search_process(ended.pid, needles)


def test_children_of_children_are_searched_too():
    code = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']);"
    code += "print('ready', flush=True); time.sleep(60)"
    running = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        running.stdout.readline()
        found = children(running.pid)
        assert len(found) == 2
    finally:
        for pid in found:
            os.kill(pid, 9)
        running.communicate()
