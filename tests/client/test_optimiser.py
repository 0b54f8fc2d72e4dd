"""The server optimisers against their formulas, written out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from secure_triplay.client.optimiser import GlobalState, step
from secure_triplay.config import ServerOptimiser
from secure_triplay.errors import CryptoError

UPDATES = [np.array([0.5, -1.0, 0.0]), np.array([0.25, 1.0, -2.0])]


def run(rule: ServerOptimiser) -> GlobalState:
    state = GlobalState.start(np.array([1.0, 2.0, 3.0], np.float32))
    for update in UPDATES:
        state = step(state, update, rule)
    return state


def test_fedavg_adds_the_mean_update():
    state = run(ServerOptimiser(kind="fedavg", learning_rate=0.5))
    assert state.adapter == pytest.approx([1.0 + 0.375, 2.0, 3.0 - 1.0])
    assert state.round == 2


def test_fedavgm_keeps_momentum():
    state = run(ServerOptimiser(kind="fedavgm", learning_rate=1.0, momentum=0.5))
    first, second = UPDATES
    assert state.adapter == pytest.approx(np.array([1.0, 2.0, 3.0]) + first + (0.5 * first + second))


def test_fedadam_follows_algorithm_2_of_reddi_2021():
    state = run(ServerOptimiser(kind="fedadam", learning_rate=0.1, beta1=0.9, beta2=0.99, tau=1e-3))
    x, m, v = [1.0, 2.0, 3.0], [0.0] * 3, [0.0] * 3
    for update in UPDATES:
        for i in range(3):
            m[i] = 0.9 * m[i] + 0.1 * update[i]
            v[i] = 0.99 * v[i] + 0.01 * update[i] ** 2
            x[i] += 0.1 * m[i] / (v[i] ** 0.5 + 1e-3)
    assert state.adapter == pytest.approx(x)


def test_published_adapter_is_the_mean_of_the_last_ones():
    state = run(ServerOptimiser(kind="fedavg", average_last=2))
    start = np.array([1.0, 2.0, 3.0])
    assert state.published == pytest.approx((start + UPDATES[0] + start + UPDATES[0] + UPDATES[1]) / 2)


def test_a_state_comes_back_from_its_bytes_bit_by_bit_and_nothing_else_does():
    rng = np.random.default_rng(0)
    state = GlobalState.start(rng.normal(size=50).astype(np.float32))
    rule = ServerOptimiser(kind="fedadam", learning_rate=0.1, average_last=3)
    for _ in range(4):
        state = step(state, rng.normal(size=50), rule)
        back = GlobalState.from_bytes(state.to_bytes())
        assert back.to_bytes() == state.to_bytes()
        assert (back.round, len(back.recent)) == (state.round, len(state.recent))
        assert (back.published == state.published).all()
        following = rng.normal(size=50)
        assert step(back, following, rule).to_bytes() == step(state, following, rule).to_bytes()
    content = state.to_bytes()
    no_values = content[:8] + bytes(8) + b"\xff" * 8  # no value a vector, and any number of vectors
    for bad in (b"", content[:10], content[:-1], content + b"\0", content[:24], no_values):
        with pytest.raises(CryptoError):
            GlobalState.from_bytes(bad)
