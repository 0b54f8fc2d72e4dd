"""A run's folder that exists whole or not at all.

Everything is written into `OUT.partial`, which becomes `OUT` by one rename when the run is finished. A run
that fails or is stopped leaves neither. A lock tells a run that is going on from one that was killed; grids and
pilots, whose folders grow and are gone on with, and a federation's server and sites take the same lock.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from secure_triplay.errors import RunError

_LOCK = ".lock"


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
    with alone_in(partial):
        _empty(partial)
        try:
            yield partial
            (partial / _LOCK).unlink()
            partial.rename(out)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
                raise unwritable(partial, error) from error
            raise
        finally:
            if partial.exists():
                shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def alone_in(
    folder: Path,
    other: str = "another run is writing this folder",
    fix: str = "wait for it, or give another --out",
) -> Iterator[None]:
    """`folder`, made where it is missing, for this process alone, until the block or the process ends.

    Raises RunError when another process is writing there, or nothing can be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise unwritable(folder, error) from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunError(other, where=str(folder), fix=fix) from error
        yield
    finally:
        os.close(lock)


def require_writable(folder: Path) -> None:
    """Make a folder and write a byte in it, before hours go into what could not be kept. Raises RunError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            file.write(b"0")
    except OSError as error:
        raise unwritable(folder, error) from error


def unwritable(folder: Path, error: OSError) -> RunError:
    """What the operating system refused, as an error of ours."""
    return RunError(
        f"the results cannot be written: {error.strerror}",
        where=str(folder),
        fix="free some space, make the folder writable, or give another --out",
    )


def _empty(partial: Path) -> None:
    """Remove what a killed run left behind."""
    for entry in partial.iterdir():
        if entry.name == _LOCK:
            continue
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
