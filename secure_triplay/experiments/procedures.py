"""The procedures that methods of a grid run: each turns a setting into answers, through one interface."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from secure_triplay.config import Study
from secure_triplay.experiments import others, ours, plain
from secure_triplay.experiments.methods import FEDERATED
from secure_triplay.experiments.scores import Result
from secure_triplay.experiments.setting import Setting

PROCEDURES: dict[str, Callable[[Setting, Study], Result]] = {
    "start": ours.start,
    FEDERATED: ours.federated,
    "rounds alone": ours.alone,
    "own updates": ours.with_own_updates,
    "adjusted": partial(ours.tail_aware, adjust=True, synthetic=False),
    "synthesised": partial(ours.tail_aware, adjust=False, synthetic=True),
    "adjusted and synthesised": partial(ours.tail_aware, adjust=True, synthetic=True),
    "alternating": ours.alternating,
    "alone": plain.alone,
    "central": plain.central,
    "local epochs": partial(plain.local_epochs, proximal=0.0),
    "proximal epochs": partial(plain.local_epochs, proximal=0.01),
    "fedclip": others.fedclip,
    "fedavg-tower": others.fedavg_tower,
    "fedavg-cnn": others.fedavg_cnn,
}
