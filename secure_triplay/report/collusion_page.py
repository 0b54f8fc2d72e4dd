"""`report.html` of an audit of collusion: what server and sites got together, in each of its arms."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from secure_triplay.report.attack_page import data_uri
from secure_triplay.report.html import write_page


def write_collusion_page(result: Mapping[str, Any], folder: Path) -> Path:
    """Write the page into the folder that holds the audit's pictures.png. Raises RunError."""
    return write_page(
        folder / "report.html",
        "collusion.html.j2",
        result=result,
        pictures=data_uri(folder / "pictures.png"),
    )
