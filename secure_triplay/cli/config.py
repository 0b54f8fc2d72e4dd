"""`secure-triplay config`."""

from __future__ import annotations

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from secure_triplay.cli.common import AsJson, StudyFile, print_json

app = typer.Typer(
    help="Look at a study file before anything runs.", no_args_is_help=True, suggest_commands=False
)


@app.command("check", epilog="Example:  secure-triplay config check configs/demo.yaml")
def config_check(study_file: StudyFile, as_json: AsJson = False) -> None:
    """Say in plain words what a study will do, or what is wrong, where, and how to mend it."""
    from secure_triplay.config import load_study
    from secure_triplay.describe import describe

    lines = describe(load_study(study_file))
    if as_json:
        print_json(dict(lines))
        return
    table = Table(show_header=False, box=None, padding=(0, 2, 1, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for topic, sentence in lines:
        table.add_row(topic, escape(sentence))
    console = Console()
    console.print(table)
    console.print(Text(f"{study_file} is a study that can run.", style="green"))


@app.command("schema", epilog="Example:  secure-triplay config schema > study.schema.json")
def config_schema() -> None:
    """Print the JSON Schema of a study file, for editors."""
    from secure_triplay.config import study_schema

    print_json(study_schema())
