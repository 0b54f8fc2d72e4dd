"""The coordinator's audit log of a study: its key epochs and closed rounds, chained and signed.

What stands here is what the sites' own ledgers say of the same rounds, so the two can be held against each other.
The signing key opens nothing: it is the coordinator's, not the sites'.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Self

from secure_triplay.crypto.keyfile import load_identity
from secure_triplay.ledger.entries import Body, KeyEpoch, RoundClosed
from secure_triplay.ledger.log import AuditLog
from secure_triplay.server.archive import Archive
from secure_triplay.wire import SessionPlan


class RoundLog:
    """Writes closed rounds into the log in `folder`; without a folder it writes nothing."""

    def __init__(self, folder: Path | None, plan: SessionPlan) -> None:
        self._plan, self._taken_in = plan, 0
        self._log = None if folder is None else AuditLog.open(folder, load_identity(folder))
        members = tuple(site.name for site in plan.sites)
        self._once(
            KeyEpoch(study=plan.study, epoch=plan.epoch, key_id=plan.key_id.hex(), members=members),
        )

    def take_in(self, archive: Archive, base: int) -> None:
        """Every round of this epoch that is closed and is not in the log yet."""
        for number in range(max(base, self._taken_in) + 1, (archive.last or base) + 1):
            if not archive.is_signed(number):
                return
            total = archive.total(number)
            self._once(
                RoundClosed(
                    study=self._plan.study,
                    epoch=self._plan.epoch,
                    round=number,
                    took_part=tuple(header.site for header in total.survivors),
                    sum_sha256=total.sha256.hex(),
                )
            )
            self._taken_in = number

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._log is not None:
            self._log.close()

    def _once(self, body: Body) -> None:
        if self._log is not None and not any(entry.body == body for entry in self._log.chain.entries):
            self._log.record(body)
