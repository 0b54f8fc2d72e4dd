"""What the commands share: arguments, printing, and the word for being stopped."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from secure_triplay.errors import RunError

StudyFile = Annotated[
    Path, typer.Argument(metavar="STUDY.yaml", help="The study's configuration.", show_default=False)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def unusable_file(error: OSError) -> RunError:
    """What the operating system refused, as an error of ours."""
    return RunError(
        f"a file or folder cannot be used: {error.strerror or error}",
        where=str(error.filename or ""),
        fix="check that its folder exists and is yours, and that the disk has room",
    )


def quoted(path: Path) -> str:
    """A path as a shell takes it, in a command that the reader is to run next."""
    return shlex.quote(str(path))


def on_one_line(text: str) -> str:
    """A line with words of other parties in it: nothing in them begins another line or steers a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text) + "\n"


def print_json(content: Any) -> None:
    """JSON on standard output, as a person and a program can read it."""
    sys.stdout.write(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
