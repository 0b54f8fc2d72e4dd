"""What the kernel tells of this process's memory: what it holds, and the most that it held since it began anew."""

from __future__ import annotations

import numpy as np

from secure_triplay.memory import peak_bytes, resident_bytes, restart_peak

MIB = 1 << 20


def test_the_peak_has_what_was_freed_again_until_it_begins_anew():
    restart_peak()
    before = peak_bytes()
    large = np.ones(200 * MIB, np.uint8)
    held = resident_bytes()
    del large
    assert 190 * MIB < peak_bytes() - before < 260 * MIB
    assert held - resident_bytes() > 150 * MIB
    restart_peak()
    assert abs(peak_bytes() - before) < 60 * MIB
