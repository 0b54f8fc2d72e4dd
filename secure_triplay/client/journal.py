"""A site's own record of a run: one JSON object a line, appended and never sent.

A line is one write, so that a reader sees it whole; it is not synced, since nothing that was promised rests on it.

It lies in the site's folder with mode 0600. What it holds (seconds, counts on the site's own records) may
tell of the site's data; nothing of it has a path to the wire.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NAME = "journal.jsonl"


class Journal:
    """Append-only journal of one site."""

    def __init__(self, folder: Path) -> None:
        self._file = os.open(folder / NAME, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def write(self, event: str, **fields: Any) -> None:
        """Append one entry. Raises OSError, for example when the disk is full."""
        line = json.dumps({"event": event, "time": time.time(), **fields}) + "\n"
        os.write(self._file, line.encode())


class JournalReader:
    """What was appended since the last look; the harness of a simulation reads the sites' folders so."""

    def __init__(self, folder: Path) -> None:
        self._path, self._offset = folder / NAME, 0

    def new(self) -> Iterator[dict[str, Any]]:
        """Entries that are whole and were not yielded before."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self._offset += len(line)
                yield json.loads(line)
