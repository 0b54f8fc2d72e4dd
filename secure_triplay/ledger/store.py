"""A chain in one SQLite file: appended to inside one transaction, durable before anything returns.

Write-ahead log with full synchronisation: when `writing()` has ended, its entries survive a power cut. Two
processes take turns, since a write begins with the database's one write lock and then reads what the other
wrote. The file's own triggers refuse to change or delete; they stop accidents, and the chain shows intent.
"""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from secure_triplay import durable
from secure_triplay.crypto.identity import Identity, Purpose, SigningIdentity
from secure_triplay.errors import CryptoError, PrivacyError, RunError
from secure_triplay.ledger.connection import connect, explained
from secure_triplay.ledger.entries import TIME_FORMAT, Body, Entry, Opened, broken

Clock = Callable[[], datetime]
LOCK_TIMEOUT_S = 30.0
_APPLICATION = 0x53335042
_VERSION = 2
"""1: without nonces, times to the microsecond."""
# Head is deliberately not UNIQUE: INSERT OR REPLACE would then delete a row without firing a trigger.
_SCHEMA = """
CREATE TABLE entries (
  counter INTEGER PRIMARY KEY, time TEXT NOT NULL, nonce BLOB NOT NULL, kind TEXT NOT NULL, content BLOB NOT NULL,
  previous BLOB NOT NULL, head BLOB NOT NULL, signature BLOB NOT NULL
) STRICT;
CREATE TRIGGER entries_are_never_changed BEFORE UPDATE ON entries
  BEGIN SELECT RAISE(ABORT, 'entries are never changed'); END;
CREATE TRIGGER entries_are_never_deleted BEFORE DELETE ON entries
  BEGIN SELECT RAISE(ABORT, 'entries are never deleted'); END;
CREATE TRIGGER entries_follow_one_another BEFORE INSERT ON entries
  WHEN NEW.counter IS NOT (SELECT coalesce(max(counter), 0) + 1 FROM entries)
  BEGIN SELECT RAISE(ABORT, 'entries are only appended'); END;
"""
_COLUMNS = "counter, time, nonce, kind, content, previous, head, signature"


def utc_now() -> datetime:
    """The machine's clock."""
    return datetime.now(UTC)


class Chain:
    """An open chain. `entries` is what was read and verified; `writing` brings it up to date and appends."""

    def __init__(
        self, path: Path, connection: sqlite3.Connection, signer: SigningIdentity | None, clock: Clock
    ) -> None:
        self.path = path
        self.entries: tuple[Entry, ...] = ()
        self._connection, self._signer, self._clock = connection, signer, clock
        self._identity: Identity | None = signer.identity if signer else None
        self._file = _file_of(path)
        self._time: str | None = None

    @classmethod
    def create(cls, path: Path, signer: SigningIdentity, *first: Body, clock: Clock = utc_now) -> Self:
        """A new chain that starts with `first`; it exists whole or not at all.

        Raises RunError where a file is in the way or the disk refuses.
        """
        draft = path.with_name(f"{path.name}.{os.getpid()}.new")
        with explained(path):
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            if path.exists():
                raise RunError(
                    "there is a ledger already, and nothing overwrites one",
                    where=str(path),
                    fix="use it, or choose another folder",
                )
            try:
                os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
                with closing(connect(draft, "rw", LOCK_TIMEOUT_S)) as connection:
                    connection.executescript(
                        f"PRAGMA journal_mode = WAL; PRAGMA application_id = {_APPLICATION}; PRAGMA "
                        f"user_version = {_VERSION};" + _SCHEMA
                    )
                    chain = cls(draft, connection, signer, clock)
                    with chain.writing() as append:
                        for body in first:
                            append(body)
                    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                # SQLite writes and syncs the file itself; what is left to do here is its name
                os.link(draft, path)  # unlike a rename, never replaces a ledger that somebody made meanwhile
            finally:
                for suffix in ("", "-wal", "-shm"):
                    with suppress(OSError):
                        os.unlink(f"{draft}{suffix}")
            durable.sync_folder(path.parent)
        return cls.open(path, signer, clock=clock)

    @classmethod
    def open(
        cls,
        path: Path,
        signer: SigningIdentity | None,
        *,
        clock: Clock = utc_now,
        lock_timeout_s: float = LOCK_TIMEOUT_S,
    ) -> Self:
        """The chain in a file, every entry verified. Without `signer` it is read only.

        Raises:
            RunError: where it is missing, locked, damaged or unreadable.
            CryptoError: where an entry does not verify, or the key is another one than the chain's.
        """
        if not path.exists():
            raise RunError("there is no ledger here", where=str(path), fix="see `Ledger.open`")
        with explained(path):
            _require_content(path)
            connection = connect(path, "rw" if signer else "ro", lock_timeout_s)
            try:
                if connection.execute("PRAGMA application_id").fetchone()[0] != _APPLICATION:
                    raise RunError(
                        "this file is no ledger of this program", where=str(path), fix="check the folder"
                    )
                _require_version(path, connection.execute("PRAGMA user_version").fetchone()[0])
                chain = cls(path, connection, signer, clock)
                chain.refresh()
            except BaseException:
                connection.close()
                raise
        return chain

    @property
    def identity(self) -> Identity:
        """Whose chain this is."""
        if self._identity is None:
            raise RunError("the chain is empty", where=str(self.path), fix="restore it from a backup")
        return self._identity

    def refresh(self) -> None:
        """Read and verify what others appended since the last look. Raises CryptoError."""
        with explained(self.path):
            self._read()
        if not self.entries:
            raise CryptoError(
                "the chain has no entry at all", where=str(self.path), fix="restore it from a backup"
            )

    @contextmanager
    def writing(self) -> Iterator[Callable[[Body], Entry]]:
        """Hold the write lock, and yield what appends one signed entry; all are on disk when the block has
        ended.

        An error in the block leaves the chain as it was. Raises RunError where the disk or another process stands
        in the way or the file is no longer the one that was opened, PrivacyError where the clock shows an earlier
        year than the last entry.
        """
        if self._signer is None:
            raise _for_reading(self.path)
        signer = self._signer
        pending: list[Entry] = []
        with explained(self.path):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                self._read()
                time = (
                    self._now()
                )  # one for the whole transaction: what was checked for a year is booked in it

                def append(body: Body) -> Entry:
                    last = pending[-1] if pending else self.entries[-1] if self.entries else None
                    entry = Entry.signed(signer, last, time, body)
                    self._connection.execute(
                        f"INSERT INTO entries ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",  # noqa: S608  (a constant)
                        (
                            entry.counter,
                            entry.time,
                            entry.nonce,
                            entry.kind,
                            entry.content,
                            entry.previous,
                            entry.head,
                            entry.signature,
                        ),
                    )
                    pending.append(entry)
                    return entry

                self._time = time
                yield append
                self._connection.execute("COMMIT")
                # SQLite goes on writing to a file that has lost its name
                if _file_of(self.path) != self._file:
                    raise RunError(
                        "the ledger was moved, removed or replaced while this program had it open, so what it "
                        "records is lost",
                        where=str(self.path),
                        fix="release nothing; end this program, put the newest copy back, and start again",
                    )
            except BaseException:
                with suppress(sqlite3.Error):
                    self._connection.execute("ROLLBACK")
                raise
            finally:
                self._time = None
        self.entries += tuple(pending)

    @property
    def year(self) -> int:
        """The year that an entry written now is booked in. Raises PrivacyError where the clock was set
        back.
        """
        return int((self._time or self._now())[:4])

    def append(self, body: Body) -> Entry:
        """One more entry, on disk when this returns. Raises as `writing` does."""
        with self.writing() as append:
            return append(body)

    def sign(self, purpose: Purpose, *fields: bytes) -> bytes:
        """Signature `(64,)` of the party whose chain this is. Raises RunError where it was opened for reading."""
        if self._signer is None:
            raise _for_reading(self.path)
        return self._signer.sign(purpose, *fields)

    def close(self) -> None:
        """Give the file back."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _read(self) -> None:
        """Take in the entries after those known, which must still stand where they stood."""
        known = self.entries[-1] if self.entries else None
        start = known.counter if known else 1
        rows = self._connection.execute(
            f"SELECT {_COLUMNS} FROM entries WHERE counter >= ? ORDER BY counter",  # noqa: S608  (a constant)
            (start,),
        ).fetchall()
        found = [_entry(row) for row in rows]
        if known is not None:
            if not found or found[0].head != known.head:
                raise broken(known.counter, "was there before, and is gone or another one now")
            found = found[1:]
        elif found:
            self._settle_identity(found)
        previous = known
        for entry in found:
            entry.verify(previous, self.identity)
            previous = entry
        self.entries += tuple(found)

    def _settle_identity(self, found: list[Entry]) -> None:
        """The chain's own key, which must be the signer's where there is one."""
        first = found[0].body
        if not isinstance(first, Opened):
            raise broken(found[0].counter, "is not the opening of a chain, so what stood before it is gone")
        owner = Identity(bytes.fromhex(first.public_key))
        if self._identity is not None and owner != self._identity:
            raise CryptoError(
                f"this ledger belongs to the key {owner.fingerprint}, and the key given is "
                f"{self._identity.fingerprint}",
                where=str(self.path),
                fix="use the identity that the ledger was started with",
            )
        self._identity = owner

    def _now(self) -> str:
        """This hour, never before the last entry, and never in an earlier year than it: that year's budget is
        closed.
        """
        last = self.entries[-1] if self.entries else None
        now = self._clock().astimezone(UTC).strftime(TIME_FORMAT)
        if last is not None and now[:4] < last.time[:4]:
            raise PrivacyError(
                f"this machine's clock says {now[:10]}, and the ledger's last entry is of {last.time[:10]}",
                where=str(self.path),
                fix="set the clock right; a closed year's budget is not opened again",
            )
        return max(now, last.time) if last else now


def _file_of(path: Path) -> tuple[int, int]:
    """Which file stands under this name; no file is (0, 0)."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return 0, 0
    return found.st_dev, found.st_ino


def _require_content(path: Path) -> None:
    """Return nothing if a file with something in it stands here. Raises RunError, and OSError."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise RunError(
            f"{'a folder' if path.is_dir() else 'a device or a pipe'} stands where the ledger's file belongs",
            where=str(path),
            fix="find out what put it there, and restore the ledger from a backup; release nothing until then",
        )
    if not found.st_size:
        raise RunError(
            "the ledger's file is empty, and what was spent is gone from it",
            where=str(path),
            fix="restore it from a backup, and compare that with the heads that other parties countersigned; release "
            "nothing until then",
        )


def _require_version(path: Path, version: int) -> None:
    if version != _VERSION:
        raise RunError(
            f"this ledger is in form {version}, and this version of the program writes form {_VERSION}",
            where=str(path),
            fix="go on with the version that wrote it; a chain cannot be put into another form, since its party and "
            "others signed it as it is",
        )


def _for_reading(path: Path) -> RunError:
    return RunError("this ledger was opened for reading", where=str(path), fix="open it with the site's key")


def _entry(row: tuple[object, ...]) -> Entry:
    counter, time, nonce, kind, content, previous, head, signature = row
    if not (
        isinstance(counter, int)
        and isinstance(time, str)
        and isinstance(nonce, bytes)
        and isinstance(kind, str)
        and isinstance(content, bytes)
        and isinstance(previous, bytes)
        and isinstance(signature, bytes)
    ):
        raise broken(counter if isinstance(counter, int) else 0, "is not in the form of an entry")
    entry = Entry(counter, time, nonce, kind, content, previous, signature)
    if entry.head != head:
        raise broken(counter, "was changed: its hash is another one than stored")
    return entry
