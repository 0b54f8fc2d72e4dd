"""A worker without CLIP: its update is a fixed vector; everything else is the real worker.

python light_worker.py SITE-FOLDER STUDY
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from secure_triplay.client.journal import Journal
from secure_triplay.client.optimiser import GlobalState
from secure_triplay.config import Study
from secure_triplay.deploy.worker import run_worker
from secure_triplay.federation.join import JoinedStudy
from secure_triplay.federation.sitefolder import SiteFolder
from secure_triplay.prepare import choose_codec

N_PARAMS = 3000


def update_of(site: str) -> np.ndarray:
    """What a site always learns; tests know it, the server must not."""
    limit = 0.01
    return np.random.default_rng(list(site.encode())).uniform(-limit, limit, N_PARAMS).astype(np.float32)


class Fixed:
    """A learner whose update does not depend on anything."""

    published = None

    def __init__(self, study: Study, site: str) -> None:
        self.codec = choose_codec(study, N_PARAMS)
        self._update = update_of(site)

    @property
    def trainer(self) -> Fixed:
        return self

    def update(self, adapter: np.ndarray) -> np.ndarray:
        return self._update

    def start(self) -> np.ndarray:
        return np.zeros(N_PARAMS, np.float32)

    def measure(self, state: GlobalState) -> None:
        pass

    def save(self, state: GlobalState, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        np.save(folder / "published.npy", state.published)


def load(study: Study, site: str, adapter_seed: bytes, journal: Journal) -> Fixed:
    return Fixed(study, site)


if __name__ == "__main__":
    folder = SiteFolder.open(Path(sys.argv[1]))
    run_worker(folder, JoinedStudy.open(folder, sys.argv[2]), load, reply_after_s=0.0, linger_s=30.0)
