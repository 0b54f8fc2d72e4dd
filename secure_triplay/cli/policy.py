"""`secure-triplay policy`."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from secure_triplay.cli.common import AsJson, StudyFile, print_json

app = typer.Typer(help="A site's own policy file.", no_args_is_help=True, suggest_commands=False)


@app.command("schema", epilog="Example:  secure-triplay policy schema > policy.schema.json")
def print_policy_schema() -> None:
    """Print the JSON Schema of a site policy, for editors."""
    from secure_triplay.policy import policy_schema

    print_json(policy_schema())


@app.command(
    "check", epilog="Example:  secure-triplay policy check configs/policies/strict.yaml configs/demo.yaml"
)
def check_policy(
    policy_file: Annotated[
        Path, typer.Argument(metavar="POLICY.yaml", help="The site's policy.", show_default=False)
    ],
    study_file: StudyFile,
    as_json: AsJson = False,
) -> None:
    """Say whether a site's policy allows a study, and if not, why; exit code 6 when it does not.

    64 where the command line is wrong.
    """
    from secure_triplay.config import load_study
    from secure_triplay.policy import check_terms, load_policy

    refusals = check_terms(load_policy(policy_file), load_study(study_file))
    if as_json:
        print_json([asdict(refusal) for refusal in refusals])
    else:
        for refusal in refusals:
            sys.stdout.write(f"{refusal}\n")
        if not refusals:
            sys.stdout.write("The policy allows this study.\n")
    raise typer.Exit(6 if refusals else 0)
