"""SECRET. A site's records and model as the worker wants them: `Learns` with the study's real backbone."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from secure_triplay.client.journal import Journal
from secure_triplay.client.learner import Encoded, Learner, encode_records
from secure_triplay.client.optimiser import GlobalState
from secure_triplay.client.personal import Personal
from secure_triplay.client.serve import LoadedSite, load_site, note_personal, published
from secure_triplay.config import Study
from secure_triplay.data.records import Records
from secure_triplay.model.ranks import ranks_of
from secure_triplay.prepare import fetch_assets
from secure_triplay.privacy.noise import NoiseSource


class SiteLearner:
    """The adapter on the frozen backbone, over this site's records; all of them were encoded when it is made."""

    def __init__(self, loaded: LoadedSite, journal: Journal) -> None:
        self._loaded, self._journal = loaded, journal
        self._fresh = loaded.model.adapter.vector()
        train = self._encoded("training", loaded.train)
        self._holdout = self._encoded("held-back", loaded.holdout)
        self._public = self._encoded("public", loaded.public)
        self.records = loaded.train
        self.codec = loaded.codec
        noise = NoiseSource()
        self.ranks = ranks_of(loaded.study, loaded.model.adapter.shapes)
        mine = None if self.ranks is None else self.ranks.trained(loaded.site)
        self.trainer = Learner(loaded.study, loaded.model, noise, train, mine)
        self.published = published(loaded.study, self.trainer, self._holdout, noise)

    def start(self) -> NDArray[np.float32]:
        return self._fresh

    def measure(self, state: GlobalState) -> None:
        if state.round > self._loaded.study.training.rounds:
            return  # the count round trained nothing
        started = time.perf_counter()
        shown = self.trainer.score(state.published, self._public)
        own = self.trainer.score(state.published, self._holdout)
        self._journal.write(
            "measured",
            round=state.round,
            public_correct=shown.correct,
            public_total=shown.total,
            holdout_correct=own.correct,
            holdout_total=own.total,
            seconds=time.perf_counter() - started,
        )

    def class_labels(self, records_per_unit: int) -> NDArray[np.int64]:
        return self.trainer.class_labels(records_per_unit)

    def measure_own(self, personal: Personal, rounds: int) -> None:
        score = self.trainer.score(personal.adapter, self._holdout, personal.bias)
        note_personal(self._journal, rounds, score)

    def save(self, state: GlobalState, folder: Path) -> None:
        self._loaded.model.adapter.load_vector(state.published)
        self._loaded.model.adapter.save(folder)

    def _encoded(self, what: str, records: Records) -> Encoded:
        def tell(done: int, total: int) -> None:
            self._journal.write("encoding", what=what, done=done, total=total)

        return encode_records(self._loaded.model, records, tell)


def load_learner(
    study: Study, site: str, adapter_seed: bytes, journal: Journal, basis: bytes | None
) -> SiteLearner:
    """The site's learner, with assets fetched and checked; `basis` is the bundle's.

    Raises DataError, AssetError, ConfigError or PrivacyError.
    """
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1))
    fetch_assets(study, lambda text: journal.write("fetching", text=text))
    return SiteLearner(load_site(study, site, adapter_seed, journal, basis), journal)
