"""A worker without CLIP, for benches and tests: its update is a fixed vector; everything else is the real worker.

python -m secure_triplay.deploy.site.light SITE-FOLDER STUDY
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from secure_triplay.client.journal import Journal
from secure_triplay.client.optimiser import GlobalState
from secure_triplay.client.personal import Personal
from secure_triplay.client.published import Published
from secure_triplay.config import Study
from secure_triplay.constants import choose_codec
from secure_triplay.deploy.site.ending import ending_plainly
from secure_triplay.deploy.site.start import start_site
from secure_triplay.deploy.site.worker import run_worker
from secure_triplay.federation.join import JoinedStudy
from secure_triplay.federation.sitefolder import SiteFolder
from secure_triplay.model.ranks import Ranks
from secure_triplay.privacy.counts import ClassCountRule

N_PARAMS = 3000
LINGER_S = 30.0


def update_of(site: str) -> NDArray[np.float32]:
    """What a site always learns; tests know it, the server must not."""
    limit = 0.01
    return np.random.default_rng(list(site.encode())).uniform(-limit, limit, N_PARAMS).astype(np.float32)


class Fixed:
    """A learner whose update does not depend on anything."""

    published: Published | None = None
    ranks: Ranks | None = None

    def __init__(self, study: Study, site: str) -> None:
        self.codec = choose_codec(study, N_PARAMS)
        self._update = update_of(site)

    @property
    def trainer(self) -> Fixed:
        """Itself."""
        return self

    def update(self, adapter: NDArray[np.float32]) -> NDArray[np.float32]:
        """The fixed vector (n_params,)."""
        return self._update

    def start(self) -> NDArray[np.float32]:
        """Zeros (n_params,)."""
        return np.zeros(N_PARAMS, np.float32)

    def measure(self, state: GlobalState) -> None:
        """Nothing."""

    def measure_own(self, personal: Personal, rounds: int) -> None:
        """Nothing."""

    def class_labels(self, rule: ClassCountRule) -> NDArray[np.int64]:
        """No records (0,)."""
        return np.zeros(0, np.int64)

    def adjust(self, bias: NDArray[np.float32] | None) -> None:
        """Nothing."""

    def save(self, state: GlobalState, folder: Path) -> None:
        """Write the published adapter."""
        folder.mkdir(exist_ok=True)
        np.save(folder / "published.npy", state.published)


def load(study: Study, site: str, adapter_seed: bytes, journal: Journal, basis: bytes | None) -> Fixed:
    """The light learner; what it is given besides changes nothing."""
    return Fixed(study, site)


def main() -> None:
    """Body of the process."""
    with ending_plainly():
        folder = SiteFolder.open(Path(sys.argv[1]))
        joined = JoinedStudy.open(folder, sys.argv[2])
        if sys.argv[3:]:
            signal.signal(signal.SIGTERM, signal.default_int_handler)
            command = [sys.executable, "-m", "secure_triplay.deploy.site.light", *sys.argv[1:3]]
            start_site(folder, joined, lambda event: print(event, flush=True), worker_command=command)
        else:
            run_worker(folder, joined, load, reply_after_s=0.0, linger_s=LINGER_S)


if __name__ == "__main__":
    main()
