"""SECRET. How frequent a site's classes are, for its own use alone: noised counts that never leave.

They are counted once in a study. In this order, each step on disk before the next one:

    reserved   the charge, in the ledger
    kept       the noised counts, in the vault
    settled    their hash, in the ledger

A site that dies in between goes on from what is kept. Where nothing was kept, nobody saw a count, and it is made anew
under the same charge. Where they were settled and are gone, they are not counted a second time. A site counts when
it opens a key epoch, mostly before its first round; no upload leaves before others countersigned a head of its ledger
that has the charge in it (`accounts`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from secure_triplay.client.journal import Journal
from secure_triplay.client.personal import class_bias
from secure_triplay.client.protocols import Learns
from secure_triplay.client.vault import Vault
from secure_triplay.config import Study
from secure_triplay.constants import class_count_rule
from secure_triplay.errors import CryptoError, PrivacyError
from secure_triplay.ledger.books import Reservation
from secure_triplay.privacy.counts import ClassCountRule, noised_class_counts
from secure_triplay.privacy.noise import NoiseSource

_NAME = "classes"


class Charges(Protocol):
    """What counting asks of the site's accounts."""

    def reserve_class_counts(self) -> Reservation:
        """The one charge for class counts; on disk when this returns. Raises PrivacyError where there is none."""

    def settle(self, reservation: Reservation, content: bytes) -> None:
        """Note the hash of what was made under a reservation. Raises PrivacyError for a second one."""


def count_own_classes(
    study: Study, vault: Vault, accounts: Charges, learns: Learns, journal: Journal
) -> None:
    """Count the site's classes where the study asks for it: charged, noised, kept in the vault. Raises CryptoError."""
    rule = class_count_rule(study)
    if rule is not None:
        labels = learns.class_labels(rule)
        count_classes(vault, accounts, rule, labels, len(study.classes), NoiseSource(), journal.write)


def train_with_own_bias(study: Study, vault: Vault, learns: Learns) -> None:
    """Have the site train with the bias of its kept counts, where the study says so; without one where none are kept.

    Raises CryptoError for counts that are damaged.
    """
    rule = class_count_rule(study)
    counts = None if rule is None else kept_classes(vault, len(study.classes))
    bias = None if rule is None or counts is None else class_bias(counts, rule)
    learns.adjust(bias if study.trains_with_bias else None)


def count_classes(
    vault: Vault,
    accounts: Charges,
    rule: ClassCountRule,
    labels: NDArray[np.int64],
    n_classes: int,
    noise: NoiseSource,
    note: Callable[..., None],
) -> None:
    """Count `labels` (n,), at most `rule.records_per_unit` of each unit, once in a study; the same again is nothing.

    Where the charge is refused, that is noted and the site goes on without counts. Raises CryptoError for kept ones
    that are damaged.
    """
    kept = kept_classes(vault, n_classes)
    try:
        reservation = accounts.reserve_class_counts()
        if kept is None:
            if reservation.released_sha256 is not None:
                note("no class counts", what="they were made before, and are not in the vault any more")
                return
            kept = noised_class_counts(labels, n_classes, rule, noise)
            vault.save(_NAME, kept.astype("<f8").tobytes())
        content = kept.astype("<f8").tobytes()
        if (
            reservation.released_sha256 != hashlib.sha256(content).hexdigest()
        ):  # else nothing is left to be written
            accounts.settle(reservation, content)
    except PrivacyError as error:
        vault.destroy(_NAME)  # what was not charged for, or is not what was charged for, is not used
        note("no class counts", what=error.what)


def kept_classes(vault: Vault, n_classes: int) -> NDArray[np.float64] | None:
    """The noised counts (n_classes,), or None where there are none. Raises CryptoError for anything else."""
    content = vault.load(_NAME)
    if content is None:
        return None
    counts = np.frombuffer(content, "<f8").astype(np.float64) if len(content) == 8 * n_classes else None
    if counts is None or not np.isfinite(counts).all():
        raise CryptoError(
            "the vault holds no class counts of this study",
            where="vault",
            fix="restore the site's folder as a whole; nothing is counted a second time",
        )
    return counts


def carry_classes(vault: Vault, later: Vault) -> None:
    """Take the counts into the next key epoch."""
    content = vault.load(_NAME)
    if content is not None:
        later.save(_NAME, content)
