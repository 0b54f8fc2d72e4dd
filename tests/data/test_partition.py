from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from secure_triplay.data.partition import (
    apportion,
    balanced_draw,
    by_domain,
    by_patient,
    dirichlet,
    iid,
    long_tail,
    long_tail_total,
    stream,
)
from secure_triplay.errors import DataError

seeds = st.integers(0, 2**63)
codes = st.lists(st.integers(0, 6), min_size=1, max_size=120).map(
    lambda values: np.array(values, dtype=np.int64)
)


@st.composite
def labels_and_sizes(draw: Any) -> tuple[np.ndarray, list[int]]:
    """Any labels, and sizes of up to six sites that they suffice for; a site may want nothing, or all."""
    labels = draw(codes)
    cuts = sorted(draw(st.lists(st.integers(0, len(labels)), min_size=1, max_size=6)))
    return labels, np.diff([0, *cuts]).tolist()


def assert_disjoint(shares: tuple[np.ndarray, ...], n_records: int) -> None:
    taken = [int(index) for share in shares for index in share]
    assert len(set(taken)) == len(taken)
    assert all(0 <= index < n_records for index in taken)


@given(labels_and_sizes(), seeds)
def test_iid_shares_are_disjoint_and_exactly_as_large_as_asked(case: Any, seed: int) -> None:
    labels, sizes = case
    shares = iid(len(labels), sizes, stream(seed, "sites"))
    assert_disjoint(shares, len(labels))
    assert [len(share) for share in shares] == sizes


@given(labels_and_sizes(), seeds, st.sampled_from([1e-3, 0.1, 0.3, 1.0, 100.0]))
def test_dirichlet_shares_are_disjoint_and_as_large_as_asked(case: Any, seed: int, alpha: float) -> None:
    labels, sizes = case
    shares = dirichlet(labels, sizes, alpha, stream(seed, "sites"))
    assert_disjoint(shares, len(labels))
    assert [len(share) for share in shares] == sizes


@given(codes, st.integers(1, 5), seeds, st.sampled_from([1.0, 5.0, 50.0, 1000.0]))
def test_long_tail_shares_are_disjoint_exact_and_have_the_asked_class_counts(
    labels: np.ndarray, n_sites: int, seed: int, imbalance: float
) -> None:
    total = long_tail_total(labels, imbalance)
    sizes = apportion(np.ones(n_sites), total).tolist()
    shares = long_tail(labels, sizes, imbalance, stream(seed, "sites"))
    assert_disjoint(shares, len(labels))
    assert [len(share) for share in shares] == sizes
    n_classes = len(np.unique(labels))
    expected = [imbalance ** (-c / max(1, n_classes - 1)) for c in range(n_classes)]
    counts = np.unique(labels[np.concatenate(shares)], return_counts=True)
    for label, wanted in zip(np.unique(labels), np.array(expected) / sum(expected) * total, strict=True):
        found = dict(zip(*counts, strict=True)).get(label, 0)
        assert abs(found - wanted) <= 1


@given(codes, st.integers(1, 6), seeds)
def test_a_domain_partition_gives_away_every_record_once(
    domains: np.ndarray, n_sites: int, seed: int
) -> None:
    try:
        shares = by_domain(domains, n_sites, stream(seed, "sites"))
    except DataError:
        assert n_sites > len(np.unique(domains))
        return
    assert len(shares) == n_sites
    assert all(len(share) for share in shares)
    assert_disjoint(shares, len(domains))
    assert sum(len(share) for share in shares) == len(domains)
    if n_sites >= len(np.unique(domains)):
        assert all(len(np.unique(domains[share])) == 1 for share in shares)
    else:
        held = [domain for share in shares for domain in np.unique(domains[share])]
        assert len(held) == len(np.unique(domains))  # no domain is torn apart needlessly


@given(codes, st.integers(1, 7), seeds)
def test_no_patient_is_at_two_sites_and_every_record_at_one(
    patients: np.ndarray, n_sites: int, seed: int
) -> None:
    if n_sites > len(np.unique(patients)):
        with pytest.raises(DataError, match="patients cannot be divided"):
            by_patient(patients, n_sites, stream(seed, "sites"))
        return
    shares = by_patient(patients, n_sites, stream(seed, "sites"))
    assert_disjoint(shares, len(patients))
    assert sum(len(share) for share in shares) == len(patients)
    held = [patient for share in shares for patient in np.unique(patients[share])]
    assert len(held) == len(set(held)) == len(np.unique(patients))
    assert all(len(share) for share in shares)


@given(codes, st.data(), seeds)
def test_a_balanced_draw_is_as_even_as_the_records_allow(labels: np.ndarray, data: Any, seed: int) -> None:
    n = data.draw(st.integers(0, len(labels)))
    drawn = balanced_draw(labels, n, stream(seed, "public"))
    assert_disjoint((drawn,), len(labels))
    assert len(drawn) == n
    for label in np.unique(labels):
        mine, there = int((labels[drawn] == label).sum()), int((labels == label).sum())
        most = max(int((labels[drawn] == other).sum()) for other in np.unique(labels))
        assert mine >= min(there, most - 1)


@given(st.lists(st.integers(0, 50), min_size=1, max_size=8), st.integers(0, 200))
def test_apportioning_gives_whole_parts_within_one_of_the_exact_ones(weights: list[int], total: int) -> None:
    parts = apportion(np.array(weights), total)
    if not sum(weights):
        assert not parts.any()
        return
    assert parts.sum() == total
    for part, weight in zip(parts, weights, strict=True):
        assert abs(part - total * weight / sum(weights)) < 1
        assert part == 0 or weight


def test_the_seed_decides_the_partition() -> None:
    labels = np.arange(1000) % 10
    first, again, other = (dirichlet(labels, [200] * 3, 0.3, stream(seed, "sites")) for seed in (1, 1, 2))
    for mine, same in zip(first, again, strict=True):
        np.testing.assert_array_equal(mine, same)
    assert any(not np.array_equal(mine, different) for mine, different in zip(first, other, strict=True))


def test_streams_of_two_purposes_are_independent_of_each_other() -> None:
    assert stream(0, "public").integers(2**60) != stream(0, "test").integers(2**60)
    assert stream(0, "public").integers(2**60) == stream(0, "public").integers(2**60)


def test_small_alpha_gives_a_site_few_classes_and_large_alpha_all_alike() -> None:
    labels = np.arange(50_000) % 10

    def largest_class(alpha: float) -> float:
        shares = dirichlet(labels, [500] * 20, alpha, stream(0, "sites"))
        return float(np.mean([np.bincount(labels[share], minlength=10).max() / 500 for share in shares]))

    assert largest_class(0.05) > 0.75
    assert largest_class(1000) < 0.16


def test_class_shares_of_a_site_follow_a_dirichlet_prior() -> None:
    """With records in plenty, class shares have mean 1/C and variance (C-1) / (C^2 (C alpha + 1))."""
    labels, alpha = np.arange(400_000) % 4, 0.5
    shares = dirichlet(labels, [200] * 400, alpha, stream(3, "sites"))
    fractions = np.stack([np.bincount(labels[share], minlength=4) / 200 for share in shares])
    prior = 3 / (16 * (4 * alpha + 1))
    expected = prior * (1 - 1 / 200) + 0.25 * 0.75 / 200  # the prior's, and that of 200 draws from it
    np.testing.assert_allclose(fractions.mean(axis=0), 0.25, atol=0.05)
    np.testing.assert_allclose(fractions.var(axis=0).mean(), expected, rtol=0.1)


def test_where_a_class_runs_short_no_site_is_served_first() -> None:
    """Over many seeds, the first site and the last one get equally much of the rare class."""
    labels = np.repeat([0, 1], [900, 100])
    rare = np.zeros(4)
    for seed in range(200):
        for site, share in enumerate(dirichlet(labels, [250] * 4, 1.0, stream(seed, "sites"))):
            rare[site] += (labels[share] == 1).sum()
    assert rare.sum() == 200 * 100
    assert rare.max() / rare.min() < 1.3


def test_domains_keep_their_order_where_sites_and_domains_agree() -> None:
    domains = np.array([2, 0, 1, 2, 0])
    assert [share.tolist() for share in by_domain(domains, 3, stream(0, "sites"))] == [[1, 4], [2], [0, 3]]


def test_patients_are_divided_so_that_sites_are_of_like_size() -> None:
    patients = np.repeat(np.arange(200), np.random.default_rng(0).integers(1, 20, 200))
    sizes = [len(share) for share in by_patient(patients, 4, stream(0, "sites"))]
    assert max(sizes) - min(sizes) < 20


@pytest.mark.parametrize("divide", [
    lambda labels, sizes, rng: iid(len(labels), sizes, rng),
    lambda labels, sizes, rng: dirichlet(labels, sizes, 0.3, rng),
    lambda labels, sizes, rng: long_tail(labels, sizes, 10.0, rng),
])  # fmt: skip
def test_more_records_than_there_are_is_an_error_that_says_so(divide: Any) -> None:
    with pytest.raises(DataError, match="21 records are asked for; there are 20"):
        divide(np.arange(20) % 3, [10, 11], stream(0, "sites"))


def test_a_long_tail_that_does_not_fit_names_the_most_that_does() -> None:
    labels = np.repeat(np.arange(10), 6000)
    with pytest.raises(DataError, match="16,") as caught:
        long_tail(labels, [2200] * 8, 50.0, stream(0, "sites"))
    most = long_tail_total(labels, 50.0)
    assert f"{most:,} at most" in caught.value.fix
    long_tail(labels, [most], 50.0, stream(0, "sites"))
    with pytest.raises(DataError):
        long_tail(labels, [most + 3], 50.0, stream(0, "sites"))
