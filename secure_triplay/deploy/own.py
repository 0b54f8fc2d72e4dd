"""SECRET. What a real site keeps for itself at the end of a study: its personal adapter, beside the published one."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from secure_triplay.client.journal import Journal
from secure_triplay.client.optimiser import GlobalState
from secure_triplay.client.personal import FOLDER, personal_adapter
from secure_triplay.client.session import Session
from secure_triplay.federation.join import JoinedStudy
from secure_triplay.report.card import write_personal_card


class Saves(Protocol):
    """Whatever writes an adapter down."""

    def save(self, state: GlobalState, folder: Path) -> None:
        """Write the adapter that a state publishes."""


@runtime_checkable
class MeasuresOwn(Protocol):
    """Whatever can say how good a personal adapter is here."""

    def measure_own(self, adapter: NDArray[np.float32], rounds: int) -> None:
        """Note it in the site's own journal; `adapter` (n_params,) is made of updates of so many rounds."""


def write_personal(joined: JoinedStudy, site: str, session: Session, learns: Saves, journal: Journal) -> None:
    """Write the site's personal adapter with its card; where there is none, the journal says why. Raises RunError."""
    study, own = joined.study, session.own
    adapter = personal_adapter(study, own, session.state.published, journal.write)
    if adapter is None:
        return
    folder = joined.folder / FOLDER
    learns.save(GlobalState.start(adapter), folder)
    write_personal_card(study, site, own.count, folder)
    if isinstance(learns, MeasuresOwn):
        learns.measure_own(adapter, own.count)
