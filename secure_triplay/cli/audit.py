"""`secure-triplay audit`."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from secure_triplay.cli.common import AsJson, print_json

app = typer.Typer(help="Check evidence, and measure what is claimed.", no_args_is_help=True)


@app.command("verify", epilog="Example:  secure-triplay audit verify runs/first/sites/*/evidence")
def audit_verify(
    bundles: Annotated[
        list[Path],
        typer.Argument(
            metavar="BUNDLE...", help="Evidence bundles, and logs of other parties.", show_default=False
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Check evidence offline: signatures, chain, and the arithmetic recomputed from the charges.

    Several bundles are also held against each other: earlier and later ones of a site, and those of several
    sites. Exit code 7 where anything does not verify or two bundles disagree.
    """
    from secure_triplay.ledger.compare import compare, verify_any
    from secure_triplay.ledger.verify import Verified

    results = [verify_any(bundle) for bundle in bundles]
    differ = compare(results)
    if as_json:
        print_json(
            {
                "bundles": [
                    {"site": each.site, "rollback": each.rollback, "notes": list(each.notes)}
                    if isinstance(each, Verified)
                    else {"party": each.site, "entries": len(each.chain)}
                    for each in results
                ],
                "disagreements": [asdict(each) for each in differ],
            }
        )
    else:
        for each in results:
            if not isinstance(each, Verified):
                sys.stdout.write(f"{each.site}: signatures and chain of {len(each.chain)} entries hold\n")
                continue
            sys.stdout.write(f"{each.site}: signatures, chain and arithmetic hold; {each.rollback}\n")
            for note in each.notes:
                sys.stdout.write(f"  {note}\n")
        for disagreement in differ:
            sys.stdout.write(f"DISAGREE  {' and '.join(disagreement.parties)}: {disagreement.what}\n")
        if len(results) > 1 and not differ:
            sys.stdout.write("Held against each other: they agree on every round, key epoch and head.\n")
    if differ:
        raise typer.Exit(7)
