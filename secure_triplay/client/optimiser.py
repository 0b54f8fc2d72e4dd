"""The server optimiser, run by every site: from the mean update to the next adapter.

The server holds no adapter, so it cannot step. Every site takes the same deterministic step on the same
decrypted mean, in float64 and element by element, and so all hold the same next adapter.
FedAvg: McMahan 2017; FedAvgM: Hsu 2019; FedAdam: Reddi 2021, algorithm 2 (no bias correction).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from secure_triplay.config import ServerOptimiser
from secure_triplay.errors import CryptoError

Vector = NDArray[np.float64]

_SIZES = struct.Struct(">QQQ")


@dataclass(frozen=True)
class GlobalState:
    """What every site holds alike after a round; all vectors (n_params,) float64.

    `recent` are the last adapters, of which the published one is the mean.
    """

    round: int
    adapter: Vector
    first_moment: Vector
    second_moment: Vector
    recent: tuple[Vector, ...] = ()

    @classmethod
    def start(cls, adapter: NDArray[np.float32]) -> GlobalState:
        """The state before the first round."""
        zeros = np.zeros(len(adapter))
        return cls(0, adapter.astype(np.float64), zeros, zeros)

    @property
    def published(self) -> NDArray[np.float32]:
        """The adapter (n_params,) that a study publishes after this round."""
        mean: Vector = np.mean(self.recent or (self.adapter,), axis=0)
        return mean.astype(np.float32)

    def to_bytes(self) -> bytes:
        """The state for the site's vault, or sealed to a new member: round, sizes, then little-endian float64."""
        vectors = (self.adapter, self.first_moment, self.second_moment, *self.recent)
        sizes = _SIZES.pack(self.round, len(self.adapter), len(vectors))
        return sizes + b"".join(vector.astype("<f8").tobytes() for vector in vectors)

    @classmethod
    def from_bytes(cls, content: bytes) -> GlobalState:
        """The state that `to_bytes` gave. Raises CryptoError for anything else."""
        round_number, size, count = _SIZES.unpack_from(content) if len(content) >= _SIZES.size else (0, 0, 0)
        if not size or count < 3 or len(content) != _SIZES.size + 8 * size * count:
            raise CryptoError(
                "this is no state of a round", where="vault", fix="restore the site's folder as a whole"
            )
        vectors = np.frombuffer(content, "<f8", offset=_SIZES.size).reshape(count, size).astype(np.float64)
        return cls(round_number, vectors[0], vectors[1], vectors[2], tuple(vectors[3:]))


def step(state: GlobalState, mean_update: Vector, rule: ServerOptimiser) -> GlobalState:
    """The next state from the mean update (n_params,) of the round's sites."""
    moved = _RULES[rule.kind](state, mean_update, rule)
    recent = (*state.recent, moved.adapter)[-rule.average_last :]
    return replace(moved, round=state.round + 1, recent=recent)


def _fedavg(state: GlobalState, update: Vector, rule: ServerOptimiser) -> GlobalState:
    return replace(state, adapter=state.adapter + rule.learning_rate * update)


def _fedavgm(state: GlobalState, update: Vector, rule: ServerOptimiser) -> GlobalState:
    velocity = rule.momentum * state.first_moment + update
    return replace(state, adapter=state.adapter + rule.learning_rate * velocity, first_moment=velocity)


def _fedadam(state: GlobalState, update: Vector, rule: ServerOptimiser) -> GlobalState:
    first = rule.beta1 * state.first_moment + (1 - rule.beta1) * update
    second = rule.beta2 * state.second_moment + (1 - rule.beta2) * update**2
    moved = state.adapter + rule.learning_rate * first / (np.sqrt(second) + rule.tau)
    return replace(state, adapter=moved, first_moment=first, second_moment=second)


_RULES: dict[str, Callable[[GlobalState, Vector, ServerOptimiser], GlobalState]] = {
    "fedavg": _fedavg,
    "fedavgm": _fedavgm,
    "fedadam": _fedadam,
}
