"""Files and folders that are there whole, or not at all, and on disk when a call returns: none is lost to a power cut.

Content goes to disk first, then its name, then the folder that holds the name. What cannot be done is an OSError, which
whoever calls puts in words of its own: only there is it known what a reader has to do.
"""

from __future__ import annotations

import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from secure_triplay.errors import CryptoError

_MOST_PRIVATE_BYTES = 1 << 16


def private_file(path: str, flags: int) -> int:
    """An opener for `open`: a file that it makes has mode 0600, whatever the umask allows."""
    return os.open(path, flags, 0o600)


def write_new(path: Path, content: bytes) -> None:
    """A new file of mode 0600. Raises FileExistsError where one is there already, and OSError."""
    draft = _draft_beside(path)
    try:
        with open(draft, "xb", opener=private_file) as file:
            _write(file, content)
        os.link(draft, path)  # unlike a rename, refuses where a file is
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
    sync_folder(path.parent)


def read_private(path: Path) -> bytes:
    """The content of `write_new`, up to 64 KiB.

    Raises OSError where it cannot be read, by way of a symbolic link too; CryptoError where others can read it.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        mode = os.fstat(file.fileno()).st_mode
        content = file.read(_MOST_PRIVATE_BYTES)
    if stat.S_IMODE(mode) & 0o077:
        raise CryptoError(
            "other users of this machine can read a key",
            where=str(path),
            fix=f"chmod 600 {path}; if somebody may have read it, enrol anew",
        )
    return content


def replace(path: Path, content: bytes) -> None:
    """The file with exactly this content, old or new whatever happens, as the umask allows. Raises OSError."""
    draft = _draft_beside(path)
    try:
        with draft.open("xb") as file:
            _write(file, content)
        draft.replace(path)
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
    sync_folder(path.parent)


def replace_private(path: Path, content: bytes) -> None:
    """`replace` for a file of mode 0600 that one process writes. Raises OSError.

    Its draft has one name only, so that `remove` finds what a stop left of it.
    """
    draft = _private_draft(path)
    with open(draft, "wb", opener=private_file) as file:
        _write(file, content)
    draft.rename(path)
    sync_folder(path.parent)


def remove(path: Path) -> None:
    """No such file, and nothing that a stop left of `replace_private`. Raises OSError."""
    for one in (path, _private_draft(path)):
        one.unlink(missing_ok=True)
    sync_folder(path.parent)


def private_folder(path: Path) -> None:
    """A folder of mode 0700 with those above it, made and on disk where they were missing. Raises OSError."""
    for folder in (*reversed(path.parents), path):
        if not folder.is_dir():
            folder.mkdir(mode=0o700, exist_ok=True)
            sync_folder(folder.parent)


@contextmanager
def new_folder(path: Path, *, mode: int = 0o777) -> Iterator[Path]:
    """A draft to write into, which becomes `path` when the block ends without an error.

    `path` may be there if it is empty. Raises OSError. Files in it are on disk where whoever wrote them saw to it.
    """
    draft = _draft_beside(path)
    try:
        draft.mkdir(mode=mode, parents=True)
        yield draft
        draft.replace(path)
        sync_folder(path.parent)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def sync_folder(path: Path) -> None:
    """Make what was made, renamed or removed in a folder survive a loss of power. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write(file: IO[bytes], content: bytes) -> None:
    file.write(content)
    file.flush()
    os.fsync(file.fileno())


def _private_draft(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")


def _draft_beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
