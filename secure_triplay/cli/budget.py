"""`secure-triplay budget`: plan it, start it, follow it, hand over the evidence."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from secure_triplay.cli.common import AsJson, StudyFile, print_json, quoted

app = typer.Typer(
    help="Plan a privacy budget, start it, follow it, and hand over the evidence.",
    no_args_is_help=True,
    suggest_commands=False,
)

SiteDir = Annotated[
    Path, typer.Option("--site", help="The site's folder, which holds its key and its ledger/.")
]
PolicyFile = Annotated[Path, typer.Option("--policy", help="The site's policy, whose limits bind.")]
ApprovedBy = Annotated[str, typer.Option(help="The person who answers for this.")]


@app.command("plan", epilog="Example:  secure-triplay budget plan configs/demo.yaml --epsilon 3 --out plan")
def budget_plan(
    study_file: StudyFile,
    epsilon: Annotated[float | None, typer.Option(help="Another epsilon than the study's.")] = None,
    delta: Annotated[float | None, typer.Option(help="Another delta than the study's.")] = None,
    rounds: Annotated[int | None, typer.Option(help="Other rounds than the study's.")] = None,
    noise: Annotated[
        float | None, typer.Option("--noise", help="A noise multiplier, to learn its epsilon.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for plan.json, plan.html and plots; new or empty.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say what noise an epsilon needs, or a noise gives, and what that leaves an attacker."""
    from secure_triplay.config import load_study
    from secure_triplay.planner.plan import plan_budget

    if out is not None:
        from secure_triplay.planner.page import require_new, write_plan

        require_new(out)
    plan = plan_budget(
        load_study(study_file), epsilon=epsilon, delta=delta, rounds=rounds, noise_multiplier=noise
    )
    if out is not None:
        write_plan(plan, out)
    if as_json:
        print_json(plan.to_dict())
        return
    from secure_triplay.planner.table import plan_table

    Console().print(plan_table(plan))


@app.command(
    "start",
    epilog="Example:  secure-triplay budget start --site st-mary --policy strict.yaml --approved-by 'Dr. Weber'",
)
def budget_start(
    site: SiteDir,
    policy_file: PolicyFile,
    approved_by: ApprovedBy,
    replaces: Annotated[
        str, typer.Option(help="Where a ledger was lost: why a new one starts. It stands in every export.")
    ] = "",
) -> None:
    """Start a site's privacy ledger, once; a person does it, by name. Nothing can be charged before.

    The site is one of `site init`: so what is charged now counts in every study that it joins later.
    """
    from secure_triplay.federation.sitefolder import SiteFolder
    from secure_triplay.ledger.start import start

    name = SiteFolder.open(site).name
    limits = start(site, policy_file, name=name, approved_by=approved_by, replaces=replaces)
    Console(highlight=False).print(
        Text.assemble(
            f"The ledger of {name} is started: epsilon {limits.epsilon_per_study:g} a study "
            f"and {limits.epsilon_per_year:g} a year, per {limits.unit}, at delta {limits.delta:.2g}.\nBack up ",
            (str(site), "bold"),
            " as a whole, and anew after every study: the other sites refuse an older copy of its ledger.\n"
            f"Next:  secure-triplay budget status --site {quoted(site)}",
        ),
        soft_wrap=True,
    )


@app.command(
    "adopt",
    epilog="Example:  secure-triplay budget adopt --site st-mary --policy own.yaml --approved-by 'Dr. Weber'",
)
def budget_adopt(
    site: SiteDir,
    policy_file: PolicyFile,
    approved_by: ApprovedBy,
) -> None:
    """Put the limits of a changed policy in force; until then, rounds wait where the ledger allows more than it."""
    from secure_triplay.ledger.start import adopt
    from secure_triplay.policy import read_policy

    limits = adopt(site, read_policy(policy_file), approved_by=approved_by)
    sys.stdout.write(
        f"From now on: epsilon {limits.epsilon_per_study:g} a study and {limits.epsilon_per_year:g} a year, per "
        f"{limits.unit}, at delta {limits.delta:.2g}. What was charged stays charged.\n"
    )


@app.command("status", epilog="Example:  secure-triplay budget status --site runs/first")
def budget_status(
    site: Annotated[
        list[Path] | None,
        typer.Option("--site", help="A site's folder, or one with sites/ in it; repeat it for several."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say what was spent, is reserved and is left: per site, per study, per year, per privacy unit."""
    from secure_triplay.ledger.evidence import status
    from secure_triplay.ledger.ledger import Ledger
    from secure_triplay.ledger.reading import placed
    from secure_triplay.ledger.start import site_folders

    rows = []
    for folder in site_folders(site or [Path()]):
        with Ledger.open(folder / "ledger", None) as ledger, placed(ledger.chain.path):
            books = ledger.books
            rows += [{"site": books.opened.party, **row} for row in status(books)]
    if as_json:
        print_json(rows)
        return
    Console().print(_status_table(rows))
    sys.stdout.write(
        "Reserved counts as charged: a crash gives nothing back. Charged is what decides a refusal.\n"
    )


@app.command(
    "export", epilog="Example:  secure-triplay budget export --site runs/first/sites/north --out evidence"
)
def budget_export(
    site: SiteDir,
    out: Annotated[Path, typer.Option(help="Folder of the bundle; it must not exist.")],
    purpose: Annotated[str, typer.Option(help="For whom or what; it is noted in the ledger.")] = "audit",
) -> None:
    """Write signed evidence of every charge: JSON, CSV, and a page that a lawyer can read."""
    from secure_triplay.crypto.keyfile import load_identity
    from secure_triplay.errors import ConfigError
    from secure_triplay.ledger.export import export

    if not purpose.strip():
        raise ConfigError(
            "no purpose is named, and it is noted in the ledger for whom or what this was exported",
            where="--purpose",
            fix="name it in a few words, or leave --purpose out",
        )
    identity = load_identity(site)
    with Console(stderr=True).status("two accountants compute every figure"):
        export(site / "ledger", out, identity, purpose=purpose)
    sys.stdout.write(
        f"Written to {out}: evidence.html to read, charges.csv for another accountant, evidence.json (signed).\n"
        f"Signed by {identity.identity.fingerprint}\n"
        f"Whoever receives it runs:  secure-triplay audit verify {quoted(out)}\n"
    )


def _status_table(rows: list[dict[str, Any]]) -> Table:
    """One line for each site and scope; fits 80 columns."""
    table = Table(pad_edge=False, box=None, padding=(0, 1))
    for title in ("site", "of", "unit", "limit", "spent", "reserved", "left", "charges"):
        table.add_column(title, justify="left" if title in ("site", "of", "unit") else "right")
    of = {"study": "study {}", "year": "year {}", "overall": "all years"}
    for row in rows:
        table.add_row(
            Text(row["site"]),
            Text(of[row["kind"]].format(row["name"])),
            row["unit"],
            _figure(row["limit"], "none"),
            _figure(row["epsilon_spent"], "unbounded"),
            _figure(row["epsilon_reserved"], "unbounded"),
            _figure(row["epsilon_left"], "-"),
            str(row["charges"]),
        )
    return table


def _figure(value: float | None, missing: str) -> str:
    return missing if value is None else f"{value:.2f}"
