"""`secure-triplay audit`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from secure_triplay.cli.common import AsJson, StudyFile, on_one_line, print_json

if TYPE_CHECKING:
    from secure_triplay.ledger.overlap import Overlap

app = typer.Typer(
    help="Check evidence, and measure what is claimed.", no_args_is_help=True, suggest_commands=False
)


@app.command(
    "verify",
    epilog="Examples:  secure-triplay audit verify runs/first/sites/*/evidence   |   "
    "secure-triplay audit verify evidence --signed-as '0123 4567 89ab cdef 0123 4567 89ab cdef'",
)
def audit_verify(
    bundles: Annotated[
        list[Path],
        typer.Argument(
            metavar="BUNDLE...", help="Evidence bundles, and logs of other parties.", show_default=False
        ),
    ],
    signed_as: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FINGERPRINT",
            help="Refuse what any other key signed: the fingerprint that `site init` prints for auditors, told by the "
            "site itself; repeat it for several.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check evidence offline: signatures, chain, and the arithmetic recomputed from the charges.

    Several bundles are also held against each other: earlier and later ones of a site, and those of several
    sites. Exit code 7 where anything does not verify or two bundles disagree. 2: a bundle has nothing in common with
    the others, so that holding it against them shows nothing.
    """
    from secure_triplay.ledger.compare import compare, replaces, require_each_once, verify_any
    from secure_triplay.ledger.overlap import overlap
    from secure_triplay.ledger.verify import Verified, read_fingerprint

    expected = frozenset(read_fingerprint(text) for text in signed_as or ())
    results = [verify_any(bundle, signed_as=expected) for bundle in bundles]
    require_each_once(bundles, results)
    differ = compare(results)
    common = overlap(results) if len(results) > 1 else None
    if as_json:
        print_json(
            {
                "bundles": [
                    {
                        **(
                            {"site": each.site, "rollback": each.rollback, "notes": list(each.notes)}
                            if isinstance(each, Verified)
                            else {"party": each.site, "entries": len(each.chain)}
                        ),
                        "fingerprint": each.identity.fingerprint,
                        "replaces": replaces(each),
                    }
                    for each in results
                ],
                "disagreements": [asdict(each) for each in differ],
                "held_against_each_other": None if common is None else asdict(common),
            }
        )
    else:
        lines = []
        for each in results:
            if not isinstance(each, Verified):
                lines.append(f"{each.site}: signatures and chain of {len(each.chain)} entries hold")
                lines.append(
                    f"  Signed by {each.identity.fingerprint}: "
                    + (
                        "this was compared with the fingerprint given."
                        if expected
                        else f"compare this with what {each.site} signs its log as (`study export` says it there), out "
                        "of band."
                    )
                )
                continue
            lines.append(f"{each.site}: signatures, chain and arithmetic hold; {each.rollback}")
            lines += [f"  {note}" for note in each.notes]
            if replaces(each):
                lines.append(
                    f"  REPLACES A LOST LEDGER  reason given: {replaces(each)}. What that one had charged is "
                    "not counted here."
                )
        lines += [f"DISAGREE  {' and '.join(found.parties)}: {found.what}" for found in differ]
        lines += [] if common is None else _held_against_each_other(common, bool(differ))
        sys.stdout.write("".join(map(on_one_line, lines)))
    if differ:
        raise typer.Exit(7)
    if common is not None and common.apart:
        raise typer.Exit(2)


def _held_against_each_other(common: Overlap, differ: bool) -> Iterator[str]:
    if common.rounds or common.key_epochs or common.heads or common.charges or common.entries:
        yield f"Held against each other: {common.words()}{'' if differ else '; they agree'}."
    else:
        yield "Nothing was held against each other: no two of these bundles record the same."
    yield from (f"  {one}" for one in common.absent)
    for party in common.apart:
        yield (
            f"NOT COMPARED  {party}: it has no round, key epoch or head in common with the others, so that they "
            "show nothing of it"
        )


@app.command(
    "epsilon", epilog="Example:  secure-triplay audit epsilon configs/demo.yaml --out audits/epsilon"
)
def audit_epsilon(
    study_file: StudyFile,
    out: Annotated[
        Path | None, typer.Option(help="Folder for result.json, scores.json and a page; it must not exist.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer canaries: a weaker bound, sooner.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Fixes canaries, guesses and the audit's own noise.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Measure a lower bound on the epsilon of the training that really runs, beside the claimed one.

    Exit code 0: the bound does not contradict the claim. 1: it lies above it. 2: the audit did not see that
    noise was missing, so that it proves nothing. 64: the command line is wrong.
    """
    from secure_triplay.attacks.epsilon import audit_epsilon as measure
    from secure_triplay.config import load_study
    from secure_triplay.report.epsilon_page import write_epsilon_page
    from secure_triplay.runfolder import run_folder

    study = load_study(study_file)
    with _bar("auditing", as_json) as tell:
        if out is None:
            result = measure(study, None, seed, quick, tell)
        else:
            with run_folder(out) as folder:
                result = measure(study, folder, seed, quick, tell)
                write_epsilon_page(result, folder)
    if as_json:
        print_json(result)
    else:
        sys.stdout.write(_epsilon_text(result) + (f"Written to {out}\n" if out else ""))
    raise typer.Exit({"pass": 0, "fail": 1}.get(result["verdict"], 2))


def _epsilon_text(result: dict[str, Any]) -> str:
    claimed, f_dp, steinke = result["claimed"], result["one_run"]["f_dp"], result["one_run"]["steinke"]
    return (
        f"{result['verdict'].upper()}: {result['reason']}\n"
        f"claimed:              at most {claimed['epsilon']:g}, at delta {claimed['delta']:g}\n"
        f"bound by f-DP:        at least {f_dp['lower_bound']:.2f} (the ideal mechanism: {f_dp['ideal_ceiling']:.2f})\n"
        f"bound by Steinke's:   at least {steinke['lower_bound']:.2f} "
        f"(the ideal mechanism: {steinke['ideal_ceiling']:.2f})\n"
        f"estimate, no bound:   {result['gradient_canary']['estimate']:.2f}\n"
        f"control, no noise:    at least {result['control']['lower_bound']:.2f}\n"
        "Bounds hold at 95 % confidence.\n"
    )


@app.command(
    "planted", epilog="Example:  secure-triplay audit planted --clean-runs 50 --out audits/planted-bugs"
)
def audit_planted(
    out: Annotated[
        Path,
        typer.Option(help="Folder for result.json and the table; it must not exist.", show_default=False),
    ],
    only: Annotated[
        list[str] | None, typer.Option(help=r"One mistake by name; repeat it for several. \[default: all]")
    ] = None,
    clean_runs: Annotated[
        int, typer.Option(min=0, help="Runs of the same tests on clean code, where an alarm is false.")
    ] = 1,
    as_json: AsJson = False,
) -> None:
    """Plant each known mistake in a copy of this program, and see which test or audit catches it.

    Exit code 1 where a mistake is missed or a clean run raises an alarm.
    """
    from secure_triplay.attacks.planted.audit import audit_planted as plant

    with _bar("planting", as_json) as tell:
        result = plant(out, tell, only, clean_runs=clean_runs)
    if as_json:
        print_json(result)
    else:
        for entry in result["mistakes"]:
            sys.stdout.write(f"{entry['outcome']:8} {entry['name']}: {entry['mistake']}\n")
        sys.stdout.write(
            f"{result['caught']} of {result['planted']} mistakes caught; {len(result['false_alarms'])} false alarms "
            f"in {result['clean_runs']} clean runs. Written to {out}\n"
        )
    raise typer.Exit(0 if result["valid"] else 1)


@app.command(
    "server-blindness", epilog="Example:  secure-triplay audit server-blindness --out audits/server-blindness"
)
def audit_server_blindness(
    out: Annotated[Path | None, typer.Option(help="Folder for result.json.")] = None,
    as_json: AsJson = False,
) -> None:
    """Run a real federation and search all that its server received, wrote and holds for what it must not have.

    Exit code 1 where something was found, or where the same search does not find it at a client.
    """
    from rich.console import Console

    from secure_triplay.attacks.blindness import audit_server_blindness as audit

    with Console(stderr=True).status("starting a federation") as shown:
        result = audit(out, lambda text: shown.update(text))
    if as_json:
        print_json(result)
    else:
        sys.stdout.write(
            f"{result['verdict'].upper()}: {result['reason']}\n"
            f"At the server: {len(result['server_hits'])} hits in {_server_bytes(result):,} bytes; "
            f"at a client, for control: {len(result['control_hits'])} hits.\n"
        )
    raise typer.Exit(0 if result["verdict"] == "pass" else 1)


@app.command("collusion", epilog="Example:  secure-triplay audit collusion --out audits/collusion")
def audit_collusion(
    out: Annotated[
        Path,
        typer.Option(
            help="Folder for result.json, a page and pictures; it must not exist.", show_default=False
        ),
    ],
    study_file: Annotated[
        Path, typer.Argument(metavar="[STUDY.YAML]", help="Whose model and images are attacked.")
    ] = Path("configs/demo.yaml"),
    quick: Annotated[bool, typer.Option("--quick", help="Three images instead of six.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Fixes images and rounding; keys are fresh.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Attack one site with all that the server and other sites hold: without masks, against t-1 sites and t.

    Exit code 0: t-1 sites and the server get the mean image. 1: they get more. 2: an attack that has to succeed did
    not, so that nothing is shown. 64: the command line is wrong.
    """
    from secure_triplay.attacks.collusion import audit_collusion as measure
    from secure_triplay.config import load_study
    from secure_triplay.loading import fetch_assets
    from secure_triplay.report.collusion_page import write_collusion_page
    from secure_triplay.runfolder import run_folder

    study = load_study(study_file)
    fetch_assets(study)
    with _bar("attacking", as_json) as tell, run_folder(out) as folder:
        result = measure(study, folder, seed, quick, tell)
        write_collusion_page(result, folder)
    if as_json:
        print_json(result)
    else:
        sys.stdout.write(_collusion_text(result) + f"Written to {out}\n")
    raise typer.Exit({"pass": 0, "fail": 1}.get(result["verdict"], 2))


def _collusion_text(result: dict[str, Any]) -> str:
    lines = [f"{result['verdict'].upper()}: {result['reason']}"]
    for arm, got in result["arms"].items():
        lines.append(
            f"{arm + ':':12} {got['psnr_db']:5.1f} dB PSNR, {got['ssim']:.2f} SSIM, "
            f"record named {got['named']} of {got['tries']} times, masks left {got['masks_left']}"
        )
    lines.append(f"{'mean image:':12} {result['mean_image']['psnr_db']:5.1f} dB PSNR")
    return "\n".join(lines) + "\n"


def _server_bytes(result: dict[str, Any]) -> int:
    return sum(size for where, size in result["searched"].items() if "client" not in where)


@contextmanager
def _bar(name: str, as_json: bool) -> Iterator[Callable[[int, int], None]]:
    """A progress bar; yields the function that moves it."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=as_json), refresh_per_second=4) as bars:
        task = bars.add_task(name, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)
