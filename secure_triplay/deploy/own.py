"""SECRET. What a real site keeps for itself: class counts before its first round, a personal adapter after the last."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from secure_triplay.client.classes import Charges, count_classes, kept_classes
from secure_triplay.client.journal import Journal
from secure_triplay.client.optimiser import GlobalState
from secure_triplay.client.personal import FOLDER, Personal, personal_adapter
from secure_triplay.client.session import Session
from secure_triplay.client.vault import Vault
from secure_triplay.config import Study
from secure_triplay.federation.join import JoinedStudy
from secure_triplay.prepare import class_count_rule
from secure_triplay.privacy.noise import NoiseSource
from secure_triplay.report.card import write_personal_card


@runtime_checkable
class KnowsClasses(Protocol):
    """Whatever can say what classes this site trains on."""

    def class_labels(self, records_per_unit: int) -> NDArray[np.int64]:
        """Labels (n,) of its training records, at most so many of each patient."""


class Saves(Protocol):
    """Whatever writes an adapter down."""

    def save(self, state: GlobalState, folder: Path) -> None:
        """Write the adapter that a state publishes."""


@runtime_checkable
class MeasuresOwn(Protocol):
    """Whatever can say how good a personal adapter is here."""

    def measure_own(self, personal: Personal, rounds: int) -> None:
        """Note it in the site's own journal; it is made of updates of so many rounds."""


def count_own_classes(
    study: Study, vault: Vault, accounts: Charges, learns: object, journal: Journal
) -> None:
    """Count the site's classes where the study asks for it: charged, noised, kept in the vault. Raises CryptoError."""
    rule = class_count_rule(study)
    if rule is not None and isinstance(learns, KnowsClasses):
        labels = learns.class_labels(rule.records_per_unit)
        count_classes(vault, accounts, rule, labels, len(study.classes), NoiseSource(), journal.write)


def write_personal(
    joined: JoinedStudy, site: str, session: Session, vault: Vault, learns: Saves, journal: Journal
) -> None:
    """Write the site's personal adapter with its card; where there is none, the journal says why.

    `vault` is the last epoch's. Raises RunError, and CryptoError for kept class counts that are damaged.
    """
    study, own = joined.study, session.own
    counts = kept_classes(vault, len(study.classes))
    personal = personal_adapter(study, own, session.state.published, journal.write, counts)
    if personal is None:
        return
    folder = joined.folder / FOLDER
    learns.save(GlobalState.start(personal.adapter), folder)
    write_personal_card(study, site, own.count, folder, personal.bias)
    if isinstance(learns, MeasuresOwn):
        learns.measure_own(personal, own.count)
