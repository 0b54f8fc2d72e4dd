"""What (epsilon, delta) alone implies for any test of who took part, whatever the mechanism was."""

from __future__ import annotations

import math

from secure_triplay.errors import PrivacyError

_STEEPEST = (
    700.0  # e^709 is more than a float holds, and at e^700 no false alarm that anybody counts leaves a bound
)


def hit_rate_in_region(false_alarm_rate: float, epsilon: float, delta: float) -> float:
    """Largest true positive rate that (epsilon, delta) allows: two lines (Kairouz, Oh and Viswanath 2015, theorem 2.1).

    Hits <= e^epsilon x false alarms + delta, and 1 - false alarms <= e^epsilon x (1 - hits) + delta. Raises
    PrivacyError for a rate outside [0, 1] or an impossible epsilon or delta.
    """
    if not 0 <= false_alarm_rate <= 1:
        raise PrivacyError(
            f"a false positive rate of {false_alarm_rate!r} is impossible", where="attacker", fix="0 to 1"
        )
    if not epsilon >= 0 or not 0 <= delta <= 1:
        raise PrivacyError(
            f"epsilon {epsilon!r} at delta {delta!r} is no guarantee", where="attacker", fix="check both"
        )
    if epsilon > _STEEPEST:
        return 1.0
    steep = math.exp(epsilon) * false_alarm_rate + delta
    flat = 1 - math.exp(-epsilon) * max(0.0, 1 - delta - false_alarm_rate)
    return min(1.0, steep, flat)
