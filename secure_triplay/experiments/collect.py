"""From cells to rows: means and spreads over seeds; no row where nothing was measured."""

from __future__ import annotations

from typing import Any

import numpy as np

from secure_triplay.experiments.grid import Grid
from secure_triplay.experiments.methods import Method

_MEANS = ("accuracy", "worst_site", "worst_site_public", "mean_site", "head", "middle", "tail", "worst_class")


def collect(grid: Grid, cells: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and spread over seeds of every (data, method) that was measured; no row where nothing was."""
    rows = []
    found = {f"{cell['data']}--{cell['method']}--{cell['seed']}.json" for cell in cells}
    for data in grid.data:
        for method in grid.methods:
            own = [cell for cell in cells if (cell["data"], cell["method"]) == (data, method.name)]
            if own:
                rows.append(_row(own, method) | _to_target(own, grid.target_accuracy))
    return {
        "suite": "experiment",
        "experiment": grid.name,
        "target_accuracy": grid.target_accuracy,
        "data": list(grid.data),
        "methods": [method.name for method in grid.methods],
        "seeds": list(grid.seeds),
        "skipped": [{"data": name, "reason": reason} for name, reason in grid.skipped.items()],
        "partitions": _partitions(grid, cells),
        "made_by": _made_by(cells),
        "missing": [cell.file.removesuffix(".json") for cell in grid.cells if cell.file not in found],
        "rows": rows,
    }


def _partitions(grid: Grid, cells: list[dict[str, Any]]) -> dict[str, Any]:
    """Training records of each class at each site, of the first seed that was measured, in the grid's order of data."""
    first = {cell["data"]: cell["class_counts"] for cell in reversed(cells) if "class_counts" in cell}
    return {data: first[data] for data in grid.data if data in first}


def _made_by(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every state of the program and its libraries that made some of the cells, and which; None: it was not noted.

    A cell's identity sees settings and this version alone, so a grid that goes on may hold cells of several.
    """
    found: list[dict[str, Any]] = []
    for cell in cells:
        name, state = f"{cell['data']}--{cell['method']}--{cell['seed']}", cell.get("made_by")
        same = next((one for one in found if one["state"] == state), None)
        if same is None:
            found.append({"state": state, "cells": [name]})
        else:
            same["cells"].append(name)
    return found


def _row(cells: list[dict[str, Any]], method: Method) -> dict[str, Any]:
    accuracy = [cell["accuracy"] for cell in cells]
    first = cells[0]
    means: dict[str, float | None] = {}
    for name in _MEANS:
        values = [cell[name] for cell in cells]
        means[f"{name}_mean"] = None if None in values else round(float(np.mean(values)), 5)
    return {
        "data": first["data"],
        "method": first["method"],
        "title": method.title,
        "private": method.private,
        **means,
        "site_spread_mean": _site_spread(cells),
        "accuracy_std": round(float(np.std(accuracy, ddof=1)), 5) if len(accuracy) > 1 else None,
        "accuracy_by_seed": [round(value, 5) for value in accuracy],
        "own_records_by_seed": [cell["by_site"] for cell in cells],
        "seeds": [cell["seed"] for cell in cells],
        **{key: first[key] for key in ("epsilon", "delta", "rounds", "n_params", "upload_bytes")},
        **({"noise": first["noise"]} if first.get("noise") else {}),
        "cpu_seconds_mean": round(float(np.mean([cell["cpu_seconds"] for cell in cells])), 1),
        **_costs(cells),
    }


def _site_spread(cells: list[dict[str, Any]]) -> float | None:
    """Standard deviation between sites on their own records, mean over seeds."""
    spreads = [float(np.std(list(cell["by_site"].values()))) for cell in cells if cell["by_site"]]
    return round(float(np.mean(spreads)), 5) if spreads else None


def _to_target(cells: list[dict[str, Any]], target: float | None) -> dict[str, Any]:
    """Rounds, bytes and processor time until the target was first seen; None where a seed never reached it."""
    resources = {
        "download_bytes": cells[0].get("download_bytes"),
        "peak_bytes_max": max((cell.get("peak_bytes") or 0 for cell in cells), default=0) or None,
    }
    first = [
        next((point for point in cell.get("curve", ()) if target and point["accuracy"] >= target), None)
        for cell in cells
    ]
    found = [point for point in first if point is not None]
    if target is None or len(found) < len(cells):
        return resources | {"rounds_to_target": None, "cpu_seconds_to_target": None}
    return resources | {
        "rounds_to_target": round(float(np.mean([point["round"] for point in found])), 1),
        "cpu_seconds_to_target": round(float(np.mean([point["cpu_seconds"] for point in found])), 1),
    }


def _costs(cells: list[dict[str, Any]]) -> dict[str, Any]:
    """Frozen weights of the image tower, processor time beside what methods share, time to encode where it was done."""
    images = sum(cell.get("encoded_images", 0) for cell in cells)
    encoding = sum(cell.get("encoding_cpu_seconds", 0.0) for cell in cells)
    shared = ("loading_cpu_seconds", "encoding_cpu_seconds")
    without = [cell["cpu_seconds"] - sum(cell.get(key, 0.0) for key in shared) for cell in cells]
    return {
        "image_frozen_bytes": cells[0].get("image_frozen_bytes"),
        "cpu_seconds_without_loading_and_encoding_mean": round(float(np.mean(without)), 1),
        "encoding_cpu_ms_per_image": round(1000 * encoding / images, 3) if images else None,
    }
