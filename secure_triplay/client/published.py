"""The round after the last: noised counts of held-back records, through the same path as every update.

The two counts travel as an update that is no update: each stands in every other coordinate, scaled to the codec's
public range. The codec rounds each coordinate by itself, so the mean over half of them brings the noised count back
to a fraction of a record. Nothing about one site leaves it but its noised pair, inside the encrypted sum.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from secure_triplay.crypto.codec import Codec
from secure_triplay.privacy.counts import CountRule, noised_counts
from secure_triplay.privacy.noise import NoiseSource


class Counts(Protocol):
    """Whatever counts this site's held-back records under an adapter -> (right answers, records)."""

    def __call__(self, adapter: NDArray[np.float32]) -> tuple[int, int]: ...


@dataclass(frozen=True)
class Published:
    """What a site releases in the count round; `count` sees at most `rule.records_per_unit` records of each unit."""

    rule: CountRule
    count: Counts
    noise: NoiseSource

    def as_update(self, adapter: NDArray[np.float32], codec: Codec) -> NDArray[np.float32]:
        """The noised counts under the published adapter, in the shape of an update (n_params,)."""
        pair = noised_counts(*self.count(adapter), self.rule, self.noise) * (codec.limit / self.rule.largest)
        return np.resize(pair, codec.n_params).astype(np.float32)

    def read(self, mean: NDArray[np.float64], n_sites: int, codec: Codec) -> tuple[float, float]:
        """(right answers, records) of all sites together, noise of each included, from the mean update (n_params,)."""
        scale = n_sites * self.rule.largest / codec.limit
        return float(mean[0::2].mean()) * scale, float(mean[1::2].mean()) * scale
