"""What noise a cell's study has, and whose word its epsilon is: public constants, to compare kinds of noise by."""

from __future__ import annotations

import math
from typing import Any

from secure_triplay.config import Study
from secure_triplay.constants import choose_codec, epsilon_of_shares, noise_multiplier, round_rule, share_rule
from secure_triplay.privacy.accounting import accountant_of, epsilon
from secure_triplay.privacy.mechanisms import Charge
from secure_triplay.privacy.shares import WRAP_BITS


def noise_of(study: Study, n_params: int) -> dict[str, Any] | None:
    """Noise of a study where all its sites take part in each round; None where it has none.

    `std_of_mean` is of one coordinate of the mean gradient: the sum's over all sites' expected batches.
    """
    dp, n_sites, rule = study.dp, len(study.sites), share_rule(study)
    if dp is None:
        return None
    steps, drawn = study.total_steps, n_sites * dp.expected_batch_size

    def charged(charge: Charge) -> dict[str, Any]:
        return {
            "noise_multiplier": noise_multiplier(study),
            "accountant": accountant_of([charge]),
            "epsilon": round(epsilon([charge] * steps, dp.delta), 5),
        }

    if rule is None:
        own = round_rule(study)
        per_round = own.charge
        std = math.sqrt(n_sites) * own.noise_std / drawn
        return {"kind": "local", "std_of_mean": std, **charged(per_round)}
    alone = epsilon_of_shares(study, 1)
    return {
        "kind": "shared",
        "std_of_mean": math.sqrt(n_sites * rule.share_variance) * rule.grid_step / drawn,
        **charged(rule.charge),
        "honest_shares": rule.honest_shares,
        "colluders": rule.colluders,
        "epsilon_alone": round(alone, 5) if math.isfinite(alone) else None,
        "clip_steps": rule.clip_steps,
        "l2_sensitivity": rule.l2_sensitivity,
        "sum_bits": choose_codec(study, n_params).field_bits,
        "wrap_log2_at_most": -WRAP_BITS,
    }
