"""The pilot from a study's file to one that is ready to run."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from secure_triplay import __version__
from secure_triplay.config import Study, load_study, parse_study
from secure_triplay.errors import RunError
from secure_triplay.pilot.choices import Choice, Space, own_choice, plain, with_choice
from secure_triplay.pilot.costs import Cost, SiteLimits, Speeds, cost, scaled_to
from secure_triplay.pilot.private import Private, private_trials
from secure_triplay.pilot.probe import measure_speeds, process_bytes
from secure_triplay.pilot.sample import public_sample
from secure_triplay.pilot.search import Decision, Trial, decide, first, frontier, search, what_fits
from secure_triplay.pilot.trial import PublicSetting, try_choice
from secure_triplay.report.summary import write_text
from secure_triplay.schema import read_yaml

Tell = Callable[[str, int, int], None]
"""What is being done now, and how many of at most how many trials are done."""

_PATHS = ("manifest", "public_manifest", "test_manifest")


@dataclass(frozen=True)
class Request:
    """What a person asks of a pilot. `axes` are the values to choose among, by setting; empty: the usual ones."""

    limits: SiteLimits = field(default_factory=SiteLimits)
    axes: Mapping[str, tuple[Any, ...]] | None = None
    sample: int = 2000
    trials: int = 12
    use_test_images: bool = False
    private: Private | None = None


def run_pilot(study_file: Path, out: Path, asked: Request, tell: Tell = lambda *_: None) -> dict[str, Any]:
    """Choose, and write `study.yaml`, `pilot.json`, `pilot.html` and `frontier.svg` into `out`.

    Every finished trial is kept in `out`/trials, so that a pilot which was stopped goes on where it was. Returns
    the content of pilot.json. Raises ConfigError that names the limit which binds where no choice meets them all.
    """
    from secure_triplay.pilot.page import write_pilot_page

    content, study = read_yaml(study_file), load_study(study_file)
    own = own_choice(study)
    epsilon = asked.limits.epsilon or (study.dp.epsilon if study.dp else 0.0)
    space = Space.around(study, asked.axes or {})
    _make(out)

    def study_of(choice: Choice) -> Study:
        return parse_study(
            with_choice(content, study, choice, epsilon),
            where=str(study_file),
            folder=study_file.resolve().parent,
        )

    tell("drawing public images", 0, asked.trials)
    sample = public_sample(study, asked.sample, use_test_images=asked.use_test_images)
    process = process_bytes()
    setting = PublicSetting(study, sample)
    key = _key(study, asked, epsilon, sample.source)
    speeds = _speeds(
        setting, space, study_of, own, process, out / "trials", key, lambda text: tell(text, 0, asked.trials)
    )

    def cost_of(choice: Choice) -> Cost:
        return cost(study_of(choice), choice, speeds[choice.quantization], asked.limits)

    tell("what each choice costs", 0, asked.trials)
    fits, costs = what_fits(space, cost_of, asked.limits)
    done: list[Trial] = []

    def attempt(choice: Choice) -> Trial:
        tell(choice.words(), len(done), asked.trials)
        path = out / "trials" / f"{_hash([key, plain(choice)])[:20]}.json"
        found = _kept(path)
        if found is None:
            found = try_choice(setting, study_of(choice), choice)
            write_text(path, json.dumps({"choice": plain(choice), **found}, indent=2) + "\n")
        measured = scaled_to(speeds[choice.quantization], choice, found["step_s_per_image"])
        measured = replace(measured, params=found["n_params"])
        spent = cost(study_of(choice), choice, measured, asked.limits)
        names = ("accuracy", "standard_error", "start_accuracy", "seconds")
        done.append(Trial(choice, spent, *(found[name] for name in names)))
        return done[-1]

    trials = search(space, fits, first(own, fits), attempt, asked.limits, asked.trials)
    decision = decide(trials, asked.limits)
    charged = None
    if asked.private is not None:
        tell("on the site's own records, charged", len(done), asked.trials)
        charged, decision = private_trials(study_of, trials, decision, asked.private, asked.limits, out)
    result = _result(
        study, study_file, asked, epsilon, sample, speeds, trials, decision, charged, fits, costs
    )
    chosen = with_choice(content, study, decision.trial.choice, epsilon)
    _write_study(out / "study.yaml", _moved(chosen, study_file.resolve().parent, out.resolve()), result)
    load_study(out / "study.yaml")  # what was written is what `config check` will read
    write_text(out / "pilot.json", json.dumps(result, indent=2, allow_nan=False) + "\n")
    write_pilot_page(result, out)
    return result


def _make(out: Path) -> None:
    if (out / "study.yaml").exists():
        raise RunError(
            "there is a study in this folder already",
            where=str(out / "study.yaml"),
            fix="give another --out, or move the file away",
        )
    try:
        (out / "trials").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(
            f"the results cannot be written: {error.strerror}", where=str(out), fix="choose another --out"
        ) from error


def _speeds(
    setting: PublicSetting,
    space: Space,
    study_of: Callable[[Choice], Study],
    own: Choice,
    process: int,
    kept: Path,
    key: str,
    tell: Callable[[str], None],
) -> dict[str, Speeds]:
    """Speeds for each quantization, at the largest adapter offered: what is smaller is only faster."""
    directions = space.axes["output_rank"]
    largest = replace(
        own, blocks=max(space.axes["blocks"]), rank=max(space.axes["rank"]),
        output_rank=None if None in directions else max(directions),
    )  # fmt: skip
    speeds = {}
    for quantization in space.axes["quantization"]:
        tell(f"measuring this machine with {quantization} weights")
        choice = replace(largest, quantization=quantization)
        path = kept / f"speeds-{_hash([key, plain(choice)])[:20]}.json"
        found = _kept(path)
        if found is None:
            found = asdict(measure_speeds(setting, study_of(choice), process))
            write_text(path, json.dumps(found, indent=2) + "\n")
        speeds[quantization] = Speeds(**found)
    return speeds


def _result(
    study: Study,
    study_file: Path,
    asked: Request,
    epsilon: float,
    sample: Any,
    speeds: Mapping[str, Speeds],
    trials: list[Trial],
    decision: Decision,
    charged: dict[str, Any] | None,
    fits: Mapping[Choice, Cost],
    costs: Mapping[Choice, Cost],
) -> dict[str, Any]:
    on_frontier = {id(trial) for trial in frontier(trials, lambda one: one.cost.hours)}
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
            "private": charged is not None,
        },
        "machine": {
            "cores": os.cpu_count(),
            "load": round(os.getloadavg()[0], 2),
            "speeds": {name: asdict(found) for name, found in speeds.items()},
        },
        "choices": len(costs),
        "choices_that_fit": len(fits),
        "own": plain(own_choice(study)),
        "trials": [
            {
                "choice": plain(trial.choice),
                "words": trial.choice.words(),
                **asdict(trial.cost),
                "accuracy": round(trial.accuracy, 5),
                "standard_error": round(trial.standard_error, 5),
                "start_accuracy": round(trial.start_accuracy, 5),
                "fits": max(trial.cost.shares(asked.limits).values()) <= 1,
                "frontier": id(trial) in on_frontier,
                "chosen": trial.choice == decision.trial.choice,
                "seconds": trial.seconds,
            }
            for trial in trials
        ],
        "chosen": plain(decision.trial.choice),
        "reason": decision.reason,
        "charged": charged,
    }


def _write_study(path: Path, content: dict[str, Any], result: dict[str, Any]) -> None:
    head = (
        f"# {content['study']}, with settings that `secure-triplay pilot` chose; pilot.json and pilot.html beside this "
        "file\n# say among which, on which images, and what each would have cost.\n"
    )
    body = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=110)
    write_text(path, f"{head}{body}")


def _moved(content: dict[str, Any], old: Path, new: Path) -> dict[str, Any]:
    """Relative paths as they read from the new file's folder; absolute ones and $VARIABLES stay."""

    def moved(part: dict[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
        return {
            key: os.path.relpath(old / value, new)
            if key in keys and isinstance(value, str) and not value.startswith(("/", "~", "$"))
            else value
            for key, value in part.items()
        }

    backbone = content["backbone"]
    if backbone.get("source") == "file":
        backbone = moved(backbone, ("pretrained",))
    return {
        **content,
        "backbone": backbone,
        "data": moved(content["data"], _PATHS),
        "sites": [moved(site, ("manifest",)) for site in content["sites"]],
    }


def _kept(path: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise RunError(
            "this is not a trial's result", where=str(path), fix="remove the file; the trial runs again"
        ) from error
    return found


def _key(study: Study, asked: Request, epsilon: float, source: str) -> str:
    """What decides a trial's figures besides its choice."""
    return _hash([__version__, study.sha256, asked.sample, asked.use_test_images, epsilon, source])


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
