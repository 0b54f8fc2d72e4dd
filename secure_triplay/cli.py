"""The `secure-triplay` command: parses and prints, and leaves everything else to the library."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import click
import typer
from rich.console import Console
from rich.table import Table

from secure_triplay import __version__
from secure_triplay.errors import SecureTriplayError

app = typer.Typer(
    name="secure-triplay",
    help="Hospitals fine-tune one shared CLIP together, under differential privacy and encryption.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Start with:  secure-triplay simulate configs/demo.yaml",
)
config_app = typer.Typer(help="Look at a study file before anything runs.", no_args_is_help=True)
bench_app = typer.Typer(help="Measure two ways side by side, on this machine.", no_args_is_help=True)
app.add_typer(config_app, name="config")
app.add_typer(bench_app, name="bench")

budget_app = typer.Typer(help="Plan a privacy budget.", no_args_is_help=True)
policy_app = typer.Typer(help="A site's own policy file.", no_args_is_help=True)
app.add_typer(budget_app, name="budget")
app.add_typer(policy_app, name="policy")
audit_app = typer.Typer(help="Check evidence.", no_args_is_help=True)
app.add_typer(audit_app, name="audit")

STOPPED = 130
_STOPPED = "[bold]Stopped.[/] Nothing half-written was left; what was charged to a budget stays charged."

StudyFile = Annotated[
    Path, typer.Argument(metavar="STUDY.yaml", help="The study's configuration.", show_default=False)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


@app.command(
    epilog="Examples:  secure-triplay simulate configs/demo.yaml   |   "
    "secure-triplay simulate configs/blood-cells.yaml --out runs/cells --json > cells.json"
)
def simulate(
    study_file: StudyFile,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run; it must not exist. [default: runs/STUDY-TIME]")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Overrides the study's seed (partition and public draw).")
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

    study = load_study(study_file)
    if seed is not None:
        study = study.model_copy(update={"seed": seed})
    folder = out or Path("runs") / f"{study.study}-{time.strftime('%Y%m%d-%H%M%S')}"
    console = Console(stderr=as_json)
    with Progress(study, console) as progress:
        summary = run(study, folder, progress.notify, keep_received=keep_received)
    if as_json:
        sys.stdout.write(summary.to_json())
        return
    console.print(closing_table(summary))
    console.print(
        f"Written to [bold]{folder}[/]: summary.json, report.html, adapter/ (PEFT), sites/ (each site's journal)"
    )


@config_app.command("check", epilog="Example:  secure-triplay config check configs/demo.yaml")
def config_check(study_file: StudyFile, as_json: AsJson = False) -> None:
    """Say in plain words what a study will do, or what is wrong, where, and how to mend it."""
    from secure_triplay.config import load_study
    from secure_triplay.describe import describe

    lines = describe(load_study(study_file))
    if as_json:
        _print_json(dict(lines))
        return
    table = Table(show_header=False, box=None, padding=(0, 2, 1, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for topic, sentence in lines:
        table.add_row(topic, sentence)
    console = Console()
    console.print(table)
    console.print(f"[green]{study_file} is a study that can run.[/]")


@config_app.command("schema", epilog="Example:  secure-triplay config schema > study.schema.json")
def config_schema() -> None:
    """Print the JSON Schema of a study file, for editors."""
    from secure_triplay.config import study_schema

    _print_json(study_schema())


@bench_app.command("crypto", epilog="Example:  secure-triplay bench crypto --out audits/crypto-bench")
def bench_crypto(
    out: Annotated[Path | None, typer.Option(help="Folder for result.json and the plot.")] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Smallest sizes only, in seconds instead of minutes.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Pair our encoding with the usual one (one value a slot) on the same updates."""
    from secure_triplay.bench.crypto import bench_table, plot_crypto_bench, run_crypto_bench

    console = Console(stderr=True)
    with console.status("measuring"):
        result = run_crypto_bench(quick=quick)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "result.json").write_text(json.dumps(result, indent=2) + "\n")
        plot_crypto_bench(result, out / "bench.svg")
    if as_json:
        _print_json(result)
    else:
        Console().print(bench_table(result))


@bench_app.command("backbone", epilog="Example:  secure-triplay bench backbone --out audits/backbone-memory")
def bench_backbone(
    out: Annotated[Path | None, typer.Option(help="Folder for result.json.")] = None, as_json: AsJson = False
) -> None:
    """Memory of the frozen weights in nf4, int8 and full precision."""
    from secure_triplay.bench.backbone import backbone_table, run_backbone_bench

    with Console(stderr=True).status("loading"):
        result = run_backbone_bench()
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    if as_json:
        _print_json(result)
    else:
        Console().print(backbone_table(result))


@budget_app.command(
    "plan", epilog="Example:  secure-triplay budget plan configs/demo.yaml --epsilon 3 --out plan"
)
def budget_plan(
    study_file: StudyFile,
    epsilon: Annotated[float | None, typer.Option(help="Another epsilon than the study's.")] = None,
    delta: Annotated[float | None, typer.Option(help="Another delta than the study's.")] = None,
    rounds: Annotated[int | None, typer.Option(help="Other rounds than the study's.")] = None,
    noise: Annotated[
        float | None, typer.Option("--noise", help="A noise multiplier, to learn its epsilon.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for plan.json, plan.html and plots.")] = None,
    as_json: AsJson = False,
) -> None:
    """Say what noise an epsilon needs, or a noise gives, and what that leaves an attacker."""
    from secure_triplay.config import load_study
    from secure_triplay.planner.plan import plan_budget

    plan = plan_budget(
        load_study(study_file), epsilon=epsilon, delta=delta, rounds=rounds, noise_multiplier=noise
    )
    if out is not None:
        from secure_triplay.planner.page import write_plan

        out.mkdir(parents=True, exist_ok=True)
        write_plan(plan, out)
    if as_json:
        _print_json(plan.to_dict())
        return
    from secure_triplay.planner.table import plan_table

    Console().print(plan_table(plan))


@budget_app.command("status", epilog="Example:  secure-triplay budget status --site runs/first/sites/north")
def budget_status(
    site: Annotated[Path, typer.Option(help="The site's folder, which holds its ledger.")],
    as_json: AsJson = False,
) -> None:
    """Say what a site has spent, reserved and left: per study, per year, per privacy unit."""
    from secure_triplay.ledger.evidence import status
    from secure_triplay.ledger.ledger import Ledger

    with Ledger.open(site / "ledger", None) as ledger:
        rows = status(ledger.books)
    if as_json:
        _print_json(rows)
        return
    table = Table()
    for title in rows[0] if rows else ():
        table.add_column(title.replace("_", " "), justify="right")
    for row in rows:
        table.add_row(
            *(
                "-" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
                for value in row.values()
            )
        )
    Console().print(table)


@audit_app.command("verify", epilog="Example:  secure-triplay audit verify runs/first/sites/*/evidence")
def audit_verify(
    bundles: Annotated[
        list[Path], typer.Argument(metavar="BUNDLE...", help="Evidence bundles.", show_default=False)
    ],
    as_json: AsJson = False,
) -> None:
    """Check evidence offline: signatures, chain, and the arithmetic recomputed from the charges.

    Several bundles of one study are also held against each other.
    """
    from secure_triplay.ledger.log import cross_check
    from secure_triplay.ledger.verify import verify

    results = [verify(bundle) for bundle in bundles]
    if len(results) > 1:
        cross_check(
            {each.site: each.chain for each in results}, {each.site: each.identity for each in results}
        )
    if as_json:
        _print_json(
            [{"site": each.site, "rollback": each.rollback, "notes": list(each.notes)} for each in results]
        )
        return
    for each in results:
        sys.stdout.write(f"{each.site}: signatures, chain and arithmetic hold; {each.rollback}\n")
        for note in each.notes:
            sys.stdout.write(f"  {note}\n")


@policy_app.command("schema", epilog="Example:  secure-triplay policy schema > policy.schema.json")
def print_policy_schema() -> None:
    """Print the JSON Schema of a site policy, for editors."""
    from secure_triplay.policy import policy_schema

    _print_json(policy_schema())


@policy_app.command(
    "check", epilog="Example:  secure-triplay policy check configs/policies/strict.yaml configs/demo.yaml"
)
def check_policy(
    policy_file: Annotated[
        Path, typer.Argument(metavar="POLICY.yaml", help="The site's policy.", show_default=False)
    ],
    study_file: StudyFile,
    as_json: AsJson = False,
) -> None:
    """Say whether a site's policy allows a study, and if not, why; exit code 6 when it does not."""
    from secure_triplay.config import load_study
    from secure_triplay.policy import check_terms, load_policy

    refusals = check_terms(load_policy(policy_file), load_study(study_file))
    if as_json:
        _print_json([asdict(refusal) for refusal in refusals])
    else:
        for refusal in refusals:
            sys.stdout.write(f"{refusal}\n")
        if not refusals:
            sys.stdout.write("The policy allows this study.\n")
    raise typer.Exit(6 if refusals else 0)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        sys.stdout.write(f"secure-triplay {__version__}\n")
        raise typer.Exit


def _print_json(content: Any) -> None:
    sys.stdout.write(json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def main() -> None:
    """Entry point: errors become three plain parts and an exit code, never a traceback."""
    console = Console(stderr=True, highlight=False)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # being told to end is being stopped
    try:
        code = app(standalone_mode=False) or 0
        if code == STOPPED:  # what typer makes of a KeyboardInterrupt
            console.print(_STOPPED)
        sys.exit(code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except SecureTriplayError as error:
        console.print(f"[bold red]Error:[/] {_escaped(error.what)}")
        if error.where:
            console.print(f"[bold]Where:[/] {_escaped(error.where)}")
        if error.fix:
            console.print(f"[bold]What to do:[/] {_escaped(error.fix)}")
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        console.print(_STOPPED)
        sys.exit(STOPPED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)


def _escaped(text: str) -> str:
    return text.replace("[", r"\[")
