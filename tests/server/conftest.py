"""A small federation without models or Flower: identities, plans, and uploads of random ring elements."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
import pytest

from secure_triplay.crypto.identity import SigningIdentity
from secure_triplay.crypto.parameters import MODULUS
from secure_triplay.wire import SessionPlan, Site, Upload, pack_tags

STUDY = "5a" * 32


def packed(coefficients):
    """A chunk's first 3,840 coefficients, and in their words' top four bits the last 256, reduced or not."""
    chunks = []
    for chunk in coefficients.tolist():
        first, last = chunk[:3840], chunk[3840:]
        words = [value | (last[i % 256] >> 4 * (i // 256) & 15) << 60 for i, value in enumerate(first)]
        chunks += [word.to_bytes(8, "little") for word in words]
    return b"".join(chunks)


@dataclass(frozen=True)
class Federation:
    plan: SessionPlan
    signers: dict[str, SigningIdentity]

    @classmethod
    def of(cls, n_sites=4, n_chunks=2, **fields):
        signers = {f"site-{i:04d}": SigningIdentity.generate() for i in range(n_sites)}
        sites = tuple(Site(name, signer.identity) for name, signer in signers.items())
        plan = SessionPlan(
            **{"study": STUDY, "key_id": b"k" * 32, "epoch": 4, "n_chunks": n_chunks, "sites": sites} | fields
        )
        return cls(plan, signers)

    @property
    def names(self):
        return tuple(self.signers)

    def ring(self, seed, n_chunks=None):
        """c0 (n_chunks, 4096) and tags (n_chunks,), uniform below q: what a ciphertext looks like."""
        rng = np.random.default_rng(seed)
        n = self.plan.n_chunks if n_chunks is None else n_chunks
        return rng.integers(0, MODULUS, (n, 4096), np.uint64), rng.integers(0, MODULUS, n, np.uint64)

    def upload(self, site, round=1, *, ring=None, plan=None, signer=None, c0=None):
        """A well-signed upload; `plan` and `signer` make it one of another plan or by another hand."""
        plan = plan or self.plan
        coefficients, tags = ring or self.ring(int.from_bytes(os.urandom(4)), plan.n_chunks)
        return Upload.signed(
            plan,
            signer or self.signers[site],
            round=round,
            site=site,
            c0=packed(coefficients) if c0 is None else c0,
            tags=pack_tags(tags),
            seed=os.urandom(16),
        )


@pytest.fixture(scope="session")
def federation():
    return Federation.of()


@pytest.fixture(scope="session")
def make_federation():
    return Federation.of
