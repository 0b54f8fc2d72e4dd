"""A budget plan as a page that stands alone, with its two plots.

The plots are drawn here and not by matplotlib, whose import alone would take a quarter of the time that a
plan may take. They hold numbers and our own words only.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from secure_triplay import durable
from secure_triplay.errors import RunError
from secure_triplay.planner import table
from secure_triplay.planner.plan import BudgetPlan
from secure_triplay.report.html import Plot, render

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _MARGIN = 420, 230, 44, 38, 10


def require_new(folder: Path) -> None:
    """Return nothing if a plan can become this folder: it is not there, or empty. Raises RunError."""
    if os.path.lexists(folder) and not (folder.is_dir() and not any(folder.iterdir())):
        raise RunError(
            "the output folder exists, and nothing is overwritten",
            where=str(folder),
            fix="give another --out, or move the old plan away",
        )


def write_plan(plan: BudgetPlan, folder: Path) -> tuple[Path, ...]:
    """`plan.json`, `plan.html` and two SVG files in a folder that is new or empty: all of them, or none.

    Raises RunError.
    """
    require_new(folder)
    drawings = plots(plan)
    texts = {
        "plan.json": json.dumps(plan.to_dict(), indent=2, ensure_ascii=False) + "\n",
        "plan.html": render("plan.html.j2", plan=plan, plots=drawings, t=table),
        "epsilon-by-noise.svg": _standing_alone(drawings[0].svg),
        "epsilon-by-rounds.svg": _standing_alone(drawings[1].svg),
    }
    try:
        with durable.new_folder(folder.absolute()) as draft:
            for name, text in texts.items():
                durable.replace(draft / name, text.encode())
    except OSError as error:
        raise RunError(
            f"the folder of the plan cannot be used: {error.strerror}",
            where=str(folder),
            fix="check that the folder above it is yours, and that the disk has room",
        ) from error
    return tuple(folder / name for name in texts)


def plots(plan: BudgetPlan) -> tuple[Plot, Plot]:
    """Epsilon against noise over the study's steps, and against rounds at the chosen noise."""
    at = plan.chosen
    return (
        Plot(
            "ε against noise",
            f"Over {at.steps:,} steps. Less noise is paid in privacy. The dot is the plan.",
            _line(
                plan.by_noise,
                (at.noise_multiplier, at.epsilon),
                "noise multiplier",
                f"Epsilon falls as noise grows; {at.epsilon:.4g} at {at.noise_multiplier:.4g}.",
            ),
        ),
        Plot(
            "ε against rounds",
            f"At a noise multiplier of {at.noise_multiplier:.4g}. Every round costs.",
            _line(
                [(float(n), e) for n, e in plan.by_rounds],
                (float(at.rounds), at.epsilon),
                "rounds",
                f"Epsilon grows with rounds; {at.epsilon:.4g} after {at.rounds}.",
            ),
        ),
    )


def _line(points: Sequence[tuple[float, float]], dot: tuple[float, float], xlabel: str, alt: str) -> Markup:
    xs, ys = _ticks(max(x for x, _ in points)), _ticks(max(y for _, y in points))
    right, top = xs[-1], ys[-1]

    def at(x: float, y: float) -> tuple[float, float]:
        return (
            _LEFT + (_WIDTH - _LEFT - _MARGIN) * x / right,
            _HEIGHT - _BOTTOM - (_HEIGHT - _BOTTOM - _MARGIN) * y / top,
        )

    parts = []
    for y in ys:
        left, height = at(0, y)
        parts.append(f'<path d="M{left:.1f} {height:.1f}H{_WIDTH - _MARGIN}" stroke="var(--line)"/>')
        parts.append(_text(left - 6, height + 4, f"{y:g}", "end"))
    for x in xs:
        along, _ = at(x, 0)
        parts.append(_text(along, _HEIGHT - 22, f"{x:g}"))
    parts.append(_text((_WIDTH + _LEFT) / 2, _HEIGHT - 5, xlabel))
    parts.append(_text(12, _HEIGHT / 2 - 10, "ε"))
    path = " ".join("{:.1f},{:.1f}".format(*at(x, y)) for x, y in points)
    parts.append(f'<polyline points="{path}" fill="none" stroke="var(--accent)" stroke-width="2.4"/>')
    cx, cy = at(*dot)
    parts.append(f'<circle cx="{cx:.1f}" cy="{cy:.1f}" r="4.5" fill="var(--accent)"/>')
    head = Markup('<svg class="plot" role="img" aria-label="{}" viewBox="0 0 {} {}" font-size="12">')
    # Numbers and our own words only, so nothing in it needs escaping.
    return head.format(alt, _WIDTH, _HEIGHT) + Markup("".join(parts) + "</svg>")  # noqa: S704


def _text(x: float, y: float, words: str, anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="var(--muted)">{words}</text>'


def _ticks(most: float) -> list[float]:
    """Round figures from 0 to at least `most`, about five of them."""
    size = 10.0 ** math.floor(math.log10(most / 4))
    step = next(size * factor for factor in (1, 2, 2.5, 5, 10) if size * factor * 5 >= most)
    return [step * i for i in range(math.ceil(most / step - 1e-9) + 1)]


def _standing_alone(svg: Markup) -> str:
    """The same drawing as a file of its own: the page's colours written out, on white."""
    text = str(svg).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" font-family="sans-serif" ', 1)
    head, body = text.split(">", 1)
    body = f'<rect width="100%" height="100%" fill="#ffffff"/>{body}'
    for name, colour in {"line": "#d9e0e6", "muted": "#51606e", "accent": "#0b6a75"}.items():
        body = body.replace(f"var(--{name})", colour)
    return f"{head}>{body}\n"
