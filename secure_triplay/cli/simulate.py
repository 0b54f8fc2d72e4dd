"""`secure-triplay simulate`."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from secure_triplay.cli.common import AsJson, StudyFile

app = typer.Typer()


@app.command(
    epilog="Examples:  secure-triplay simulate configs/demo.yaml   |   "
    "BLOOD_CELLS=/folder/with/manifest.csv secure-triplay simulate configs/blood-cells.yaml --out runs/cells --json "
    "> cells.json"
)
def simulate(
    study_file: StudyFile,
    out: Annotated[
        Path | None, typer.Option(help=r"Folder of the run; it must not exist. \[default: runs/STUDY-TIME]")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Overrides the study's seed (partition and public draw).")
    ] = None,
    keep_received: Annotated[
        bool,
        typer.Option(
            "--keep-received", help="Keep every byte that the server was given, in server/received/."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Run a whole study on this machine: real keys, real ciphertexts, a real Flower server, simulated distance."""
    from secure_triplay.config import load_study
    from secure_triplay.progress import Progress
    from secure_triplay.report.table import closing_table
    from secure_triplay.simulate import simulate as run

    study = load_study(study_file, seed=seed)
    folder = out or Path("runs") / f"{study.study}-{time.strftime('%Y%m%d-%H%M%S')}"
    console = Console(stderr=as_json)
    with Progress(study, console) as progress:
        summary = run(study, folder, progress.notify, keep_received=keep_received)
    if as_json:
        sys.stdout.write(summary.to_json())
        return
    console.print(closing_table(summary))
    files = "summary.json, report.html, adapter/ (PEFT), sites/ (each site's journal)"
    console.print(Text.assemble("Written to ", (str(folder), "bold"), f": {files}"))
