"""Attack: pictures out of the released adapter, class by class, guided by the class's own sentence.

A picture is changed, within what public images look like, until the model is sure that it shows a class: under
the base model, and under the released adapter. If the adapter held its records, what comes out of the second
would be nearer to a record that it was trained on than to one of the same class that it never saw.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from secure_triplay.attacks.attack import Attack, Observable, Setting
from secure_triplay.attacks.finding import Arm, Control, Finding, Outcome
from secure_triplay.attacks.images import ImagePrior, Picture, fit_prior, pictures_of, psnr_db
from secure_triplay.attacks.pictures import save_grid
from secure_triplay.attacks.scene import KINDS, Scene, Vector, open_scene, public_images, victims
from secure_triplay.attacks.scoring import gain_finding
from secure_triplay.client.optimiser import GlobalState, step
from secure_triplay.constants import round_rule
from secure_triplay.data.records import Records
from secure_triplay.privacy.noise import NoiseSource
from secure_triplay.privacy.training import train, train_unsafe_without_dp

NAME = "released-adapter"
METRIC = "dB PSNR nearer to a record of the training than to a stranger of its class"
_SURE, _RATE, _PULL = 0.9, 0.1, 1e-3
_LEARNT, _TOLD_DB = 0.8, 10.0
_SLOWER = 0.2
"""Of a study's step, for LoRA where the study freezes A: chosen for a still A, all of it leaves nothing to invert."""


@dataclass(frozen=True, eq=False)
class Holder:
    """What a holder of the released adapter has: the model, the sentences in it, and public images."""

    scene: Scene
    prior: ImagePrior

    def invert(
        self, adapter: Vector, labels: list[int], iterations: int
    ) -> tuple[list[Picture], list[float]]:
        """For each class the picture that the model takes for it, and how sure it is (0 to 1)."""
        self.scene.model.adapter.load_vector(adapter)
        root = torch.from_numpy(np.linalg.cholesky(self.prior.covariance)).float()
        target = torch.tensor(labels)
        unit = torch.zeros(len(labels), self.prior.n, requires_grad=True)
        optimiser = torch.optim.Adam([unit], lr=_RATE)
        for _ in range(iterations):
            scores = self._scores(self._pictures(unit @ root.T))
            loss = F.cross_entropy(scores, target, reduction="sum")
            (unit.grad,) = torch.autograd.grad(loss + _PULL * unit.square().sum(), [unit])
            optimiser.step()
        with torch.no_grad():
            z = unit @ root.T
            sure = self._scores(self._pictures(z)).softmax(-1).gather(1, target[:, None])[:, 0]
        return [self.prior.picture(each) for each in z.double().numpy()], sure.tolist()

    def _pictures(self, z: Tensor) -> Tensor:
        grid = self.prior.rows.shape[1]
        rows, colours = (torch.from_numpy(part).float() for part in (self.prior.rows, self.prior.colours))
        small = (torch.from_numpy(self.prior.mean_z).float() + z).view(len(z), -1, grid, grid)
        return torch.einsum("ce,yf,nefg,xg->ncyx", colours, rows, small, rows).clamp(0, 1)

    def _scores(self, pictures: Tensor) -> Tensor:
        backbone, tower = self.scene.model.backbone, self.scene.model.tower
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (backbone.mean, backbone.std))
        scores: Tensor = self.scene.model.classifier(tower.below((pictures - mean) / std))
        return scores


def released(
    scene: Scene, tokens: Tensor, labels: Tensor, *, private: bool, rounds: int, seed: int
) -> Vector:
    """The adapter that a study of one site would publish, by the study's own rule; noise comes from the seed."""
    study, adapter = scene.study, scene.model.adapter
    noise = NoiseSource.unsafe_from_seed(seed)
    state = GlobalState.start(_zero_b(scene))
    for _ in range(rounds):
        before = state.adapter.astype(np.float32)
        adapter.load_vector(before)
        if private:
            train(scene.model.classifier, tokens, labels, replace(round_rule(study), unit="record"), noise)
        else:
            privacy = study.privacy
            train_unsafe_without_dp(
                scene.model.classifier,
                tokens,
                labels,
                sampling_rate=privacy.sampling_rate,
                expected_batch_size=privacy.expected_batch_size,
                steps=study.training.steps_per_round,
                learning_rate=study.training.learning_rate,
                physical_batch_size=study.training.physical_batch_size,
                noise=noise,
            )
        change = (adapter.vector() - before).astype(np.float64)
        state = step(state, change, study.server_optimiser)
    return state.published


def _zero_b(scene: Scene) -> NDArray[np.float32]:
    """The adapter as it is before the first round: B zero, A as drawn (with `lora`, at its place in the vector)."""
    adapter, start, at = scene.model.adapter, scene.start.copy(), 0
    for name, shape in zip(adapter.names, adapter.shapes, strict=True):
        size = int(np.prod(shape))
        if ".lora_B" in name:
            start[at : at + size] = 0
        at += size
    return start


def _slower(scene: Scene) -> Scene:
    """The scene with a smaller step of the server optimiser."""
    rule = scene.study.server_optimiser
    smaller = rule.model_copy(update={"learning_rate": _SLOWER * rule.learning_rate})
    return replace(scene, study=scene.study.model_copy(update={"server_optimiser": smaller}))


def learnt(scene: Scene, adapter: Vector, tokens: Tensor, labels: Tensor) -> float:
    """Share of the records that it was trained on which the model is right about, with this adapter."""
    scene.model.adapter.load_vector(adapter)
    with torch.no_grad():
        return float((scene.model.classifier(tokens).argmax(-1) == labels).double().mean())


def nearer_to_members(
    found: list[Picture], members: list[list[Picture]], strangers: list[list[Picture]]
) -> list[float]:
    """For each class: dB to the nearest member, less dB to the nearest of as many strangers of that class."""
    return [
        max(psnr_db(each, one) for one in inside) - max(psnr_db(each, one) for one in outside)
        for each, inside, outside in zip(found, members, strangers, strict=True)
    ]


def run(setting: Setting) -> Outcome:
    """Base model and released adapter, trained on few records so that it has every reason to remember them."""
    study, quick = setting.study, setting.quick
    n, iterations, rounds = (40, 30, 4) if quick else (120, 40, study.training.rounds)
    records, chosen = victims(study, 2 * n, setting.seed)
    inside, outside = chosen[:n], chosen[n:]
    present = [
        label for label in range(len(study.classes))
        if min((records.labels[inside] == label).sum(), (records.labels[outside] == label).sum()) >= 2
    ][: 4 if quick else 6]  # fmt: skip
    size = study.backbone.image_size
    members, strangers = (
        [_of_class(records, part, label, size) for label in present] for part in (inside, outside)
    )
    for a, b in zip(members, strangers, strict=True):
        fewer = min(len(a), len(b))
        del a[fewer:], b[fewer:]
    findings: list[Finding] = []
    surest: list[float] = []
    own_kind = 0.0
    means = [np.asarray(np.mean(each, axis=0)) for each in members]
    columns: list[tuple[str, list[Picture]]] = [("class mean\n(members)", means)]
    private = [False] + ([True] if study.dp else [])
    for done, kind in enumerate(KINDS):
        scene = open_scene(study, kind)
        if kind == "lora" != study.adapter.kind:
            scene = _slower(scene)
        holder = Holder(scene, fit_prior(public_images(study).learned, size))
        tokens, labels = scene.tokens(records, inside)
        if not done:
            base, _ = holder.invert(_zero_b(scene), present, iterations)
            columns.append(("base model", base))
        for noisy in private:
            adapter = released(scene, tokens, labels, private=noisy, rounds=rounds, seed=setting.seed)
            found, sure = holder.invert(adapter, present, iterations)
            surest += [] if noisy else sure
            right = learnt(scene, adapter, tokens, labels)
            if kind == study.adapter.kind and not noisy:
                own_kind = right
            columns.append((f"{kind},\nDP {'on' if noisy else 'off'}", found))
            findings.append(
                gain_finding(
                    NAME, Arm.DP if noisy else Arm.NOTHING, kind,
                    nearer_to_members(found, members, strangers),
                    metric=METRIC, bound_is="a stranger of the class is as near",
                    note=f"{rounds} rounds on {n} records of one site, {len(present)} classes",
                    pictures=("released.png",) if not noisy and kind == "lora" else (),
                    figures={
                        "classes": len(present), "sure": round(float(np.mean(sure)), 3), "learnt": round(right, 3)
                    },
                )
            )  # fmt: skip
        setting.tell(done + 1, len(KINDS))
    columns.append(("mean of\npublic images", [holder.prior.mean] * len(present)))
    save_grid(setting.pictures / "released.png", columns)
    told = float(np.mean(nearer_to_members([each[0] for each in members], members, strangers)))
    goal = (
        f"the model takes what is found for the class that was asked for, with at least {_SURE:.0%} on average; the "
        f"study's kind of adapter without noise is right about at least {_LEARNT:.0%} of what it was trained on; "
        f"and a record itself is told from strangers by at least {_TOLD_DB:g} dB"
    )
    sure_of = float(np.mean(surest))
    control = Control(
        NAME,
        sure_of >= _SURE and own_kind >= _LEARNT and told >= _TOLD_DB,
        goal,
        {"sure": sure_of, "learnt": own_kind, "told_db": told},
    )
    return Outcome((control,), tuple(findings), _NOT_TESTED)


def _of_class(records: Records, part: NDArray[np.int64], label: int, size: int) -> list[Picture]:
    mine = part[records.labels[part] == label]
    return pictures_of(records, mine, size)


_NOT_TESTED = (
    "model inversion with a generative model of such pictures",
    "adapters trained until they know their records by heart",
)

ATTACK = Attack(
    name=NAME,
    title="Pictures out of the released adapter",
    source="Fredrikson et al. 2015, with the class's sentence as the guide",
    needs=frozenset({Observable.STUDY, Observable.RELEASED_ADAPTER}),
    run=run,
)
