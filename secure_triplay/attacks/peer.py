"""Attack: a curious site takes its own update off the opened sum, and attacks what is left.

With two sites that is the other site's update, to the codec's step. Encryption does not help, since every
site opens every sum; what helps is noise at the other sites, and more of them. The sums here are really
encrypted, added and opened.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from secure_triplay.attacks.attack import Attack, Observable, Setting
from secure_triplay.attacks.finding import Arm, Control, Finding, Outcome, Verdict
from secure_triplay.attacks.identification import Candidates, ceiling, one_token_layer, residuals
from secure_triplay.attacks.images import closeness, fit_prior, pictures_of, psnr_db
from secure_triplay.attacks.observe import PublicModel, Uploads
from secure_triplay.attacks.pictures import save_grid
from secure_triplay.attacks.scene import (
    KINDS,
    Kind,
    Scene,
    Sites,
    Vector,
    key_ceremony,
    open_scene,
    public_images,
    victims,
)
from secure_triplay.attacks.scoring import gain_finding, rate_interval
from secure_triplay.attacks.span import RANK, SpanAttacker
from secure_triplay.crypto.codec import Codec
from secure_triplay.crypto.packing import add_mod
from secure_triplay.data.records import Records
from secure_triplay.model.adapter import EVERY_BLOCK
from secure_triplay.privacy.noise import NoiseSource

NAME = "peer-site"
SITES = (2, 3, 8)
_RATE_GOAL = 0.9


@dataclass(frozen=True)
class PeerSees:
    """What a curious site has after a round: the opened mean (n_params,), and its own integers' share of it."""

    mean: NDArray[np.float64]
    own: NDArray[np.float64]
    n_sites: int

    @property
    def others(self) -> Vector:
        """The sum of the other sites' updates (n_params,)."""
        return np.asarray(self.mean * self.n_sites - self.own, np.float32)


def open_round(sites: Sites, updates: list[Vector], noise: NoiseSource) -> PeerSees:
    """One round of these updates, really encrypted, added and opened; the first site is the curious one."""
    codec, key = sites.codec, sites.keys.ckks
    levels = [codec.quantise(update, noise) for update in updates]
    sealed = [key.encrypt(codec.to_slots(each), codec.encode_tolerance) for each in levels]
    total = sealed[0].c0.copy()
    for each in sealed[1:]:
        add_mod(total, each.c0)
    summed = codec.sum_from_slots(key.decrypt(total, [each.seed for each in sealed]), len(updates))
    return PeerSees(codec.mean(summed, len(updates)), codec.mean(levels[0], 1), len(updates))


def fitted(sites: Sites, update: Vector, value_bits: int) -> Sites:
    """The same keys with a codec whose public range fits updates of this size.

    Without noise the study derives no range; one that clips nothing is chosen here, in the attacker's favour.
    """
    old = sites.codec
    codec = Codec.choose(
        n_sites=old.n_sites,
        value_bits=value_bits,
        n_params=old.n_params,
        limit=1.5 * float(np.abs(update).max()),
    )
    return replace(sites, codec=replace(codec, scale_bits=max(codec.scale_bits, old.scale_bits)))


def run(setting: Setting) -> Outcome:
    """Who was in the other sites' batches, for 2, 3 and 8 sites; and for two sites, what their image shows."""
    study, quick = setting.study, setting.quick
    size, repeats = (100, 2) if quick else (500, 6)
    records, chosen = victims(study, size, setting.seed)
    gallery = open_scene(study, "lora", rank=RANK).tokens(records, chosen)
    controls: list[Control] = []
    findings: list[Finding] = []
    private = [False] + ([True] if study.dp else [])
    total, done = len(KINDS) * len(private) * (len(SITES) + 1), 0
    for kind in KINDS:
        scene = open_scene(study, kind, rank=RANK)
        candidates = Candidates.of(scene, gallery[0])
        for noisy in private:
            for n_sites in SITES:
                hits, tries = _identify(setting, scene, candidates, gallery, n_sites, noisy, repeats)
                rate, interval = hits / tries, rate_interval(hits, tries)
                arm = Arm.BOTH if noisy else Arm.ENCRYPTION
                if kind == "lora" and not noisy and n_sites == 2:
                    goal = f"two sites without noise: at least {_RATE_GOAL:.0%} of the other's records named"
                    figures = {"rate": rate, "gallery": size, "members": tries}
                    controls.append(Control(NAME, rate >= _RATE_GOAL, goal, figures))
                findings.append(_rate_finding(setting, arm, kind, n_sites, size, rate, interval))
                done += 1
                setting.tell(done, total)
    for kind in KINDS:
        for noisy in private:
            findings.append(_pictures(setting, kind, noisy, records, chosen[: 3 if quick else 10]))
            done += 1
            setting.tell(done, total)
    return Outcome(tuple(controls), tuple(findings), _NOT_TESTED)


def _identify(
    setting: Setting,
    scene: Scene,
    candidates: Candidates,
    gallery: tuple[torch.Tensor, torch.Tensor],
    n_sites: int,
    private: bool,
    repeats: int,
) -> tuple[int, int]:
    """One record at each of the other sites, out of the gallery; the attacker's own is not from there."""
    model = PublicModel.of(scene)
    layer = one_token_layer(model, scene)
    rng, noise = np.random.default_rng([setting.seed, n_sites]), NoiseSource.unsafe_from_seed(setting.seed)
    known = public_images(scene.study).learned
    ceremony = key_ceremony(scene.study, model.n_params, n_sites)
    hits = 0
    for _ in range(repeats):
        members = rng.choice(len(gallery[0]), n_sites - 1, replace=False)
        tokens, labels = scene.tokens(known, rng.integers(len(known), size=1))
        updates = [scene.update(tokens, labels, private=private, noise=noise)]
        for member in members:
            tokens, labels = (part[[member]] for part in gallery)
            updates.append(scene.update(tokens, labels, private=private, noise=noise))
        sites = ceremony if private else fitted(ceremony, np.concatenate(updates), 16)
        seen = open_round(sites, updates, noise)
        content = Uploads((seen.others.astype("<f4").tobytes(),), encrypted=False)
        found = residuals(content, candidates, model, layer)
        guess = rng.permutation(len(gallery[0]))
        named = (guess if found is None else np.argsort(found))[: n_sites - 1]
        hits += len(set(named.tolist()) & set(members.tolist()))
    return hits, repeats * (n_sites - 1)


def _rate_finding(
    setting: Setting,
    arm: Arm,
    kind: Kind,
    n_sites: int,
    size: int,
    rate: float,
    interval: tuple[float, float],
) -> Finding:
    chance = max(SITES) / size
    bound, why = ceiling(setting.study, Arm.DP, size) if arm is Arm.BOTH else (None, "")
    seen = interval[0] > chance
    if bound is None:
        verdict = Verdict.LEAKS_AS_STATED if seen else Verdict.NOTHING_FOUND
    elif interval[0] > bound:
        verdict = Verdict.LEAKS
    else:
        verdict = Verdict.WITHIN_BOUND if seen else Verdict.NOTHING_FOUND
    return Finding(
        NAME, arm, kind, "members at the other sites named out of a gallery", rate, verdict,
        interval=interval, bound=bound, bound_is=why,
        note=f"{n_sites} sites, one record at each other, rank {RANK}, gallery of {size:,}"
        + ("" if arm is Arm.BOTH else "; noise off, 16-bit values"),
        figures={"sites": n_sites, "gallery": size},
    )  # fmt: skip


def _pictures(
    setting: Setting, kind: Kind, private: bool, records: Records, chosen: NDArray[np.int64]
) -> Finding:
    """Span inversion of the other's update in a federation of two."""
    study = setting.study
    scene = open_scene(study, kind, rank=RANK, last_blocks=EVERY_BLOCK)
    model = PublicModel.of(scene)
    images = public_images(study)
    prior = fit_prior(images.learned, scene.size)
    attacker = SpanAttacker(model, prior)
    ceremony = key_ceremony(study, model.n_params, 2)
    noise = NoiseSource.unsafe_from_seed(setting.seed)
    own_tokens, own_labels = scene.tokens(images.learned, np.array([0]))

    def seen_of(source: Records, index: int) -> Uploads:
        tokens, labels = scene.tokens(source, np.array([index]))
        updates = [
            scene.update(own_tokens, own_labels, private=private, noise=noise),
            scene.update(tokens, labels, private=private, noise=noise),
        ]
        sites = ceremony if private else fitted(ceremony, np.concatenate(updates), 20)
        return Uploads((open_round(sites, updates, noise).others.astype("<f4").tobytes(),), encrypted=False)

    examples = [
        (pictures_of(images.examples, [i], scene.size)[0], seen_of(images.examples, i)) for i in range(4)
    ]
    deviation = attacker.calibrated(examples)
    found = [attacker.best(seen_of(records, int(index)), deviation) for index in chosen]
    truths = pictures_of(records, chosen, scene.size)
    gains = [psnr_db(t, f) - psnr_db(t, prior.mean) for t, f in zip(truths, found, strict=True)]
    close = [closeness(t, f) for t, f in zip(truths, found, strict=True)]
    pictures: tuple[str, ...] = ()
    if kind == "lora" and not private:
        columns = [("at the\nother site", truths[:6]), ("seen by\nits peer", found[:6])]
        columns.append(("mean of\npublic images", [prior.mean] * len(truths[:6])))
        save_grid(setting.pictures / "two-sites.png", columns)
        pictures = ("two-sites.png",)
    return gain_finding(
        NAME,
        Arm.BOTH if private else Arm.ENCRYPTION,
        kind,
        gains,
        protected=private,
        note=f"2 sites, one image at the other, rank {RANK} on every block"
        + ("" if private else "; noise off, 20-bit values"),
        pictures=pictures,
        figures={
            "sites": 2,
            "psnr_db": round(float(np.median([each.psnr_db for each in close])), 4),
            "ssim": round(float(np.median([each.ssim for each in close])), 4),
            "images": len(found),
        },
    )


_NOT_TESTED = (
    "which of several other sites holds a named record: a sum does not tell",
    "span inversion of the images of two and more other sites together",
)

ATTACK = Attack(
    name=NAME,
    title="A site that subtracts its own update from the sum",
    source="differences of aggregates; span inversion and identification of this suite",
    needs=frozenset({Observable.STUDY, Observable.AGGREGATES, Observable.OWN_UPDATES}),
    run=run,
)
