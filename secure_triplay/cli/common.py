"""What the commands share: arguments, printing, and the word for being stopped."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

StudyFile = Annotated[
    Path, typer.Argument(metavar="STUDY.yaml", help="The study's configuration.", show_default=False)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def print_json(content: Any) -> None:
    """JSON on standard output, as a person and a program can read it."""
    sys.stdout.write(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
