"""Shamir's secret sharing (1979) modulo a prime below 2^128: 16-byte secrets and shares, indices from 1.

Shares are made by the library `shamirs`. They are put together with Lagrange's weights at zero,

    secret = sum_i w_i share_i,   w_i = prod_(j != i) j / (j - i)   mod p,

kept by set of indices, since all secrets of a round on the complete graph have the same ones; the library inverts
each pair of indices anew for each secret. A test holds the two against each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import combinations, islice

import shamirs

PRIME = 2**128 - 159
"""The largest prime below 2^128."""
MAX_TRIES = 64
"""Sets of shares that are tried when some shares are wrong."""
_BYTES = 16


def split(secret: bytes, threshold: int, holders: int) -> list[bytes]:
    """Shares (holders,) of a 16-byte secret below `PRIME`; any `threshold` give it back, fewer tell nothing."""
    shares = shamirs.shares(int.from_bytes(secret, "big"), holders, modulus=PRIME, threshold=threshold)
    return [share.value.to_bytes(_BYTES, "big") for share in shares]


def combine(shares: Mapping[int, bytes], threshold: int, right: Callable[[bytes], bool]) -> bytes | None:
    """The secret that `right` knows again, from shares by index, of which a few may be wrong; None if not found."""
    values = {index: int.from_bytes(share, "big") for index, share in shares.items()}
    for chosen in islice(_choices(sorted(shares), threshold), MAX_TRIES):
        weighted = sum(w * values[index] for w, index in zip(_weights(chosen), chosen, strict=True))
        secret = (weighted % PRIME).to_bytes(_BYTES, "big")
        if right(secret):
            return secret
    return None


@lru_cache(maxsize=4096)
def _weights(indices: tuple[int, ...]) -> tuple[int, ...]:
    found = []
    for here in indices:
        above = below = 1
        for other in indices:
            if other != here:
                above = above * other % PRIME
                below = below * (other - here) % PRIME
        found.append(above * pow(below, -1, PRIME) % PRIME)
    return tuple(found)


def _choices(indices: Sequence[int], size: int) -> Iterator[tuple[int, ...]]:
    """Runs on the circle of indices first: with one share to spare, a run leaves out any single wrong one."""
    if len(indices) > size:
        for start in range(len(indices)):
            yield tuple(indices[(start + step) % len(indices)] for step in range(size))
    yield from combinations(indices, size)
