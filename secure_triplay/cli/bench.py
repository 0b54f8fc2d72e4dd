"""`secure-triplay bench`."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from secure_triplay import durable
from secure_triplay.cli.common import AsJson, StudyFile, print_json
from secure_triplay.report.summary import write_text
from secure_triplay.runfolder import require_place, unwritable


class Compute(StrEnum):
    """What 4-bit layers multiply in."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    auto = "auto"


app = typer.Typer(
    help="Measure two ways side by side, on this machine.", no_args_is_help=True, suggest_commands=False
)


@contextmanager
def _measuring(suite: str, out: Path | None) -> Iterator[None]:
    """Say that it is going on, once it is known that results can be written. Raises RunError.

    A result of the same suite may be replaced; no other one may.
    """
    if out is not None:
        require_place(out, lambda found: _suite(found) == suite)
    with Console(stderr=True).status("measuring"):
        yield


def _suite(result: dict[str, Any]) -> str | None:
    """Which bench a result is of; that of the backbone once did not say it."""
    unnamed = "backbone" if set(result) == {"schema", "rows"} else None
    return result.get("suite") or result.get("bench") or unnamed


def _hand_out(
    result: dict[str, Any],
    tables: list[Table],
    out: Path | None,
    as_json: bool,
    *,
    plot: Callable[[dict[str, Any], Path], None] | None = None,
    picture: str = "bench.svg",
) -> None:
    """Print a result, and write it and its picture where a folder was named: neither failure takes the other along."""
    try:
        if as_json:
            print_json(result)
        else:
            for table in tables:
                Console().print(table)
    finally:
        if out is not None:
            _write(result, out, plot, picture)


def _write(
    result: dict[str, Any],
    out: Path,
    plot: Callable[[dict[str, Any], Path], None] | None,
    picture: str,
) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_text(out / "result.json", json.dumps(result, indent=2) + "\n")
        if plot is not None:
            with tempfile.TemporaryDirectory(prefix="triplay-picture-") as drawn:
                plot(result, Path(drawn) / picture)
                durable.replace(out / picture, (Path(drawn) / picture).read_bytes())
    except OSError as error:
        raise unwritable(out, error) from error


@app.command("crypto", epilog="Example:  secure-triplay bench crypto --out audits/crypto-bench")
def bench_crypto(
    out: Annotated[Path | None, typer.Option(help="Folder for result.json and the plot.")] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Smallest sizes only, in seconds instead of minutes.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Pair our encoding with the usual one (one value a slot) on the same updates."""
    from secure_triplay.bench.crypto import bench_table, plot_crypto_bench, run_crypto_bench
    from secure_triplay.bench.masking import masking_table, run_masking_bench

    with _measuring("crypto", out):
        result = run_crypto_bench(quick=quick)
        result["masking"] = run_masking_bench(quick=quick)
    _hand_out(
        result, [bench_table(result), masking_table(result["masking"])], out, as_json, plot=plot_crypto_bench
    )


@app.command("masking", epilog="Example:  secure-triplay bench masking --out audits/masking-bench")
def bench_masking(
    out: Annotated[Path | None, typer.Option(help="Folder for result.json and the plot.")] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Smallest size only, in seconds instead of minutes.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """What masks cost: a round without them, with them, and Flower's SecAgg+, on the same updates."""
    from secure_triplay.bench.masking import masking_table, plot_masking_bench, run_masking_bench

    with _measuring("masking", out):
        result = run_masking_bench(quick=quick)
    _hand_out(result, [masking_table(result)], out, as_json, plot=plot_masking_bench)


@app.command("backbone", epilog="Example:  secure-triplay bench backbone --out audits/backbone-memory")
def bench_backbone(
    out: Annotated[Path | None, typer.Option(help="Folder for result.json.")] = None,
    as_json: AsJson = False,
) -> None:
    """Memory of the frozen weights in nf4, int8 and full precision."""
    from secure_triplay.bench.backbone import backbone_table, run_backbone_bench

    with _measuring("backbone", out):
        result = run_backbone_bench()
    _hand_out(result, [backbone_table(result)], out, as_json)


@app.command("load", epilog="Example:  secure-triplay bench load --out audits/load-bench")
def bench_load(
    out: Annotated[Path | None, typer.Option(help="Folder for result.json and the plot.")] = None,
    sites: Annotated[
        list[int] | None, typer.Option("--sites", min=2, max=1000, help="Number of sites; repeat it.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """One round over 10, 100 and 1,000 light sites: real ciphertexts, signatures and inbox, no model."""
    from secure_triplay.bench.load import load_table, plot_load_bench, run_load_bench

    with _measuring("load", out):
        result = run_load_bench(sizes=tuple(sites) if sites else None)
    _hand_out(result, [load_table(result)], out, as_json, plot=plot_load_bench)


@app.command(
    "training", epilog="Example:  secure-triplay bench training configs/demo.yaml --out audits/training-bench"
)
def bench_training(
    study_file: StudyFile,
    out: Annotated[Path | None, typer.Option(help="Folder for result.json.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="One turn of each way instead of nine.")] = False,
    compute: Annotated[
        Compute | None, typer.Option(help="What 4-bit layers multiply in; left out: as the study says.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Our private step beside plain Opacus and beside no privacy, on the same records and draws."""
    from secure_triplay.bench.training import run_training_bench, training_table
    from secure_triplay.config import load_study

    study = load_study(study_file)
    with _measuring("training", out):
        result = run_training_bench(study, quick=quick, compute=None if compute is None else compute.value)
    _hand_out(result, [training_table(result)], out, as_json)


@app.command(
    "federation",
    epilog="Example:  secure-triplay bench federation configs/demo.yaml configs/policies/public-data.yaml "
    "--out audits/federation-bench",
)
def bench_federation(
    study_file: StudyFile,
    policy_file: Annotated[
        Path, typer.Argument(metavar="POLICY.yaml", help="The sites' policy.", show_default=False)
    ],
    out: Annotated[Path | None, typer.Option(help="Folder for result.json.")] = None,
    sites: Annotated[int, typer.Option("--sites", min=2, max=20, help="Number of light sites.")] = 3,
    rounds: Annotated[int, typer.Option("--rounds", min=2, max=100, help="Number of rounds.")] = 6,
    aggregation: Annotated[
        str | None, typer.Option(help=r"masked or shared-key. \[default: as the study says]")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """What a round costs beyond training: a real federation on loopback, with stock SuperNodes and light sites."""
    from secure_triplay.deploy.bench import federation_table, run_federation_bench

    with _measuring("federation", out):
        result = run_federation_bench(
            study_file, policy_file, sites=sites, rounds=rounds, aggregation=aggregation
        )
    _hand_out(result, [federation_table(result)], out, as_json)


@app.command("scaling", epilog="Example:  secure-triplay bench scaling --out audits/scaling")
def bench_scaling(
    out: Annotated[Path | None, typer.Option(help="Folder for result.json and the plot.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Smallest sizes only.")] = False,
    as_json: AsJson = False,
) -> None:
    """A private step by images drawn and parameters, and on a real-size ViT-B-32 with random weights."""
    from secure_triplay.bench.scaling import plot_scaling, run_scaling_bench, scaling_table

    with _measuring("scaling", out):
        result = run_scaling_bench(quick=quick)
    _hand_out(result, [scaling_table(result)], out, as_json, plot=plot_scaling, picture="scaling.svg")
