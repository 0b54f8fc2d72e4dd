"""A pilot's folder: one pilot at a time writes it, and what it holds is checked before it is used or in place."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from secure_triplay.config import parse_study
from secure_triplay.errors import RunError
from secure_triplay.runfolder import alone_in, unwritable
from secure_triplay.schema import parse_yaml

STUDY = "study.yaml"
_PATHS = ("manifest", "public_manifest", "test_manifest")


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """The folder, made where it is missing, for this process alone.

    Raises RunError where another process writes it, or where a pilot has finished in it: study.yaml comes last.
    """
    with alone_in(out):
        if (out / STUDY).exists():
            raise RunError(
                "there is a study in this folder already",
                where=str(out / STUDY),
                fix="give another --out, or move the file away",
            )
        try:
            (out / "trials").mkdir(exist_ok=True)
        except OSError as error:
            raise unwritable(out, error) from error
        yield


@dataclass(frozen=True)
class Range:
    """What one number of a kept file may be: from `least` to `most`, and whole or not."""

    least: float
    most: float
    whole: bool = False

    def holds(self, value: Any) -> bool:
        """Whether it may be this."""
        kinds = (int,) if self.whole else (int, float)
        return type(value) in kinds and self.least <= value <= self.most  # which NaN is not


def kept(path: Path, ranges: Mapping[str, Range]) -> dict[str, Any] | None:
    """The numbers of a finished trial, by the names in `ranges`; None where it is not there.

    Raises RunError where the file holds anything else, or a number that none of a trial can be.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        numbers = {name: found[name] for name in ranges}
        wrong = [name for name, value in numbers.items() if not ranges[name].holds(value)]
        if wrong:
            raise ValueError(f"{wrong[0]} cannot be {numbers[wrong[0]]!r}"[:80])
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RunError(
            f"this trial cannot be read: {error.strerror}",
            where=str(path),
            fix="make it readable, or remove it",
        ) from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        said = f" ({error})" if type(error) is ValueError else ""
        raise RunError(
            f"this is not a trial's result{said}",
            where=str(path),
            fix="remove the file; the trial runs again",
        ) from error
    return numbers


def study_text(content: dict[str, Any], old: Path, out: Path) -> str:
    """A study file for `out`, of content whose relative paths are taken from the folder `old`.

    It was read back as `config check` will read it. Raises ConfigError where that fails.
    """
    head = (
        f"# {content['study']}, with settings that `secure-triplay pilot` chose; pilot.json and pilot.html beside this "
        "file\n# say among which, on which images, and what each would have cost.\n"
    )
    new = out.resolve()
    body = yaml.safe_dump(_moved(content, old, new), sort_keys=False, allow_unicode=True, width=110)
    parse_study(parse_yaml(body, str(out / STUDY)), where=str(out / STUDY), folder=new)
    return f"{head}{body}"


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
