"""A site's ledger with a small plan, cheap to account for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from secure_triplay.crypto.identity import SigningIdentity
from secure_triplay.ledger.budget import Limits
from secure_triplay.ledger.ledger import TRAINING, Ledger, Release
from secure_triplay.privacy.mechanisms import DpSgdCharge

CHARGE = DpSgdCharge(
    noise_multiplier=4.0, sampling_rate=0.5, steps=1, unit="patient"
)  # 10 rounds: epsilon 2.06
STUDY, OTHER = "a" * 64, "b" * 64
LIMITS = Limits(epsilon_per_study=3.0, epsilon_per_year=6.0, delta=1e-6, max_units=1000, unit="patient")
ROUNDS = 10


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = datetime(2026, 11, 23, 12, tzinfo=UTC)

    def __call__(self) -> datetime:
        self.now += timedelta(seconds=1)
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="session")
def identity() -> SigningIdentity:
    return SigningIdentity.generate()


@pytest.fixture
def make(tmp_path: Path, identity: SigningIdentity, clock: Clock) -> Callable[..., Ledger]:
    """A new ledger in `folder` with study STUDY approved for `rounds` rounds."""

    def build(
        folder: str = "site",
        limits: Limits = LIMITS,
        rounds: int = ROUNDS,
        signer: SigningIdentity = identity,
        **more,
    ) -> Ledger:
        ledger = Ledger.create(
            tmp_path / folder,
            signer,
            site=folder,
            limits=limits,
            approved_by="Dr. Officer",
            clock=clock,
            **more,
        )
        ledger.approve(STUDY, "pilot", [Release(TRAINING, CHARGE, rounds)], approved_by="Dr. Officer")
        return ledger

    return build


@pytest.fixture
def ledger(make: Callable[..., Ledger]) -> Iterator[Ledger]:
    with make() as made:
        yield made


@pytest.fixture
def folder(ledger: Ledger) -> Path:
    return ledger.chain.path.parent
