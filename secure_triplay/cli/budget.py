"""`secure-triplay budget`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from secure_triplay.cli.common import AsJson, StudyFile, print_json

app = typer.Typer(help="Plan a privacy budget, follow it, and hand over the evidence.", no_args_is_help=True)


@app.command("plan", epilog="Example:  secure-triplay budget plan configs/demo.yaml --epsilon 3 --out plan")
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
        print_json(plan.to_dict())
        return
    from secure_triplay.planner.table import plan_table

    Console().print(plan_table(plan))


@app.command("status", epilog="Example:  secure-triplay budget status --site runs/first/sites/north")
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
        print_json(rows)
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
