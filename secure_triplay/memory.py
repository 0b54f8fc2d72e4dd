"""How much memory this process holds, as the kernel tells it (proc(5)). Linux."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from secure_triplay.errors import RunError

_STATUS = Path("/proc/self/status")


def resident_bytes() -> int:
    """What this process holds now. Raises RunError where the kernel does not tell."""
    return _told("VmRSS")


def peak_bytes() -> int:
    """The most that this process held at once, since it was started or since `restart_peak`. Raises RunError."""
    return _told("VmHWM")


def restart_peak() -> None:
    """Let the kernel's note of the most begin anew; where it cannot, it goes on since the start."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _told(name: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise RunError(f"the kernel does not tell {name}", where=str(_STATUS), fix="run on Linux")
