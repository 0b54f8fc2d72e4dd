"""What an epsilon cost in accuracy where it was measured: read from the committed audit, never estimated."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COMMITTED = Path(__file__).resolve().parents[2] / "audits" / "utility" / "result.json"


@dataclass(frozen=True)
class Measured:
    """Mean accuracy of one method on one data set; `without_dp` is the same federation with DP off."""

    data: str
    method: str
    accuracy: float
    spread: float | None
    seeds: int | None
    start: float | None
    without_dp: float | None


@dataclass(frozen=True)
class Measurements:
    """Accuracy by epsilon, with where it comes from; or why there is none."""

    source: str
    by_epsilon: dict[float, tuple[Measured, ...]]
    missing: str = ""

    def at(self, epsilon: float) -> tuple[Measured, ...]:
        """What was measured at exactly this epsilon; nothing is interpolated."""
        return self.by_epsilon.get(epsilon, ())


def read_measurements(path: Path | None = None) -> Measurements:
    """The utility audit's `rows` of {data, method, accuracy_mean, accuracy_std, seeds}, by epsilon.

    Methods that start with `eps` carry their epsilon in their name; a file that cannot be read is said so.
    """
    path = path or COMMITTED
    source = "audits/utility/result.json" if path == COMMITTED else str(path)
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
        figures = {(str(row["data"]), str(row["method"])): _figures(row) for row in rows}
    except FileNotFoundError:
        return Measurements(source, {}, "not measured yet")
    except (OSError, ValueError, KeyError, TypeError) as error:
        return Measurements(source, {}, f"not known: {source} cannot be read ({type(error).__name__})")
    found: dict[float, list[Measured]] = {}
    for (data, method), (accuracy, spread, seeds) in figures.items():
        epsilon = _epsilon(method)
        if epsilon is not None and math.isfinite(accuracy):
            start, plain = (figures.get((data, other), (None,))[0] for other in ("start", "no-dp"))
            found.setdefault(epsilon, []).append(
                Measured(data, method, accuracy, spread, seeds, start, plain)
            )
    missing = "" if found else "not measured yet"
    return Measurements(source, {key: tuple(rows) for key, rows in found.items()}, missing)


def _figures(row: dict[str, Any]) -> tuple[float, float | None, int | None]:
    spread, seeds = row.get("accuracy_std"), row.get("seeds")
    count = len(seeds) if isinstance(seeds, list) else int(seeds) if seeds is not None else None
    return float(row["accuracy_mean"]), None if spread is None else float(spread), count


def _epsilon(method: str) -> float | None:
    try:
        return float(method.removeprefix("eps")) if method.startswith("eps") else None
    except ValueError:
        return None
