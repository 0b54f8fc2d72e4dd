"""Figures of an implementation by other people on the same counts, to hold ours against.

jax_privacy 2.0.0 (Google DeepMind), `auditing.CanaryScoreAuditor` with an explicit threshold, on scores of an
earlier configs/demo.yaml at seed 0, in full and quick: the counts are what both programs are given. It is no
dependency, since it asks for jax; `scores.json` lets anybody try it on the scores of today.
"""

from __future__ import annotations

from typing import Any

from secure_triplay.attacks.epsilon.bounds import Gaussian, Guesses, fdp_bound, steinke_bound

IMPLEMENTATION = "jax_privacy 2.0.0, auditing.CanaryScoreAuditor"
AGREEMENT = 0.01
"""Relative; ours rounds the noise of a Gaussian curve up by at most half a per cent."""

# canaries, guesses, correct, significance, delta, epsilon_one_run, epsilon_one_run_fdp
CASES: tuple[tuple[int, int, int, float, float, float, float], ...] = (
    (20000, 200, 195, 0.05, 5e-06, 2.83248, 3.64244),
    (20000, 1000, 950, 0.05, 5e-06, 2.69100, 3.69267),
    (20000, 1000, 950, 0.05 / 3, 5e-06, 2.61251, 3.36728),
    (20000, 8000, 6104, 0.05, 5e-06, 1.12531, 1.75992),
    (2000, 20, 20, 0.05, 5e-06, 1.79128, 2.29402),
    (2000, 100, 96, 0.05 / 3, 5e-06, 2.12784, 2.98204),
)


def compare() -> dict[str, Any]:
    """Both bounds of each case, theirs and ours, and whether they agree."""
    rows, agree = [], True
    for canaries, made, correct, significance, delta, steinke, fdp in CASES:
        found = Guesses(canaries, made, correct)
        ours = (steinke_bound(found, delta, significance), fdp_bound(Gaussian(), found, delta, significance))
        pairs = zip(ours, (steinke, fdp), strict=True)
        agree = agree and all(abs(mine - other) <= AGREEMENT * max(other, 1.0) for mine, other in pairs)
        rows.append(
            {
                "canaries": canaries,
                "guesses": made,
                "correct": correct,
                "significance": significance,
                "delta": delta,
                "steinke": {"theirs": round(steinke, 4), "ours": round(ours[0], 4)},
                "f_dp_gaussian": {"theirs": round(fdp, 4), "ours": round(ours[1], 4)},
            }
        )
    return {"implementation": IMPLEMENTATION, "agree": agree, "cases": rows}
