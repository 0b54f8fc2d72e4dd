"""`secure-triplay experiment`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from secure_triplay.cli.common import AsJson, print_json

app = typer.Typer()


@app.command(epilog="Example:  secure-triplay experiment configs/experiments/utility.yaml --out runs/utility")
def experiment(
    file: Annotated[Path, typer.Argument(metavar="FILE.yaml", help="The grid.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder of the results; a stopped grid goes on in it.")],
    only_collect: Annotated[
        bool, typer.Option("--only-collect", help="Run nothing: the table of the cells that are there.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Measure methods x data x seeds side by side: a table with spread, a plot, and JSON; stops and resumes."""
    from secure_triplay.experiments.run import run_experiment
    from secure_triplay.experiments.show import tables

    console = Console(stderr=True, highlight=False)
    with console.status("reading the grid") as status:
        result = run_experiment(
            file, out, lambda text: status.update(text.replace("[", r"\[")), only_collect=only_collect
        )
    if as_json:
        print_json(result)
        return
    printer = Console(highlight=False)
    for table in tables(result):
        printer.print(table)
    if result["missing"]:
        printer.print(f"{len(result['missing'])} cells are not measured yet; run the same command to go on.")
    printer.print(
        Text.assemble("Written to ", (str(out), "bold"), ": result.json, table.txt, accuracy.svg, cells/")
    )
