"""How much memory this process holds, as the kernel tells it (proc(5)). Linux."""

from __future__ import annotations

from pathlib import Path

from secure_triplay.errors import RunError

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_SLACK = 64 << 20  # the kernel counts pages in batches


def resident_bytes() -> int:
    """What this process holds now. Raises RunError where the kernel does not tell."""
    return _told("VmRSS")


def peak_bytes() -> int:
    """The most that this process held at once, since it was started or since `restart_peak`. Raises RunError."""
    return _told("VmHWM")


def restart_peak() -> bool:
    """Let the kernel's note of the most begin anew: whether it did. In some containers it goes on since the start."""
    try:
        _CLEAR.write_text("5")
    except OSError:
        return False
    return resident_bytes() > peak_bytes() - _SLACK


def _told(name: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise RunError(f"the kernel does not tell {name}", where=str(_STATUS), fix="run on Linux")
