"""What the kernel tells of this process's memory: what it holds, and the most that it held since it began anew."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from secure_triplay import memory
from secure_triplay.memory import restart_peak

MIB = 1 << 20


_FREED = """
import numpy as np
from secure_triplay.memory import peak_bytes, resident_bytes, restart_peak
if restart_peak():
    before = peak_bytes()
    large = np.ones(200 << 20, np.uint8)
    peak, held = peak_bytes() - before, resident_bytes()
    del large
    freed = held - resident_bytes()
    print(peak, freed, restart_peak(), abs(peak_bytes() - before))
"""


def test_the_peak_has_what_was_freed_again_until_it_begins_anew():
    # In a process of its own: a heap that other tests left with a hole of this size keeps what is freed into it.
    said = subprocess.run(
        [sys.executable, "-c", _FREED], capture_output=True, check=True, text=True
    ).stdout.split()
    if not said:
        pytest.skip("this kernel does not let a process begin anew")
    peak, freed, anew, after = said
    assert 190 * MIB < int(peak) < 260 * MIB
    assert int(freed) > 150 * MIB
    assert anew == "True"
    assert int(after) < 60 * MIB


@pytest.mark.parametrize("kernel", ["refuses", "says nothing"])
def test_a_kernel_that_does_not_begin_anew_is_noticed(
    kernel: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    large = np.ones(200 * MIB, np.uint8)
    del large
    monkeypatch.setattr(memory, "_CLEAR", tmp_path if kernel == "refuses" else tmp_path / "clear_refs")
    assert restart_peak() is False


_FAULTS = """
import resource, sys
from secure_triplay.memory import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory()
def use():
    held = [b"x" * (20 << 20) for _ in range(8)]
use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_memory_that_is_kept_is_not_asked_of_the_kernel_again():
    faults = {
        way: int(subprocess.run([sys.executable, "-c", _FAULTS, way], capture_output=True, check=True).stdout)
        for way in ("given back", "kept")
    }
    assert faults["kept"] < faults["given back"] // 20  # whatever the size of the kernel's pages


_PEAK = """
from secure_triplay.memory import keep_freed_memory, resident_bytes, restart_peak
assert keep_freed_memory()
before = resident_bytes()
def use():
    held = [b"x" * (20 << 20) for _ in range(8)]
use()
kept = resident_bytes() - before
restart_peak()
print(kept, resident_bytes() - before)
"""


def test_a_peak_that_begins_anew_has_nothing_that_was_kept_from_before():
    run = subprocess.run([sys.executable, "-c", _PEAK], capture_output=True, check=True)
    kept, after = map(int, run.stdout.split())
    assert kept > 150 * MIB
    assert after < 20 * MIB


def test_an_allocator_without_the_setting_is_told_and_harms_nothing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: object())
    assert memory.keep_freed_memory() is False
