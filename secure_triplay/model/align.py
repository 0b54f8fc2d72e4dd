"""The packaged backbone's image projection, fitted on public images.

The packaged towers were trained apart. A ridge regression from image features to the text embeddings of their
classes makes them comparable. It sees the arrays that it is given and nothing else: the caller gives public
images, never a site's.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from secure_triplay.errors import ConfigError, DataError
from secure_triplay.model.backbone import Backbone


def fit_projection(
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    class_embeddings: NDArray[np.float32],
    ridge: float,
) -> NDArray[np.float32]:
    """The (d_text, d_image) float32 matrix W that minimises sum |W f - t|^2 + ridge * |W|^2.

    `features` (n, d_image) are unit-norm features of public images, `labels` (n,) their classes, and t the
    row of `class_embeddings` (n_classes, d_text) of their class (Hoerl and Kennard 1970). Solved in float64;
    the same input gives the same output. Raises DataError where the arrays do not fit together.
    """
    if features.ndim != 2 or labels.shape != features.shape[:1] or not len(labels):
        raise DataError(
            f"the public images' features {features.shape} and labels {labels.shape} do not fit together",
            where="alignment",
            fix="give at least one public image, and one label for each",
        )
    if labels.min() < 0 or labels.max() >= len(class_embeddings) or not np.isfinite(features).all():
        raise DataError(
            "a public image has a label outside the classes, or features that are not finite",
            where="alignment",
            fix="check the public split and the classes of the study",
        )
    x = features.astype(np.float64)
    t = class_embeddings.astype(np.float64)[labels]
    gram = x.T @ x + ridge * np.eye(x.shape[1])
    return np.linalg.solve(gram, x.T @ t).T.astype(np.float32)


def install_projection(backbone: Backbone, projection: NDArray[np.float32]) -> None:
    """Put a fitted (d_text, d_image) projection into the packaged model, before an adapter is attached.

    Raises ConfigError where the projection is the model's own (a real CLIP), or an adapter holds it already.
    """
    if backbone.projection is None:
        raise ConfigError(
            f"{backbone.name} has a trained image projection; it is not aligned",
            where="backbone.source",
            fix="align only source: packaged",
        )
    layer = backbone.model.get_submodule(backbone.projection)
    if not isinstance(layer, nn.Linear):  # an adapter wraps it
        raise ConfigError(
            "an adapter is attached already and holds the image projection",
            where="alignment",
            fix="load the backbone again, align it, then attach the adapter",
        )
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(projection))
