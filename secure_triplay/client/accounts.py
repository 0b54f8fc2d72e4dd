"""What a site's round asks of its ledger: reserve, be countersigned, settle, note what was opened."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

from secure_triplay.client.witness import Witnesses
from secure_triplay.config import Study
from secure_triplay.crypto.identity import SigningIdentity
from secure_triplay.errors import SecureTriplayError
from secure_triplay.ledger.books import Release, Reservation
from secure_triplay.ledger.entries import Decided, KeyEpoch, RoundClosed
from secure_triplay.ledger.export import export
from secure_triplay.ledger.ledger import Ledger
from secure_triplay.ledger.store import Clock, utc_now
from secure_triplay.ledger.study import simulated_limits, training_release
from secure_triplay.prepare import noise_multiplier
from secure_triplay.wire import Countersignature, HeldHead, LedgerHead, SessionPlan, SumMessage

HARNESS = "simulation harness"


class Accounts(Protocol):
    """The site's accounts, as the round sees them."""

    def reserve(self, round_number: int) -> Reservation:
        """Charge a round; the charge is on disk when this returns. Raises PrivacyError where none is left."""

    def reserved(self, round_number: int) -> Reservation | None:
        """The round's charge, if there is one."""

    def witnesses_of(self, reservation: Reservation) -> int:
        """How many peers countersigned the ledger with this charge in it."""

    def settle(self, reservation: Reservation, content: bytes) -> None:
        """Note the hash of what is about to leave under a reservation; send only after this has returned."""

    def closed(self, message: SumMessage) -> None:
        """Note a sum that was verified, signed by a quorum and opened; the same again writes nothing."""

    def decided(self, what: str) -> None:
        """Note a decision of this site's program in its audit log."""

    def heads(self) -> tuple[LedgerHead, ...]:
        """The ledger's head, for peers to countersign."""

    def countersign(
        self, heads: Iterable[LedgerHead], note: Callable[[SecureTriplayError], None]
    ) -> tuple[tuple[Countersignature, ...], tuple[HeldHead, ...]]:
        """This site's answers to the heads of others."""

    def take_in(self, receipts: Iterable[Countersignature], held: Iterable[HeldHead]) -> None:
        """Keep what peers answered. Raises PrivacyError where one holds a head that this ledger does not have."""


class LedgerAccounts:
    """Accounts in a real ledger in which the study was approved; `release` is what one training round costs."""

    def __init__(
        self,
        ledger: Ledger,
        identity: SigningIdentity,
        plan: SessionPlan,
        release: Release,
        clock: Clock = utc_now,
    ) -> None:
        self._ledger, self._study, self._release = ledger, plan.study, release
        self._witnesses = Witnesses(ledger.chain, identity, [site.identity for site in plan.sites], clock)

    def reserve(self, round_number: int) -> Reservation:
        return self._ledger.reserve(self._release.charge, study=self._study, round=round_number)

    def reserved(self, round_number: int) -> Reservation | None:
        return self._ledger.refresh().reservation((self._study, round_number, self._release.what, 1))

    def witnesses_of(self, reservation: Reservation) -> int:
        return self._witnesses.count_after(reservation.counter)

    def settle(self, reservation: Reservation, content: bytes) -> None:
        self._ledger.settle(reservation, content)

    def closed(self, message: SumMessage) -> None:
        body = RoundClosed(
            study=message.study,
            epoch=message.epoch,
            round=message.round,
            took_part=tuple(header.site for header in message.survivors),
            sum_sha256=message.sha256.hex(),
        )
        if not any(entry.body == body for entry in reversed(self._ledger.chain.entries)):
            self._ledger.record(body)

    def decided(self, what: str) -> None:
        self._ledger.record(Decided(what=what, by="site's program", study=self._study))

    def heads(self) -> tuple[LedgerHead, ...]:
        return self._witnesses.heads()

    def countersign(
        self, heads: Iterable[LedgerHead], note: Callable[[SecureTriplayError], None]
    ) -> tuple[tuple[Countersignature, ...], tuple[HeldHead, ...]]:
        return self._witnesses.countersign(heads, note)

    def take_in(self, receipts: Iterable[Countersignature], held: Iterable[HeldHead]) -> None:
        self._witnesses.take_in(receipts, held)

    def joined(self, plan: SessionPlan) -> None:
        """Note the key epoch that this site takes part in; the same again writes nothing."""
        members = tuple(site.name for site in plan.sites)
        body = KeyEpoch(study=plan.study, epoch=plan.epoch, key_id=plan.key_id.hex(), members=members)
        if not any(entry.body == body for entry in self._ledger.chain.entries):
            self._ledger.record(body)


class SimulatedAccounts(LedgerAccounts):
    """Accounts of one simulated site: a real ledger, signed by an identity that ends with the run."""

    def __init__(
        self, study: Study, site: str, folder: Path, identity: SigningIdentity, plan: SessionPlan
    ) -> None:
        self._folder, self._identity = folder, identity
        ledger = Ledger.create(
            folder, identity, site=site, limits=simulated_limits(study), approved_by=HARNESS
        )
        release = training_release(study, noise_multiplier(study) if study.dp else 0.0)
        ledger.approve(study.sha256, study.study, [release], approved_by=HARNESS)
        super().__init__(ledger, identity, plan, release)
        self.joined(plan)

    def export(self, out: Path) -> None:
        """Write the evidence bundle, and close the ledger."""
        self._ledger.close()
        export(self._folder, out, self._identity, purpose="end of a simulated study")
