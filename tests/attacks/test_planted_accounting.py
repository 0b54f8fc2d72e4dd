"""The noise of a study pays for all of its rounds together, by an accountant that is called here directly."""

from __future__ import annotations

import dp_accounting
import pytest
from dp_accounting.pld import PLDAccountant

from secure_triplay.config import load_study
from secure_triplay.constants import noise_multiplier


@pytest.mark.parametrize(("rounds", "steps"), [(16, 1), (4, 5)])
def test_the_noise_of_a_study_keeps_its_epsilon_over_all_rounds_together(root, rounds, steps):
    """Chosen for the steps of one round, it would spend the budget of a whole study in that round."""
    study = load_study(root / "configs" / "demo.yaml")
    training = study.training.model_copy(update={"rounds": rounds, "steps_per_round": steps})
    study = study.model_copy(update={"training": training})
    dp = study.dp
    one_step = dp_accounting.PoissonSampledDpEvent(
        dp.sampling_rate, dp_accounting.GaussianDpEvent(noise_multiplier(study))
    )
    spent = PLDAccountant().compose(one_step, rounds * steps).get_epsilon(dp.delta)
    assert 0.98 * dp.epsilon < spent <= dp.epsilon
