"""What a site keeps for itself costs what it says, and changes nothing that is sent."""

from __future__ import annotations

import numpy as np

from secure_triplay.experiments.personal import STEP, OwnUpdates


def test_a_second_adapter_moves_by_the_sum_in_units_of_its_own_noise():
    rng = np.random.default_rng(0)
    published, updates = rng.normal(size=7).astype(np.float32), rng.normal(size=(9, 7)).astype(np.float32)
    own = OwnUpdates(7, noise_std=0.5)
    for update in updates:
        own.add(update)
    expected = published + STEP * updates.sum(axis=0) / (0.5 * 3)  # nine rounds: deviations grow by three
    assert np.allclose(own.personal(published), expected, rtol=1e-6)


def test_noise_alone_moves_it_by_the_step_whatever_the_number_of_rounds():
    rng, n = np.random.default_rng(1), 20_000
    for rounds in (1, 40):
        own = OwnUpdates(n, noise_std=0.02)
        for _ in range(rounds):
            own.add((0.02 * rng.standard_normal(n)).astype(np.float32))
        moved = own.personal(np.zeros(n, np.float32))
        assert abs(moved.std() / STEP - 1) < 0.03  # 6 standard deviations of 20,000 draws


def test_without_a_round_it_is_the_published_adapter():
    published = np.arange(3, dtype=np.float32)
    assert np.array_equal(OwnUpdates(3, 1.0).personal(published), published)
