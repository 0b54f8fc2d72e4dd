"""`secure-triplay pilot`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from secure_triplay.cli.common import AsJson, StudyFile, print_json, quoted
from secure_triplay.errors import ConfigError

app = typer.Typer()

_LIMITS, _VALUES, _PRIVATE = "What the site can give", "Values to choose among", "On a site's own records"


@app.command(
    epilog="Example:  secure-triplay pilot configs/demo.yaml --out runs/pilot --line 5 --memory 3 --hours 8"
)
def pilot(
    study_file: StudyFile,
    out: Annotated[Path, typer.Option(help="Folder of the results; a pilot that was stopped goes on in it.")],
    line: Annotated[float, typer.Option(help="Mbit/s, each way.", rich_help_panel=_LIMITS)] = 10.0,
    latency: Annotated[
        float, typer.Option(help="Milliseconds to the server.", rich_help_panel=_LIMITS)
    ] = 50.0,
    memory: Annotated[float, typer.Option(help="GiB for the site's process.", rich_help_panel=_LIMITS)] = 4.0,
    hours: Annotated[float, typer.Option(help="Hours for the whole study.", rich_help_panel=_LIMITS)] = 12.0,
    epsilon: Annotated[
        float | None, typer.Option(help=r"Budget. \[default: the study's]", rich_help_panel=_LIMITS)
    ] = None,
    round_overhead: Annotated[
        float, typer.Option(help="Seconds of a round's messages beyond their bytes.", rich_help_panel=_LIMITS)
    ] = 18.0,
    optimiser: Annotated[
        list[str] | None,
        typer.Option(help="Server optimiser as KIND:STEP, fedavg:0.3; repeat it.", rich_help_panel=_VALUES),
    ] = None,
    rank: Annotated[list[int] | None, typer.Option(help="Repeat it.", rich_help_panel=_VALUES)] = None,
    output_rank: Annotated[
        list[int] | None,
        typer.Option(
            min=0, help="Output directions of B, 0 for all of B; repeat it.", rich_help_panel=_VALUES
        ),
    ] = None,
    blocks: Annotated[list[int] | None, typer.Option(help="Repeat it.", rich_help_panel=_VALUES)] = None,
    quantization: Annotated[
        list[str] | None, typer.Option(help="nf4, int8 or none; repeat it.", rich_help_panel=_VALUES)
    ] = None,
    bits: Annotated[
        list[int] | None, typer.Option(help="Bits a value; repeat it.", rich_help_panel=_VALUES)
    ] = None,
    batch: Annotated[
        list[float] | None, typer.Option(help="Units a step; repeat it.", rich_help_panel=_VALUES)
    ] = None,
    rounds: Annotated[list[int] | None, typer.Option(help="Repeat it.", rich_help_panel=_VALUES)] = None,
    sample: Annotated[int, typer.Option(min=60, help="Public images to try settings on, at most.")] = 2000,
    trials: Annotated[int, typer.Option(min=1, help="Choices to try, at most.")] = 15,
    use_test_images: Annotated[
        bool, typer.Option("--use-test-images", help="Try on the public test images, which are then used up.")
    ] = False,
    private: Annotated[
        Path | None,
        typer.Option(
            help="A site's folder, whose ledger is charged for trials; no other site countersigns this charge.",
            rich_help_panel=_PRIVATE,
        ),
    ] = None,
    site: Annotated[str | None, typer.Option(help="That site's name.", rich_help_panel=_PRIVATE)] = None,
    approved_by: Annotated[
        str, typer.Option(help="The person who allows the charge.", rich_help_panel=_PRIVATE)
    ] = "",
    private_trials: Annotated[
        int | None, typer.Option(min=1, help=r"\[default: 2]", rich_help_panel=_PRIVATE)
    ] = None,
    private_rounds: Annotated[
        int | None, typer.Option(min=1, help=r"\[default: 5]", rich_help_panel=_PRIVATE)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Find settings that fit a site's line, memory, hours and epsilon; say what each costs; write a study file.

    Settings are tried with the run's own training code, on public images only. A search on a site's own records
    needs --private, --site and --approved-by, and is charged to that site's budget before it begins.
    """
    from secure_triplay.pilot.costs import SiteLimits
    from secure_triplay.pilot.optimiser import Optimiser
    from secure_triplay.pilot.page import pilot_table
    from secure_triplay.pilot.private import Private
    from secure_triplay.pilot.run import Request, run_pilot

    if private is not None and site is None:
        raise ConfigError("--private needs the name of the site", where="--site", fix="give --site NAME")
    of_private = {
        "--site": site is not None,
        "--approved-by": bool(approved_by),
        "--private-trials": private_trials is not None,
        "--private-rounds": private_rounds is not None,
    }
    if private is None and any(of_private.values()):
        named = [option for option, is_given in of_private.items() if is_given]
        raise ConfigError(
            f"{' and '.join(named)}: for trials on a site's own records, and no ledger is named for them",
            where="--private",
            fix="give --private FOLDER too, or leave them out: public images cost nothing",
        )
    given: dict[str, Any] = {
        "rank": rank, "blocks": blocks, "quantization": quantization, "value_bits": bits, "batch": batch,
        "rounds": rounds, "optimiser": [Optimiser.parse(one) for one in optimiser or ()],
        "output_rank": [one or None for one in output_rank or ()],
    }  # fmt: skip
    asked = Request(
        limits=SiteLimits(line, latency, memory, hours, epsilon, round_overhead),
        axes={name: tuple(values) for name, values in given.items() if values},
        sample=sample,
        trials=trials,
        use_test_images=use_test_images,
        private=None
        if private is None or site is None
        else Private(site, private, approved_by, private_trials or 2, private_rounds or 5),
    )
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("{task.fields[now]}"), console=Console(stderr=True)) as bars:
        task = bars.add_task("trials", total=trials, now="reading the study")
        result = run_pilot(
            study_file,
            out,
            asked,
            lambda now, done, most: bars.update(task, completed=done, total=most, now=now),
        )
        bars.update(task, completed=len(result["trials"]), total=len(result["trials"]), now="done")
    if as_json:
        print_json(result)
        return
    console = Console(highlight=False)
    console.print(pilot_table(result))
    console.print(f"Tried on {result['data']['source']}: {result['data']['training_images']:,} to train, "
                  f"{result['data']['measured_images']:,} to measure.")  # fmt: skip
    for caveat in result["data"]["caveats"]:
        console.print(caveat)
    charged = result["charged"]
    console.print(
        "No site's record was read, and no budget charged."
        if charged is None
        else f"Charged to {charged['site']}: epsilon {charged['epsilon']:.3g}, besides the study's own."
    )
    (chosen,) = [trial for trial in result["trials"] if trial["chosen"]]
    console.print(Text.assemble((f"Chosen: {chosen['words']}.", "bold"), f" {result['reason']}"))
    if result["server_optimisers"]:
        console.print(result["server_optimisers"]["words"])
    if result["untried"]:
        console.print(
            f"Trials ran out before other values of {', '.join(result['untried'])} were tried (--trials)."
        )
    console.print(
        Text.assemble("Written to ", (str(out), "bold"), ": study.yaml, pilot.json, pilot.html, frontier.svg")
    )
    console.print(Text(f"Next:  secure-triplay config check {quoted(out / 'study.yaml')}"), soft_wrap=True)
