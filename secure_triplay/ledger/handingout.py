"""A folder that leaves a party, and the entry of its log which says so."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from secure_triplay import durable
from secure_triplay.errors import RunError


@contextmanager
def handing_out(out: Path, note: Callable[[], object]) -> Iterator[Path]:
    """Yield a draft folder to write into; when the block ends, whole, `note` writes the entry, and the draft is `out`.

    The entry comes between: no bundle gets its name without one. A kill right after it leaves an entry of a bundle that
    did not get its name, so the log may say more than was handed out, and never less. Where the entry cannot be
    written, the bundle goes again.

    Raises RunError where `out` exists, before the block or by its end, or cannot be written (known before the block),
    and what `note` raises.
    """
    if os.path.exists(out):
        raise RunError(
            "the output folder exists, and nothing is overwritten", where=str(out), fix="give another --out"
        )
    try:
        with durable.new_folder(out) as draft:
            yield draft
            note()
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR) and os.path.lexists(out):
            raise RunError(
                "something was put under this name while the bundle was made, and nothing is overwritten",
                where=str(out),
                fix="look at what is there, or give another --out",
            ) from error
        raise RunError(
            f"the bundle cannot be written: {error.strerror}",
            where=str(out),
            fix="check that the folder is yours and that the disk has room",
        ) from error
