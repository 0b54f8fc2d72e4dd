"""The victim's side of an attack: the study's own pipeline with chosen images, defences on or off.

Model, adapter, training, encoding, encryption and messages are those that run in a study. What differs is
said here: the images are chosen, each is drawn for certain, and the noise comes from a seed, so that a figure
can be made again. An attack is given what leaves this module and nothing else.
"""

from __future__ import annotations

import copy
import hashlib
import re
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from secure_triplay.attacks.finding import Arm
from secure_triplay.client.keys import EpochKeys, Roster, make_keys, open_keys
from secure_triplay.client.optimiser import GlobalState, step
from secure_triplay.config import Adapter, Study
from secure_triplay.constants import choose_codec, round_rule
from secure_triplay.crypto.codec import Codec
from secure_triplay.crypto.envelope import EnvelopeKey
from secure_triplay.crypto.identity import SigningIdentity
from secure_triplay.crypto.packing import pack60
from secure_triplay.errors import DataError
from secure_triplay.loading import Model, aligned_backbone, load_data
from secure_triplay.model.adapter import EVERY_BLOCK, attach_adapter
from secure_triplay.model.basis import install_public_basis
from secure_triplay.model.blocks import INPUT_LAYERS, image_stack
from secure_triplay.model.text import class_embeddings
from secure_triplay.model.tower import Classifier, ImageTower
from secure_triplay.privacy.noise import NoiseSource
from secure_triplay.privacy.training import train, train_unsafe_without_dp
from secure_triplay.wire import SessionPlan, Upload, pack_tags

if TYPE_CHECKING:
    from collections.abc import Sequence

    from secure_triplay.attacks.images import Picture
    from secure_triplay.data.records import Records
    from secure_triplay.data.split import Split
    from secure_triplay.model.backbone import Backbone

Vector = NDArray[np.float32]
Kind = Literal["lora", "ffa"]
KINDS: tuple[Kind, ...] = ("lora", "ffa")
_ROUND = 2
_ATTENTION = r"attn\.(qkv|q_proj|k_proj|v_proj|proj|out_proj)"
_EXAMPLES = 8


def arms(study: Study) -> tuple[Arm, ...]:
    """The arms that a study has; without differential privacy in it there is none to switch on."""
    return tuple(arm for arm in Arm if study.dp is not None or not arm.private)


@lru_cache(maxsize=2)
def study_data(study: Study) -> Split:
    """Public and test records and those of the study's first site, the victim. Raises DataError, AssetError."""
    return load_data(study, study.sites[0].name)


@dataclass(frozen=True)
class PublicImages:
    """A study's public images as an attacker uses them: to learn from, and to try itself on."""

    learned: Records
    examples: Records


def public_images(study: Study) -> PublicImages:
    """The public images in two parts: what pictures look like is not learned from those it is tried on."""
    public = study_data(study).public
    order = np.random.default_rng(11).permutation(len(public))
    n = min(_EXAMPLES, len(public) // 4)
    return PublicImages(public.take(order[n:]), public.take(order[:n]))


def victims(study: Study, n: int, seed: int) -> tuple[Records, NDArray[np.int64]]:
    """The first site's records, and `n` of them drawn for a seed. Raises DataError for too few."""
    records = study_data(study).sites[study.sites[0].name].train
    if len(records) < n:
        raise DataError(
            f"the attack needs {n} images of a site, and {study.sites[0].name} has {len(records)}",
            where="data",
            fix="give the site more images, or run with --quick",
        )
    chosen = np.random.default_rng([seed, 7]).permutation(len(records))[:n]
    return records, chosen


@lru_cache(maxsize=2)
def _pristine(study: Study) -> Backbone:
    return aligned_backbone(study, study_data(study).public)


@dataclass(frozen=True, eq=False)
class Scene:
    """One study's model with an adapter, at the state `start` (n_params,) that the round begins from.

    Everything in it but the victim's images is public to whoever runs the study.
    """

    study: Study
    model: Model
    start: Vector

    @property
    def size(self) -> int:
        """Pixels on a side of what the model sees."""
        return self.model.backbone.image_size

    def tokens(self, records: Records, indices: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Tokens (n, t, d) below the lowest adapted block, and labels (n,), of chosen records."""
        tokens = self.model.tower.prefix(records.images(indices, self.size))
        return tokens, torch.from_numpy(np.asarray(records.labels[indices], np.int64))

    def update(
        self,
        tokens: Tensor,
        labels: Tensor,
        *,
        private: bool,
        noise: NoiseSource,
        start: Vector | None = None,
        steps: int = 1,
        learning_rate: float | None = None,
    ) -> Vector:
        """What a site learns in one round from exactly these records -> the update (n_params,) float32.

        Every record is in every step. With `private` the study's own clip norm, noise and normaliser.
        """
        begin = self.start if start is None else start
        self.model.adapter.load_vector(begin)
        rate = learning_rate or self.study.training.learning_rate
        if private:
            rule = replace(
                round_rule(self.study), sampling_rate=1.0, steps=steps, learning_rate=rate, unit="record"
            )
            train(self.model.classifier, tokens, labels, rule, noise)
        else:
            train_unsafe_without_dp(
                self.model.classifier,
                tokens,
                labels,
                sampling_rate=1.0,
                expected_batch_size=float(len(labels)),
                steps=steps,
                learning_rate=rate,
                physical_batch_size=self.study.training.physical_batch_size,
                noise=noise,
            )
        change: Vector = self.model.adapter.vector() - begin
        return change


def _reads_input(study: Study, backbone: Backbone) -> bool:
    """Whether the study adapts a layer that reads a block's normed input."""
    there = {name for name, _ in image_stack(backbone.model).blocks[0].named_modules()}
    return any(re.fullmatch(study.adapter.target_modules, name) for name in there.intersection(INPUT_LAYERS))


@lru_cache(maxsize=4)
def open_scene(
    study: Study,
    kind: Kind,
    *,
    rank: int | None = None,
    last_blocks: int | None = None,
    target: str | None = None,
) -> Scene:
    """The study's model with an adapter of that kind, as it stands at the beginning of the second round.

    Rank, blocks and target layers are the study's unless given, and A is from public images where it is in the study
    and nothing is given. An adapter on every block is there for who reads a block's input: where the study adapts
    no layer that does, it sits on the attention instead. At the very beginning B is zero, and so is
    every gradient of A: the first round is one real step of the server optimiser on public images.
    """
    of = study.adapter
    changed: dict[str, object] = {"kind": kind, "rank": rank or of.rank, "text_tower": False}
    changed |= {"alpha": of.alpha * (rank or of.rank) / of.rank}  # another rank, the same scale
    changed |= {"last_blocks": last_blocks or of.last_blocks}
    pristine = _pristine(study)
    if target is None and last_blocks == EVERY_BLOCK and not _reads_input(study, pristine):
        target = _ATTENTION
    changed |= {"target_modules": target or of.target_modules}
    own = (kind, rank, last_blocks, target) == (of.kind, None, None, None)
    changed |= {"basis": of.basis, "output_rank": of.output_rank} if own else {}
    variant = study.model_copy(update={"adapter": Adapter.model_validate(changed)})
    backbone = replace(pristine, model=copy.deepcopy(pristine.model))
    embeddings = class_embeddings(backbone, study.classes)
    seed = hashlib.sha256(b"attack " + study.sha256.encode()).digest()
    adapter = attach_adapter(backbone, variant.adapter, seed)
    tower, public = ImageTower(backbone, adapter.first_block), study_data(study).public
    classifier = Classifier(tower.suffix, embeddings, study.training.logit_scale)
    if variant.adapter.basis == "public":
        images = public.images(np.arange(len(public)), backbone.image_size)
        install_public_basis(adapter, tower, classifier, images)
    model = Model(backbone, adapter, tower, classifier)
    scene = Scene(variant, model, adapter.vector())
    tokens, labels = scene.tokens(public, np.arange(min(32, len(public))))
    first = scene.update(tokens, labels, private=False, noise=NoiseSource.unsafe_from_seed(0))
    state = step(GlobalState.start(scene.start), first.astype(np.float64), study.server_optimiser)
    return replace(scene, start=state.adapter.astype(np.float32))


@dataclass(frozen=True, repr=False)
class Sites:
    """Real keys of a small federation, for what travels encrypted. SECRET: no attack is given one."""

    plan: SessionPlan
    codec: Codec
    keys: EpochKeys
    signers: dict[str, SigningIdentity]

    def upload(self, update: Vector, noise: NoiseSource, *, site: str, round_number: int = _ROUND) -> Upload:
        """The message that carries an update."""
        sealed = self.keys.ckks.encrypt(self.codec.encode(update, noise), self.codec.encode_tolerance)
        tags = self.keys.tag.tag(sealed.c0, epoch=self.plan.epoch, round_number=round_number, site=site)
        return Upload.signed(
            self.plan,
            self.signers[site],
            round=round_number,
            site=site,
            c0=pack60(sealed.c0),
            tags=pack_tags(tags),
            seed=sealed.seed,
        )


def key_ceremony(study: Study, n_params: int, n_sites: int | None = None) -> Sites:
    """Fresh keys for `n_sites` sites of the study (left out: as many as it has), which share a key and no more."""
    names = [site.name for site in study.sites]
    if n_sites is not None:
        names = [f"site-{i}" for i in range(n_sites)]
        of = Codec.choose(
            n_sites=n_sites,
            value_bits=study.codec.value_bits,
            n_params=n_params,
            limit=choose_codec(study, n_params, masked=False).limit,
        )
    else:
        of = choose_codec(study, n_params, masked=False)
    signers = {name: SigningIdentity.generate() for name in names}
    boxes = {name: EnvelopeKey.generate() for name in names}
    members = {
        name: (signers[name].identity.public_bytes, boxes[name].recipient.public_bytes) for name in names
    }
    roster = Roster.of(study.sha256, 1, members)
    key, envelopes = make_keys(of.parameters, roster, names[0], signers[names[0]])
    first = names[0]
    keys = open_keys(
        envelopes[first], of.parameters, roster, maker=first, site=first, name=key, key=boxes[first]
    )
    return Sites(roster.plan(key, of.n_chunks), of, keys, signers)


def travels(update: Vector, sites: Sites | None, noise: NoiseSource) -> bytes:
    """The bytes that leave a site: with keys a real upload, without them the update as float32."""
    if sites is None:
        return update.astype("<f4").tobytes()
    return sites.upload(update, noise, site=next(iter(sites.signers))).to_bytes()


def feature_distances(
    scene: Scene, records: Records, indices: NDArray[np.int64], found: Sequence[Picture]
) -> list[float]:
    """One minus the cosine of the features of true and found pictures in the frozen backbone; for the scorer."""
    scene.model.adapter.load_vector(np.zeros_like(scene.start))
    pixels = np.stack([np.round(each * 255).astype(np.uint8).transpose(1, 2, 0) for each in found])
    tower = scene.model.tower
    ours = tower.features(tower.prefix(pixels))
    true = tower.features(tower.prefix(records.images(indices, scene.size)))
    return [float(1 - a @ b) for a, b in zip(ours, true, strict=True)]
