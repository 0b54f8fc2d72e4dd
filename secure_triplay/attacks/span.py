"""Attack: a site's picture from one round's update, in closed form. The positive control of the suite.

The maths is in `inversion`. The victim trains on one image, which is the worst case: with every other record
of the batch known, the update less theirs is that of one image. The attacker learns what pictures look like
from the study's public images, and on them it also learns how much to trust what it sees: where that beats
the mean image on no public image, it shows the mean image.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from secure_triplay.attacks.attack import Attack, Observable, Setting
from secure_triplay.attacks.finding import Arm, Control, Finding, Outcome
from secure_triplay.attacks.images import ImagePrior, Picture, closeness, fit_prior, pictures_of, psnr_db
from secure_triplay.attacks.inversion import Array, SpanInversion, span_of
from secure_triplay.attacks.observe import PublicModel, Uploads
from secure_triplay.attacks.pictures import save_grid
from secure_triplay.attacks.scene import (
    KINDS,
    Kind,
    Scene,
    Sites,
    Vector,
    arms,
    feature_distances,
    key_ceremony,
    open_scene,
    public_images,
    travels,
    victims,
)
from secure_triplay.attacks.scoring import gain_finding
from secure_triplay.config import Backbone, Study
from secure_triplay.data.records import Records
from secure_triplay.model.adapter import EVERY_BLOCK
from secure_triplay.privacy.noise import NoiseSource

NAME = "span-inversion"
PSNR_GOAL_DB, SSIM_GOAL, SECONDS_GOAL = 25.0, 0.8, 5.0
TRUST = (1e-4, 1e-3, 1e-2, 0.1, 1.0)
"""Standard deviations of a pixel among which an attacker chooses."""
NAIVE = 3e-3
RANK = 32
FFA_RANKS = (64, 128)
_WORTH_DB, _MOSTLY = 0.5, 0.75
_ROUNDING_APART = 500_000_000


class SpanAttacker:
    """Everything that the attack needs and may know: public constants and what public images look like."""

    def __init__(self, model: PublicModel, prior: ImagePrior) -> None:
        self.model, self.prior = model, prior
        self._layers = model.inputs_of_block(0)
        self._plain = f"{self._layers[0]}.lora_A" in model.names
        throughs = [None] if self._plain else [model.frozen[f"{path}.lora_A"] for path in self._layers]
        self._inversion = SpanInversion(model.first, prior, throughs)

    def pictures(self, seen: Uploads, pixel_noise: Sequence[float]) -> list[Picture]:
        """The pictures that fit what was seen best, one for each deviation."""
        updates = seen.updates(self.model.n_params)
        return self._inversion.solve(self.spans(updates), pixel_noise)

    def spans(self, updates: Sequence[Vector]) -> list[Array | None]:
        """What the rows of the first block's gradients span; rows of rounds and of projections add up."""
        tokens = self.model.first.tokens
        rows = [
            np.concatenate(
                [self.model.part(update, f"{path}.lora_{'A' if self._plain else 'B'}") for update in updates]
            )
            for path in self._layers
        ]
        if self._plain:
            return [span_of(np.concatenate(rows), tokens)]
        return [span_of(each, tokens) for each in rows]

    def calibrated(self, examples: Sequence[tuple[Picture, Uploads]]) -> float | None:
        """The deviation that serves best on public pictures; None where the mean image does as well."""
        mean = self.prior.mean
        gains = np.array(
            [
                [psnr_db(truth, found) - psnr_db(truth, mean) for found in self.pictures(seen, TRUST)]
                for truth, seen in examples
            ]
        )
        best = int(gains.mean(axis=0).argmax())
        worth = gains[:, best].mean() > _WORTH_DB and (gains[:, best] > 0).mean() >= _MOSTLY
        return TRUST[best] if worth else None

    def best(self, seen: Uploads, deviation: float | None) -> Picture:
        """The attacker's answer."""
        return self.prior.mean if deviation is None else self.pictures(seen, (deviation,))[0]


@dataclass(frozen=True, eq=False)
class Victim:
    """How a site makes what is seen: a scene, its defences, and how many rounds or local steps.

    `learnt` may be shared by the victims of one scene: encryption comes after training, and changes none of it.
    """

    scene: Scene
    arm: Arm
    sites: Sites | None
    rounds: int = 1
    steps: int = 1
    learning_rate: float | None = None
    learnt: dict[tuple[bool, int, int], list[Vector]] = field(default_factory=dict)

    def sends(self, records: Records, index: int, seed: int) -> Uploads:
        """What leaves the site when it trains on one record alone; a seed stands for one record of one source."""
        key = (self.arm.private, index, seed)
        if key not in self.learnt:
            self.learnt[key] = self._learns(records, index, NoiseSource.unsafe_from_seed(seed))
        noise = NoiseSource.unsafe_from_seed(seed + _ROUNDING_APART)
        sites = self.sites if self.arm.encrypted else None
        return Uploads(
            tuple(travels(update, sites, noise) for update in self.learnt[key]), self.arm.encrypted
        )

    def _learns(self, records: Records, index: int, noise: NoiseSource) -> list[Vector]:
        tokens, labels = self.scene.tokens(records, np.array([index]))
        start, updates = self.scene.start, []
        for _ in range(self.rounds):
            update = self.scene.update(
                tokens,
                labels,
                private=self.arm.private,
                noise=noise,
                start=start,
                steps=self.steps,
                learning_rate=self.learning_rate,
            )
            updates.append(update)
            start = (start + update).astype(np.float32)
        return updates


@dataclass(frozen=True)
class Tried:
    """One victim attacked over many images: what was found, and how close it came."""

    found: tuple[Picture, ...]
    psnr_db: tuple[float, ...]
    ssim: tuple[float, ...]
    gains_db: tuple[float, ...]
    naive_gain_db: float
    seconds: tuple[float, ...]
    encrypted: bool

    def figures(self) -> dict[str, float | int]:
        """Medians for a finding. What somebody gets who trusts ciphertexts is left out: keys are always fresh."""
        found: dict[str, float | int] = {
            "psnr_db": round(float(np.median(self.psnr_db)), 4),
            "ssim": round(float(np.median(self.ssim)), 4),
            "images": len(self.found),
        }
        return found if self.encrypted else found | {"naive_gain_db": round(self.naive_gain_db, 2)}


def attack_images(
    victim: Victim,
    attacker: SpanAttacker,
    records: Records,
    chosen: Sequence[int] | NDArray[np.int64],
    *,
    seed: int,
    public: int,
) -> Tried:
    """Let a victim train on each image, attack what it sends, and score what comes out."""
    size = victim.scene.size
    known = public_images(victim.scene.study).examples
    examples = [
        (pictures_of(known, [i], size)[0], victim.sends(known, i, seed * 1000 + 500 + i))
        for i in range(min(public, len(known)))
    ]
    deviation = attacker.calibrated(examples)
    mean = attacker.prior.mean
    found, psnr, ssim, gains, naive, seconds = [], [], [], [], [], []
    for number, index in enumerate(chosen):
        seen = victim.sends(records, int(index), seed * 1000 + number)
        started = time.perf_counter()
        picture = attacker.best(seen, deviation)
        seconds.append(time.perf_counter() - started)
        truth = pictures_of(records, [int(index)], size)[0]  # from here on it is the scorer that looks
        close, base = closeness(truth, picture), psnr_db(truth, mean)
        found.append(picture)
        psnr.append(close.psnr_db)
        ssim.append(close.ssim)
        gains.append(close.psnr_db - base)
        if deviation is None and not victim.arm.encrypted:
            naive.append(psnr_db(truth, attacker.pictures(seen, (NAIVE,))[0]) - base)
    total = float(np.mean(naive or gains))
    return Tried(
        tuple(found), tuple(psnr), tuple(ssim), tuple(gains), total, tuple(seconds), victim.arm.encrypted
    )


def control_of(name: str, tried: Tried, setup: str) -> Control:
    """Whether the medians over the images reach the goal that was set beforehand."""
    psnr, ssim = float(np.median(tried.psnr_db)), float(np.median(tried.ssim))
    seconds = float(np.median(tried.seconds))
    return Control(
        name,
        valid=psnr >= PSNR_GOAL_DB and ssim >= SSIM_GOAL and seconds < SECONDS_GOAL,
        goal=f"medians of at least {PSNR_GOAL_DB:g} dB PSNR and {SSIM_GOAL:g} SSIM in under {SECONDS_GOAL:g} s "
        f"an image, {setup}",
        figures={"psnr_db": psnr, "ssim": ssim, "seconds": seconds, "images": len(tried.found)},
    )


def run(setting: Setting) -> Outcome:
    """All arms on the study's own tower, then ranks, rounds and local steps, then open_clip's tower."""
    study = setting.study
    n, public = (8, 4) if setting.quick else (50, 6)
    records, chosen = victims(study, n, setting.seed)
    prior = fit_prior(public_images(study).learned, study.backbone.image_size)
    controls: list[Control] = []
    findings: list[Finding] = []
    columns: list[tuple[str, Sequence[Picture]]] = []
    total, done = 2 * len(arms(study)) + 6, 0
    for kind in KINDS:
        scene = open_scene(study, kind, rank=RANK, last_blocks=EVERY_BLOCK)
        model = PublicModel.of(scene)
        attacker, sites = SpanAttacker(model, prior), key_ceremony(study, model.n_params)
        learnt: dict[tuple[bool, int, int], list[Vector]] = {}
        for arm in arms(study):
            victim = Victim(scene, arm, sites, learnt=learnt)
            tried = attack_images(
                victim, attacker, records, chosen[: _images(n, kind, arm)],
                seed=setting.seed, public=public,
            )  # fmt: skip
            if kind == "lora" and arm is Arm.NOTHING:
                controls.append(control_of("inversion", tried, f"plain LoRA of rank {RANK}, one step"))
            distance = feature_distances(scene, records, chosen[: len(tried.found)], tried.found)
            findings.append(
                gain_finding(
                    NAME,
                    arm,
                    kind,
                    tried.gains_db,
                    note=f"rank {RANK} on every block, one image",
                    pictures=("defences.png",) if kind == "lora" and arm is Arm.NOTHING else (),
                    figures=tried.figures() | {"feature_distance": round(float(np.median(distance)), 4)},
                )
            )
            if kind == "lora" or arm is Arm.NOTHING:
                columns.append((_TITLES[kind, arm], tried.found[:6]))
            done += 1
            setting.tell(done, total)
    truth = pictures_of(records, chosen[:6], study.backbone.image_size)
    mean = [prior.mean] * 6
    save_grid(
        setting.pictures / "defences.png", [("original", truth), *columns, ("mean of\npublic images", mean)]
    )
    for more in _variants(setting, records, chosen, prior, public):
        controls += more.controls
        findings += more.findings
        done += 1
        setting.tell(min(done, total), total)
    skipped = ("open_clip's own tower: not in a quick run",) if setting.quick else ()
    return Outcome(tuple(controls), tuple(findings), _NOT_TESTED + skipped)


def _images(n: int, kind: Kind, arm: Arm) -> int:
    """All of them where the control is measured; enough elsewhere, where the answer is the mean image."""
    return n if kind == "lora" and arm is Arm.NOTHING else min(n, 12)


def _variants(
    setting: Setting,
    records: Records,
    chosen: Sequence[int] | NDArray[np.int64],
    prior: ImagePrior,
    public: int,
) -> list[Outcome]:
    """Less convenient conditions, all without a defence."""
    study, found, quick = setting.study, [], setting.quick
    few = 3 if quick else 6
    own_rank, many = study.adapter.rank, len(chosen)
    open_clip = study.model_copy(update={"backbone": OPEN_CLIP})
    n_rounds = -(-17 // own_rank) + 1
    towers = "open_clip's ViT-B-32 with random weights"
    cases: list[tuple[str, str, Study, Kind, int, dict[str, float], int]] = [
        ("inversion-rounds", f"plain LoRA of rank {own_rank}, {n_rounds} rounds together", study, "lora",
         own_rank, {"rounds": n_rounds}, few),
        ("inversion-local-steps", f"plain LoRA of rank {RANK}, the difference after 5 local steps", study, "lora",
         RANK, {"steps": 5, "learning_rate": 0.01}, few),
        *[("", f"FFA-LoRA of rank {rank} on every block, one image", study, "ffa", rank, {}, few)
          for rank in ((FFA_RANKS[-1],) if quick else sorted({own_rank, *FFA_RANKS}))],
    ]  # fmt: skip
    if not quick:  # the larger tower takes as long as all the rest
        cases += [
            ("inversion-open-clip", f"{towers}, plain LoRA of rank {RANK}, one step",
             open_clip, "lora", RANK, {}, many),
            ("", f"{towers}, FFA-LoRA of rank 128", open_clip, "ffa", 128, {}, few),
        ]  # fmt: skip
    for name, setup, of, kind, rank, how, n in cases:
        target = r"attn\.(q|k|v|out)_proj" if of is open_clip else None
        scene = open_scene(of, kind, rank=rank, last_blocks=EVERY_BLOCK, target=target)
        learned = prior if of is study else fit_prior(public_images(study).learned, OPEN_CLIP.image_size)
        attacker = SpanAttacker(PublicModel.of(scene), learned)
        victim = Victim(scene, Arm.NOTHING, None, **how)  # type: ignore[arg-type]
        tried = attack_images(victim, attacker, records, chosen[:n], seed=setting.seed, public=public)
        found.append(
            Outcome(
                (control_of(name, tried, setup),) if name else (),
                (
                    gain_finding(
                        NAME, Arm.NOTHING, kind, tried.gains_db, note=setup,
                        figures=tried.figures() | {"rank": rank},
                    ),
                ),
            )
        )  # fmt: skip
    return found


OPEN_CLIP = Backbone(
    source="open_clip", name="ViT-B-32", licence="MIT", quantization="nf4", image_size=224,
    unsafe_random_weights=True,
)  # fmt: skip
_TITLES = {
    ("lora", Arm.NOTHING): "without us:\nplain LoRA",
    ("lora", Arm.DP): "with\nprivacy",
    ("lora", Arm.ENCRYPTION): "with\nencryption",
    ("lora", Arm.BOTH): "with us:\nboth",
    ("ffa", Arm.NOTHING): "FFA-LoRA,\nno defence",
}
_NOT_TESTED = (
    "span inversion of batches of two images and more: their tokens share one span, and are not told apart here",
    "LPIPS: its weights are in no package registry; feature_distance is the cosine distance in the frozen backbone",
)

ATTACK = Attack(
    name=NAME,
    title="Pictures from the span of a gradient",
    source="the project's own closed form; gradients as linear equations: Zhu and Blaschko 2021 (R-GAP)",
    needs=frozenset({Observable.STUDY, Observable.UPLOADS}),
    run=run,
)
