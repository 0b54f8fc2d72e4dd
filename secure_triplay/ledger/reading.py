"""How a file that somebody handed over is read: a regular file, and never more of it than was agreed."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from json import JSONDecodeError
from pathlib import Path
from typing import Any

from secure_triplay.errors import CryptoError, RunError, SecureTriplayError
from secure_triplay.ledger.entries import read_json

_AGAIN = "ask whoever sent it for it again, as it was exported"


def read_handed_over(path: Path, most_bytes: int) -> bytes:
    """The whole content of a regular file, or of one that a link names.

    What stands under the name decides, not what its size claims: a device never ends, and a pipe never begins. Raises
    RunError for anything else than a file and for one with more than `most_bytes`, and OSError.
    """
    # without O_NONBLOCK, opening a pipe that nobody writes to would wait for ever
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise RunError(
                "this is no file, but a folder, a device or a pipe",
                where=str(path),
                fix="do not open it; ask whoever sent it for the files as they were exported",
            )
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            content = file.read(most_bytes + 1)
    finally:
        os.close(descriptor)
    if len(content) > most_bytes:
        raise RunError("this file is larger than any real one", where=str(path), fix="do not open it")
    return content


def read_signed_json(path: Path, content: bytes) -> Any:
    """What a signed file says. Raises RunError where it is empty, cut short or damaged, or says a thing twice."""
    if not content.strip():
        raise RunError("this file is empty", where=str(path), fix=_AGAIN)
    try:
        return read_json(content)
    except (JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RunError(
            "this file is damaged or was cut short: it is no JSON", where=str(path), fix=_AGAIN
        ) from error
    except ValueError as error:
        raise RunError(
            f"this file is not what an export writes: {error}", where=str(path), fix=_AGAIN
        ) from error


@contextmanager
def placed(place: Path, fix: str = "") -> Iterator[None]:
    """Errors out of a chain's or a bundle's content say where that stands.

    With `fix`, what does not verify gets this advice, for whoever reads it here: most of it is written for the owner.
    """
    try:
        yield
    except SecureTriplayError as error:
        if str(place) in error.where:
            raise
        advice = fix if fix and isinstance(error, CryptoError) else error.fix
        where = f"{place}, {error.where}" if error.where else str(place)
        raise type(error)(error.what, where=where, fix=advice) from error
