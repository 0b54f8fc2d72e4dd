"""A run's folder that exists whole or not at all.

Everything is written into `OUT.partial`, which becomes `OUT` by one rename when the run is finished. A run
that fails or is stopped leaves neither. A lock tells a run that is going on from one that was killed; grids and
pilots, whose folders grow and are gone on with, and a federation's server and sites take the same lock. A run's own
lock has another name: it is the first thing in `OUT.partial`, and only what lies beside it is ever emptied away.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from secure_triplay.errors import RunError

_LOCK = ".lock"
_MARK = ".secure-triplay-run"
"""The lock of a run whose folder is to be renamed, and the mark that everything beside it is ours."""


@contextmanager
def run_folder(out: Path) -> Iterator[Path]:
    """The folder to write into; it becomes `out` when the block ends without an error.

    Raises RunError when anything has the name `out`, when `out.partial` is not the rest of a run that was killed,
    another run is writing there, or the disk is full. Where only the renaming fails, `out.partial` is kept.
    """
    out = out.absolute()
    if os.path.lexists(out):
        raise RunError(
            "the output folder exists, and nothing is overwritten",
            where=str(out),
            fix="give another --out, or move the old run away",
        )
    partial = out.with_name(out.name + ".partial")
    _require_ours(partial)
    with alone_in(partial, lock=_MARK):
        whole = False
        try:
            _empty(partial)
            yield partial
            whole = True
            _rename(partial, out)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
                raise unwritable(partial, error) from error
            raise
        finally:
            if not whole:
                _remove(partial)


@contextmanager
def alone_in(
    folder: Path,
    other: str = "another run is writing this folder",
    fix: str = "wait for it, or give another --out",
    *,
    lock: str = _LOCK,
) -> Iterator[None]:
    """`folder`, made where it is missing, for this process alone, until the block or the process ends.

    Raises RunError when another process is writing there, or nothing can be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = os.open(folder / lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise unwritable(folder, error) from error
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunError(other, where=str(folder), fix=fix) from error
        yield
    finally:
        os.close(held)


def require_writable(folder: Path) -> None:
    """Make a folder and write a byte in it, before hours go into what could not be kept. Raises RunError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            file.write(b"0")
    except OSError as error:
        raise unwritable(folder, error) from error


def require_place(folder: Path, ours: Callable[[dict[str, Any]], bool]) -> None:
    """Return nothing if results can be written in a folder that is there or can be made; nothing is made yet.

    Raises RunError where it cannot be, or where its result.json is not one that `ours` lets be replaced.
    """
    nearest = folder.absolute()
    while not os.path.lexists(nearest):
        nearest = nearest.parent
    try:
        with tempfile.TemporaryFile(dir=nearest, buffering=0) as file:
            file.write(b"0")
    except OSError as error:
        raise unwritable(folder, error) from error
    result = folder / "result.json"
    if os.path.lexists(result) and not ours(_mapping(result)):
        raise RunError(
            "this folder has a result of something else, and it is not overwritten",
            where=str(result),
            fix="give another --out, or move the file away",
        )


def _mapping(path: Path) -> dict[str, Any]:
    """What a JSON file says; nothing where it is no file, not JSON or no mapping."""
    try:
        found = json.loads(path.read_bytes()) if path.is_file() else None
    except (OSError, ValueError, RecursionError):
        found = None
    return found if isinstance(found, dict) else {}


def unwritable(folder: Path, error: OSError) -> RunError:
    """What the operating system refused, as an error of ours."""
    return RunError(
        f"the results cannot be written: {error.strerror}",
        where=str(folder),
        fix="free some space, make the folder writable, or give another --out",
    )


def _require_ours(partial: Path) -> None:
    """Return nothing if all that is there is a run's of ours, by its mark, or there is nothing. Raises RunError."""
    if not os.path.lexists(partial):
        return
    fix = f"move {partial.name} away, or give another --out; it goes by the same name as the unfinished run would"
    if partial.is_symlink() or not partial.is_dir():
        raise RunError(
            "the run would be written here first, and this is not a folder", where=str(partial), fix=fix
        )
    try:
        names = os.listdir(partial)
    except OSError as error:
        raise unwritable(partial, error) from error
    mark = partial / _MARK
    if names and (mark.is_symlink() or not mark.is_file()):
        raise RunError(
            "the run would be written here first, and no run of ours left the files in this folder",
            where=str(partial),
            fix=fix,
        )


def _rename(partial: Path, out: Path) -> None:
    """Give a finished run its name. Raises RunError that says where the run is otherwise."""
    try:
        (partial / _MARK).unlink(missing_ok=True)  # so that no later run takes it for a rest
        partial.rename(out)
    except OSError as error:
        raise RunError(
            f"the run is finished and whole, but its folder cannot be renamed to {out.name}: {error.strerror}",
            where=str(partial),
            fix="move it to where you want it: nothing of it is missing",
        ) from error


def _empty(partial: Path) -> None:
    """Remove what a killed run left behind, and leave the mark."""
    for entry in partial.iterdir():
        if entry.name != _MARK:
            _delete(entry)


def _remove(partial: Path) -> None:
    """Remove a run that did not end, the mark last: what cannot be removed is still known as ours."""
    for entry in partial.iterdir() if partial.is_dir() else ():
        if entry.name != _MARK:
            with suppress(OSError):
                _delete(entry)
    with suppress(OSError):
        if os.listdir(partial) in ([], [_MARK]):
            (partial / _MARK).unlink(missing_ok=True)
            partial.rmdir()


def _delete(entry: Path) -> None:
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry)
    else:
        entry.unlink()
