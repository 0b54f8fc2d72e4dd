"""`report.html`: a run told to people, in one file."""

from __future__ import annotations

from pathlib import Path

from secure_triplay.report import words
from secure_triplay.report.html import write_page
from secure_triplay.report.plots import run_plots
from secure_triplay.report.summary import Summary


def write_run_report(summary: Summary, path: str | Path) -> Path:
    """Write the run's page to `path`: self-contained, without script, every name escaped. Raises RunError."""
    return write_page(
        path,
        "run.html.j2",
        summary=summary,
        headline=words.headline(summary),
        limits=words.limits(summary),
        spent=words.spent(summary),
        guarantee=words.guarantee,
        personal=words.PERSONAL,
        half_width=words.half_width,
        plots=run_plots(summary),
    )
