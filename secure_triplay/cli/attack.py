"""`secure-triplay attack` and `secure-triplay threats`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from secure_triplay.cli.common import AsJson, StudyFile, print_json
from secure_triplay.errors import ConfigError

if TYPE_CHECKING:
    from secure_triplay.attacks.matrix import Cell
    from secure_triplay.report.attack import AttackReport

app = typer.Typer()

ThreatModels = Annotated[
    Path | None,
    typer.Option("--threat-models", help=r"Folder of the threat models. \[default: threat_models]"),
]
_TABLE_COLUMNS = 80
_STYLES = {
    "invalid": "bold red reverse",
    "leaks": "bold red",
    "not protected": "red",
    "leaks, as stated": "yellow",
    "within its bound": "green",
    "nothing found": "green",
    "not tested": "dim",
    "pass": "green",
    "fail": "bold red",
}


@app.command(
    epilog="Examples:  secure-triplay attack configs/demo.yaml --all --out attack   |   "
    "secure-triplay attack STUDY.yaml --threat-model threat_models/curious-server.yaml --quick --out look"
)
def attack(
    study_file: StudyFile,
    out: Annotated[Path, typer.Option(help="Folder of the report; it must not exist.", show_default=False)],
    threat_model: Annotated[
        list[Path] | None, typer.Option(help="A threat model's file; repeat it for several.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Every threat model. This is the default.")] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer images and repetitions: minutes instead of a quarter hour.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Fixes victims, noise and attacks; not keys.")] = 0,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1, help=r"Attacks at a time; figures do not depend on it. \[default: cores, at most 4]"
        ),
    ] = None,
    folder: ThreatModels = None,
    as_json: AsJson = False,
) -> None:
    """Attack a study's own model and data with what each adversary observes, and report what leaks.

    Exit code 0: every control is valid and nothing lies above its bound beyond chance. 1: something does.
    2: a control is invalid, so that the report proves nothing. Anything else: it could not run, and 64 that the
    command line is wrong.
    """
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

    from secure_triplay.attacks.suite import run_suite
    from secure_triplay.attacks.threat import load_threat_model, load_threat_models
    from secure_triplay.attacks.workers import cores
    from secure_triplay.config import load_study

    if every and threat_model:
        raise ConfigError("--all and --threat-model exclude each other", where="command line", fix="give one")
    study = load_study(study_file)
    models = (
        tuple(load_threat_model(path) for path in threat_model)
        if threat_model
        else load_threat_models(_folder("threat_models", folder))
    )
    console = Console(stderr=as_json)
    bars = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        console=console,
        refresh_per_second=4,
    )
    tasks: dict[str, TaskID] = {}

    def tell(name: str, done: int, total: int) -> None:
        if name not in tasks:
            tasks[name] = bars.add_task(name, total=total)
        bars.update(tasks[name], completed=done, total=total)

    with bars:
        report = run_suite(study, models, out, seed=seed, quick=quick, workers=workers or cores(), tell=tell)
    if as_json:
        sys.stdout.write(report.to_json())
    else:
        _print_report(report, out, console)
    raise typer.Exit(report.exit_code)


@app.command(epilog="Example:  secure-triplay threats --json > threats.json")
def threats(
    folder: ThreatModels = None,
    audits: Annotated[
        Path | None, typer.Option(help=r"Folder of committed results. \[default: audits]")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show who must not learn what, what prevents it, who tests that, and what was last measured."""
    from secure_triplay.attacks.matrix import matrix, read_audits
    from secure_triplay.attacks.threat import load_threat_models

    models = load_threat_models(_folder("threat_models", folder), check_needs=False)
    committed = read_audits(_folder("audits", audits))
    if audits is not None and not (committed.reports or committed.verdicts):
        raise ConfigError(
            "no audit or attack has left a result in this folder",
            where=str(audits),
            fix="name one like audits/: a folder for each, with the result.json or report.json of its `--out`",
        )
    cells = matrix(models, committed)
    if as_json:
        print_json([{**asdict(cell), "nobody_tests": cell.nobody_tests} for cell in cells])
        return
    console = Console()
    for model in models:
        mine = [cell for cell in cells if cell.adversary == model.name]
        shown = _matrix_table if console.width >= _TABLE_COLUMNS else _matrix_list
        console.print(shown(model.title, mine, min(console.width, 100)))
        console.print(Text.assemble(("Not tested: ", "bold"), "; ".join(model.not_tested)), style="dim")
        console.print()
    gaps = [cell for cell in cells if cell.nobody_tests]
    if gaps:
        console.print(Text("Cells that nobody tests:", style="bold red"))
        for cell in gaps:
            console.print(Text(f"  {cell.adversary}: {cell.asset}"))
    else:
        console.print("Every cell has an audit or a test; what they leave out stands under “not tested”.")


def _folder(name: str, given: Path | None) -> Path:
    """The folder asked for, the one here, or the one beside the package where it runs from its sources."""
    import secure_triplay

    if given is not None:
        if not given.is_dir():
            raise ConfigError("there is no such folder", where=str(given), fix=f"name one like {name}/")
        return given
    here = Path(name)
    return here if here.is_dir() else Path(secure_triplay.__file__).parent.parent / name


def _print_report(report: AttackReport, out: Path, console: Console) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("threat model")
    table.add_column("verdict")
    table.add_column("decided by")
    for threat in report.threat_models:
        deciding = next((each.why for each in threat.assets if each.verdict == threat.verdict), "")
        table.add_row(threat.name, _word(threat.verdict), Text(deciding))
    console.print(table)
    for name, control in report.controls.items():
        if control["valid"] is not True:
            console.print(Text(f"CONTROL FAILED: {name}; its goal was: {control['goal']}", style="bold red"))
    if report.dp == "off":
        console.print(
            Text("This study runs without differential privacy, and was attacked as such.", style="bold red")
        )
    last = {
        0: Text(
            "All controls are valid, and nothing lies above its bound beyond chance.", style="bold green"
        ),
        1: Text("LEAKAGE: at least one finding lies above its bound.", style="bold red"),
        2: Text(" INVALID ", style="bold white on red").append(
            " A control failed: this run says nothing about safety.", style="bold red not reverse"
        ),
    }
    console.print(last[report.exit_code])
    console.print(
        Text.assemble("Written to ", (str(out), "bold"), ": report.html to read, report.json, pictures/")
    )


def _word(verdict: str) -> Text:
    return Text(
        verdict.upper() if verdict in ("invalid", "leaks") else verdict, style=_STYLES.get(verdict, "")
    )


def _matrix_table(title: str, cells: Sequence[Cell], width: int) -> Table:
    """One adversary, for `_TABLE_COLUMNS` columns or more."""
    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        title=Text(title, style="bold"),
        title_justify="left",
        width=width,
    )
    table.add_column("must not learn", width=18)
    table.add_column("rests on", width=14)
    table.add_column("audits", width=18)
    table.add_column("last measured", ratio=1)
    for cell in cells:
        asset = cell.asset if cell.must_not == "learn" else f"{cell.asset} (change)"
        table.add_row(Text(asset), _rests_on(cell), _audits(cell), _measured(cell))
    return table


def _matrix_list(title: str, cells: Sequence[Cell], width: int) -> Table:
    """One adversary, for a terminal where four columns have no room: what the table says, line below line."""
    lines = Table(
        box=None,
        show_header=False,
        pad_edge=False,
        title=Text(title, style="bold"),
        title_justify="left",
        width=width,
    )
    lines.add_column(style="dim", overflow="fold")
    lines.add_column(overflow="fold", ratio=1)
    for cell in cells:
        lines.add_row(f"must not {cell.must_not}", Text(cell.asset))
        lines.add_row("rests on", _rests_on(cell))
        lines.add_row("audits", _audits(cell))
        lines.add_row("last measured", _measured(cell))
        lines.add_row()
    return lines


def _rests_on(cell: Cell) -> Text:
    return Text(", ".join(cell.rests_on)) if cell.rests_on else Text("NOT PROTECTED", style="red")


def _audits(cell: Cell) -> Text:
    if cell.nobody_tests:
        return Text("NOBODY TESTS THIS", style="bold red")
    tests = [f"{cell.tests} test{'s' * (cell.tests != 1)}"] if cell.tests else []
    return Text("\n".join((*cell.audits, *tests)))


def _measured(cell: Cell) -> Text:
    lines = Text()
    for index, each in enumerate(cell.measured):
        lines.append("\n" * bool(index))
        lines.append(f"{each.verdict}", style=_STYLES.get(each.verdict, ""))
        lines.append(f": {each.figure}" if each.figure else "")
    return lines if cell.measured else Text("no committed result" if cell.audits else "–", style="dim")
