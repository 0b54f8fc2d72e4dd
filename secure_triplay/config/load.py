"""From a YAML file to a study."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from secure_triplay.config.study import Study
from secure_triplay.errors import ConfigError
from secure_triplay.schema import lists_to_tuples, read_mapping, readable_error

_FIX = "`secure-triplay config schema` lists every key, its type and default"


def load_study(path: str | Path, *, seed: int | None = None) -> Study:
    """The study in a YAML file; relative paths in it are taken from the file's folder. `seed` stands for the file's.

    Raises ConfigError that names the key and, for an unknown key, the nearest known one.
    """
    path = Path(path)
    content = study_content(path)
    if seed is not None:
        content["seed"] = seed
    study = parse_study(content, where=str(path), folder=path.resolve().parent)
    study._file_sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return study


def study_content(path: Path) -> dict[str, Any]:
    """The plain content of a study file, as it stands there. Raises ConfigError where it is no mapping of keys."""
    return read_mapping(path, "a study", "start from configs/demo.yaml")


def parse_study(content: dict[str, Any], *, where: str = "study", folder: Path | None = None) -> Study:
    """The study in plain content (as YAML or JSON gives it). Raises ConfigError."""
    content = lists_to_tuples(content)
    if folder is not None:
        content = _resolve_paths(content, folder, where)
    try:
        return Study.model_validate(content)
    except ValidationError as error:
        raise readable_error(error, where, "secure_triplay.config", _FIX) from error


def study_schema() -> dict[str, Any]:
    """JSON Schema of a study file, for editors."""
    schema = Study.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    return schema


def _resolve_paths(content: dict[str, Any], folder: Path, where: str) -> dict[str, Any]:
    """Relative paths of data and weights, made absolute from the study file's folder."""

    def absolute(part: Any, keys: tuple[str, ...]) -> Any:
        if not isinstance(part, dict):
            return part
        return {
            k: _absolute(v, folder, where) if k in keys and isinstance(v, str) else v for k, v in part.items()
        }

    resolved = dict(content)
    if "data" in content:
        resolved["data"] = absolute(content["data"], ("manifest", "public_manifest", "test_manifest"))
    if isinstance(content.get("sites"), tuple):
        resolved["sites"] = tuple(absolute(site, ("manifest",)) for site in content["sites"])
    if isinstance(content.get("backbone"), dict) and content["backbone"].get("source") == "file":
        resolved["backbone"] = absolute(content["backbone"], ("pretrained",))
    return resolved


def _absolute(path: str, folder: Path, where: str) -> str:
    """`~` and `$VARIABLES` expanded, relative to the study file's folder. Raises ConfigError for unset variables."""
    expanded = os.path.expanduser(os.path.expandvars(path))
    unset = re.search(r"\$\{?(\w*)", expanded)
    if unset:
        raise ConfigError(
            f"the path {path} names a variable that is not set",
            where=where,
            fix=f"set it in the shell, as in `export {unset[1]}=/data/folder`, or write the path out",
        )
    return str(folder / expanded)
