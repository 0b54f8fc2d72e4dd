"""How a ledger's SQLite file is opened, and what its errors mean to a person."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from secure_triplay.errors import RunError, SecureTriplayError
from secure_triplay.ledger.entries import CHAIN


def connect(path: Path, mode: str, lock_timeout_s: float) -> sqlite3.Connection:
    """A connection that never creates the file and commits only when told to."""

    def opened(query: str) -> sqlite3.Connection:
        made = sqlite3.connect(
            f"{path.absolute().as_uri()}?{query}",
            uri=True,
            timeout=lock_timeout_s,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            made.execute("SELECT 1 FROM sqlite_schema").fetchone()
            made.execute("PRAGMA synchronous = FULL")
        except BaseException:
            made.close()
            raise
        return made

    try:
        return opened(f"mode={mode}")
    except sqlite3.OperationalError as error:
        wal = path.with_name(path.name + "-wal")
        # On a read-only disk SQLite cannot share a file. Nobody writes it there; without a log it is whole.
        if mode != "ro" or error.sqlite_errorname not in _UNSHARED or (wal.exists() and wal.stat().st_size):
            raise
        return opened("mode=ro&immutable=1")


_UNSHARED = ("SQLITE_CANTOPEN", "SQLITE_READONLY_DIRECTORY", "SQLITE_READONLY", "SQLITE_READONLY_CANTINIT")


_PROBLEMS = {
    "SQLITE_FULL": (
        "the disk is full, so nothing could be recorded, and nothing may be released",
        "free some space and run again; a write that failed took nothing of the ledger with it",
    ),
    "SQLITE_READONLY": (
        "the disk is read-only, so nothing could be recorded, and nothing may be released",
        "make the ledger's folder writable for this user, then run again",
    ),
    "SQLITE_BUSY": (
        "another process holds the ledger for too long",
        "wait until it has finished, or end it; then run again",
    ),
    "SQLITE_LOCKED": (
        "another process holds the ledger for too long",
        "wait until it has finished, or end it; then run again",
    ),
    "SQLITE_CANTOPEN": (
        "the ledger cannot be opened",
        "check that the folder is yours and the disk is there",
    ),
    "SQLITE_IOERR": (
        "the disk failed or is full, so nothing could be recorded, and nothing may be released",
        "free some space or check the disk, then run again; a write that failed took nothing of the ledger with it",
    ),
    "SQLITE_CONSTRAINT": (
        "an entry of the ledger would have been changed, which never happens",
        "find out which program tried it",
    ),
}
_DAMAGED = (
    "the ledger's file is damaged",
    "keep it as it is, restore a backup, and compare that with the heads that "
    "other parties countersigned; release nothing until then",
)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """SQLite's and the system's errors in words that a person can act on."""
    try:
        yield
    except SecureTriplayError as error:
        if error.where != CHAIN:
            raise
        raise type(error)(error.what, where=str(path), fix=error.fix) from error
    except sqlite3.Error as error:
        name = getattr(error, "sqlite_errorname", "") or ""
        family = "_".join(name.split("_")[:2])
        what, fix = _PROBLEMS.get(family, _DAMAGED)
        raise RunError(f"{what} ({error})", where=str(path), fix=fix) from error
    except OSError as error:
        raise RunError(
            f"the ledger cannot be written: {error.strerror}",
            where=str(path),
            fix="check that the folder is yours and that the disk has room",
        ) from error
