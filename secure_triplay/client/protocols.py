"""What a site brings to a study, as its worker sees it; `site_learner` has the real one. It imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from secure_triplay.client.journal import Journal
from secure_triplay.client.optimiser import GlobalState
from secure_triplay.client.personal import Personal
from secure_triplay.client.published import Published
from secure_triplay.client.round import Trains
from secure_triplay.config import Study
from secure_triplay.crypto.codec import Codec
from secure_triplay.model.ranks import Ranks
from secure_triplay.privacy.counts import ClassCountRule


class Learns(Protocol):
    """It trains, measures and writes down the adapter."""

    @property
    def codec(self) -> Codec:
        """How its updates become integers."""

    @property
    def trainer(self) -> Trains:
        """What turns a global adapter into a private update."""

    @property
    def published(self) -> Published | None:
        """What it releases after the last training round; None where the study publishes no accuracy."""

    @property
    def ranks(self) -> Ranks | None:
        """Who trains which value, where sites' ranks differ."""

    def start(self) -> NDArray[np.float32]:
        """The fresh adapter (n_params,)."""

    def measure(self, state: GlobalState) -> None:
        """Note how good a state is, in the site's own journal."""

    def save(self, state: GlobalState, folder: Path) -> None:
        """Write the published adapter."""

    def measure_own(self, personal: Personal, rounds: int) -> None:
        """Note how good a personal adapter, made of so many rounds' updates, is, in the site's own journal."""

    def class_labels(self, rule: ClassCountRule) -> NDArray[np.int64]:
        """Labels (n,) of those training records that the rule counts."""

    def adjust(self, bias: NDArray[np.float32] | None) -> None:
        """Train from now on with `bias` (n_classes,) added to the logits; None: with nothing added."""


Load = Callable[[Study, str, bytes, Journal, bytes | None], Learns]
"""(study, site, adapter seed, journal, the bundle's basis) -> what the site trains with."""
