"""The server together with one site: one key opens every upload, and this shows it.

All sites of a key epoch share the key, so one of them and the server's bytes are enough to read each update that is
not masked as well: of two sites, or with `aggregation: shared-key`. No check is broken, and no cryptography either: it
is what the README says under "does not protect against". What is left to protect a record is the noise in the update:
the span inversion of `span`, on uploads that were opened so, shows how much that is for pictures.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from secure_triplay.attacks import span
from secure_triplay.attacks.attack import Attack, Observable, Setting
from secure_triplay.attacks.finding import Arm, Control, Finding, Outcome, Verdict
from secure_triplay.attacks.images import fit_prior
from secure_triplay.attacks.observe import PublicModel, Uploads
from secure_triplay.attacks.scene import (
    Sites,
    arms,
    key_ceremony,
    open_scene,
    public_images,
    victims,
)
from secure_triplay.attacks.scoring import gain_finding
from secure_triplay.client.ckks import CkksSecretKey
from secure_triplay.config import Study
from secure_triplay.crypto.codec import Codec
from secure_triplay.crypto.packing import unpack60
from secure_triplay.data.records import Records
from secure_triplay.errors import CryptoError
from secure_triplay.model.adapter import EVERY_BLOCK
from secure_triplay.privacy.noise import NoiseSource
from secure_triplay.wire import Upload

N_PARAMS = 24_576
Vector = NDArray[np.float32]


@dataclass(frozen=True, repr=False)
class Seen:
    """What the two have between them: the victim's upload as it came in, the shared key, the public encoding."""

    upload: bytes
    key: CkksSecretKey
    codec: Codec


def open_upload(seen: Seen) -> NDArray[np.float64]:
    """The victim's update (n_params,) for this round. Raises CryptoError under another key."""
    upload = Upload.from_bytes(seen.upload)
    n_chunks = upload.header.n_chunks
    return seen.codec.decode(seen.key.decrypt(unpack60(upload.c0, n_chunks), [upload.header.seed]), n_terms=1)


def exact_share(opened: NDArray[np.float64], truth: Vector, codec: Codec) -> float:
    """Which share of the parameters is known to within one step of the encoding; values out of range are clipped."""
    clipped = np.clip(truth, -codec.limit, codec.limit)
    return float(np.mean(np.abs(opened - clipped) <= codec.step * 1.001))


def victim_update(study: Study, codec: Codec, seed: int) -> Vector:
    """An update of the size that the study's updates have; which one it is does not matter to a key."""
    rng = np.random.default_rng(seed)
    return rng.normal(0, codec.limit / study.codec.range_noise_stds, codec.n_params).astype(np.float32)


def run(setting: Setting) -> Outcome:
    """Open a victim's upload with the key of another site; then look for its picture, without noise and with."""
    opened = open_one(setting)
    pictures = show_pictures(setting)
    setting.tell(4, 4)
    return Outcome(opened.controls, (*opened.findings, *pictures), opened.not_tested)


def open_one(setting: Setting) -> Outcome:
    """The update of one site, by the shared key, and by a key of another epoch."""
    study, started = setting.study, time.perf_counter()
    sites: Sites = key_ceremony(study, N_PARAMS)
    other = CkksSecretKey.generate(sites.codec.parameters)
    truth = victim_update(study, sites.codec, setting.seed)
    upload = sites.upload(truth, NoiseSource(), site=study.sites[0].name).to_bytes()
    share = exact_share(open_upload(Seen(upload, sites.keys.ckks, sites.codec)), truth, sites.codec)
    seconds = time.perf_counter() - started
    setting.tell(1, 4)
    try:
        without = exact_share(open_upload(Seen(upload, other, sites.codec)), truth, sites.codec)
    except CryptoError:
        without = 0.0
    setting.tell(2, 4)
    control = Control(
        "shared_key",
        share == 1.0,
        "every parameter of another site's update, to within one step of the encoding",
        {"share": share, "n_params": N_PARAMS, "seconds": seconds},
    )
    findings = (
        Finding(
            "shared_key",
            Arm.ENCRYPTION if study.dp is None else Arm.BOTH,
            "none",
            "share of a single update that server and one site read together",
            share,
            Verdict.LEAKS_AS_STATED if share > 0 else Verdict.NOTHING_FOUND,
            note=("an upload without masks, which sites of this study do not send: " if study.masked else "")
            + "one key is shared by all sites; "
            + (
                "the study has no noise either"
                if study.dp is None
                else "only the noise in it protects a record"
            ),
        ),
        Finding(
            "shared_key",
            Arm.ENCRYPTION,
            "none",
            "share of a single update that a key of another epoch reads",
            without,
            Verdict.LEAKS if without > 0.5 else Verdict.NOTHING_FOUND,
            bound=0.5,
            bound_is="a removed site keeps its old key and cannot open the next epoch",
        ),
    )
    return Outcome((control,), findings, ("keys of several epochs together",))


def show_pictures(setting: Setting) -> tuple[Finding, ...]:
    """Span inversion of single uploads that the two opened: plain LoRA, one image, encryption alone and both."""
    study, n = setting.study, 2 if setting.quick else 6
    records, chosen = victims(study, n, setting.seed)
    prior = fit_prior(public_images(study).learned, study.backbone.image_size)
    scene = open_scene(study, "lora", rank=span.RANK, last_blocks=EVERY_BLOCK)
    model = PublicModel.of(scene)
    attacker, sites = span.SpanAttacker(model, prior), key_ceremony(study, model.n_params)
    findings = []
    for arm in (arm for arm in arms(study) if arm.encrypted):
        sender = OpenedVictim(scene, arm, sites)
        tried = span.attack_images(
            sender, attacker, records, [int(i) for i in chosen], seed=setting.seed, public=2
        )
        findings.append(
            gain_finding(
                "shared_key",
                arm,
                "lora",
                tried.gains_db,
                note="pictures from single uploads that server and one site opened"
                + (
                    ""
                    if arm.private
                    else f"; the encoding's {study.codec.value_bits} bits blur what this "
                    "inversion needs, and no protection is claimed from that"
                ),
                figures=tried.figures(),
                protected=arm.private,
                bound_is="the noise: no better than the mean of the public images",
            )
        )
        setting.tell(3, 4)
    return tuple(findings)


class OpenedVictim(span.Victim):
    """A victim of `span` whose encrypted uploads are opened with the shared key on the way."""

    def sends(self, records: Records, index: int, seed: int) -> Uploads:
        """The updates inside its uploads, as float32."""
        sent, sites = super().sends(records, index, seed), self.sites
        if sites is None or not sent.encrypted:
            return sent
        opened = (open_upload(Seen(each, sites.keys.ckks, sites.codec)) for each in sent.contents)
        return Uploads(tuple(update.astype("<f4").tobytes() for update in opened), encrypted=False)


ATTACK = Attack(
    name="shared-key",
    title="Server and one site together",
    source="follows from the design: multi-key schemes (such as Chen et al. 2019) avoid it at a price",
    needs=frozenset({Observable.STUDY, Observable.UPLOADS, Observable.SHARED_KEY}),
    run=run,
)
