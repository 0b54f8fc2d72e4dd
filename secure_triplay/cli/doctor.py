"""`secure-triplay doctor`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from secure_triplay.cli.common import AsJson, print_json

app = typer.Typer()

_COLOURS = {"ok": "green", "warning": "yellow", "wrong": "bold red"}


@app.command("doctor", epilog="Example:  secure-triplay doctor --site st-mary")
def doctor(
    site: Annotated[Path | None, typer.Option("--site", help="A site's folder.")] = None,
    folder: Annotated[Path | None, typer.Option("--dir", help="The coordinator's folder.")] = None,
    study: Annotated[str | None, typer.Option("--study", help="At a site with several studies.")] = None,
    as_json: AsJson = False,
) -> None:
    """Look for what would keep a federation from running; exit code 9 where something is wrong.

    64 where the command line is.
    """
    from secure_triplay.federation.doctor import examine_server, examine_site
    from secure_triplay.federation.serverfolder import ServerFolder
    from secure_triplay.federation.sitefolder import SiteFolder

    if (site is None) == (folder is None):
        raise typer.BadParameter("name a site's folder with --site, or the coordinator's with --dir")
    findings = (
        examine_site(SiteFolder.open(site), study)
        if site is not None
        else examine_server(ServerFolder.open(folder or Path()))
    )
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        table = Table(show_header=False, box=None, padding=(0, 1), pad_edge=False)
        for finding in findings:
            words = finding.words + (f"\nWhat to do: {finding.fix}" if finding.fix else "")
            table.add_row(
                Text(finding.verdict, style=_COLOURS[finding.verdict]), Text(finding.what), Text(words)
            )
        Console().print(table)
    raise typer.Exit(9 if any(finding.verdict == "wrong" for finding in findings) else 0)
