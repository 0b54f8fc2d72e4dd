"""One trial on a site's own records: two charges, and one result that is settled before it is written.

Of several searches under one charge, one gets as far as settling. Where a stop comes between settling and writing,
the result is lost: a second one would be a second release for one charge.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secure_triplay.errors import PrivacyError
from secure_triplay.ledger.books import Release, Reservation
from secure_triplay.ledger.ledger import Ledger
from secure_triplay.privacy.mechanisms import DpSgdCharge, GaussianCharge
from secure_triplay.report.summary import write_text


@dataclass(frozen=True)
class PaidTrial:
    """Trial `number` of a search, which the ledger knows as study `search`; its result lies in `folder`."""

    search: str
    number: int
    training: DpSgdCharge
    counts: GaussianCharge
    folder: Path

    @property
    def releases(self) -> tuple[Release, Release]:
        """What it releases, once each."""
        return (
            Release(f"pilot training {self.number}", self.training, 1),
            Release(f"pilot counts {self.number}", self.counts, 1),
        )

    @property
    def path(self) -> Path:
        """The file of its result."""
        return self.folder / f"private-{self.search[:16]}-{self.number}.json"

    def kept(self, ledger: Ledger) -> dict[str, Any] | None:
        """The result, or None where there is none. Raises PrivacyError where it is not what this ledger paid for."""
        try:
            text = self.path.read_bytes()
        except FileNotFoundError:
            return None
        digest = hashlib.sha256(text).hexdigest()
        if any(one is None or one.released_sha256 != digest for one in self._reservations(ledger)):
            raise PrivacyError(
                "this result is not one that the site's ledger has a charge for",
                where=str(self.path),
                fix="give the folder of the site that paid for it; if the file was changed, put it back as it was",
            )
        row: dict[str, Any] = json.loads(text)
        return row

    def refuse_released(self, ledger: Ledger) -> None:
        """Raise PrivacyError where something was released under one of the charges."""
        for one in self._reservations(ledger):
            if one is not None and one.released_sha256 is not None:
                raise PrivacyError(
                    f"the result of {one.what} was settled already and is not here; it is not measured again, which "
                    "would be a second release for one charge",
                    where=str(self.path),
                    fix="go on with the --out that this search was begun with. If a stop lost the file, its charge is "
                    "lost too: another number of --private-rounds is a new search, which is charged anew",
                )

    def reserve(self, ledger: Ledger) -> tuple[Reservation, ...]:
        """Both charges. A trial that was stopped before it was settled released nothing, and keeps its old ones."""
        return tuple(
            ledger.reserve(one.charge, study=self.search, round=1, what=one.what) for one in self.releases
        )

    def release(self, ledger: Ledger, held: tuple[Reservation, ...], row: dict[str, Any]) -> None:
        """Settle a result, and only then write it. Raises PrivacyError where another search settled first."""
        text = json.dumps(row, indent=2) + "\n"
        self.refuse_released(ledger)
        for reservation in held:
            ledger.settle(reservation, text.encode())
        write_text(self.path, text)

    def _reservations(self, ledger: Ledger) -> list[Reservation | None]:
        books = ledger.refresh()
        return [books.reservation((self.search, 1, one.what, 1)) for one in self.releases]
