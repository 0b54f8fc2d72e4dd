"""What an experiment file may say, and whether every cell of its grid can run: known before anything does."""

from __future__ import annotations

import difflib
import hashlib
import itertools
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from secure_triplay import __version__
from secure_triplay.config import Name, SharedKey, Study, parse_study, study_content
from secure_triplay.errors import ConfigError, SecureTriplayError
from secure_triplay.experiments.methods import METHODS, Method, method
from secure_triplay.schema import Frozen, lists_to_tuples, read_mapping, readable_error

_PATHS = ("manifest", "public_manifest", "test_manifest")
_RECORDS = ("data", "classes", "seed")
_OF_A_METHOD = ("rank", "weight")
"""What of a site a method may change: its records stay what they are."""


Seeds = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]


class DataEntry(Frozen):
    """One data set of a grid: a study file, with what is changed in it."""

    name: Name
    study: str = Field(description="study file, relative to the experiment's own folder")
    change: dict[str, Any] = Field({}, description="dotted key of the study: value")
    seeds: Seeds | None = Field(None, description="where they are others than the grid's")


Label = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.]{0,23}$")]


class Variants(Frozen):
    """One method at every combination of some settings; each is called METHOD-LABEL-LABEL."""

    method: str
    axes: Annotated[
        dict[str, Annotated[dict[Label, Any], Field(min_length=1)]],
        Field(min_length=1, description="dotted key of the study: {label: value}; the first changes slowest"),
    ]

    def named(self) -> list[tuple[str, dict[str, Any]]]:
        """(name, {dotted key: value}) of every combination."""
        axes = [
            [(label, (key, value)) for label, value in values.items()] for key, values in self.axes.items()
        ]
        return [
            ("-".join([self.method, *(label for label, _ in chosen)]), dict(pair for _, pair in chosen))
            for chosen in itertools.product(*axes)
        ]


class Experiment(Frozen):
    """A grid of methods x data x seeds; `variants` are methods too, and come after those in `methods`."""

    experiment: Name
    data: Annotated[tuple[DataEntry, ...], Field(min_length=1)]
    methods: tuple[str, ...] = ()
    variants: tuple[Variants, ...] = ()
    seeds: Seeds
    change: dict[str, dict[str, Any]] = Field({}, description="method: {dotted key of the study: value}")
    target_accuracy: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="public accuracy to which rounds and seconds are told"
    )

    def chosen(self) -> list[tuple[str, str, dict[str, Any]]]:
        """(name, method, {dotted key: value}) of everything that is measured on each data set, in order."""
        plain = [(name, name, self.change.get(name, {})) for name in self.methods]
        return plain + [(n, entry.method, change) for entry in self.variants for n, change in entry.named()]


_FIX = f"the files in configs/experiments/ are examples; the keys are {', '.join(Experiment.model_fields)}"


@dataclass(frozen=True)
class Cell:
    """One method on one data set at one seed.

    `identity` hashes this version and what is set in the study, `manifests` the bytes of the manifests that it names
    (None: none). Neither sees images, nor code or defaults that change within a version: of these a cell says what
    made it, and a result whose cells were made by several says so.
    """

    data: str
    method: Method
    seed: int
    study: Study
    identity: str
    manifests: str | None = None

    @property
    def file(self) -> str:
        """Name of the file that holds its figures."""
        return f"{self.data}--{self.method.name}--{self.seed}.json"

    @property
    def needs_public_images(self) -> bool:
        """Whether public images fit a projection of its backbone, or its adapter's A."""
        study = self.study
        return self.method.takes_model and (
            study.backbone.source == "packaged" or study.adapter.basis == "public"
        )


@dataclass(frozen=True)
class Grid:
    """The cells that can run, in the order in which they do, and why others cannot."""

    name: str
    data: tuple[str, ...]
    methods: tuple[Method, ...]
    seeds: tuple[int, ...]
    cells: tuple[Cell, ...]
    skipped: Mapping[str, str]
    target_accuracy: float | None = None


def load_grid(path: Path) -> Grid:
    """The grid of an experiment file.

    Raises ConfigError that names every combination that cannot run. Data whose files are not on this machine
    are no such fault: they are listed in `skipped`, with the reason.
    """
    content = read_mapping(path, "an experiment", _FIX)
    try:
        experiment = Experiment.model_validate(lists_to_tuples(content))
    except ValidationError as error:
        raise readable_error(error, str(path), __name__, _FIX) from error
    folder = path.resolve().parent
    problems, chosen = _wrong_names(experiment), _known(experiment)
    cells: list[Cell] = []
    skipped: dict[str, str] = {}
    for entry in experiment.data:
        try:
            base = _base(entry, folder)
        except ConfigError as error:
            problems.append(f"{entry.name}: {error.what} ({error.where})")
            continue
        reason = _missing(base, folder / entry.study)
        if reason:
            skipped[entry.name] = reason
            continue
        try:
            manifests = _manifests(base)
        except OSError as error:
            problems.append(f"{entry.name}: {error.filename} cannot be read: {error.strerror}")
            continue
        for seed in entry.seeds or experiment.seeds:
            for name, of, change in chosen:
                try:
                    cell = _cell(entry, base, replace(of, name=name), change, seed)
                    cells.append(replace(cell, manifests=manifests))
                except SecureTriplayError as error:
                    problems.append(f"{name} on {entry.name}: {error.what}")
    if problems:
        listed = "\n".join(dict.fromkeys(problems))
        raise ConfigError(
            f"these combinations cannot run, and nothing was started:\n{listed}",
            where=str(path),
            fix="mend them or leave them out of the grid",
        )
    methods = tuple(replace(of, name=name) for name, of, _ in chosen)
    names = tuple(entry.name for entry in experiment.data)
    target = experiment.target_accuracy
    return Grid(experiment.experiment, names, methods, experiment.seeds, tuple(cells), skipped, target)


def _wrong_names(experiment: Experiment) -> list[str]:
    wrong = [] if experiment.chosen() else ["no methods and no variants are given"]
    for name in (*experiment.methods, *(entry.method for entry in experiment.variants)):
        try:
            method(name)
        except ConfigError as error:
            nearest = difflib.get_close_matches(name, [*METHODS, "eps8"], n=1, cutoff=0)[0]
            wrong.append(f"{error.what}; the nearest is {nearest!r}")
    for kind, names in (
        ("method", [name for name, _, _ in experiment.chosen()]),
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


def _known(experiment: Experiment) -> list[tuple[str, Method, dict[str, Any]]]:
    """What is measured on each data set, without methods that do not exist: `_wrong_names` has named these."""
    found = []
    for name, of, change in experiment.chosen():
        with suppress(ConfigError):
            found.append((name, method(of), change))
    return found


def _base(entry: DataEntry, folder: Path) -> dict[str, Any]:
    """The study of a data set, with its changes. Raises ConfigError."""
    content = study_content(folder / entry.study)
    if "seed" in entry.change:
        raise ConfigError(
            "it changes seed, which the grid gives to each cell; give its own seeds with data[].seeds",
            where="data[].change",
            fix="move it to data[].seeds",
        )
    for key, value in entry.change.items():
        content = changed(content, key, value)
    return content


def _cell(entry: DataEntry, base: dict[str, Any], chosen: Method, change: dict[str, Any], seed: int) -> Cell:
    base = base | {"seed": seed}
    try:
        made = content = chosen.change(base)
    except (KeyError, TypeError, AttributeError):
        parse_study(base, where=entry.name)  # a method changes a study: where this is none, it says why
        raise
    for key, value in change.items():
        content = changed(content, key, value)
    chosen.require_own(content, made)
    study = parse_study(content, where=entry.name)
    _require_same_records(base, content)
    chosen.check(study)
    if chosen.takes_model:
        _require_adaptable(study)
    return Cell(entry.name, chosen, seed, study, _identity(entry.name, chosen.name, study))


def _require_adaptable(study: Study) -> None:
    """Return nothing if the adapter can be put on the backbone, as far as that shows without weights.

    Raises ConfigError. torch is loaded here: nothing else of a grid's check needs it.
    """
    from secure_triplay.model.structure import require_adaptable

    require_adaptable(study.backbone, study.adapter)


def _require_same_records(base: dict[str, Any], content: dict[str, Any]) -> None:
    """The records of a data set at a seed are made once, for all methods. Raises ConfigError where one has others."""
    before, after = lists_to_tuples(base), lists_to_tuples(content)
    wrong = [key for key in _RECORDS if before.get(key) != after.get(key)]
    if _places(before) != _places(after):
        wrong.append("sites")
    if wrong:
        raise ConfigError(
            f"it changes {' and '.join(wrong)}, but all methods are measured on the same records; "
            "make it a data set of its own, with data[].change (of sites, a method may change rank and weight)",
            where="methods",
            fix="move the change to data[].change",
        )


def _places(content: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in site.items() if key not in _OF_A_METHOD} for site in content["sites"]
    ]


def _identity(data: str, name: str, study: Study) -> str:
    """Hash of what is set in a study: neither paths, nor what is at its default (a new key parts no cells)."""
    settings = study.model_dump(mode="json", exclude_defaults=True)
    for part in (settings["data"], *settings["sites"]):
        for key in _PATHS:
            part.pop(key, None)
    if isinstance(study.aggregation, SharedKey):  # without its kind it would look like masks without numbers
        settings["aggregation"] = {"kind": study.aggregation.kind}
    said = json.dumps([__version__, data, name, settings], sort_keys=True)
    return hashlib.sha256(said.encode()).hexdigest()


def changed(content: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """The content with one dotted key set; other parts are shared, nothing is changed in place."""
    first, _, rest = key.partition(".")
    inner = content.get(first) or {}
    if rest and not isinstance(inner, dict):
        raise ConfigError(f"{first} has no keys, so no {rest}", where="change", fix=f"set all of {first}")
    return {**content, first: changed(inner, rest, value) if rest else value}


def _missing(base: dict[str, Any], study_file: Path) -> str:
    """Why the data cannot be read here, or nothing. Paths in `base` become absolute."""
    for part, key in _named(base):
        given = part[key]
        expanded = os.path.expanduser(os.path.expandvars(given))
        if "$" in expanded:
            return f"{given} names a variable that is not set"
        part[key] = str(study_file.parent / expanded)
        try:
            if not Path(part[key]).is_file():
                return f"there is no {given}"
        except OSError as error:  # a name that is too long, a folder that nobody here may enter
            return f"{given} cannot be read: {error.strerror}"
    return ""


def _named(base: dict[str, Any]) -> list[tuple[dict[str, Any], str]]:
    """Where a study names a manifest: the part that does, and the key in it. What is no study names none."""
    sites = base.get("sites")
    named = [(base.get("data"), key) for key in _PATHS]
    named += [(site, "manifest") for site in sites] if isinstance(sites, list) else []
    return [(part, key) for part, key in named if isinstance(part, dict) and isinstance(part.get(key), str)]


def _manifests(base: dict[str, Any]) -> str | None:
    """Hash of every manifest's bytes and of who names it; None where there is none. Raises OSError."""
    found = [
        [part.get("name", ""), key, hashlib.sha256(Path(part[key]).read_bytes()).hexdigest()]
        for part, key in _named(base)
    ]
    return hashlib.sha256(json.dumps(found).encode()).hexdigest() if found else None
