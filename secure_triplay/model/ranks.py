"""Sites of different ranks in one exact sum.

A is public and frozen, and its first r rows are the same for every rank, so a site of rank r trains the first r
columns of each B and leaves zeros in the others (zero-padding: Cho et al. 2024, arXiv 2401.06432, section 3.2, whose
averages the zeros dilute). Here each column's mean is taken over the sites that train it: the divisor follows from
the study's public ranks and weights, and from who took part. A zero encodes as a zero, so sums stay exact.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from secure_triplay.config import Study


@dataclass(frozen=True, eq=False)
class Ranks:
    """Who trains which value: `columns` (n_params,) is each value's column of its B; `rank` is by site."""

    columns: NDArray[np.int64]
    rank: Mapping[str, int]
    weight: Mapping[str, float]

    def trained(self, site: str) -> NDArray[np.bool_]:
        """(n_params,) true where this site trains."""
        mine: NDArray[np.bool_] = self.columns < self.rank[site]
        return mine

    def mean(self, mean_update: NDArray[np.float64], survivors: Sequence[str]) -> NDArray[np.float64]:
        """The plain mean of the survivors' weighted updates (n_params,) -> each column's over who trains it.

        A column that no survivor trains does not move.
        """
        heaviest = max(self.weight.values())
        total = mean_update * len(survivors)
        divisor = np.zeros(int(self.columns.max()) + 1)
        for name in survivors:
            divisor[: self.rank[name]] += self.weight[name] / heaviest
        by_value = divisor[self.columns]
        return np.divide(total, by_value, out=np.zeros_like(total), where=by_value > 0)


def ranks_of(study: Study, shapes: Iterable[tuple[int, ...]]) -> Ranks | None:
    """The study's ranks for B's of these shapes (out, rank), in the adapter's order; None where all are alike."""
    if all(site.rank in (None, study.adapter.rank) for site in study.sites):
        return None
    columns = np.concatenate([np.tile(np.arange(rank), out) for out, rank in shapes])
    return Ranks(
        columns,
        {site.name: site.rank or study.adapter.rank for site in study.sites},
        {site.name: site.weight for site in study.sites},
    )
