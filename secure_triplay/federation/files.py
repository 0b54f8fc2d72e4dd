"""Files of a site's and a coordinator's folder: written whole or not at all, secrets for their user alone."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from secure_triplay import durable
from secure_triplay.errors import ConfigError, CryptoError, RunError

MAX_PUBLIC_BYTES = 16 << 20


def make_folder(path: Path) -> None:
    """A folder that only its user can open. Raises RunError where it cannot be made or others can open it."""
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        mode = path.stat().st_mode
    except OSError as error:
        raise _unwritable(path, error) from error
    if stat.S_IMODE(mode) & 0o077:
        raise RunError(
            "other users of this machine can open this folder",
            where=str(path),
            fix=f"chmod 700 {path}, or name a new folder",
        )


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A draft to write into, which becomes `path` when the block ends: that folder is there whole, or not at all.

    `path` may be there if it is empty. Raises RunError where it cannot be made or others can open it.
    """
    if path.exists():
        make_folder(path)
    try:
        with durable.new_folder(path, mode=0o700) as draft:
            make_folder(draft)  # some mounts give every folder their own mode
            yield draft
    except OSError as error:
        raise _unwritable(path, error) from error


def write_secret(path: Path, content: bytes) -> None:
    """A new file of mode 0600, on disk when this returns. Raises CryptoError where one is there already."""
    try:
        durable.write_new(path, content)
    except FileExistsError as error:
        raise CryptoError(
            "this key is there already, and none is ever overwritten",
            where=str(path),
            fix="use the folder as it is, or another folder",
        ) from error
    except OSError as error:
        raise _unwritable(path, error) from error


def replace_secret(path: Path, content: bytes) -> None:
    """The file of mode 0600 with this content, old or new whatever happens. Raises RunError."""
    try:
        durable.replace_private(path, content)
    except OSError as error:
        raise _unwritable(path, error) from error


def read_secret(path: Path) -> bytes:
    """The content of `write_secret`. Raises CryptoError where it is missing or others can read it."""
    try:
        return durable.read_private(path)
    except OSError as error:
        raise CryptoError(
            f"a key of this folder cannot be read: {error.strerror}",
            where=str(path),
            fix="name the folder that made the key, or restore its backup",
        ) from error


def write_public(path: Path, content: bytes) -> None:
    """The file with exactly this content, old or new whatever happens, on disk when this returns."""
    try:
        durable.replace(path, content)
    except OSError as error:
        raise _unwritable(path, error) from error


def read_public(path: Path, what: str, fix: str) -> bytes:
    """The file's content. Raises ConfigError where it is missing or larger than 16 MiB."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_PUBLIC_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{what} cannot be read: {error.strerror}", where=str(path), fix=fix) from error
    if len(content) > MAX_PUBLIC_BYTES:
        raise ConfigError(f"this is no {what}: it is too large", where=str(path), fix=fix)
    return content


def _unwritable(path: Path, error: OSError) -> RunError:
    return RunError(
        f"a file cannot be written: {error.strerror}",
        where=str(path),
        fix="check that the folder is yours and that the disk has room",
    )
