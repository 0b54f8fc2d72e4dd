"""Tokens of images that an earlier seed or partition of a grid encoded already: the frozen blocks are the same.

They stay in this process's memory, since they tell of the images, and for one backbone and cut at a time.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch

from secure_triplay.client.learner import Encoded
from secure_triplay.data.records import Records
from secure_triplay.loading import Model

_BATCH = 256


class Tokens:
    """Encodes each image once; an image is known by its pixels as the tower sees them."""

    def __init__(self) -> None:
        self._of: str | None = None
        self._known: dict[bytes, torch.Tensor] = {}
        self.n_encoded = 0
        """Images that went through the frozen blocks, those that were known already left out."""

    def encode(self, model: Model, records: Records, frozen: str) -> Encoded:
        """The records after the frozen blocks; equal to `client.learner.encode_records` to rounding.

        `frozen` says all that decides the tokens of an image: the backbone's whole setting, and the cut. Those of
        another are forgotten.
        """
        if frozen != self._of:
            self._of, self._known = frozen, {}
        keys: list[bytes] = []
        for start in range(0, len(records), _BATCH):
            part = np.arange(start, min(start + _BATCH, len(records)))
            images = records.images(part, model.backbone.image_size)
            own = [hashlib.sha256(image.tobytes()).digest() for image in images]
            new = {key: row for row, key in enumerate(own) if key not in self._known}
            if new:
                self.n_encoded += len(new)
                tokens = model.tower.prefix(images[list(new.values())])
                self._known.update({key: one.clone() for key, one in zip(new, tokens, strict=True)})
            keys += own
        tokens = torch.stack([self._known[key] for key in keys]) if keys else torch.empty(0)
        patients = (
            None if records.patients is None else torch.from_numpy(np.asarray(records.patients, np.int64))
        )
        return Encoded(tokens, torch.from_numpy(np.asarray(records.labels, np.int64)), patients)
