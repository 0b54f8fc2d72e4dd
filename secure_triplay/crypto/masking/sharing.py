"""Shamir's secret sharing (1979) over GF(2^128), by PyCryptodome: 16-byte secrets, 16-byte shares, indices from 1."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations, islice

from Crypto.Protocol.SecretSharing import Shamir

MAX_TRIES = 64
"""Sets of shares that are tried when some shares are wrong."""


def split(secret: bytes, threshold: int, holders: int) -> list[bytes]:
    """Shares (holders,) of a 16-byte secret; any `threshold` give it back, fewer tell nothing."""
    return [share for _, share in Shamir.split(threshold, holders, secret, False)]


def combine(shares: Mapping[int, bytes], threshold: int, right: Callable[[bytes], bool]) -> bytes | None:
    """The secret that `right` knows again, from shares by index, of which a few may be wrong; None if not found."""
    for chosen in islice(_choices(sorted(shares), threshold), MAX_TRIES):
        secret: bytes = Shamir.combine([(index, shares[index]) for index in chosen], False)
        if right(secret):
            return secret
    return None


def _choices(indices: Sequence[int], size: int) -> Iterator[tuple[int, ...]]:
    """Runs on the circle of indices first: with one share to spare, a run leaves out any single wrong one."""
    if len(indices) > size:
        for start in range(len(indices)):
            yield tuple(indices[(start + step) % len(indices)] for step in range(size))
    yield from combinations(indices, size)
