"""SECRET. What a real site keeps for itself at the end of a study: its personal adapter, beside the published one."""

from __future__ import annotations

from secure_triplay.client.classes import kept_classes
from secure_triplay.client.journal import Journal
from secure_triplay.client.optimiser import GlobalState
from secure_triplay.client.personal import FOLDER, personal_adapter
from secure_triplay.client.protocols import Learns
from secure_triplay.client.session import Session
from secure_triplay.client.vault import Vault
from secure_triplay.federation.join import JoinedStudy
from secure_triplay.report.card import write_personal_card


def write_personal(
    joined: JoinedStudy, site: str, session: Session, vault: Vault, learns: Learns, journal: Journal
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
    learns.measure_own(personal, own.count)
