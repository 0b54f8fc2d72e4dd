"""Attack: features read off the gradient of a trained projection or head, where a study shares one.

For logits or embeddings W f, dL/dW = sum_i d_i f_i^T: with one record any row of it is the record's feature,
up to a factor. A study here shares no such layer; that is shown by listing what is in an update. So that the
list means something, the attack is run against a projection that is trained, which no study does.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F

from secure_triplay.attacks.attack import Attack, Observable, Setting
from secure_triplay.attacks.finding import Arm, Control, Finding, Outcome, Verdict
from secure_triplay.attacks.inversion import Array
from secure_triplay.attacks.scene import KINDS, Scene, open_scene, victims
from secure_triplay.data.records import Records
from secure_triplay.model.text import class_embeddings
from secure_triplay.privacy.per_record import record_loss

NAME = "embedding-leakage"
COSINE_GOAL = 0.999


def feature_in(gradient: Array) -> Array:
    """The unit feature (d,) that a projection's gradient (n_out, d) of one record holds, up to its sign."""
    _, _, right = np.linalg.svd(gradient, full_matrices=False)
    found: Array = right[0]
    return found


def not_adapter(names: tuple[str, ...]) -> tuple[str, ...]:
    """Names in an update that are no LoRA matrix inside a block: a shared projection or head would be here."""
    return tuple(
        name for name in names if ".lora_" not in name or not (".blocks." in name or ".resblocks." in name)
    )


def projection_gradient(scene: Scene, records: Records, index: int) -> tuple[Array, Array]:
    """Gradient (d_out, d) of a linear layer on the unit features, were it trained, and the true feature (d,)."""
    tokens, labels = scene.tokens(records, np.array([index]))
    with torch.no_grad():
        feature = scene.model.tower.suffix(tokens)
    head = class_embeddings(scene.model.backbone, scene.study.classes).requires_grad_(True)
    loss = record_loss(scene.study.training.logit_scale * F.linear(feature, head), labels)
    (gradient,) = torch.autograd.grad(loss, [head])
    return gradient.double().numpy(), feature[0].double().numpy()


def run(setting: Setting) -> Outcome:
    """The demonstration as the control, then the list of what an update of the study holds."""
    study = setting.study
    n, gallery_size = (5, 50) if setting.quick else (20, 200)
    records, gallery = victims(study, gallery_size, setting.seed)
    scene = open_scene(study, study.adapter.kind)
    tokens, _ = scene.tokens(records, gallery)
    features = scene.model.tower.features(tokens)
    cosines, named = [], 0
    for position in range(n):
        gradient, truth = projection_gradient(scene, records, int(gallery[position]))
        found = feature_in(gradient)
        cosines.append(abs(float(found @ truth)))
        named += int(np.abs(features @ found).argmax()) == position
        setting.tell(position + 1, n + len(KINDS))
    control = Control(
        "embedding",
        valid=min(cosines) >= COSINE_GOAL and named == n,
        goal=f"a head that is trained gives every feature away (cosine {COSINE_GOAL:g}) and names its picture",
        figures={"cosine": min(cosines), "rate": named / n, "gallery": gallery_size},
    )
    findings = []
    for done, kind in enumerate(KINDS):
        names = open_scene(study, kind).model.adapter.names
        strangers = not_adapter(names)
        findings.append(
            Finding(
                NAME,
                Arm.NOTHING,
                kind,
                metric="shared projections and heads in an update",
                value=float(len(strangers)),
                verdict=Verdict.LEAKS if strangers else Verdict.NOTHING_FOUND,
                bound=0.0,
                bound_is="nothing but LoRA matrices inside blocks leaves a site",
                note="not applicable: nothing of the kind leaves. An update holds " + ", ".join(names),
                figures={"matrices": len(names)},
            )
        )
        setting.tell(n + done + 1, n + len(KINDS))
    return Outcome((control,), tuple(findings))


ATTACK = Attack(
    name=NAME,
    title="Features from the gradient of a shared projection or head",
    source="Phong et al. 2017 (gradients of a linear layer hold its input)",
    needs=frozenset({Observable.STUDY, Observable.UPLOADS}),
    run=run,
)
