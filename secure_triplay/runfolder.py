"""A run's folder that exists whole or not at all.

Everything is written into `OUT.partial`, which becomes `OUT` by one rename when the run is finished. A run
that fails or is stopped leaves neither. A lock tells a run that is going on from one that was killed.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from secure_triplay.errors import RunError


@contextmanager
def run_folder(out: Path) -> Iterator[Path]:
    """The folder to write into; it becomes `out` when the block ends without an error.

    Raises RunError when `out` exists, another run is writing there, or the disk is full.
    """
    out = out.absolute()
    if out.exists():
        raise RunError(
            "the output folder exists, and nothing is overwritten",
            where=str(out),
            fix="give another --out, or move the old run away",
        )
    partial = out.with_name(out.name + ".partial")
    try:
        partial.mkdir(parents=True, exist_ok=True)
        lock = os.open(partial / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _cannot_write(partial, error) from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunError(
                "another run is writing this folder",
                where=str(partial),
                fix="wait for it, or give another --out",
            ) from error
        _empty(partial)
        try:
            yield partial
            (partial / ".lock").unlink()
            partial.rename(out)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
                raise _cannot_write(partial, error) from error
            raise
        finally:
            if partial.exists():
                shutil.rmtree(partial, ignore_errors=True)
    finally:
        os.close(lock)


def _empty(partial: Path) -> None:
    """Remove what a killed run left behind."""
    for entry in partial.iterdir():
        if entry.name == ".lock":
            continue
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def _cannot_write(partial: Path, error: OSError) -> RunError:
    return RunError(
        f"the run cannot be written: {error.strerror}",
        where=str(partial),
        fix="free some space or choose another --out; nothing half-written was left",
    )
