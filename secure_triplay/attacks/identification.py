"""Attack: who was in the batch, from the span of a gradient that holds one product a record.

In the last block only the class token's query reaches the answer, and what follows the attention is computed for that
token alone. So of each record i of a batch, the gradient of B of such a layer (the query projection, or else the
attention's output, or the MLP) holds one product only, d_i (A u_i)^T, where u_i is the class token's input
there. Its rows span {A u_i}: as many directions as there are records, in R^rank. While there are fewer records
than the rank, a candidate whose own A u lies in that span took part. B is trained in plain LoRA and in
FFA-LoRA alike, so that a frozen A does not help here. Nor does keeping B to k public output directions, B = U S, while
there are fewer records than k: the gradient of S holds (U^T d_i) (A u_i)^T of each, and its rows span the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from secure_triplay.attacks.attack import Attack, Observable, Setting
from secure_triplay.attacks.finding import Arm, Control, Finding, Outcome, Verdict
from secure_triplay.attacks.inversion import Array
from secure_triplay.attacks.observe import PublicModel, Uploads
from secure_triplay.attacks.scene import (
    KINDS,
    Kind,
    Scene,
    arms,
    key_ceremony,
    open_scene,
    travels,
    victims,
)
from secure_triplay.attacks.scoring import rate_interval
from secure_triplay.config import Study
from secure_triplay.errors import ConfigError
from secure_triplay.privacy.noise import NoiseSource

NAME = "identification"
RANK = 32
BATCHES = range(1, 9)
_BATCH = 128
_GAP = 30.0
_ONE_TOKEN = (
    "attn.qkv",
    "attn.q_proj",
    "attn.proj",
    "attn.out_proj",
    "mlp.fc1",
    "mlp.c_fc",
    "mlp.fc2",
    "mlp.c_proj",
)


@dataclass(frozen=True, eq=False)
class Candidates:
    """A gallery of pictures as the attacker sees them: A u of each one's class token (n, r), in unit length."""

    directions: Array

    @classmethod
    def of(cls, scene: Scene, gallery: torch.Tensor) -> Candidates:
        """Run the attacker's pictures, as tokens (n, t, d), through the public model at the round's beginning."""
        layer = one_token_layer(PublicModel.of(scene), scene)
        scene.model.adapter.load_vector(scene.start)
        seen: list[torch.Tensor] = []
        weights = scene.model.backbone.model.get_submodule(layer).lora_A["default"]
        hook = weights.register_forward_hook(
            lambda module, inputs, output: seen.append(output[:, 0].detach())
        )
        try:
            with torch.no_grad():
                for tokens in torch.split(gallery, _BATCH):
                    scene.model.classifier.suffix(tokens)
        finally:
            hook.remove()
        found = torch.cat(seen).double().numpy()
        return cls(found / np.linalg.norm(found, axis=1, keepdims=True))


def one_token_layer(model: PublicModel, scene: Scene) -> str:
    """The first layer of the last block that sees one token a record. Raises ConfigError where none is adapted."""
    last = scene.model.adapter.n_blocks - 1
    for name in _ONE_TOKEN:
        if found := model.layers_of_block(last, name):
            return found[-1]
    raise ConfigError(
        "this study adapts no layer of the last block that sees one token a record",
        where=f"attack {NAME}",
        fix="nothing to repair: the attack does not apply to this study",
    )


def residuals(seen: Uploads, candidates: Candidates, model: PublicModel, layer: str) -> Array | None:
    """How far each candidate (n,) lies outside the span: 0 for one that took part, at most 1.

    The number of records is not known; it is read off the last gap between singular values that stands out, below
    which all is rounding: a record that the model is sure of has a gradient thousands of times shorter than others'.
    None where no gap stands out: the span fills the space, or there is no gradient in these bytes.
    """
    update = seen.updates(model.n_params)[0]
    rows = model.part(update, f"{layer}.lora_B")
    if layer.endswith("qkv"):
        rows = rows[: len(rows) // 3]  # the fused projection's queries come first
    values, right = np.linalg.svd(rows, full_matrices=False)[1:]
    gaps = values[:-1] / np.maximum(values[1:], 1e-30)
    standing_out = np.flatnonzero(gaps >= _GAP)
    if not len(standing_out):
        return None
    span = right[: int(standing_out[-1]) + 1]
    inside = candidates.directions @ span.T
    return np.asarray(np.sqrt(np.maximum(0.0, 1.0 - (inside**2).sum(axis=1))), np.float64)


@dataclass(frozen=True)
class Counted:
    """Members found, members there were, over all batches of each size."""

    hits: dict[int, int]
    tries: dict[int, int]

    @property
    def rate(self) -> float:
        """Share of the members that were named."""
        return sum(self.hits.values()) / sum(self.tries.values())

    @property
    def interval(self) -> tuple[float, float]:
        """Its 95 % interval."""
        return rate_interval(sum(self.hits.values()), sum(self.tries.values()))


def identify(
    scene: Scene,
    arm: Arm,
    gallery: tuple[torch.Tensor, torch.Tensor],
    candidates: Candidates,
    *,
    repeats: int,
    seed: int,
) -> Counted:
    """Train on batches of 1 to 8 records out of the gallery (tokens, labels), and name as many.

    Where the attacker sees no span it guesses, from the seed: the rate of guessing is then what is reported.
    """
    model = PublicModel.of(scene)
    layer = one_token_layer(model, scene)
    tokens, labels = gallery
    sites = key_ceremony(scene.study, model.n_params) if arm.encrypted else None
    rng, noise = np.random.default_rng([seed, 3]), NoiseSource.unsafe_from_seed(seed)
    hits, tries = dict.fromkeys(BATCHES, 0), dict.fromkeys(BATCHES, 0)
    for size in BATCHES:
        for _ in range(repeats):
            members = rng.choice(len(tokens), size, replace=False)
            update = scene.update(tokens[members], labels[members], private=arm.private, noise=noise)
            seen = Uploads((travels(update, sites, noise),), arm.encrypted)
            found = residuals(seen, candidates, model, layer)
            guess = rng.permutation(len(tokens))
            named = (guess if found is None else np.argsort(found))[:size]
            hits[size] += len(set(named.tolist()) & set(members.tolist()))
            tries[size] += size
    return Counted(hits, tries)


def ceiling(study: Study, arm: Arm, gallery: int) -> tuple[float, str]:
    """The rate that a defence allows, and why: chance for ciphertexts, the exact trade-off for noise."""
    largest = max(BATCHES)
    chance = largest / gallery
    if arm.encrypted or study.dp is None:
        return chance, f"guessing: {largest} of {gallery}"
    from secure_triplay.constants import noise_multiplier
    from secure_triplay.planner.attacker import gallery_ceiling
    from secure_triplay.planner.losses import composed

    losses = composed(noise_multiplier(study), 1.0, 1)
    found = gallery_ceiling(gallery // largest, study.dp.epsilon, study.dp.delta, losses)
    exact = found.region if found.exact is None else found.exact
    return (
        exact,
        f"the trade-off of one step of this noise with the record drawn, one of {gallery // largest}",
    )


def run(setting: Setting) -> Outcome:
    """Control at rank 32, then every arm at that rank and with the study's own adapter, as it stands."""
    study, quick = setting.study, setting.quick
    size, repeats = (200, 2) if quick else (1000, 6)
    records, chosen = victims(study, size, setting.seed)
    controls: list[Control] = []
    findings: list[Finding] = []
    own = study.adapter
    cases: list[tuple[Kind, Arm, int | None]] = [
        *((kind, arm, RANK) for kind in KINDS for arm in arms(study)),
        *((kind, Arm.NOTHING, own.rank) for kind in KINDS if kind != own.kind),
        *((own.kind, arm, None) for arm in arms(study)),
    ]
    gallery = open_scene(study, "lora", rank=RANK).tokens(records, chosen)
    for done, (kind, arm, rank) in enumerate(cases):
        scene = open_scene(study, kind, rank=rank)
        candidates = Candidates.of(scene, gallery[0])
        counted = identify(scene, arm, gallery, candidates, repeats=repeats, seed=setting.seed)
        if kind == "lora" and arm is Arm.NOTHING and rank == RANK:
            controls.append(
                Control(
                    NAME,
                    valid=counted.rate == 1.0,
                    goal=f"every member of batches of 1 to 8 named, in a gallery of {size:,}",
                    figures={"rate": counted.rate, "gallery": size, "members": sum(counted.tries.values())},
                )
            )
        findings.append(_finding(study, kind, arm, rank, size, counted))
        setting.tell(done + 1, len(cases))
    return Outcome(tuple(controls), tuple(findings), _NOT_TESTED)


def _finding(study: Study, kind: Kind, arm: Arm, rank: int | None, size: int, counted: Counted) -> Finding:
    """`rank` None: the study's own adapter."""
    own = study.adapter
    few = "" if own.output_rank is None else f", {own.output_rank} output directions"
    adapter = f"the study's own adapter, rank {own.rank}{few}" if rank is None else f"rank {rank}"
    bound, why = ceiling(study, arm, size) if arm is not Arm.NOTHING else (None, "")
    chance = max(BATCHES) / size
    low = counted.interval[0]
    if bound is None:
        verdict = Verdict.LEAKS_AS_STATED if low > chance else Verdict.NOTHING_FOUND
    elif low > bound:
        verdict = Verdict.LEAKS
    else:
        verdict = Verdict.WITHIN_BOUND if low > chance else Verdict.NOTHING_FOUND
    rates = {f"rate_of_{b}": round(counted.hits[b] / counted.tries[b], 4) for b in BATCHES}
    return Finding(
        NAME,
        arm,
        kind,
        metric="members named out of a gallery",
        value=counted.rate,
        verdict=verdict,
        interval=counted.interval,
        bound=bound,
        bound_is=why,
        note=f"{adapter}, batches of 1 to 8, gallery of {size:,}",
        figures={"rank": own.rank if rank is None else rank, "gallery": size, **rates},
    )


_NOT_TESTED = (
    "identification in batches as large as the rank, or as there are output directions, or larger, where the span "
    "fills the space and says nothing",
)

ATTACK = Attack(
    name=NAME,
    title="Who was in the batch, by the span of a gradient of the last block",
    source="the project's own closed form",
    needs=frozenset({Observable.STUDY, Observable.UPLOADS}),
    run=run,
)
