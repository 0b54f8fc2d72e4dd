"""The verdict of the audit of server blindness, and the forms in which it looks."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest

from secure_triplay.attacks import blindness
from secure_triplay.attacks.blindness import KINDS, PARTS, Looked, audit_server_blindness, judge
from secure_triplay.attacks.memory import Hit, Needle, Searched, search_process
from secure_triplay.attacks.needles import array_needles, long_windows
from secure_triplay.errors import RunError

EVERY_KIND = [Hit(f"{kind} of north", "float32", "a client", 8) for kind in KINDS]


def looked_at(parts=PARTS, **found) -> Looked:
    return Looked(searched=dict.fromkeys(parts, 1 << 20), **({"control": EVERY_KIND} | found))


def test_nothing_found_is_a_pass_only_where_the_control_found_every_kind():
    assert judge(looked_at(), ())["verdict"] == "pass"
    for missing in range(len(KINDS)):
        control = EVERY_KIND[:missing] + EVERY_KIND[missing + 1 :]
        result = judge(looked_at(control=control), ())
        assert result["verdict"] == "invalid"
        assert KINDS[missing] in result["reason"]


@pytest.mark.parametrize("part", PARTS)
def test_a_part_of_the_server_that_was_never_read_proves_nothing(part):
    looked = looked_at([other for other in PARTS if other != part])
    looked.take(part, Searched((), 0), looked.server)  # a process that was gone when it was to be read
    result = judge(looked, ())
    assert (result["verdict"], part in result["reason"]) == ("invalid", True)


def test_the_committed_result_read_every_part_of_the_server(root):
    result = json.loads((root / "audits" / "server-blindness" / "result.json").read_text())
    assert min(result["searched"][part] for part in PARTS) > 1e6


def test_one_hit_at_the_server_is_a_failure():
    hit = Hit("CKKS key", "words", "the SuperLink", 1)
    result = judge(looked_at(server=[hit]), ())
    assert (result["verdict"], len(result["server_hits"])) == ("fail", 1)


def test_a_heap_that_could_not_be_read_proves_nothing():
    looked = looked_at()
    looked.take("memory", Searched((), 10, ("the SuperLink [heap]",)), looked.server)
    assert judge(looked, ())["verdict"] == "invalid"


@pytest.fixture
def federations(monkeypatch):
    """A federation in which nothing is to be found; how many were started."""
    started = []

    @contextmanager
    def federation(folder):
        started.append(folder)
        nothing = SimpleNamespace(path=folder)
        yield SimpleNamespace(
            start=lambda tell: None,
            moments=lambda: (),
            study=None,
            sites={},
            folder=folder,
            server=nothing,
            rounds=1,
        )

    monkeypatch.setattr(blindness, "_federation", federation)
    monkeypatch.setattr(blindness, "needles_of", lambda *_: ())
    return started


@pytest.mark.parametrize("there", ['{"suite": "load"}', "notes of mine", "a folder that is a file"])
def test_where_nothing_may_be_written_is_known_before_a_federation_is_run(tmp_path, federations, there):
    taken = tmp_path / ("out" if there == "a folder that is a file" else "result.json")
    taken.write_text(there)
    with pytest.raises(RunError):
        audit_server_blindness(taken if taken.name == "out" else tmp_path)
    assert federations == []
    assert taken.read_text() == there
    assert os.listdir(tmp_path) == [taken.name]


def test_an_audit_replaces_its_own_result_whole_or_not_at_all(tmp_path, federations, monkeypatch):
    for _ in range(2):
        audit_server_blindness(tmp_path / "deep" / "out")
    result = tmp_path / "deep" / "out" / "result.json"
    before = result.read_bytes()
    assert json.loads(before)["audit"] == "server-blindness"

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match="cannot be written"):
        audit_server_blindness(tmp_path / "deep" / "out")
    assert result.read_bytes() == before
    assert os.listdir(result.parent) == ["result.json"]


@pytest.mark.parametrize("offset", [0, 1, 7])
def test_an_update_is_found_as_float_and_as_encoded_integers_at_every_offset(offset):
    rng = np.random.default_rng(1)
    update = rng.normal(0, 1e-3, 5000).astype(np.float32)
    integers = rng.integers(0, 512, 5000)
    needles = array_needles("update of north", update, "update-1")
    needles.append(Needle("update of north", "encoded integers", long_windows(integers.tobytes())))
    code = (
        "import sys, numpy as np; rng = np.random.default_rng(1)\n"
        "a = rng.normal(0, 1e-3, 5000).astype(np.float32).tobytes()\n"
        "b = rng.integers(0, 512, 5000).tobytes()\n"
        f"kept = bytearray({offset}) + a + bytes(8) + b\n"
        "del a, b; print('ready', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=dict(os.environ)
    ) as child:
        assert child.stdout.readline() == b"ready\n"
        found = {hit.form for hit in search_process(child.pid, needles).hits}
        child.stdin.close()
    assert found >= {"float32 (update-1)", "encoded integers"}


def test_a_fresh_adapter_which_is_all_zeros_is_no_needle():
    assert array_needles("adapter of north", np.zeros(1000, np.float32), "global-0") == []
