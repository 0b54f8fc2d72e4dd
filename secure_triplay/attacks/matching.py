"""Attack: gradient matching with total variation (Geiping et al. 2020), the usual baseline.

It looks for a picture whose gradient points where the seen one points, by descent through the model. Here it
is a baseline and nothing more: it is slow, and that it fails says little. What the suite rests on is the
closed form.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from secure_triplay.attacks.attack import Attack, Observable, Setting
from secure_triplay.attacks.finding import Arm, Control, Finding, Outcome
from secure_triplay.attacks.images import Picture, fit_prior, pictures_of, psnr_db
from secure_triplay.attacks.observe import PublicModel, Uploads
from secure_triplay.attacks.pictures import save_grid
from secure_triplay.attacks.scene import (
    KINDS,
    Scene,
    arms,
    key_ceremony,
    open_scene,
    public_images,
    victims,
)
from secure_triplay.attacks.scoring import gain_finding
from secure_triplay.attacks.span import RANK, Victim
from secure_triplay.model.adapter import EVERY_BLOCK
from secure_triplay.model.quantize import dequantize
from secure_triplay.privacy.per_record import evaluation_mode, record_loss

NAME = "gradient-matching"
_SMOOTH, _STEP = 1e-3, 0.02
_SAME, _NO_LIKENESS = 0.99, 0.1


@dataclass(frozen=True, eq=False)
class Matcher:
    """The attacker's own copy of the public model, in full precision so that it can be derived twice."""

    scene: Scene
    model: PublicModel

    @classmethod
    def of(cls, scene: Scene) -> Matcher:
        """From the public part of a scene; the victim is done with it by then."""
        dequantize(scene.model.backbone.model.visual)
        return cls(scene, PublicModel.of(scene))

    def gradient(self, pixels: Tensor, label: int, *, again: bool) -> Tensor:
        """The gradient (n_params,) of one picture (3, size, size) in [0, 1]; `again`: it can be derived."""
        backbone, classifier = self.scene.model.backbone, self.scene.model.classifier
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (backbone.mean, backbone.std))
        tokens = self.scene.model.tower.below(((pixels - mean) / std)[None])
        loss = record_loss(classifier(tokens), torch.tensor([label]))
        weights = list(self.scene.model.adapter.weights)
        parts = torch.autograd.grad(loss, weights, create_graph=again)
        return torch.cat([part.reshape(-1) for part in parts])

    def match(self, seen: Uploads, start: Picture, *, classes: int, iterations: int) -> tuple[Picture, float]:
        """The picture found and the cosine of its gradient with the seen one; the label is tried out first.

        Where the likeness is none to speak of, the attacker keeps the picture that it began with.
        """
        target = -torch.from_numpy(np.array(seen.updates(self.model.n_params)[0]))
        self.scene.model.adapter.load_vector(self.scene.start)
        pixels = torch.from_numpy(start.astype(np.float32)).clone()
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            scores = [
                float(F.cosine_similarity(self.gradient(pixels, k, again=False), target, dim=0))
                for k in range(classes)
            ]
            label = int(np.argmax(scores))
            pixels.requires_grad_(True)
            optimiser = torch.optim.Adam([pixels], lr=_STEP)
            best, found = max(scores), pixels.detach().clone()
            for step in range(iterations):
                for group in optimiser.param_groups:
                    group["lr"] = _STEP * (0.1 if step > 0.7 * iterations else 1.0)
                likeness = F.cosine_similarity(self.gradient(pixels, label, again=True), target, dim=0)
                if float(likeness.detach()) > best:
                    best, found = float(likeness.detach()), pixels.detach().clone()
                loss = 1 - likeness + _SMOOTH * _total_variation(pixels)
                (pixels.grad,) = torch.autograd.grad(loss, [pixels])
                pixels.grad.sign_()
                optimiser.step()
                with torch.no_grad():
                    pixels.clamp_(0, 1)
        if best < _NO_LIKENESS:
            return start, best
        return found.double().numpy(), best


def _total_variation(pixels: Tensor) -> Tensor:
    """Mean absolute difference of neighbours, in both directions (Rudin, Osher and Fatemi 1992)."""
    return pixels.diff(dim=1).abs().mean() + pixels.diff(dim=2).abs().mean()


def run(setting: Setting) -> Outcome:
    """A few images, from the mean image on, with plain and frozen A, in the arms where there is a gradient."""
    study, quick = setting.study, setting.quick
    n, iterations = (2, 10) if quick else (3, 60)
    records, chosen = victims(study, n, setting.seed)
    findings: list[Finding] = []
    controls: list[Control] = []
    columns = []
    tried = [arm for arm in arms(study) if not (quick and arm in (Arm.DP, Arm.ENCRYPTION))]
    total, done = len(KINDS) * len(tried) * n, 0
    for kind in KINDS:
        scene = open_scene.__wrapped__(  # a scene of its own: the matcher changes the model
            study, kind, rank=RANK, last_blocks=EVERY_BLOCK
        )
        sites = key_ceremony(study, scene.model.adapter.n_params)
        prior = fit_prior(public_images(study).learned, scene.size)
        truths = pictures_of(records, chosen, scene.size)
        sent = {
            arm: [
                Victim(scene, arm, sites).sends(records, int(i), setting.seed * 1000 + at)
                for at, i in enumerate(chosen)
            ]
            for arm in tried
        }
        matcher = Matcher.of(scene)
        with evaluation_mode(scene.model.classifier):
            for arm in tried:
                found, likeness = [], []
                for seen in sent[arm]:
                    picture, cosine = matcher.match(
                        seen, prior.mean, classes=len(study.classes), iterations=iterations
                    )
                    found.append(picture)
                    likeness.append(cosine)
                    done += 1
                    setting.tell(done, total)
                if kind == "lora" and arm is Arm.NOTHING:
                    controls.append(_control(matcher, sent[arm], truths, records.labels[chosen]))
                gains = [psnr_db(t, f) - psnr_db(t, prior.mean) for t, f in zip(truths, found, strict=True)]
                findings.append(
                    gain_finding(
                        NAME,
                        arm,
                        kind,
                        gains,
                        note=f"a baseline: {iterations} steps from the mean image, {n} images",
                        pictures=("matching.png",) if kind == "lora" and arm is Arm.NOTHING else (),
                        figures={"images": n, "cosine": round(float(np.mean(likeness)), 1)},
                    )
                )
                columns.append((f"{kind},\n{arm.value}", found))
    mean = [prior.mean] * n
    save_grid(
        setting.pictures / "matching.png", [("original", truths), *columns, ("mean of\npublic images", mean)]
    )
    return Outcome(tuple(controls), tuple(findings), _NOT_TESTED)


def _control(matcher: Matcher, sent: list[Uploads], truths: list[Picture], labels: Any) -> Control:
    """Whether what is being matched is the victim's gradient: at the true picture the cosine is one."""
    matcher.scene.model.adapter.load_vector(matcher.scene.start)
    cosines = []
    for seen, truth, label in zip(sent, truths, labels, strict=True):
        mine = matcher.gradient(torch.from_numpy(truth.astype(np.float32)), int(label), again=False)
        target = -torch.from_numpy(np.array(seen.updates(matcher.model.n_params)[0]))
        cosines.append(float(F.cosine_similarity(mine, target, dim=0)))
    goal = (
        f"at the true picture the matched gradient is the victim's (cosine at least {_SAME:g}); "
        "whether descent gets there is the finding, and not the evidence that the suite rests on"
    )
    return Control(NAME, valid=min(cosines) >= _SAME, goal=goal, figures={"cosine": min(cosines)})


_NOT_TESTED = (
    "gradient matching with a generative prior, with more steps or from several starts: this is a baseline",
)

ATTACK = Attack(
    name=NAME,
    title="Gradient matching with total variation, the usual baseline",
    source="Geiping et al. 2020 (Inverting Gradients); written anew, since the published code needs hooks "
    "into a model of its own and knows no frozen or 4-bit layers",
    needs=frozenset({Observable.STUDY, Observable.UPLOADS}),
    run=run,
)
