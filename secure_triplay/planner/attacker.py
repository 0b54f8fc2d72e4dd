"""What an epsilon leaves to an attacker: ceilings on membership inference and on picking a record out.

Ceilings, not forecasts: no attack on this training does better, whatever it knows besides, as long as the
guarantee holds. It may know the code, every other record, every round's update and the final adapter; that
is more than a server sees. What it does not bound: what is true of a patient whether or not they took part.

Two statements of each. The *exact* one is the trade-off function of the very steps that run, composed
(Dong, Roth and Su 2022, definition 2.1 and theorem 3.2). The *region* is what (epsilon, delta) alone
implies for any mechanism (Kairouz, Oh and Viswanath 2015, theorem 2.1); it is looser.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from secure_triplay.errors import PrivacyError
from secure_triplay.planner.losses import Losses
from secure_triplay.privacy.region import hit_rate_in_region

FALSE_ALARM_RATES = (0.01, 0.001)
GALLERIES = (10, 100, 1000)


@dataclass(frozen=True)
class Ceiling:
    """The most that an attacker reaches: by the exact trade-off where known, and by (epsilon, delta)."""

    chance: float  # what guessing reaches without seeing anything
    region: float
    exact: float | None

    @property
    def tight(self) -> float:
        """The smaller of the two; both hold."""
        return self.region if self.exact is None else min(self.exact, self.region)


def membership_ceiling(
    false_alarm_rate: float, epsilon: float, delta: float, losses: Losses | None = None
) -> Ceiling:
    """Largest true positive rate of any test "did this unit take part?" at that false positive rate.

    Raises PrivacyError for a rate outside [0, 1] or an impossible epsilon or delta.
    """
    region = hit_rate_in_region(false_alarm_rate, epsilon, delta)
    return Ceiling(false_alarm_rate, region, losses.hit_rate(false_alarm_rate) if losses else None)


def gallery_ceiling(size: int, epsilon: float, delta: float, losses: Losses | None = None) -> Ceiling:
    """Largest chance to name the one unit out of a gallery of `size` that took part.

    Assumed: exactly one of the gallery took part, each equally likely beforehand; the attacker knows all
    `size` records and everybody else's. Then the ceiling is the true positive rate at false positive rate
    1/size. Why: let Q be the outcome without any of them, P_i with the i-th, and A_i the outcomes on which
    the attacker names i. The A_i do not overlap, so the Q(A_i) add up to at most 1. Under add/remove,
    P_i(A_i) <= g(Q(A_i)), where g(false alarms) is the largest hit rate. g is concave, so the mean of the
    P_i(A_i) is at most g(mean of Q(A_i)) <= g(1/size) (Jensen). With beliefs that are not equal, 1/size
    becomes the largest of them. It is the reconstruction bound of Hayes, Mahloujifar and Balle (2023,
    theorem 2) at prior 1/size. For pure epsilon it reads at most e^epsilon / size.

    The often quoted e^epsilon / (e^epsilon + size - 1) is not used: it needs neighbours by *replacing* a
    record, and is too small under adding or removing one (a counterexample stands in the tests).
    """
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise PrivacyError(
            f"a gallery of {size!r} records makes no sense", where="gallery", fix="give 1 or more"
        )
    return membership_ceiling(1 / size, epsilon, delta, losses)


def group_guarantee(epsilon: float, delta: float, members: int) -> tuple[float, float]:
    """(epsilon, delta) for `members` units together, from one unit's alone (Vadhan 2017, lemma 2.2).

    k epsilon, and delta (e^(k epsilon) - 1) / (e^epsilon - 1), which soon means nothing: hence the exact
    figure of `planner.losses.composed(..., group=k)` beside it.
    """
    whole = members * epsilon
    if whole > 700:
        return whole, 1.0
    return whole, min(1.0, delta * math.expm1(whole) / math.expm1(epsilon))
