"""From a study's file to what a ledger needs: what it releases, and the limits of a simulated site."""

from __future__ import annotations

from secure_triplay.config import Study
from secure_triplay.errors import PrivacyError
from secure_triplay.ledger.books import Release
from secure_triplay.ledger.budget import Limits, Unprotected
from secure_triplay.ledger.ledger import TRAINING
from secure_triplay.privacy.mechanisms import DpSgdCharge


def training_release(study: Study, noise_multiplier: float) -> Release:
    """The training rounds of a study: what each costs, and how many there are.

    A study without differential privacy has a charge too: one that no budget bounds.
    """
    dp, training = study.dp, study.training
    if dp is None:
        return Release(TRAINING, Unprotected(), training.rounds)
    if noise_multiplier <= 0:
        raise PrivacyError(
            "a study under differential privacy has noise",
            where="noise_multiplier",
            fix="derive it from the study's epsilon",
        )
    charge = DpSgdCharge(noise_multiplier, dp.sampling_rate, training.steps_per_round, dp.unit)
    return Release(TRAINING, charge, training.rounds)


def simulated_limits(study: Study) -> Limits:
    """What a simulated site allows: the study's own epsilon and delta, and nothing beyond it."""
    dp = study.dp
    if dp is None:
        return Limits(1.0, 1.0, delta=1e-6, max_units=10_000, unit="record", unsafe_unlimited=True)
    return Limits(dp.epsilon, dp.epsilon, delta=dp.delta, max_units=dp.max_units_per_site, unit=dp.unit)
