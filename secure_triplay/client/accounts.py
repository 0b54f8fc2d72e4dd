"""What a site's round asks of its ledger: reserve, be countersigned, settle, note what was opened."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

from secure_triplay.client.witness import Witnesses
from secure_triplay.config import Study
from secure_triplay.crypto.identity import SigningIdentity
from secure_triplay.errors import PrivacyError, SecureTriplayError
from secure_triplay.ledger.books import Release, Reservation
from secure_triplay.ledger.entries import Decided, KeyEpoch, RoundClosed
from secure_triplay.ledger.export import export
from secure_triplay.ledger.ledger import Ledger
from secure_triplay.ledger.store import Clock, utc_now
from secure_triplay.ledger.study import CLASS_COUNTS, simulated_limits, study_releases
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
    """Accounts in a real ledger in which the study was approved with these `releases`, in the order of its rounds."""

    def __init__(
        self,
        ledger: Ledger,
        identity: SigningIdentity,
        plan: SessionPlan,
        releases: tuple[Release, ...],
        clock: Clock = utc_now,
    ) -> None:
        self._ledger, self._study, self._releases = ledger, plan.study, releases
        self._witnesses = Witnesses(ledger.chain, identity, [site.identity for site in plan.sites], clock)

    def reserve(self, round_number: int) -> Reservation:
        release, number = self._of(round_number)
        return self._ledger.reserve(release.charge, study=self._study, round=number, what=release.what)

    def reserved(self, round_number: int) -> Reservation | None:
        release, number = self._of(round_number)
        return self._ledger.refresh().reservation((self._study, number, release.what, 1))

    def witnesses_of(self, reservation: Reservation) -> int:
        """As `Accounts` has it; class counts that were charged later than the round are countersigned first, too."""
        counts = self._ledger.refresh().reservation((self._study, 1, CLASS_COUNTS, 1))
        return self._witnesses.count_after(max(reservation.counter, counts.counter if counts else 0))

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

    def reserve_class_counts(self) -> Reservation:
        """The one charge for class counts, made now or before; on disk when this returns.

        Raises PrivacyError where the study plans none, or the budget does not hold it.
        """
        release = next((each for each in self._releases if each.what == CLASS_COUNTS), None)
        if release is None:
            raise PrivacyError(
                "no count of classes is planned", where="ledger", fix="set personal_bias in the study"
            )
        before = self._ledger.refresh().reservation((self._study, 1, CLASS_COUNTS, 1))
        return before or self._ledger.reserve(release.charge, study=self._study, round=1, what=CLASS_COUNTS)

    def _of(self, round_number: int) -> tuple[Release, int]:
        """The planned release that a round of the protocol is, and its number among its kind."""
        number = round_number
        for release in self._releases:
            if number <= release.times:
                return release, number
            number -= release.times
        raise PrivacyError(
            f"no release is planned for round {round_number}",
            where="ledger",
            fix="look into the server: the study ends earlier",
        )

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
        releases = study_releases(study)
        ledger.approve(study.sha256, study.study, releases, approved_by=HARNESS)
        super().__init__(ledger, identity, plan, releases)
        self.joined(plan)

    def export(self, out: Path) -> None:
        """Write the evidence bundle, and close the ledger."""
        self._ledger.close()
        export(self._folder, out, self._identity, purpose="end of a simulated study")
