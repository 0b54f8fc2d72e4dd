"""The pilot from a study's file to one that is ready to run."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

from secure_triplay import __version__
from secure_triplay.config import Study, load_study, parse_study, study_content
from secure_triplay.errors import ConfigError
from secure_triplay.model.blocks import require_blocks
from secure_triplay.model.structure import tower_blocks
from secure_triplay.pilot.choices import Choice, Space, own_choice, plain, with_choice
from secure_triplay.pilot.compare import compare
from secure_triplay.pilot.costs import Cost, SiteLimits, Speeds, cost, scaled_to
from secure_triplay.pilot.files import STUDY, Range, kept, locked, study_text
from secure_triplay.pilot.optimiser import Optimiser
from secure_triplay.pilot.private import Private, private_trials, require_payer
from secure_triplay.pilot.probe import measure_speeds
from secure_triplay.pilot.sample import Sample, caveats, public_sample
from secure_triplay.pilot.search import (
    PRICES,
    Decision,
    Trial,
    WorstClass,
    decide,
    first,
    frontier,
    search,
    untried,
    what_fits,
)
from secure_triplay.pilot.trial import PublicSetting, try_choice
from secure_triplay.report.summary import write_text

Tell = Callable[[str, int, int], None]
"""What is being done now, and how many of at most how many trials are done."""

_SHARE, _AMOUNT = Range(0, 1), Range(0, 1e15)
_WHOLE = Range(1, 1e15, whole=True)
_MEASURED = {
    "accuracy": _SHARE,
    "standard_error": _SHARE,
    "start_accuracy": _SHARE,
    "seconds": _AMOUNT,
    "n_params": _WHOLE,
    "tokens": _WHOLE,
    "step_s_per_image": _AMOUNT,
}
_WORST = {"label": _WHOLE, "accuracy": _SHARE, "standard_error": _SHARE, "images": _WHOLE}
"""Of a trial's worst class, by the field of `WorstClass`; `label` is one of the study's classes."""


@dataclass(frozen=True)
class Request:
    """What a person asks of a pilot. `axes` are the values to choose among, by setting; empty: the usual ones."""

    limits: SiteLimits = field(default_factory=SiteLimits)
    axes: Mapping[str, tuple[Any, ...]] | None = None
    sample: int = 2000
    trials: int = 15
    use_test_images: bool = False
    private: Private | None = None


def run_pilot(study_file: Path, out: Path, asked: Request, tell: Tell = lambda *_: None) -> dict[str, Any]:
    """Choose, and write `study.yaml`, `pilot.json`, `pilot.html` and `frontier.svg` into `out`.

    Every finished trial is kept in `out`/trials, and study.yaml is written last, so that a pilot which was stopped
    goes on where it was. Returns the content of pilot.json. Raises ConfigError that names the limit which binds
    where no choice meets them all, RunError where another process writes `out` or one has finished in it.
    """
    from secure_triplay.pilot.page import write_pilot_page

    content, study = study_content(study_file), load_study(study_file)
    own, blocks = own_choice(study), tower_blocks(study.backbone)
    space = Space.around(study, asked.axes or {}, blocks)
    epsilon = asked.limits.epsilon or (study.dp.epsilon if study.dp else 0.0)

    def study_of(choice: Choice) -> Study:
        return parse_study(
            with_choice(content, study, choice, epsilon),
            where=str(study_file),
            folder=study_file.resolve().parent,
        )

    _require_possible(
        study_file, asked, space, own, study_of, blocks
    )  # leaves no folder behind where it is not
    if asked.private is not None:
        require_payer(study, asked.private)
    with locked(out):
        tell("drawing public images", 0, asked.trials)
        sample = public_sample(study, asked.sample, use_test_images=asked.use_test_images)
        setting = PublicSetting(study, sample)
        key = _key(study, epsilon, sample)
        speeds = _speeds(
            setting,
            space,
            study_of,
            own,
            out / "trials",
            key,
            lambda text: tell(text, 0, asked.trials),
        )

        @cache
        def cost_of_settings(choice: Choice) -> Cost:
            return cost(study_of(choice), choice, speeds[choice.quantization], asked.limits)

        def cost_of(choice: Choice) -> Cost:
            return cost_of_settings(choice.with_optimiser_of(own))  # no optimiser costs anything

        tell("what each choice costs", 0, asked.trials)
        fits, costs = what_fits(space, cost_of, asked.limits)
        labels = {"label": Range(0, len(study.classes) - 1, whole=True)}
        trial_ranges = _MEASURED | {f"worst_class_{name}": one for name, one in (_WORST | labels).items()}
        done: list[Trial] = []
        paces: dict[Choice, float] = {}

        def attempt(choice: Choice) -> Trial:
            tell(choice.words(), len(done), asked.trials)
            path = out / "trials" / f"{_hash([key, plain(choice)])[:20]}.json"
            found = kept(path, trial_ranges)
            if found is None:
                found = try_choice(setting, study_of(choice))
                write_text(path, json.dumps({"choice": plain(choice), **found}, indent=2) + "\n")
            pace = paces.setdefault(choice.with_optimiser_of(own), found["step_s_per_image"])
            measured = scaled_to(speeds[choice.quantization], choice, pace)
            measured = replace(measured, params=found["n_params"], tokens=found["tokens"])
            spent = cost(study_of(choice), choice, measured, asked.limits)
            worst = WorstClass(**{name: found[f"worst_class_{name}"] for name in _WORST})
            accuracy, error = found["accuracy"], found["standard_error"]
            done.append(
                Trial(choice, spent, accuracy, error, found["start_accuracy"], found["seconds"], worst)
            )
            return done[-1]

        trials = search(space, fits, first(own, fits), attempt, asked.limits, asked.trials)
        decision = decide(trials, asked.limits, own.optimiser)
        charged = None
        if asked.private is not None:
            tell("on the site's own records, charged", len(done), asked.trials)
            charged, decision = private_trials(study_of, trials, decision, asked.private, asked.limits, out)
        result = _result(
            study, study_file, asked, epsilon, sample, speeds, trials, decision, charged, fits, costs
        )
        chosen = with_choice(content, study, decision.trial.choice, epsilon)
        text = study_text(chosen, study_file.resolve().parent, out)
        write_text(out / "pilot.json", json.dumps(result, indent=2, allow_nan=False) + "\n")
        write_pilot_page(result, out)
        write_text(out / STUDY, text)  # last: where it is, the pilot is over
        return result


def _require_possible(
    study_file: Path,
    asked: Request,
    space: Space,
    own: Choice,
    study_of: Callable[[Choice], Study],
    blocks: int | None,
) -> None:
    """Return nothing if a study may have each value that is offered, and the tower as many blocks (None: unknown).

    Raises ConfigError that names the option by which a value was given, and no key that nobody wrote.
    """
    if asked.limits.epsilon is not None:
        try:
            study_of(own)
        except ConfigError as error:
            raise _of_option("epsilon", f"{asked.limits.epsilon:g}", error) from error
    for axis in space.axes:
        for choice in space.beside(own, axis):
            value = getattr(choice, axis)
            try:
                study_of(choice)
            except ConfigError as error:
                if value not in (asked.axes or {}).get(axis, ()):
                    raise
                raise _of_option(
                    axis, value.text() if isinstance(value, Optimiser) else f"{value}", error
                ) from error
    most = max(space.axes["blocks"])
    if blocks is not None:
        where = f"{study_file} (adapter.last_blocks)" if most == own.blocks else "--blocks"
        require_blocks(blocks, most, where)


_OPTIONS = {
    "epsilon": ("--epsilon", "privacy.epsilon"),
    "rank": ("--rank", "adapter.rank"),
    "output_rank": ("--output-rank", "adapter.output_rank"),
    "blocks": ("--blocks", "adapter.last_blocks"),
    "quantization": ("--quantization", "backbone.quantization"),
    "value_bits": ("--bits", "codec.value_bits"),
    "batch": ("--batch", "privacy.expected_batch_size"),
    "rounds": ("--rounds", "training.rounds"),
    "optimiser": ("--optimiser", "server_optimiser"),
}
"""By axis: the option that gives its values, and the key of a study that they become."""


def _of_option(axis: str, value: str, error: ConfigError) -> ConfigError:
    """A study's error, as one of the option whose value made it: other keys follow from that value."""
    option, key = _OPTIONS[axis]
    said = [line.removeprefix(key).lstrip(".: ") for line in error.what.splitlines() if line.startswith(key)]
    said = said or [line.partition(": ")[2] or line for line in error.what.splitlines()]
    return ConfigError(
        f"{value}: {'; '.join(said)}", where=option, fix="give another value, or leave the option out"
    )


def _speeds(
    setting: PublicSetting,
    space: Space,
    study_of: Callable[[Choice], Study],
    own: Choice,
    trials: Path,
    key: str,
    tell: Callable[[str], None],
) -> dict[str, Speeds]:
    """Speeds for each quantization, at the largest adapter offered: what is smaller is only faster."""
    directions = space.axes["output_rank"]
    largest = replace(
        own, blocks=max(space.axes["blocks"]), rank=max(space.axes["rank"]),
        output_rank=None if None in directions else max(directions),
    )  # fmt: skip
    speed_ranges = {one.name: _WHOLE if one.type == "int" else _AMOUNT for one in fields(Speeds)} | {
        "blocks": Range(largest.blocks, largest.blocks, whole=True),
        "rank": Range(largest.rank, largest.rank, whole=True),
        "tower_blocks": Range(largest.blocks, 1e15, whole=True),
    }
    speeds: dict[str, Speeds] = {}
    for quantization in space.axes["quantization"]:
        tell(f"measuring this machine with {quantization} weights")
        choice = replace(largest, quantization=quantization)
        path = trials / f"speeds-{_hash([key, plain(choice)])[:20]}.json"
        found = kept(path, speed_ranges)
        if found is None:
            found = asdict(measure_speeds(setting, study_of(choice), next(iter(speeds.values()), None)))
            write_text(path, json.dumps(found, indent=2) + "\n")
        speeds[quantization] = Speeds(**found)
    return speeds


def _result(
    study: Study,
    study_file: Path,
    asked: Request,
    epsilon: float,
    sample: Sample,
    speeds: Mapping[str, Speeds],
    trials: list[Trial],
    decision: Decision,
    charged: dict[str, Any] | None,
    fits: Mapping[Choice, Cost],
    costs: Mapping[Choice, Cost],
) -> dict[str, Any]:
    best = {price: [id(one) for one in frontier(trials, price)] for price in PRICES}
    classes = [entry.name for entry in study.classes]
    compared = compare(trials, decision.trial.choice, Optimiser.of(study), classes, sample.measured_images)
    return {
        "suite": "pilot",
        "version": __version__,
        "study": study.study,
        "study_sha256": study.sha256,
        "study_file": study_file.name,
        "limits": {**asdict(asked.limits), "epsilon": epsilon},
        "epsilon": epsilon,
        "delta": study.dp.delta if study.dp else None,
        "data": {
            "source": sample.source,
            "training_images": sample.training_images,
            "measured_images": sample.measured_images,
            "partition": sample.partition,
            "caveats": caveats(study, sample),
            "private": charged is not None,
        },
        "machine": {
            "cores": os.cpu_count(),
            "load": round(os.getloadavg()[0], 2),
            "speeds": {name: asdict(found) for name, found in speeds.items()},
        },
        "choices": len(costs),
        "choices_that_fit": len(fits),
        "untried": list(untried(fits, trials)),
        "own": plain(own_choice(study)),
        "trials": [
            {
                "choice": plain(trial.choice),
                "words": trial.choice.words(),
                **asdict(trial.cost),
                "accuracy": round(trial.accuracy, 5),
                "standard_error": round(trial.standard_error, 5),
                "start_accuracy": round(trial.start_accuracy, 5),
                "worst_class": {
                    "name": classes[trial.worst_class.label],
                    "accuracy": round(trial.worst_class.accuracy, 5),
                    "standard_error": round(trial.worst_class.standard_error, 5),
                    "images": trial.worst_class.images,
                },
                "fits": max(trial.cost.shares(asked.limits).values()) <= 1,
                "frontier": [price for price in PRICES if id(trial) in best[price]],
                "chosen": trial.choice == decision.trial.choice,
                "seconds": trial.seconds,
            }
            for trial in trials
        ],
        "chosen": plain(decision.trial.choice),
        "reason": decision.reason,
        "server_optimisers": compared and compared.plain(),
        "charged": charged,
    }


def _key(study: Study, epsilon: float, sample: Sample) -> str:
    """What decides a trial's figures besides its choice; the study's own hash leaves out which images they are."""
    return _hash([__version__, study.sha256, epsilon, sample.sha256(study.backbone.image_size)])


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
