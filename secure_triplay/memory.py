"""How much memory this process holds, as the kernel tells it (proc(5)). Linux."""

from __future__ import annotations

import ctypes
from contextlib import suppress
from pathlib import Path

from secure_triplay.errors import RunError

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_SLACK = 64 << 20  # the kernel counts pages in batches
_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # of mallopt(3)
_LARGEST_ON_HEAP = 32 << 20  # glibc takes no more
_KEPT = 512 << 20


def resident_bytes() -> int:
    """What this process holds now. Raises RunError where the kernel does not tell."""
    return _told("VmRSS")


def peak_bytes() -> int:
    """The most that this process held at once, since it was started or since `restart_peak`. Raises RunError."""
    return _told("VmHWM")


def restart_peak() -> bool:
    """Let the kernel's note of the most begin anew: whether it did. In some containers it goes on since the start.

    What this process freed and kept is given back first: it belongs to what was done before.
    """
    with suppress(AttributeError):  # another libc than glibc
        ctypes.CDLL(None).malloc_trim(0)
    try:
        _CLEAR.write_text("5")
    except OSError:
        return False
    return resident_bytes() > peak_bytes() - _SLACK


def keep_freed_memory() -> bool:
    """Let this process keep up to 512 MiB that it freed, for its next allocation: whether its allocator can.

    A step on every token allocates and frees its activations anew. glibc gives them back to the kernel each time, which
    then zeroes them page by page (what that cost: `audits/training-bench`). What the process holds at most does not
    change, and a block above 32 MiB is still given back. Freed content stays in this process until it is overwritten:
    to be called where records are anyway, never in a server.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another libc than glibc
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST_ON_HEAP)) and bool(mallopt(_TRIM_THRESHOLD, _KEPT))


def _told(name: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise RunError(f"the kernel does not tell {name}", where=str(_STATUS), fix="run on Linux")
