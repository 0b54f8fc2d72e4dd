"""`report.html` of an epsilon audit: what was claimed, what was measured, and what the measuring cannot see."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from secure_triplay.report.attack_page import data_uri
from secure_triplay.report.html import write_page


def write_epsilon_page(result: Mapping[str, Any], folder: Path) -> Path:
    """Write the page into the folder that holds the audit's roc.png. Raises RunError."""
    return write_page(
        folder / "report.html", "epsilon.html.j2", result=result, roc=data_uri(folder / "roc.png")
    )
