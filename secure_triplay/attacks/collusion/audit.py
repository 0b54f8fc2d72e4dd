"""Four arms against one honest site: in the clear, without masks, against t-1 sites and against t.

In each the coalition takes what it reads for the victim's update, and the suite's two strongest attacks go on from
there: a picture by the span of a gradient (`span`), and who it was out of a gallery (`identification`). The victim
trains on one image, plain LoRA of rank 32 on every block, without noise, and its values have 24 bits, the most that a
codec has: nothing but the masks stands between an attacker and the picture. Three arms have to succeed, or the audit is
INVALID. That with t sites does, as Shamir's sharing says, shows that the arm with t-1 asks the same attack of the same
bytes.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secure_triplay import __version__
from secure_triplay.attacks.collusion.coalition import opened, sum_of_the_others, update_of
from secure_triplay.attacks.collusion.federation import VICTIM, Federation
from secure_triplay.attacks.finding import Arm
from secure_triplay.attacks.identification import Candidates, one_token_layer, residuals
from secure_triplay.attacks.images import Picture, closeness, fit_prior, pictures_of, psnr_db
from secure_triplay.attacks.observe import PublicModel, Uploads
from secure_triplay.attacks.pictures import save_grid
from secure_triplay.attacks.scene import Scene, Vector, open_scene, public_images, victims
from secure_triplay.attacks.scoring import mean_interval, rate_interval
from secure_triplay.attacks.span import NAIVE, PSNR_GOAL_DB, RANK, SSIM_GOAL, SpanAttacker, Victim
from secure_triplay.config import Study
from secure_triplay.crypto.masking import MaskingParameters
from secure_triplay.data.records import Records
from secure_triplay.model.adapter import EVERY_BLOCK
from secure_triplay.privacy.noise import NoiseSource

SCHEMA = "secure-triplay/audit-collusion/1"
PARAMETERS = MaskingParameters.choose(7, colluders=2, dropouts=2)
T = PARAMETERS.threshold
VALUE_BITS = 24
CLEAR, NO_MASKS, FEWER, ENOUGH = "clear", "no masks", "t-1 sites", "t sites"
WITH: dict[str, int | None] = {CLEAR: None, NO_MASKS: 1, FEWER: T - 1, ENOUGH: T}
"""Arm -> how many sites collude with the server; nobody has to where updates travel in the clear."""
_IMAGES, _GALLERY, _PUBLIC = {False: 6, True: 3}, {False: 200, True: 100}, {False: 3, True: 3}  # by `quick`

Tell = Callable[[int, int], None]


@dataclass
class _Read:
    """What an arm's attacker has read of each image, and what came of it."""

    updates: list[Vector] = field(default_factory=list)
    masks_left: list[int] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class _Attacked:
    """The scene with the federation in it, and the updates of the sites beside the victim."""

    scene: Scene
    model: PublicModel
    federation: Federation
    beside: dict[str, NDArray[np.int64]]
    noise: NoiseSource

    def read(self, update: Vector) -> tuple[dict[str, Vector], dict[str, int], bool]:
        """What each arm's coalition reads of the victim's update, masks left on it, and whether no second list was
        signed by anybody."""
        integers = self.federation.quantised(update, self.noise)
        played = self.federation.play({VICTIM: integers, **self.beside}, encrypted=(VICTIM,))
        found, left = {CLEAR: update}, {CLEAR: 0, NO_MASKS: 0}
        plain = self.federation.plain
        found[NO_MASKS] = update_of(plain, plain.pack(self.federation.without_masks(integers)))
        for arm in (FEWER, ENOUGH):
            one = opened(played.coalition(_colluding(arm)), VICTIM)
            found[arm], left[arm] = one.update, one.masks_left
        return found, left, played.second_list_refused


def audit_collusion(
    study: Study, out: Path, seed: int = 0, quick: bool = False, tell: Tell = lambda done, total: None
) -> dict[str, Any]:
    """Attack one site in four arms; the folder `out` gets result.json and pictures.png.

    `result["verdict"]` is "pass", "fail" where t-1 sites got more than the mean image or a guess, or "invalid" where
    an arm that has to succeed did not.

    Raises:
        DataError, AssetError: where the study's images or weights cannot be had.
    """
    started = time.perf_counter()
    n, public = _IMAGES[quick], _PUBLIC[quick]
    records, gallery = victims(study, _GALLERY[quick], seed)
    chosen = gallery[:n]
    scene = open_scene(study, "lora", rank=RANK, last_blocks=EVERY_BLOCK)
    model = PublicModel.of(scene)
    attacker = SpanAttacker(model, fit_prior(public_images(study).learned, scene.size))
    sender = Victim(scene, Arm.NOTHING, None)
    known = public_images(study).examples
    examples = [_update(sender, known, i, seed * 1000 + 500 + i) for i in range(min(public, len(known)))]
    attacked = _federation(scene, model, examples, seed)

    refused, total = True, len(examples) + n
    tried_on = {arm: _Read() for arm in WITH}
    for done, update in enumerate(examples):
        read, _, _ = attacked.read(update)
        for arm, seen in read.items():
            tried_on[arm].updates.append(seen)
        tell(done + 1, total)
    arms = {arm: _Read() for arm in WITH}
    for done, index in enumerate(chosen):
        read, left, honest_refused = attacked.read(_update(sender, records, int(index), seed * 1000 + done))
        refused &= honest_refused
        for arm, seen in read.items():
            arms[arm].updates.append(seen)
            arms[arm].masks_left.append(left[arm])
        tell(len(examples) + done + 1, total)

    truths = pictures_of(records, chosen, scene.size)
    public_pictures = pictures_of(known, range(len(examples)), scene.size)
    candidates = Candidates.of(scene, scene.tokens(records, gallery)[0])
    guess = np.random.default_rng([seed, 5])
    figures, pictures = {}, {}
    scored: dict[bytes, tuple[list[Picture], dict[str, Any]]] = {}
    for arm in WITH:
        digest = _digest([*tried_on[arm].updates, *arms[arm].updates])
        if digest not in scored:  # without masks and with all of them off, one and the same is read
            examples_of = zip(public_pictures, tried_on[arm].updates, strict=True)
            deviation = attacker.calibrated([(picture, _seen(update)) for picture, update in examples_of])
            scored[digest] = _scored(attacker, arms[arm], truths, deviation)
        pictures[arm] = scored[digest][0]
        figures[arm] = scored[digest][1] | _named(scene, model, candidates, arms[arm].updates, guess)
        figures[arm] |= {"colluding_sites": WITH[arm], "masks_left": max(arms[arm].masks_left)}
    in_sum = _sum_shows(attacked, records, gallery, candidates, seed)
    verdict, reason = judge(figures, refused, len(gallery))
    _draw(out / "pictures.png", truths, pictures, attacker.prior.mean)
    result = {
        "schema": SCHEMA, "verdict": verdict, "reason": reason, "quick": quick, "seed": seed,
        "study": {"name": study.study, "sha256": study.sha256},
        "setting": {
            "sites": PARAMETERS.n_sites, "threshold": T, "stated_colluders": PARAMETERS.colluders,
            "rank": RANK, "value_bits": VALUE_BITS, "n_params": model.n_params, "images": n, "gallery": len(gallery),
            "noise": False,
        },
        "arms": figures, "second_list_refused": refused, "what_the_sum_shows": in_sum,
        "mean_image": {"psnr_db": _median([psnr_db(t, attacker.prior.mean) for t in truths])},
        "versions": {"secure_triplay": __version__, "numpy": np.__version__},
        "wall_s": round(time.perf_counter() - started, 1),
    }  # fmt: skip
    (out / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    return result


def judge(arms: dict[str, Any], second_list_refused: bool, gallery: int) -> tuple[str, str]:
    """The verdict over the four arms, and why."""
    for arm in (CLEAR, NO_MASKS, ENOUGH):
        got = arms[arm]
        if not (got["psnr_db"] >= PSNR_GOAL_DB and got["ssim"] >= SSIM_GOAL and got["named"] == got["tries"]):
            return "invalid", f"the arm {arm!r} has to succeed and did not, so that the others prove nothing"
    fewer = arms[FEWER]
    if not (fewer["masks_left"] >= 1 and fewer["gain_db_interval"][0] <= 0):
        return "fail", f"{T - 1} sites and the server got more than the mean image"
    if fewer["named_interval"][0] > 1 / gallery:
        return "fail", f"{T - 1} sites and the server named the record more often than by guessing"
    if not second_list_refused:
        return "fail", "an honest site agreed to two lists of survivors"
    return (
        "pass",
        f"{T - 1} of {PARAMETERS.n_sites} sites and the server get the mean image and a guess; {T} get everything",
    )


def _federation(scene: Scene, model: PublicModel, examples: Sequence[Vector], seed: int) -> _Attacked:
    """Sites around the victim; what they send is of the same kind, and one is as good as another."""
    noise = NoiseSource.unsafe_from_seed(seed + 1)
    limit = 2.0 * max(float(np.abs(update).max()) for update in examples)
    federation = Federation(PARAMETERS, value_bits=VALUE_BITS, n_params=model.n_params, limit=limit)
    others = [name for name in federation.names if name != VICTIM]
    beside = {name: federation.quantised(examples[i % len(examples)], noise) for i, name in enumerate(others)}
    return _Attacked(scene, model, federation, beside, noise)


def _colluding(arm: str) -> tuple[str, ...]:
    return tuple(f"site-{i}" for i in range(1, 1 + (WITH[arm] or 0)))


def _update(sender: Victim, records: Records, index: int, seed: int) -> Vector:
    return sender.sends(records, index, seed).updates(len(sender.scene.start))[0]


def _seen(update: Vector) -> Uploads:
    return Uploads((update.astype("<f4").tobytes(),), encrypted=False)


def _digest(updates: Sequence[Vector]) -> bytes:
    return hashlib.sha256(b"".join(update.tobytes() for update in updates)).digest()


def _scored(
    attacker: SpanAttacker, read: _Read, truths: Sequence[Picture], deviation: float | None
) -> tuple[list[Picture], dict[str, Any]]:
    """The attacker's pictures, and how close they come."""
    mean = attacker.prior.mean
    found = [attacker.best(_seen(update), deviation) for update in read.updates]
    close = [closeness(truth, picture) for truth, picture in zip(truths, found, strict=True)]
    gains = [each.psnr_db - psnr_db(truth, mean) for each, truth in zip(close, truths, strict=True)]
    naive = gains
    if deviation is None:
        trusting = [attacker.pictures(_seen(update), (NAIVE,))[0] for update in read.updates]
        naive = [psnr_db(t, p) - psnr_db(t, mean) for t, p in zip(truths, trusting, strict=True)]
    gain, interval = mean_interval(gains)
    return found, {
        "psnr_db": _median([each.psnr_db for each in close]), "ssim": _median([each.ssim for each in close]),
        "gain_db": round(gain, 3), "gain_db_interval": [round(x, 3) for x in interval],
        "shows_the_mean_image": deviation is None, "gain_db_of_one_who_trusts_it": round(float(np.mean(naive)), 3),
    }  # fmt: skip


def _named(
    scene: Scene,
    model: PublicModel,
    candidates: Candidates,
    updates: Sequence[Vector],
    guess: np.random.Generator,
) -> dict[str, Any]:
    """How often the victim's record, which stands at its own place in the gallery, is the one that is named."""
    layer, hits = one_token_layer(model, scene), 0
    for place, update in enumerate(updates):
        found = residuals(_seen(update), candidates, model, layer)
        order = guess.permutation(len(candidates.directions)) if found is None else np.argsort(found)
        hits += int(order[0]) == place
    low, high = rate_interval(hits, len(updates))
    return {"named": hits, "tries": len(updates), "named_interval": [round(low, 4), round(high, 4)]}


def _sum_shows(
    attacked: _Attacked,
    records: Records,
    gallery: NDArray[np.int64],
    candidates: Candidates,
    seed: int,
) -> dict[str, Any]:
    """What t-1 sites and the server learn by design: the sum over the honest sites, and that a record is in it."""
    scene, federation, honest = attacked.scene, attacked.federation, PARAMETERS.n_sites - T + 1
    sender = Victim(scene, Arm.NOTHING, None)
    colluding = _colluding(FEWER)
    names = [name for name in federation.names if name not in colluding]
    updates = [_update(sender, records, int(gallery[i]), seed * 1000 + 900 + i) for i in range(honest)]
    inputs = {name: federation.quantised(u, attacked.noise) for name, u in zip(names, updates, strict=True)}
    played = federation.play({**attacked.beside, **inputs}, encrypted=federation.names)
    total, terms = sum_of_the_others(played.coalition(colluding))
    codec = federation.masked
    plain = np.sum([inputs[name] - codec.levels for name in names], axis=0) * codec.step
    found = residuals(_seen(total), candidates, attacked.model, one_token_layer(attacked.model, scene))
    named = None if found is None else sorted(int(i) for i in np.argsort(found)[:honest])
    return {
        "honest_sites": terms,
        "sum_is_exact": bool(np.array_equal(total, plain.astype(np.float32))),
        "their_records_named": 0 if named is None else len(set(named) & set(range(honest))),
        "is": "a sum without noise tells who is in it, not at which site; only noise prevents that",
    }


def _draw(path: Path, truths: Sequence[Picture], pictures: dict[str, list[Picture]], mean: Picture) -> None:
    titles = {CLEAR: "in the\nclear", NO_MASKS: "no masks:\n1 site", FEWER: f"masks:\n{T - 1} sites (t-1)",
              ENOUGH: f"masks:\n{T} sites (t)"}  # fmt: skip
    shown = min(6, len(truths))
    columns = [(titles[arm], pictures[arm][:shown]) for arm in WITH]
    save_grid(path, [("original", truths[:shown]), *columns, ("mean of\npublic images", [mean] * shown)])


def _median(values: Sequence[float]) -> float:
    return round(float(np.median(values)), 4)
