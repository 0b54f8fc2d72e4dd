"""A masked round in one process: real keys, signatures and shares, and a server that only relays."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest

from secure_triplay.client.masking import MaskingSite
from secure_triplay.crypto.identity import SigningIdentity
from secure_triplay.crypto.masking import (
    MaskContext,
    MaskingParameters,
    masked_codec,
    recover,
    remove_masks,
)

STEPS = ("advertise", "share", "mask", "agree", "reveal")
SIGNERS = {f"site-{i:02d}": SigningIdentity.generate() for i in range(64)}


class Store(dict):
    """Bytes by name, as the vault keeps them."""

    def save(self, name, content):
        self[name] = content

    def load(self, name):
        return self.get(name)


class Round:
    """All sites of one round; `present(step)` says who answers in a step. Every attribute is for tests to look at."""

    def __init__(self, n, *, colluders=0, dropouts=0, threshold=None, number=1, n_params=5, seed=0):
        names = sorted(SIGNERS)[:n]
        self.parameters = MaskingParameters.choose(
            n, colluders=colluders, dropouts=dropouts, threshold=threshold
        )
        roster = {name: SIGNERS[name].identity for name in names}
        self.context = MaskContext("ab" * 32, 1, number, roster, self.parameters, b"public seed")
        self.codec = masked_codec(n_sites=n, value_bits=4, n_params=n_params, limit=1.0)
        self.stores = defaultdict(Store)
        self.sites = {name: self.restarted(name) for name in names}
        draw = np.random.default_rng(seed)
        self.values = {
            name: draw.integers(0, 2 * self.codec.levels, n_params, endpoint=True) for name in names
        }

    def restarted(self, name):
        """The site as it comes up again from what it had kept."""
        return MaskingSite(self.context, name, SIGNERS[name], self.stores[name])

    def run(self, present=None, before=None):
        """Sums after unmasking; raises as the sites or the server do. `before(step)` may meddle."""
        here = list(self.sites) if present is None else None
        before = before or (lambda step: None)
        who = dict.fromkeys(STEPS, here) if present is None else present
        before("advertise")
        self.keys = [self.sites[name].advertise() for name in who["advertise"]]
        before("share")
        self.sealed = [self.sites[name].share(self.keys) for name in who["share"]]
        self.members = tuple(sorted(who["share"]))
        before("mask")
        self.uploads, self.masked_with = {}, {}
        for name in who["mask"]:
            self.mask(name)
        self.survivors = tuple(sorted(who["mask"]))
        before("agree")
        self.signers = []
        for name in who["agree"]:
            self.sites[name].agree(self.survivors, self.masked_with)
            self.signers.append(name)
        before("reveal")
        self.revealed = [self.sites[name].reveal(self.survivors, self.signers) for name in who["reveal"]]
        return self.unmask()

    def mask(self, name):
        """One site's masked upload, and with whom it masked."""
        self.uploads[name], self.masked_with[name] = self.sites[name].mask(
            self.codec, self.members, self.sealed_to(name), self.values[name]
        )
        return self.uploads[name]

    def sealed_to(self, name):
        """What the server hands on to one site."""
        return {one.site: one.sealed[name] for one in self.sealed if name in one.sealed}

    def unmask(self):
        by_site = {one.site: one for one in self.keys}
        self.recovered = recover(self.context, by_site, self.members, self.survivors, self.revealed)
        total = sum(self.uploads[name] for name in self.survivors)
        return remove_masks(
            self.context, self.codec, by_site, self.members, self.survivors, self.recovered, total
        )

    def plain_sums(self):
        """The slow oracle: Python's integers, one after the other."""
        return [
            sum(int(self.values[name][at]) for name in self.survivors) for at in range(self.codec.n_params)
        ]


@pytest.fixture
def new_round():
    return Round
