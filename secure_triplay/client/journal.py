"""A site's own record of a run: events that are appended and never sent.

It lies in the site's folder with mode 0600. What it holds (seconds, counts on the site's own records) may
tell of the site's data; nothing of it has a path to the wire.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from secure_triplay.eventlog import EventLog, events_after

NAME = "journal.jsonl"


class Journal(EventLog):
    """Append-only journal of one site."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / NAME)


class JournalReader:
    """What was appended since the last look; the harness of a simulation reads the sites' folders so."""

    def __init__(self, folder: Path) -> None:
        self._path, self._offset = folder / NAME, 0

    def new(self) -> Iterator[dict[str, Any]]:
        """Entries that are whole and were not yielded before."""
        for event, end in events_after(self._path, self._offset):
            self._offset = end
            yield event
