"""A folder that leaves a party, and the entry of its log which says so."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from secure_triplay import durable
from secure_triplay.errors import RunError


@contextmanager
def handing_out(out: Path, note: Callable[[], object]) -> Iterator[Path]:
    """Yield a draft folder to write into; when the block ends it is `out`, whole, and then `note` writes the entry.

    The entry comes last: a kill before it leaves a bundle that the log does not speak of yet, and never an entry that
    speaks of a bundle which is not there. Where the entry cannot be written, the bundle goes again.

    Raises RunError where `out` exists, or cannot be written (known before the block), and what `note` raises.
    """
    if os.path.exists(out):
        raise RunError(
            "the output folder exists, and nothing is overwritten", where=str(out), fix="give another --out"
        )
    try:
        with durable.new_folder(out) as draft:
            yield draft
    except OSError as error:
        raise RunError(
            f"the bundle cannot be written: {error.strerror}",
            where=str(out),
            fix="check that the folder is yours and that the disk has room",
        ) from error
    try:
        note()
    except Exception:
        shutil.rmtree(out)
        raise
