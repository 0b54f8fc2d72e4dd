"""Attack: every reconstruction on the very bytes that travel. It must do no better than without them.

Each attack is given real uploads. Ciphertexts of one image are also swapped for those of another: an attack
that found anything in them would do better with the right ones.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy import stats

from secure_triplay.attacks.attack import Attack, Observable, Setting
from secure_triplay.attacks.finding import Arm, Control, Finding, Outcome, Verdict
from secure_triplay.attacks.images import fit_prior, pictures_of, psnr_db
from secure_triplay.attacks.observe import PublicModel
from secure_triplay.attacks.scene import (
    KINDS,
    Kind,
    arms,
    key_ceremony,
    open_scene,
    public_images,
    victims,
)
from secure_triplay.attacks.scoring import gain_finding
from secure_triplay.attacks.span import NAIVE, RANK, SpanAttacker, Victim, attack_images
from secure_triplay.model.adapter import EVERY_BLOCK

NAME = "ciphertext-null"
GOAL_DB = 10.0
_CERTAIN = 0.99999


def certain_gain(gains: np.ndarray) -> float:
    """What is gained beyond chance: the lower 99.999 % limit of the mean (Student's t), 0 where it is below."""
    spread = gains.std(ddof=1) / len(gains) ** 0.5
    low = gains.mean() - stats.t.ppf(_CERTAIN, len(gains) - 1) * spread
    return float(max(0.0, low))


def run(setting: Setting) -> Outcome:
    """Plain bytes as the control, then ciphertexts with and without noise under them, for both adapters."""
    study = setting.study
    n, tried_on = (5, 4) if setting.quick else (12, 4)
    records, chosen = victims(study, n, setting.seed)
    prior = fit_prior(public_images(study).learned, study.backbone.image_size)
    truths = pictures_of(records, chosen, study.backbone.image_size)
    controls: list[Control] = []
    findings: list[Finding] = []
    cases = [(kind, arm) for kind in KINDS for arm in arms(study) if arm.encrypted]
    prepared: dict[Kind, tuple[SpanAttacker, Victim]] = {}
    for done, (kind, arm) in enumerate(cases):
        if kind not in prepared:
            scene = open_scene(study, kind, rank=RANK, last_blocks=EVERY_BLOCK)
            model = PublicModel.of(scene)
            sites = key_ceremony(study, model.n_params)
            prepared[kind] = SpanAttacker(model, prior), Victim(scene, Arm.NOTHING, sites)
        attacker, plain = prepared[kind]
        if kind == "lora" and not controls:
            found = attack_images(plain, attacker, records, chosen[:4], seed=setting.seed, public=tried_on)
            gain = float(np.mean(found.gains_db))
            goal = f"the same attack on the same updates as plain numbers gains at least {GOAL_DB:g} dB"
            controls.append(
                Control(NAME, valid=gain >= GOAL_DB, goal=goal, figures={"gain_db": gain, "images": 4})
            )
        victim = replace(plain, arm=arm)
        tried = attack_images(victim, attacker, records, chosen, seed=setting.seed, public=tried_on)
        note = "the bytes of real uploads, read as a gradient"
        findings.append(gain_finding(NAME, arm, kind, tried.gains_db, note=note, figures=tried.figures()))
        blind = [
            attacker.pictures(victim.sends(records, int(index), setting.seed + at), (NAIVE,))[0]
            for at, index in enumerate(chosen)
        ]
        own = np.array([psnr_db(a, b) for a, b in zip(truths, blind, strict=True)])
        other = np.array([psnr_db(a, b) for a, b in zip(truths, blind[1:] + blind[:1], strict=True)])
        gain = certain_gain(own - other)
        findings.append(
            Finding(
                NAME,
                arm,
                kind,
                metric="dB for certain, over the same attack on another image's ciphertexts",
                value=gain,
                verdict=Verdict.LEAKS if gain > 0 else Verdict.NOTHING_FOUND,
                bound=0.0,
                bound_is="ciphertexts say nothing of their image",
                note="an attacker who trusts what it reads; lower 99.999 % limit, 0 where it is below",
                figures={"images": n},
            )
        )
        setting.tell(done + 1, len(cases))
    return Outcome(tuple(controls), tuple(findings), _NOT_TESTED)


_NOT_TESTED = ("a break of the encryption itself: these attacks read ciphertexts as numbers",)

ATTACK = Attack(
    name=NAME,
    title="Reconstruction from the bytes that travel",
    source="a null test: figures must equal those of the mean image",
    needs=frozenset({Observable.STUDY, Observable.UPLOADS}),
    run=run,
)
