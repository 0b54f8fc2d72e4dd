"""`secure-triplay audit`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from secure_triplay.cli.common import AsJson, print_json

app = typer.Typer(help="Check evidence, and measure what is claimed.", no_args_is_help=True)


@app.command("verify", epilog="Example:  secure-triplay audit verify runs/first/sites/*/evidence")
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
        print_json(
            [{"site": each.site, "rollback": each.rollback, "notes": list(each.notes)} for each in results]
        )
        return
    for each in results:
        sys.stdout.write(f"{each.site}: signatures, chain and arithmetic hold; {each.rollback}\n")
        for note in each.notes:
            sys.stdout.write(f"  {note}\n")
