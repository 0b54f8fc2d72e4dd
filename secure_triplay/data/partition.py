"""How one data set is divided over simulated sites: seeded, and always disjoint.

Every function returns one ascending index array a site. `iid`, `dirichlet` and `long_tail` give each site
exactly the size that was asked for; `by_domain` and `by_patient` give away every record. The generator is
seeded from the study's public seed: a partition is public, and never uses the generator of noise or keys.

flwr-datasets has partitioners of its own; they need pyarrow, pandas and a hub client, which is more than the
whole rest of this package's data handling, so these few lines are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from secure_triplay.data.records import Codes
from secure_triplay.errors import DataError

Shares: TypeAlias = tuple[Codes, ...]

_WHERE = "data.partition"


def stream(seed: int, purpose: str) -> np.random.Generator:
    """The study's public generator for one purpose; drawing more for one purpose changes no other."""
    return np.random.default_rng([seed, *purpose.encode()])


def site_sizes(total: int, n_sites: int, ratio: float) -> list[int]:
    """`total` records in sites whose sizes fall by equal factors, the first `ratio` times the last.

    Raises DataError where a site would have none.
    """
    sizes = apportion(ratio ** -(np.arange(n_sites) / max(1, n_sites - 1)), total).tolist()
    if not min(sizes):
        raise DataError(
            f"{total:,} records leave a site with none at a ratio of {ratio:g}",
            where=_WHERE,
            fix="lower size_ratio, or give more records",
        )
    return [int(size) for size in sizes]


def iid(n_records: int, sizes: Sequence[int], rng: np.random.Generator) -> Shares:
    """Each site a uniform draw of exactly its size. Raises DataError where there are too few records."""
    _refuse_too_many(n_records, sizes)
    return _cut(rng.permutation(n_records), sizes)


def balanced_dirichlet(labels: Codes, sizes: Sequence[int], alpha: float, rng: np.random.Generator) -> Shares:
    """Each site exactly its size and skewed like `dirichlet`, but all sites together have each class alike.

    A Dirichlet(alpha) draw for each site, scaled to these sizes and class totals by alternating row and column
    scaling (Sinkhorn and Knopp 1967), and rounded. The sites' skew stays; what goes is a federation that as a
    whole hardly knows a class. Raises DataError where there are too few records of a class.
    """
    _refuse_too_many(len(labels), sizes)
    classes = np.unique(labels)
    expected = np.maximum(rng.dirichlet(np.full(len(classes), alpha), size=len(sizes)), 1e-6)
    rows = np.asarray(sizes, dtype=np.float64)
    for _ in range(1000):
        expected *= rows.sum() / len(classes) / expected.sum(axis=0)
        expected *= (rows / expected.sum(axis=1))[:, None]
    counts = np.stack([apportion(row, size) for row, size in zip(expected, sizes, strict=True)])
    return _draw(labels, classes, counts, rng)


def dirichlet(labels: Codes, sizes: Sequence[int], alpha: float, rng: np.random.Generator) -> Shares:
    """Each site exactly its size, its classes drawn from its own prior p ~ Dirichlet(alpha x 1).

    Small alpha: few classes a site (Hsu, Qi and Brown 2019, with a prior for each site). Where sites together
    want more of a class than there is, it is divided in proportion to their wishes, and they draw what they
    lack from their prior over what is left, so that no site is served first. Raises DataError where there are
    too few records.
    """
    _refuse_too_many(len(labels), sizes)
    classes, available = np.unique(labels, return_counts=True)
    prior = np.maximum(rng.dirichlet(np.full(len(classes), alpha), size=len(sizes)), 1e-12)
    counts = np.zeros((len(sizes), len(classes)), dtype=np.int64)
    while (
        lacking := np.asarray(sizes) - counts.sum(axis=1)
    ).any():  # each pass fills a class, or is the last
        left = available - counts.sum(axis=0)
        open_prior = prior * (left > 0)
        open_prior /= open_prior.sum(axis=1, keepdims=True)
        wanted = np.stack([rng.multinomial(n, p) for n, p in zip(lacking, open_prior, strict=True)])
        for column in range(len(classes)):
            total = int(wanted[:, column].sum())
            counts[:, column] += apportion(wanted[:, column], min(total, int(left[column])))
    return _draw(labels, classes, counts, rng)


def _draw(labels: Codes, classes: Codes, counts: Codes, rng: np.random.Generator) -> Shares:
    """Disjoint shares with `counts` (n_sites, n_classes) records of each class."""
    shares: list[list[Codes]] = [[] for _ in counts]
    for column, label in enumerate(classes):
        pool = rng.permutation(np.flatnonzero(labels == label))
        if counts[:, column].sum() > len(pool):
            raise DataError(
                f"the sites together need {counts[:, column].sum():,} records of one class; there are {len(pool):,}",
                where=_WHERE,
                fix="ask for fewer records a site",
            )
        for share, part in zip(shares, _cut(pool, counts[:, column]), strict=True):
            share.append(part)
    return tuple(np.sort(np.concatenate(share)) for share in shares)


def long_tail(labels: Codes, sizes: Sequence[int], imbalance: float, rng: np.random.Generator) -> Shares:
    """Class c of C has a share in proportion to imbalance ** (-c / (C - 1)) over all sites (Cui et al. 2019).

    Each site gets exactly its size. Raises DataError where a class has too few records for that.
    """
    _refuse_too_many(len(labels), sizes)
    classes, available = np.unique(labels, return_counts=True)
    counts = apportion(_tail(len(classes), imbalance), sum(sizes))
    if (counts > available).any():
        raise DataError(
            f"{sum(sizes):,} records with class imbalance {imbalance:g} need {counts.max():,} of one class; "
            f"there are {available[counts.argmax()]:,}",
            where=_WHERE,
            fix=f"ask for {long_tail_total(labels, imbalance):,} at most over all sites, holdouts included",
        )
    chosen = [
        rng.permutation(np.flatnonzero(labels == label))[:count]
        for label, count in zip(classes, counts, strict=True)
    ]
    return _cut(rng.permutation(np.concatenate(chosen)), sizes)


def long_tail_total(labels: Codes, imbalance: float) -> int:
    """The most records that `long_tail` can give away, all sites together."""
    _, available = np.unique(labels, return_counts=True)
    tail = _tail(len(available), imbalance)
    total = int((available / (tail / tail.sum())).min())
    while (apportion(tail, total) > available).any():  # rounding may ask for one too many
        total -= 1
    return total


def by_domain(domains: Codes, n_sites: int, rng: np.random.Generator) -> Shares:
    """Each site one domain; with fewer sites than domains several, with more sites a part of one.

    Domains go to sites in the order of their codes where the numbers agree; every record is given away.
    Raises DataError where a domain has fewer records than sites.
    """
    present, counts = np.unique(domains, return_counts=True)
    if n_sites <= len(present):
        order = np.arange(len(present)) if n_sites == len(present) else np.argsort(-counts, kind="stable")
        owner = _lightest_first(counts[order], n_sites)
        return tuple(
            np.flatnonzero(np.isin(domains, present[order[owner == site]])) for site in range(n_sites)
        )
    sites_of = 1 + apportion(counts, n_sites - len(present))
    shares: list[Codes] = []
    for domain, n_parts in zip(present, sites_of, strict=True):
        pool = rng.permutation(np.flatnonzero(domains == domain))
        if len(pool) < n_parts:
            raise DataError(
                f"{n_sites} sites are too many for {len(present)} domains of {len(domains)} records",
                where=_WHERE,
                fix="name fewer sites",
            )
        shares.extend(np.sort(part) for part in np.array_split(pool, n_parts))
    return tuple(shares)


def by_patient(patients: Codes, n_sites: int, rng: np.random.Generator) -> Shares:
    """Whole patients to sites, in random order to the site with the fewest records.

    No patient is ever at two sites, and every record is given away. Raises DataError where there are fewer
    patients than sites.
    """
    present, counts = np.unique(patients, return_counts=True)
    if len(present) < n_sites:
        raise DataError(
            f"{len(present)} patients cannot be divided over {n_sites} sites",
            where=_WHERE,
            fix="name fewer sites, or give more patients",
        )
    order = rng.permutation(len(present))
    owner = _lightest_first(counts[order], n_sites)
    return tuple(np.flatnonzero(np.isin(patients, present[order[owner == site]])) for site in range(n_sites))


def balanced_draw(labels: Codes, n: int, rng: np.random.Generator, *, where: str = _WHERE) -> Codes:
    """`n` records, ascending, with every class as equally often as the records allow.

    Raises DataError where there are fewer than `n`.
    """
    _refuse_too_many(len(labels), [n], where)
    order = rng.permutation(len(labels))
    turn = np.empty(len(labels), dtype=np.int64)  # first, second, ... of its class
    for label in np.unique(labels):
        of_class = order[labels[order] == label]
        turn[of_class] = np.arange(len(of_class))
    return np.sort(order[np.argsort(turn[order], kind="stable")][:n])


def apportion(weights: NDArray[np.int64] | NDArray[np.float64], total: int) -> NDArray[np.int64]:
    """`total` in whole parts in proportion to `weights` (largest remainders); zero weight gets nothing."""
    whole = float(weights.sum())
    if not whole or not total:
        return np.zeros(len(weights), dtype=np.int64)
    exact = np.asarray(weights, dtype=np.float64) * (total / whole)
    parts = np.floor(exact + 1e-9).astype(np.int64)
    order = np.argsort(parts - exact, kind="stable")
    parts[order[: total - int(parts.sum())]] += 1
    return parts


def _tail(n_classes: int, imbalance: float) -> NDArray[np.float64]:
    return imbalance ** -(np.arange(n_classes) / max(1, n_classes - 1))


def _lightest_first(weights: NDArray[np.int64], n_sites: int) -> NDArray[np.int64]:
    """The site of each item: the one that holds the least so far, so that none stays empty needlessly."""
    held = np.zeros(n_sites, dtype=np.int64)
    owner = np.empty(len(weights), dtype=np.int64)
    for item, weight in enumerate(weights):
        owner[item] = held.argmin()
        held[owner[item]] += weight
    return owner


def _cut(order: Codes, sizes: Sequence[int] | NDArray[np.int64]) -> Shares:
    ends = np.cumsum(sizes)
    return tuple(np.sort(order[end - size : end]) for end, size in zip(ends, sizes, strict=True))


def _refuse_too_many(n_records: int, sizes: Sequence[int], where: str = _WHERE) -> None:
    if sum(sizes) > n_records:
        raise DataError(
            f"{sum(sizes):,} records are asked for; there are {n_records:,}",
            where=where,
            fix="ask for fewer records, or name fewer sites",
        )
