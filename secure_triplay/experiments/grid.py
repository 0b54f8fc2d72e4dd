"""What an experiment file may say, and whether every cell of its grid can run: known before anything does."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from secure_triplay import __version__
from secure_triplay.config import Name, Study, parse_study
from secure_triplay.errors import ConfigError, SecureTriplayError
from secure_triplay.experiments.methods import METHODS, Method, method
from secure_triplay.schema import Frozen, lists_to_tuples, read_yaml, readable_error

_PATHS = ("manifest", "public_manifest", "test_manifest")


Seeds = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]


class DataEntry(Frozen):
    """One data set of a grid: a study file, with what is changed in it."""

    name: Name
    study: str = Field(description="study file, relative to the experiment's own folder")
    change: dict[str, Any] = Field({}, description="dotted key of the study: value")
    seeds: Seeds | None = Field(None, description="where they are others than the grid's")


class Experiment(Frozen):
    """A grid of methods x data x seeds."""

    experiment: Name
    data: Annotated[tuple[DataEntry, ...], Field(min_length=1)]
    methods: Annotated[tuple[str, ...], Field(min_length=1)]
    seeds: Seeds
    change: dict[str, dict[str, Any]] = Field({}, description="method: {dotted key of the study: value}")


@dataclass(frozen=True)
class Cell:
    """One method on one data set at one seed. `identity` hashes all that decides its figures, but for the noise."""

    data: str
    method: Method
    seed: int
    study: Study
    identity: str

    @property
    def file(self) -> str:
        """Name of the file that holds its figures."""
        return f"{self.data}--{self.method.name}--{self.seed}.json"


@dataclass(frozen=True)
class Grid:
    """The cells that can run, in the order in which they do, and why others cannot."""

    name: str
    data: tuple[str, ...]
    methods: tuple[Method, ...]
    seeds: tuple[int, ...]
    cells: tuple[Cell, ...]
    skipped: Mapping[str, str]


def load_grid(path: Path) -> Grid:
    """The grid of an experiment file.

    Raises ConfigError that names every combination that cannot run. Data whose files are not on this machine
    are no such fault: they are listed in `skipped`, with the reason.
    """
    content = read_yaml(path)
    try:
        experiment = Experiment.model_validate(lists_to_tuples(content))
    except ValidationError as error:
        raise readable_error(error, str(path), __name__) from error
    problems = _wrong_names(experiment)
    cells: list[Cell] = []
    skipped: dict[str, str] = {}
    for entry in experiment.data if not problems else ():
        base = _base(entry, path.resolve().parent)
        reason = _missing(base, path.resolve().parent / entry.study)
        if reason:
            skipped[entry.name] = reason
            continue
        for seed in entry.seeds or experiment.seeds:
            for name in experiment.methods:
                try:
                    cells.append(_cell(experiment, entry, base, name, seed))
                except SecureTriplayError as error:
                    problems.append(f"{name} on {entry.name}: {error.what}")
    if problems:
        listed = "\n".join(dict.fromkeys(problems))
        raise ConfigError(
            f"these combinations cannot run, and nothing was started:\n{listed}",
            where=str(path),
            fix="mend them or leave them out of the grid",
        )
    methods = tuple(method(name) for name in experiment.methods)
    names = tuple(entry.name for entry in experiment.data)
    return Grid(experiment.experiment, names, methods, experiment.seeds, tuple(cells), skipped)


def _wrong_names(experiment: Experiment) -> list[str]:
    wrong = []
    for name in experiment.methods:
        try:
            method(name)
        except ConfigError as error:
            nearest = difflib.get_close_matches(name, [*METHODS, "eps8"], n=1, cutoff=0)[0]
            wrong.append(f"{error.what}; the nearest is {nearest!r}")
    for kind, names in (
        ("method", experiment.methods),
        ("data", [entry.name for entry in experiment.data]),
        ("seed", experiment.seeds),
        *(("seed", entry.seeds or ()) for entry in experiment.data),
    ):
        if len(set(names)) != len(names):
            wrong.append(f"a {kind} is named twice")
    for name in experiment.change:
        if name not in experiment.methods:
            wrong.append(f"change.{name} is for a method that the grid does not have")
    return wrong


def _base(entry: DataEntry, folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = read_yaml(folder / entry.study)
    for key, value in entry.change.items():
        content = changed(content, key, value)
    return content


def _cell(experiment: Experiment, entry: DataEntry, base: dict[str, Any], name: str, seed: int) -> Cell:
    chosen = method(name)
    content = chosen.change(base | {"seed": seed})
    for key, value in experiment.change.get(name, {}).items():
        content = changed(content, key, value)
    study = parse_study(content, where=entry.name)
    chosen.check(study)
    return Cell(entry.name, chosen, seed, study, _identity(entry.name, name, study))


def _identity(data: str, name: str, study: Study) -> str:
    """Hash of what is set in a study: neither paths, nor keys that are left out (a new one parts no cells)."""
    settings = study.model_dump(mode="json", exclude_defaults=True)
    for part in (settings["data"], *settings["sites"]):
        for key in _PATHS:
            part.pop(key, None)
    said = json.dumps([__version__, data, name, settings], sort_keys=True)
    return hashlib.sha256(said.encode()).hexdigest()


def changed(content: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """The content with one dotted key set; other parts are shared, nothing is changed in place."""
    first, _, rest = key.partition(".")
    inner = changed(dict(content.get(first) or {}), rest, value) if rest else value
    return {**content, first: inner}


def _missing(base: dict[str, Any], study_file: Path) -> str:
    """Why the data cannot be read here, or nothing. Paths in `base` become absolute."""
    named = [(base["data"], key) for key in _PATHS] + [(site, "manifest") for site in base["sites"]]
    for part, key in named:
        if not isinstance(part.get(key), str):
            continue
        given = part[key]
        expanded = os.path.expanduser(os.path.expandvars(given))
        if "$" in expanded:
            return f"{given} names a variable that is not set"
        part[key] = str(study_file.parent / expanded)
        if not Path(part[key]).is_file():
            return f"there is no {given}"
    return ""
