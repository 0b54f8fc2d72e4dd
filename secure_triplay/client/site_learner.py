"""SECRET. A site's records and model, ready to learn and to measure: the same in a simulation and at a real site.

`load_site` reads records and weights and needs no key; `SiteLearner` runs the records through the frozen blocks.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from secure_triplay.client.journal import Journal
from secure_triplay.client.learner import (
    Encoded,
    Learner,
    counted_records,
    encode_records,
    require_units,
)
from secure_triplay.client.optimiser import GlobalState
from secure_triplay.client.personal import Personal
from secure_triplay.client.published import Published
from secure_triplay.config import Study
from secure_triplay.constants import choose_codec, count_rule
from secure_triplay.crypto.codec import Codec
from secure_triplay.data.records import Records
from secure_triplay.errors import DataError
from secure_triplay.loading import Model, fetch_assets, load_data, load_model
from secure_triplay.model.ranks import ranks_of
from secure_triplay.privacy.counts import ClassCountRule
from secure_triplay.privacy.noise import NoiseSource


@dataclass(frozen=True)
class LoadedSite:
    """What a site needs before it has a key: its records and the model. `holdout` and `public` are for measuring."""

    study: Study
    site: str
    model: Model
    codec: Codec
    train: Records
    holdout: Records
    public: Records


def load_site(
    study: Study,
    site: str,
    adapter_seed: bytes,
    journal: Journal,
    basis: bytes | None = None,
    *,
    test_part: tuple[int, int] = (0, 1),
) -> LoadedSite:
    """A site's records and the model with a fresh adapter; `basis` is as in `load_model`.

    `test_part` (k, n): of the public test records, this site measures k, k + n, k + 2n, ...
    Raises DataError, AssetError, ConfigError, and PrivacyError for more records than the study's delta counts on.
    """
    split = load_data(study, site)
    mine = split.sites[site]
    public = split.test.take(np.arange(test_part[0], len(split.test), test_part[1]))
    _require_usable(study, mine.train, split.test)
    model = load_model(study, split.public, adapter_seed, basis)
    journal.write(
        "loaded",
        n_params=model.adapter.n_params,
        frozen_bytes=model.backbone.frozen_bytes,
        records=len(mine.train),
        aligned_on=len(split.public) if model.backbone.projection else 0,
    )
    codec = choose_codec(study, model.adapter.n_params)
    return LoadedSite(study, site, model, codec, mine.train, mine.holdout, public)


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
        self.published = _published(loaded.study, self.trainer, self._holdout, noise)

    def start(self) -> NDArray[np.float32]:
        """The fresh adapter (n_params,)."""
        return self._fresh

    def measure(self, state: GlobalState) -> None:
        """Note in the journal how good a state is on public test records and on those held back here."""
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

    def class_labels(self, rule: ClassCountRule) -> NDArray[np.int64]:
        """Labels (n,) of those training records that the rule counts."""
        return self.trainer.class_labels(rule)

    def adjust(self, bias: NDArray[np.float32] | None) -> None:
        """Train from now on with `bias` (n_classes,), if any, added to the logits; what is measured has none."""
        self.trainer.adjust(bias)
        if bias is not None:
            self._journal.write("trains with the bias of its classes")

    def measure_own(self, personal: Personal, rounds: int) -> None:
        """Note in the journal how good a personal adapter, made of so many rounds' updates, is on held-back records."""
        score = self.trainer.score(personal.adapter, self._holdout, personal.bias)
        self._journal.write(
            "personal", rounds=rounds, holdout_correct=score.correct, holdout_total=score.total
        )

    def save(self, state: GlobalState, folder: Path) -> None:
        """Write the adapter that a state publishes, in PEFT's format."""
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


def _published(study: Study, learner: Learner, holdout: Encoded, noise: NoiseSource) -> Published | None:
    """What the count round releases of these held-back records; None where the study publishes no accuracy."""
    rule = count_rule(study)
    if rule is None:
        return None
    counted = counted_records(holdout, rule)

    def count(adapter: NDArray[np.float32]) -> tuple[int, int]:
        score = learner.score(adapter, counted)
        return score.correct, score.total

    return Published(rule, count, noise)


def _require_usable(study: Study, records: Records, test: Records) -> None:
    """Raise where there is nothing to measure with, or the study's privacy does not fit these records.

    Said to the operator here; to the server the site is merely absent.
    """
    if not len(test):
        raise DataError(
            "there are no public test images",
            where="data",
            fix="name data.test_manifest, or set data.test_fraction",
        )
    require_units(study, len(records), records.patients)
