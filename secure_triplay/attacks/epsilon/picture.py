"""The audit's picture: what was told apart, and what the claimed epsilon allows, on log axes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from secure_triplay.attacks.epsilon.bounds import Inverse

_SMALLEST = 1e-5


def draw(
    path: Path,
    measured: tuple[NDArray[np.float64], NDArray[np.float64]],
    ceiling: Inverse | None,
    result: dict[str, Any],
) -> None:
    """A ROC curve of canaries that were in against canaries that were out, with the claim's ceiling, as PNG."""
    claimed, one_run = result["claimed"], result["one_run"]
    figure = Figure(figsize=(6.0, 4.6), dpi=130, layout="constrained")
    axes = figure.add_subplot()
    if ceiling is not None:
        hits = np.geomspace(_SMALLEST, 1, 400)
        axes.plot(
            [ceiling(float(hit)) for hit in hits],
            hits,
            color="#b3261e",
            label=f"ceiling of the claimed epsilon {claimed['epsilon']:g}",
        )
    seen = measured[0] > 0
    axes.plot(measured[0][seen], measured[1][seen], color="#1a5fb4", label="measured on canaries")
    axes.plot([_SMALLEST, 1], [_SMALLEST, 1], color="#888888", linestyle=":", label="guessing")
    axes.set(
        xscale="log",
        yscale="log",
        xlim=(_SMALLEST, 1),
        ylim=(_SMALLEST * 10, 1.05),
        xlabel="false positive rate",
        ylabel="true positive rate",
        title=(
            f"epsilon at least {one_run['f_dp']['lower_bound']:.2f} (95 %), "
            f"about {result['gradient_canary']['estimate']:.2f} (estimate), {claimed['epsilon']:g} claimed"
        ),
    )
    axes.title.set_fontsize(10)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", frameon=False)
    figure.savefig(path, metadata={"Software": None})
