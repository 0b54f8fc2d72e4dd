"""What a site's round asks of its ledger: reserve before training, settle before sending, note what was opened."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Protocol

from secure_triplay.config import Study
from secure_triplay.crypto.identity import SigningIdentity
from secure_triplay.ledger.books import Release, Reservation
from secure_triplay.ledger.entries import KeyEpoch, RoundClosed
from secure_triplay.ledger.export import export
from secure_triplay.ledger.ledger import Ledger
from secure_triplay.ledger.study import simulated_limits, training_release
from secure_triplay.prepare import noise_multiplier
from secure_triplay.wire import SessionPlan, SumMessage

HARNESS = "simulation harness"


class Accounts(Protocol):
    """The site's accounts, as the round sees them."""

    def reserve(self, round_number: int) -> Reservation:
        """Charge a round; the charge is on disk when this returns. Raises PrivacyError where none is left."""

    def settle(self, reservation: Reservation, content: bytes) -> None:
        """Note the hash of what is about to leave under a reservation; send only after this has returned."""

    def closed(self, message: SumMessage) -> None:
        """Note a sum that was verified and applied."""


class SimulatedAccounts:
    """Accounts of one simulated site: a real ledger, signed by an identity that ends with the run.

    Nobody countersigns it, so its evidence says that a rollback is not excluded.
    """

    def __init__(self, study: Study, site: str, folder: Path, identity: SigningIdentity) -> None:
        self._study, self._folder, self._identity = study.sha256, folder, identity
        self._ledger = Ledger.create(
            folder, identity, site=site, limits=simulated_limits(study), approved_by=HARNESS
        )
        self._release: Release = training_release(study, noise_multiplier(study) if study.dp else 0.0)
        self._ledger.approve(self._study, study.study, [self._release], approved_by=HARNESS)

    def reserve(self, round_number: int) -> Reservation:
        return self._ledger.reserve(self._release.charge, study=self._study, round=round_number)

    def settle(self, reservation: Reservation, content: bytes) -> None:
        self._ledger.settle(reservation, content)

    def closed(self, message: SumMessage) -> None:
        self._ledger.record(
            RoundClosed(
                study=message.study,
                epoch=message.epoch,
                round=message.round,
                took_part=tuple(header.site for header in message.survivors),
                sum_sha256=hashlib.sha256(message.c0 + message.tags).hexdigest(),
            )
        )

    def joined(self, plan: SessionPlan) -> None:
        """Note the key epoch that this site takes part in."""
        members = tuple(site.name for site in plan.sites)
        self._ledger.record(
            KeyEpoch(study=plan.study, epoch=plan.epoch, key_id=plan.key_id.hex(), members=members)
        )

    def export(self, out: Path) -> None:
        """Write the evidence bundle, and close the ledger."""
        self._ledger.close()
        export(self._folder, out, self._identity, purpose="end of a simulated study")
