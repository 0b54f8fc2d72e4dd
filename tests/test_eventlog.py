"""A full disk cuts one event short, and costs no other one."""

from __future__ import annotations

import resource
from contextlib import contextmanager

import pytest

from secure_triplay.client.journal import Journal, JournalReader
from secure_triplay.eventlog import EventLog, events_after


@contextmanager
def room_for(more, path):
    """No file of this process grows beyond this one's size and a few bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("restarted", [False, True])
def test_an_event_that_a_full_disk_cut_is_an_error_and_the_next_one_is_read(tmp_path, restarted):
    journal, reader = Journal(tmp_path), JournalReader(tmp_path)
    journal.write("before")
    path = tmp_path / "journal.jsonl"
    with room_for(20, path), pytest.raises(OSError, match="No space left"):
        journal.write("cut", what="x" * 100)
    with room_for(0, path), pytest.raises(OSError, match="too large"):
        journal.write("no room")
    assert [event["event"] for event in reader.new()] == ["before"]
    if restarted:
        journal, reader = Journal(tmp_path), JournalReader(tmp_path)
        assert [event["event"] for event in reader.new()] == ["before"]
    journal.write("after", site="a")
    assert [event["event"] for event in reader.new()] == ["after"]
    assert list(reader.new()) == []


def test_an_event_is_read_once_it_is_whole_and_once(tmp_path):
    path = tmp_path / "events.jsonl"
    assert list(events_after(path, 0)) == []
    log = EventLog(path)
    assert path.stat().st_mode & 0o777 == 0o600
    log.write("one", number=1)
    with path.open("ab") as file:
        file.write(b'{"event": "tw')
    ((one, end),) = events_after(path, 0)
    assert (one["event"], one["number"]) == ("one", 1)
    assert list(events_after(path, end)) == []
    with path.open("ab") as file:
        file.write(b'o"}\n')
    ((two, end),) = events_after(path, end)
    assert two["event"] == "two"
    assert list(events_after(path, end)) == []
