"""How a worker's process ends."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from secure_triplay.errors import SecureTriplayError


@contextmanager
def ending_plainly() -> Iterator[None]:
    """The body of a worker's process: what fails in it is one line and its exit code, and Ctrl-C is 130."""
    try:
        yield
    except SecureTriplayError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(error.exit_code)
    except (
        OSError
    ) as error:  # a full disk, say: whoever keeps the worker alive starts it again, later and later
        sys.stderr.write(f"{error}\n")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
