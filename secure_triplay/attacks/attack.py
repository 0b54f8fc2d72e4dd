"""What an attack is, for the runner: a name, what it must observe, and a function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from secure_triplay.attacks.finding import Outcome
from secure_triplay.config import Study


class Observable(StrEnum):
    """The closed set of what an adversary can be said to observe."""

    STUDY = "study"
    """The public constants: study file, frozen weights, prompts, roster, the frozen A matrices."""
    UPLOADS = "uploads"
    """The bytes that one site sends in a round (float32 in the arms without encryption)."""
    SUMS = "sums"
    """The bytes of the sums that go back to the sites."""
    TIMING = "timing"
    EVENT_LOG = "event log"
    SERVER_DISK = "server disk"
    DECISIONS = "decisions"
    """Whether a site goes on after a message: an oracle for an active server."""
    SHARED_KEY = "shared key"
    AGGREGATES = "aggregates"
    """Opened sums (the mean update of each round), which every site has."""
    OWN_UPDATES = "own updates"
    RELEASED_ADAPTER = "released adapter"
    UNROUNDED_SUMS = "unrounded sums"
    """Decryptions before rounding, which nobody is given; the defence off."""


@dataclass(frozen=True)
class Setting:
    """What an attack runs on. `seed` fixes everything but keys and ciphertexts; `pictures` is its own folder.

    `tell(done, total)` moves a progress bar.
    """

    study: Study
    seed: int
    quick: bool
    pictures: Path
    tell: Callable[[int, int], None] = lambda done, total: None


@dataclass(frozen=True)
class Attack:
    """An entry of the suite. `needs` is what its observation is built from; a threat model must grant all of it."""

    name: str
    title: str
    source: str
    needs: frozenset[Observable]
    run: Callable[[Setting], Outcome]
