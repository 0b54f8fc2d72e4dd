"""Events as JSON objects, one a line: one process appends them, others read along.

A line is one write, so that a reader sees it whole; it is not synced, since nothing that was promised rests on it.
What a full disk or a power cut leaves of one is a line by itself, which readers pass over.
"""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class EventLog:
    """Appends to a file of mode 0600, which it makes where there is none."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def write(self, event: str, **fields: Any) -> None:
        """Append one event. Raises OSError where it is not there as a whole, for example when the disk is full."""
        line = json.dumps({"time": round(time.time(), 3), "event": event, **fields}).encode() + b"\n"
        size = os.fstat(self._file).st_size
        if size and os.pread(self._file, 1, size - 1) != b"\n":
            line = b"\n" + line  # the line before was cut
        if os.write(self._file, line) != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def events_after(path: Path, offset: int) -> Iterator[tuple[dict[str, Any], int]]:
    """The events that are whole and begin at `offset` or later, each with the offset behind it."""
    if not path.exists():
        return
    with path.open("rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            try:
                event = json.loads(line)
            except ValueError:
                continue  # a line that was cut
            yield event, offset
