"""One data set at one seed, ready for every method: records, encoded tokens and models, each made once.

The frozen blocks are the same for every method and seed, so each image runs through them once (`tokens`).
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from secure_triplay.client.learner import Encoded
from secure_triplay.config import Study
from secure_triplay.data.records import Records
from secure_triplay.data.split import Split, split_study
from secure_triplay.errors import DataError
from secure_triplay.experiments.scores import Answers, Labels, Truth
from secure_triplay.experiments.tokens import Tokens
from secure_triplay.loading import Model, load_model

Tell = Callable[[str], None]
Vector = NDArray[np.float32]
_BATCH = 256


@dataclass(frozen=True)
class _Loaded:
    """A model, what of its study made it, its untrained adapter, and what made the tokens of its frozen blocks."""

    key: str
    model: Model
    start: Vector
    frozen: str


class Setting:
    """What the methods of one (data, seed) share. `study` is any one's: their seed, classes, data and sites agree."""

    def __init__(self, study: Study, tell: Tell = lambda _: None, tokens: Tokens | None = None) -> None:
        """`tokens`: what earlier settings of the grid encoded."""
        self.study, self.tell = study, tell
        self._tokens = Tokens() if tokens is None else tokens
        self.sites = [site.name for site in study.sites]
        self._model: _Loaded | None = None
        self._frozen, self._encoded = "", dict[str, Encoded]()
        self.encoded_images, self.encoding_cpu_seconds, self.loading_cpu_seconds = 0, 0.0, 0.0
        self.begin()

    @cached_property
    def split(self) -> Split:
        """The study's records. Raises DataError where there is nothing to measure on."""
        split = split_study(self.study, notify=self.tell)
        if not len(split.test):
            raise DataError(
                "there are no public test images", where="data", fix="name a test_manifest or a test_fraction"
            )
        return split

    @cached_property
    def class_counts(self) -> dict[str, list[int]]:
        """Training records of each class at each site."""
        n_classes = len(self.study.classes)
        return {
            name: [int(count) for count in np.bincount(site.train.labels, minlength=n_classes)]
            for name, site in self.split.sites.items()
        }

    @cached_property
    def truth(self) -> Truth:
        """The right answers."""
        counts = np.sum(list(self.class_counts.values()), axis=0)
        return Truth(
            self.split.test.labels,
            {name: site.holdout.labels for name, site in self.split.sites.items()},
            np.asarray(counts, np.int64),
        )

    def model(self, study: Study) -> Model:
        """The model of a study, the same object for all studies with the same adapter and head."""
        parts = (study.backbone, study.adapter, study.training.logit_scale)
        key = json.dumps([part if isinstance(part, float) else part.model_dump() for part in parts])
        if self._model is None or self._model.key != key:
            self.tell("loading the model")
            seed = hashlib.sha256(b"secure_triplay.experiments %d" % study.seed).digest()
            self._model, began = None, time.process_time()  # one at a time: they are large
            model = load_model(study, self.split.public, seed)
            frozen = f"{study.backbone.model_dump_json()} {model.tower.cut}"
            self._model = _Loaded(key, model, model.adapter.vector(), frozen)
            self.loading_cpu_seconds += time.process_time() - began
            self._aside += time.process_time() - began
        self._asked = True
        return self._model.model

    @property
    def image_frozen_bytes(self) -> int | None:
        """Bytes of the image tower's frozen weights in the model that this method took last; None if none."""
        if self._model is None or not self._asked:
            return None
        return self._model.model.backbone.image_frozen_bytes

    def start(self, model: Model) -> Vector:
        """The untrained adapter (n_params,) of a model that `model` gave last."""
        return self._loaded(model).start.copy()

    def _loaded(self, model: Model) -> _Loaded:
        if self._model is None or self._model.model is not model:
            raise ValueError("another model was loaded since")
        return self._model

    def begin(self) -> None:
        """A method starts: its curve is empty, its clock at zero, and it took no model yet."""
        self.curve: list[dict[str, float]] = []
        self._asked = False
        self._aside: float = 0.0
        self._worked, self._since = 0.0, time.process_time()

    def round(self, number: int, rounds: int, test: Callable[[], Labels]) -> None:
        """Say that a round is over; about ten times a run, note how good `test`'s answers on the test set are.

        The note holds the processor time of the rounds so far, without loading, encoding and these looks.
        """
        self.tell(f"round {number}")
        if number % max(1, rounds // 10) and number != rounds:
            return
        self._worked += time.process_time() - self._since
        self.curve.append(
            {
                "round": number,
                "cpu_seconds": round(self._worked - self._aside, 2),
                "accuracy": float((test() == self.truth.test).mean()),
            }
        )
        self._since = time.process_time()

    def records(self, part: str) -> Records:
        """Records by name: `test`, `public`, `train SITE` or `held back SITE`."""
        kind, _, site = part.rpartition(" ")
        if not kind:
            return self.split.public if part == "public" else self.split.test
        own = self.split.sites[site]
        return own.train if kind == "train" else own.holdout

    def encoded(self, model: Model, part: str) -> Encoded:
        """Records by name after the frozen blocks of a model that `model` gave last; encoded when first asked for."""
        frozen = self._loaded(model).frozen
        if frozen != self._frozen:  # the old tokens are of no more use
            self._frozen, self._encoded = frozen, {}
        if part not in self._encoded:
            records = self.records(part)
            self.tell(f"encoding {len(records):,} images ({part})")
            began, before = time.process_time(), self._tokens.n_encoded
            self._encoded[part] = self._tokens.encode(model, records, frozen)
            self.encoded_images += self._tokens.n_encoded - before
            self.encoding_cpu_seconds += time.process_time() - began
            self._aside += time.process_time() - began
        return self._encoded[part]

    def train(self, model: Model) -> dict[str, Encoded]:
        """Every site's training records after the frozen blocks."""
        return {site: self.encoded(model, f"train {site}") for site in self.sites}

    def answers(
        self,
        model: Model,
        adapters: Mapping[str, Vector],
        biases: Mapping[str, Vector] | None = None,
    ) -> Answers:
        """Answers of adapters (n_params,): one for all sites under the empty name, or one a site.

        `biases` (n_classes,), by site, are added to the logits of its own held-back records.
        """
        test = self.encoded(model, "test")
        shared = adapters.get("")
        own = {site: shared if shared is not None else adapters[site] for site in self.sites}
        return Answers(
            {name: predict(model, vector, test) for name, vector in adapters.items()},
            {
                site: predict(
                    model, own[site], self.encoded(model, f"held back {site}"), (biases or {}).get(site)
                )
                for site in self.sites
            },
        )


def predict(model: Model, adapter: Vector, records: Encoded, bias: Vector | None = None) -> Labels:
    """The most likely class of each record, (n,) int64; `bias` (n_classes,) is added to the logits."""
    model.adapter.load_vector(adapter)
    added = 0.0 if bias is None else torch.from_numpy(bias)
    with torch.no_grad():
        parts = [
            (model.classifier(part) + added).argmax(-1)
            for part in torch.split(records.tokens, _BATCH)
            if len(part)
        ]
    return torch.cat(parts).numpy() if parts else np.empty(0, np.int64)
