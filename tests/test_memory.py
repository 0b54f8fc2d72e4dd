"""What the kernel tells of this process's memory: what it holds, and the most that it held since it began anew."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from secure_triplay import memory
from secure_triplay.memory import peak_bytes, resident_bytes, restart_peak

MIB = 1 << 20


def test_the_peak_has_what_was_freed_again_until_it_begins_anew():
    if not restart_peak():
        pytest.skip("this kernel does not let a process begin anew")
    before = peak_bytes()
    large = np.ones(200 * MIB, np.uint8)
    held = resident_bytes()
    del large
    assert 190 * MIB < peak_bytes() - before < 260 * MIB
    assert held - resident_bytes() > 150 * MIB
    assert restart_peak()
    assert abs(peak_bytes() - before) < 60 * MIB


@pytest.mark.parametrize("kernel", ["refuses", "says nothing"])
def test_a_kernel_that_does_not_begin_anew_is_noticed(
    kernel: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    large = np.ones(200 * MIB, np.uint8)
    del large
    monkeypatch.setattr(memory, "_CLEAR", tmp_path if kernel == "refuses" else tmp_path / "clear_refs")
    assert restart_peak() is False
