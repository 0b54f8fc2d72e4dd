"""SECRET. A worker for the audit of server blindness: the real one, which also tells the auditor what it holds.

    python -m secure_triplay.attacks.telling SITE-FOLDER STUDY TOLD-FOLDER

At its own site it writes down what the auditor then looks for at the server: each update and adapter, a few images,
the number of records, and the epoch's key. Nothing of this exists in a real worker, and nothing of it is on the wire.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from secure_triplay.client.journal import Journal
from secure_triplay.client.optimiser import GlobalState
from secure_triplay.client.personal import Personal
from secure_triplay.client.protocols import Learns
from secure_triplay.client.published import Published
from secure_triplay.client.round import Trains
from secure_triplay.client.site_learner import SiteLearner, load_learner
from secure_triplay.config import Study
from secure_triplay.crypto.codec import Codec
from secure_triplay.deploy.site.ending import ending_plainly
from secure_triplay.deploy.site.worker import run_worker
from secure_triplay.federation.join import JoinedStudy
from secure_triplay.federation.sitefolder import SiteFolder
from secure_triplay.model.ranks import Ranks
from secure_triplay.privacy.counts import ClassCountRule

IMAGES = 3


class Telling:
    """A learner that writes down what it is given and what it returns, and keeps the last of it in memory."""

    def __init__(self, learns: Learns, told: Path) -> None:
        self._learns, self._told, self._count = learns, told, 0
        self._held: list[object] = []
        told.mkdir(mode=0o700, exist_ok=True)
        if isinstance(learns, SiteLearner):
            records = learns.records
            np.save(told / "images.npy", records.images(range(IMAGES)))
            self._held.append(records.images(range(IMAGES)))
            self._held.append(json.dumps({"records": len(records)}))
            (told / "records.json").write_text(json.dumps(len(records)))

    @property
    def codec(self) -> Codec:
        return self._learns.codec

    @property
    def trainer(self) -> Trains:
        return self

    @property
    def published(self) -> Published | None:
        return self._learns.published

    @property
    def ranks(self) -> Ranks | None:
        return self._learns.ranks

    def update(self, adapter: NDArray[np.float32]) -> NDArray[np.float32]:
        """Train, and write down the update and the adapter that the site ends with by itself."""
        update = self._learns.trainer.update(adapter)
        self._count += 1
        np.save(self._told / f"update-{self._count}.npy", update)
        np.save(self._told / f"local-{self._count}.npy", adapter + update)
        self._held = [*self._held[:2], update, adapter + update]
        return update

    def start(self) -> NDArray[np.float32]:
        return self._learns.start()

    def measure(self, state: GlobalState) -> None:
        """Measure, and write down the global adapter."""
        np.save(self._told / f"global-{state.round}.npy", state.published)
        self._held = [*self._held[:4], state.published]
        self._learns.measure(state)

    def save(self, state: GlobalState, folder: Path) -> None:
        self._learns.save(state, folder)

    def measure_own(self, personal: Personal, rounds: int) -> None:
        self._learns.measure_own(personal, rounds)

    def class_labels(self, rule: ClassCountRule) -> NDArray[np.int64]:
        return self._learns.class_labels(rule)

    def adjust(self, bias: NDArray[np.float32] | None) -> None:
        self._learns.adjust(bias)


def main() -> None:
    """Body of the auditor's worker."""
    folder, study, told = sys.argv[1:4]

    def load(study: Study, name: str, adapter_seed: bytes, journal: Journal, basis: bytes | None) -> Telling:
        return Telling(load_learner(study, name, adapter_seed, journal, basis), Path(told))

    with ending_plainly():
        site = SiteFolder.open(Path(folder))
        run_worker(site, JoinedStudy.open(site, study), load)


if __name__ == "__main__":
    main()
