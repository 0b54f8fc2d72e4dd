"""What is kept of an error that nobody foresaw."""

from __future__ import annotations

import os
import tempfile
import traceback


def keep_trace() -> str:
    """Keep the trace of the error that is being handled in a new file of this user alone -> its path, or why not.

    It lies outside every run's folder, which goes with a run that failed.
    """
    try:
        descriptor, path = tempfile.mkstemp(prefix="secure-triplay-crash-", suffix=".txt")  # mode 0600
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(traceback.format_exc())
    except OSError as error:
        return f"no file: the trace could not be written ({error.strerror})"
    return path
