"""Run a grid: one file a cell, written whole or not at all, so that a stopped grid goes on where it was."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secure_triplay import memory
from secure_triplay.errors import ConfigError, DataError, RunError
from secure_triplay.experiments.collect import collect
from secure_triplay.experiments.figures import wrong_in
from secure_triplay.experiments.grid import Cell, load_grid
from secure_triplay.experiments.noise import noise_of
from secure_triplay.experiments.scores import score
from secure_triplay.report.summary import write_text
from secure_triplay.runfolder import alone_in, require_writable

Tell = Callable[[str], None]


def run_experiment(
    file: Path, out: Path, tell: Tell = lambda _: None, *, only_collect: bool = False
) -> dict[str, Any]:
    """Run what is missing of a grid in `out`, and write result.json, table.txt and the plot there.

    With `only_collect` nothing is run: the table is that of the cells that are here, and the result names the
    others as `missing`. Returns the content of result.json. Raises ConfigError before anything runs where a
    combination is impossible, RunError where `out` cannot be written, holds cells of other settings or manifests, or
    another run is writing there.
    """
    from secure_triplay.experiments.show import write_frontier, write_partitions, write_plot, write_table

    grid, made_by = load_grid(file), _made_by()
    for name, reason in grid.skipped.items():
        tell(f"{name} is skipped: {reason}")
    if not only_collect:  # before there is a folder, which a refused grid would leave behind
        _require_divisible(file, [one for one in grid.cells if not (out / "cells" / one.file).exists()])
    with alone_in(out):
        for folder in (out, out / "cells"):
            require_writable(folder)
        done = {cell.file: found for cell in grid.cells if (found := _read(out, cell)) is not None}
        if done:
            tell(f"{len(done)} of {len(grid.cells)} cells are here already")
        earlier = sum(found.get("made_by") != made_by for found in done.values())
        if earlier and not only_collect:
            tell(
                f"{earlier} of them are of another state of the program or its libraries; a new --out has none"
            )
        setting, tokens = None, None
        for number, cell in enumerate(grid.cells, start=1):
            if cell.file in done or only_collect:
                continue
            if setting is None or setting.of != (cell.data, cell.seed):
                setting, tokens = _setting(cell, tell, tokens)
            tell(f"[{number}/{len(grid.cells)}] {cell.method.name} on {cell.data}, seed {cell.seed}")
            done[cell.file] = measure(cell, setting.made) | {"made_by": made_by}
            _write(out / "cells" / cell.file, done[cell.file])
        result = collect(grid, [done[cell.file] for cell in grid.cells if cell.file in done])
        _write(out / "result.json", result)
        write_table(result, out / "table.txt")
        write_plot(result, out / "accuracy.svg")
        write_partitions(result, out / "partitions.svg")
        write_frontier(result, out / "frontier.svg")
    return result


def _made_by() -> dict[str, str]:
    """Hash of this program's code, and versions of what its figures depend on."""
    from secure_triplay.federation.bundle import package_sha256
    from secure_triplay.summarise import versions

    return {"code": package_sha256(), **versions()}


def _require_divisible(file: Path, cells: list[Cell]) -> None:
    """Divide every data set at every seed once, before anything runs. Raises ConfigError that names what cannot be."""
    from secure_triplay.data.split import split_study

    problems, studies = [], {(cell.data, cell.seed): cell.study for cell in cells}
    aligned = {(cell.data, cell.seed) for cell in cells if cell.needs_public_images}
    for (data, seed), study in studies.items():
        try:
            split = split_study(study)
        except DataError as error:
            problems.append(f"{data}, seed {seed}: {error.what} ({error.fix})")
            continue
        if not len(split.test):
            problems.append(f"{data}, seed {seed}: there are no public test images")
        if not len(split.public) and (data, seed) in aligned:
            problems.append(
                f"{data}, seed {seed}: there are no public images, which its adapter or backbone needs"
            )
    if problems:
        raise ConfigError(
            "these data cannot be divided, and nothing was started:\n" + "\n".join(problems),
            where=str(file),
            fix="mend their settings or leave them out of the grid",
        )


@dataclass(frozen=True)
class _Current:
    """The setting that is in use, of one data set and seed."""

    of: tuple[str, int]
    made: Any


def _setting(cell: Cell, tell: Tell, tokens: Any) -> tuple[_Current, Any]:
    """The setting of a cell, and the tokens that it shares with those before and after it.

    It serves all methods of this data and seed: `grid` has refused those that would have other records.
    """
    from secure_triplay.experiments.setting import Setting
    from secure_triplay.experiments.tokens import Tokens

    tokens = tokens or Tokens()
    return _Current((cell.data, cell.seed), Setting(cell.study, tell, tokens)), tokens


def measure(cell: Cell, setting: Any) -> dict[str, Any]:
    """The content of one cell's file."""
    from secure_triplay.experiments.procedures import PROCEDURES

    started, worked = time.perf_counter(), time.process_time()
    images, encoding = setting.encoded_images, setting.encoding_cpu_seconds
    loading = setting.loading_cpu_seconds
    setting.begin()
    begun = memory.restart_peak()
    found = PROCEDURES[cell.method.procedure](setting, cell.study)
    images, encoding = setting.encoded_images - images, setting.encoding_cpu_seconds - encoding
    dp = cell.study.dp
    return {
        "data": cell.data,
        "method": cell.method.name,
        "seed": cell.seed,
        "identity": cell.identity,
        "manifests": cell.manifests,
        **score(found.answers, setting.truth),
        "epsilon": found.epsilon or (dp.epsilon if dp else None),
        "delta": dp.delta if dp else None,
        "rounds": found.rounds,
        "n_params": found.n_params,
        "noise": noise_of(cell.study, found.n_params) if found.n_params and cell.method.federated else None,
        "upload_bytes": found.upload_bytes,
        "download_bytes": found.download_bytes,
        "curve": setting.curve,
        "class_counts": setting.class_counts,
        "peak_bytes": memory.peak_bytes() if begun else None,  # else it would be of the cells before, too
        "seconds": round(time.perf_counter() - started, 2),
        "cpu_seconds": round(time.process_time() - worked, 2),
        # of it, what the first method with a model and its images does for those after it
        "loading_cpu_seconds": round(setting.loading_cpu_seconds - loading, 2),
        "encoding_cpu_seconds": round(encoding, 2),
        "encoded_images": images,
        "image_frozen_bytes": setting.image_frozen_bytes,
    }


def _read(out: Path, cell: Cell) -> dict[str, Any] | None:
    """A finished cell, or None.

    Raises RunError where it is of other settings or other manifests, or holds what cannot be a cell's figures. A cell
    from before manifests were noted is taken for one of these.
    """
    path = out / "cells" / cell.file
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        json.dumps(found, allow_nan=False)
        identity = found["identity"]
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RunError(
            f"this cell cannot be read: {error.strerror}",
            where=str(path),
            fix="make it readable, or remove it",
        ) from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _no_result(path) from error
    if not isinstance(identity, str):
        raise _no_result(path, "identity: it is no text")
    if identity != cell.identity:
        raise RunError(
            "this cell was measured under other settings than the file now gives",
            where=str(path),
            fix="give another --out, or remove the folder",
        )
    if found.get("manifests", cell.manifests) != cell.manifests:
        raise RunError(
            "this cell was measured with other manifests than are here now",
            where=str(path),
            fix="bring those manifests back, give another --out, or remove the folder",
        )
    wrong = wrong_in(found, cell.data, cell.method.name, cell.study)
    if wrong:
        raise _no_result(path, wrong)
    return found


def _no_result(path: Path, wrong: str = "") -> RunError:
    return RunError(
        "this is not a cell's result" + (f" ({wrong})" if wrong else ""),
        where=str(path),
        fix="remove the file; the cell runs again",
    )


def _write(path: Path, content: dict[str, Any]) -> None:
    """The file appears whole, and stays through a power cut. Raises RunError."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")
