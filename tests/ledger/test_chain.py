"""Whoever edits, drops, inserts, moves or cuts off an entry is found out, and no accident does it."""

from __future__ import annotations

import os
import shutil
import sqlite3
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from secure_triplay.crypto.identity import Purpose, SigningIdentity
from secure_triplay.errors import CryptoError, RunError, SecureTriplayError
from secure_triplay.ledger.entries import KINDS, Decided, Entry, Opened, canonical, verify_chain
from secure_triplay.ledger.log import NAME, AuditLog

PRAGMAS = {"synchronous": 2, "journal_mode": "wal"}


@pytest.fixture
def path(tmp_path, identity):
    with AuditLog.create(tmp_path / "server", identity, party="server", started_by="A") as log:
        for number in range(6):
            log.record(Decided(what=f"decision {number}", by="A"))
    return tmp_path / "server" / NAME


def tampered(path, *statements):
    """What somebody with the file and no key can do."""
    connection = sqlite3.connect(path, isolation_level=None)
    for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'trigger'").fetchall():
        connection.execute(f"DROP TRIGGER {name}")
    for statement, *values in statements:
        connection.execute(statement, values)
    connection.close()


def refused(path, identity):
    with pytest.raises(CryptoError) as caught:
        AuditLog.open(path.parent, identity)
    return caught.value.what


def test_whoever_writes_the_chain_waits_for_the_disk_at_each_entry(path, identity):
    """SQLite's own words for it: write-ahead log, `synchronous` FULL, 2; at NORMAL a power cut takes entries back."""
    with AuditLog.open(path.parent, identity) as log:
        found = {name: log.chain._connection.execute(f"PRAGMA {name}").fetchone()[0] for name in PRAGMAS}
    assert found == PRAGMAS


def test_the_file_itself_refuses_to_change_or_delete(path):
    connection = sqlite3.connect(path, isolation_level=None)
    before = connection.execute("SELECT * FROM entries").fetchall()
    row = before[3]
    for statement, values in [
        ("UPDATE entries SET time = 'x'", ()),
        ("DELETE FROM entries WHERE counter = 7", ()),
        ("DELETE FROM entries", ()),
        ("INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row),
        ("INSERT INTO entries VALUES (99, ?, ?, ?, ?, ?, ?, ?)", row[1:]),
        ("INSERT INTO entries VALUES (NULL, ?, ?, ?, ?, ?, ?, ?)", row[1:]),
    ]:
        with pytest.raises(sqlite3.IntegrityError):
            connection.execute(statement, values)
    assert connection.execute("SELECT * FROM entries").fetchall() == before
    connection.close()


@pytest.mark.parametrize("column", ["time", "nonce", "kind", "content", "previous", "head", "signature"])
def test_an_edited_entry_is_found(path, identity, column):
    text = column in ("time", "kind")
    value = {"time": "2026-01-01T00:00:00Z", "kind": "exported"}.get(column, os.urandom(64))
    tampered(path, (f"UPDATE entries SET {column} = ? WHERE counter = 4", value))
    assert "entry 4" in refused(path, identity) or not text


def test_an_edit_with_its_hashes_made_right_is_found_by_the_signature(path, identity):
    with AuditLog.open(path.parent, identity) as log:
        entries = list(log.chain.entries)
    forged = entries[:3]
    for entry in entries[3:]:
        before = forged[-1]
        content = entry.content.replace(b"decision 2", b"decision x")
        forged.append(replace(entry, content=content, previous=before.head))
    tampered(
        path,
        *[
            (
                "UPDATE entries SET content = ?, previous = ?, head = ? WHERE counter = ?",
                e.content,
                e.previous,
                e.head,
                e.counter,
            )
            for e in forged
        ],
    )
    assert "entry 4 is not signed" in refused(path, identity)


@pytest.mark.parametrize("gone", [1, 2, 4])
def test_a_deleted_entry_is_found(path, identity, gone):
    tampered(path, ("DELETE FROM entries WHERE counter = ?", gone))
    refused(path, identity)


@pytest.mark.parametrize("gone", [1, 4])
def test_a_deleted_entry_is_found_when_the_rest_moves_up(path, identity, gone):
    tampered(
        path,
        ("DELETE FROM entries WHERE counter = ?", gone),
        ("UPDATE entries SET counter = counter - 1 WHERE counter > ?", gone),
    )
    refused(path, identity)


def test_a_reordered_or_inserted_entry_is_found(path, identity):
    with AuditLog.open(path.parent, identity) as log:
        entries = log.chain.entries
    inserted = Entry.signed(
        SigningIdentity.generate(), entries[2], entries[2].time, Decided(what="forged", by="A")
    )
    again = replace(entries[1], counter=4, previous=entries[2].head)
    for chain in (
        (*entries[:2], entries[3], entries[2], *entries[4:]),
        (*entries[:3], inserted, *entries[3:]),
        (*entries[:3], again),
        (*entries, entries[-1]),
        (),
    ):
        with pytest.raises(CryptoError):
            verify_chain(chain, identity.identity)
    verify_chain(entries, identity.identity)


def test_a_truncated_chain_is_found_by_whoever_saw_more_of_it(path, identity):
    with AuditLog.open(path.parent, identity) as log:
        tampered(path, ("DELETE FROM entries WHERE counter > 5",))
        with pytest.raises(CryptoError, match="gone or another"):
            log.record(Decided(what="next", by="A"))


def test_another_file_under_a_running_program_is_found(path, identity):
    with AuditLog.open(path.parent, identity) as log:
        tampered(path, ("DELETE FROM entries WHERE counter > 4",))
        with AuditLog.open(path.parent, identity) as other:
            for number in range(5):
                other.record(Decided(what=f"another {number}", by="A"))
        with pytest.raises(CryptoError):
            log.chain.refresh()


def test_an_entry_cannot_be_signed_into_another_place(identity):
    first = Entry.signed(
        identity,
        None,
        "2026-01-01T00:00:00Z",
        Opened(party="a", public_key=identity.identity.public_bytes.hex(), nonce="0" * 64, started_by="A"),
    )
    second = Entry.signed(identity, first, first.time, Decided(what="x", by="A"))
    moved = replace(second, counter=3, previous=second.head)
    with pytest.raises(CryptoError):
        moved.verify(second, identity.identity)
    second.verify(first, identity.identity)


def test_each_entry_has_one_spelling(identity):
    opened = Opened(party="a", public_key="0" * 64, nonce="0" * 64, started_by="A")
    for content in (
        opened.to_bytes() + b" ",
        b'{"party":"a"}',
        b"null",
        b"[]",
        b"\xff",
        canonical({**opened.model_dump(), "more": 1}),
        canonical({**opened.model_dump(), "party": 1}),
    ):
        with pytest.raises(CryptoError):
            _ = Entry(1, "2026-01-01T00:00:00Z", bytes(16), "opened", content, bytes(32), b"").body
    with pytest.raises(CryptoError):
        _ = Entry(1, "", bytes(16), "unknown", opened.to_bytes(), bytes(32), b"").body
    assert len(KINDS) == 12


def test_an_entry_survives_json_and_nothing_else_does(path, identity):
    with AuditLog.open(path.parent, identity) as log:
        entries = log.chain.entries
    for entry in entries:
        assert Entry.from_json(entry.to_json()) == entry
    good = entries[2].to_json()
    for bad in (
        None,
        [],
        {},
        {**good, "counter": "3"},
        {**good, "counter": True},
        {**good, "more": 1},
        {**good, "head": "00"},
        {**good, "body": {}},
        {**good, "signature": 3},
        {**good, "previous": "zz"},
        {**good, "time": "x"},
        {**good, "counter": 2**70},
        {**good, "body": {"a": float("nan")}},
    ):
        with pytest.raises(CryptoError):
            Entry.from_json(bad)


@pytest.mark.parametrize("damage", ["page", "start", "cut", "empty", "text"])
def test_a_damaged_file_is_refused_in_words_and_left_as_it_is(path, identity, damage):
    with AuditLog.open(path.parent, identity) as log:
        for number in range(60):
            log.record(Decided(what="x" * 200 + str(number), by="A"))
    content = bytearray(path.read_bytes())
    assert len(content) > 6 * 4096
    if damage == "page":
        content[3 * 4096 : 4 * 4096] = os.urandom(4096)
    elif damage == "start":
        content[:100] = os.urandom(100)
    elif damage == "cut":
        content = content[: len(content) // 2]
    else:
        content = bytearray(b"" if damage == "empty" else b"not a database" * 999)
    path.write_bytes(content)
    with pytest.raises(SecureTriplayError) as caught:
        AuditLog.open(path.parent, identity)
    assert caught.value.fix
    assert path.read_bytes() == content


def test_a_chain_is_for_its_owner_alone(path):
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_reading_needs_no_key_and_cannot_write(path):
    with AuditLog.open(path.parent, None) as log:
        assert len(log.chain.entries) == 7
        with pytest.raises(RunError, match="opened for reading"):
            log.record(Decided(what="x", by="A"))


def test_a_clock_that_goes_back_leaves_times_in_order(tmp_path, identity):
    times = iter(
        [datetime(2026, 5, 1, tzinfo=UTC), datetime(2026, 4, 1, tzinfo=UTC), datetime(2026, 5, 2, tzinfo=UTC)]
    )
    with AuditLog.create(
        tmp_path / "x", identity, party="x", started_by="A", clock=lambda: next(times)
    ) as log:
        log.record(Decided(what="x", by="A"))
        log.record(Decided(what="y", by="A"))
        assert [entry.time[:10] for entry in log.chain.entries] == ["2026-05-01", "2026-05-01", "2026-05-02"]


def test_no_two_entries_tell_how_long_what_stands_between_them_took(tmp_path, identity):
    moments = iter(
        [
            datetime(2026, 5, 1, 9, 0, 0, 1, tzinfo=UTC),
            datetime(2026, 5, 1, 9, 30, 12, tzinfo=UTC),
            datetime(2026, 5, 1, 9, 59, 59, 999_999, tzinfo=UTC),
        ]
    )
    with AuditLog.create(
        tmp_path / "x", identity, party="x", started_by="A", clock=lambda: next(moments)
    ) as log:
        log.record(Decided(what="before training", by="A"))
        log.record(Decided(what="after training", by="A"))
        assert {entry.time for entry in log.chain.entries} == {"2026-05-01T09:00:00Z"}


def test_two_copies_that_write_the_same_in_the_same_hour_have_different_heads(tmp_path, path, identity):
    shutil.copytree(path.parent, tmp_path / "clone")
    now = datetime.now(UTC)
    heads = set()
    for folder in (path.parent, tmp_path / "clone"):
        with AuditLog.open(folder, identity, clock=lambda: now) as log:
            before = log.chain.entries[-1].head
            log.record(Decided(what="the same", by="A"))
            heads.add(log.chain.entries[-1].head)
    assert len(heads | {before}) == 3


@pytest.mark.parametrize("field", ["minutes", "seconds", "fraction", "nonce"])
def test_an_entry_with_a_finer_time_or_another_nonce_is_refused_though_its_signature_is_right(
    identity, field
):
    other = {
        "minutes": "2026-01-01T00:30:00Z",
        "seconds": "2026-01-01T00:00:30Z",
        "fraction": "2026-01-01T00:00:00.5Z",
    }
    opened = Opened(
        party="a", public_key=identity.identity.public_bytes.hex(), nonce="0" * 64, started_by="A"
    )
    entry = Entry.signed(identity, None, "2026-01-01T00:00:00Z", opened)
    entry.verify(None, identity.identity)
    entry = replace(entry, nonce=bytes(15)) if field == "nonce" else replace(entry, time=other[field])
    signature = identity.sign(Purpose.LEDGER, (1).to_bytes(8), entry.head)
    with pytest.raises(CryptoError, match="not in the form"):
        replace(entry, signature=signature).verify(None, identity.identity)


def test_a_ledger_of_an_earlier_form_is_refused_in_words_and_left_as_it_is(path, identity):
    tampered(path, ("PRAGMA user_version = 1",))
    before = path.read_bytes()
    with pytest.raises(RunError, match="form 1, and this version of the program writes form 2"):
        AuditLog.open(path.parent, identity)
    assert path.read_bytes() == before
