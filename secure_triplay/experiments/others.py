"""Usual ways that do not train our adapter: FedAvg of a small CNN, of the whole image tower, and FedCLIP.

Neither has any privacy; both average by uncharged record counts, as published.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secure_triplay.config import Study
from secure_triplay.experiments.scores import Answers, Labels, Result
from secure_triplay.model.tower import WholeTower

if TYPE_CHECKING:
    from secure_triplay.experiments.setting import Setting

ROUNDS, LOCAL_EPOCHS, BATCH = 20, 1, 32
CNN_LEARNING_RATE, CNN_PIXELS = 0.05, 28
ATTENTION_LEARNING_RATE = 1e-3
TOWER_ROUNDS, TOWER_LEARNING_RATE = 3, 1e-5
"""Fewer rounds for the whole tower, since one of them costs as much as a whole study of an adapter."""

Part = tuple[Tensor, Tensor]
"""Inputs (n, ...) float32 and labels (n,) int64."""


def fedavg_cnn(setting: Setting, study: Study) -> Result:
    """FedAvg of two convolutions and two linear layers, from scratch on 28-pixel images (McMahan et al. 2017)."""
    torch.manual_seed(study.seed)
    network = nn.Sequential(
        *(nn.Conv2d(3, 16, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(32 * (CNN_PIXELS // 4) ** 2, 128), nn.ReLU()),
        nn.Linear(128, len(study.classes)),
    )

    def part(name: str) -> Part:
        records = setting.records(name)
        images = torch.from_numpy(records.images(np.arange(len(records)), CNN_PIXELS))
        return images.permute(0, 3, 1, 2).float() / 255 - 0.5, torch.from_numpy(records.labels)

    def optimiser(weights: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.SGD(weights, lr=CNN_LEARNING_RATE)

    return _average(setting, study, network, part, optimiser)


class AttentionAdapter(nn.Module):
    """Features (n, d) -> logits: features times a learned softmax mask of themselves (Lu et al. 2023, eq. 3-5)."""

    def __init__(self, embeddings: Tensor, logit_scale: float) -> None:
        super().__init__()
        width = embeddings.shape[1]
        self.mask = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width), nn.Softmax(-1))
        self._embeddings, self._scale = embeddings, logit_scale

    def forward(self, features: Tensor) -> Tensor:
        """Logits (n, n_classes)."""
        masked = F.normalize(features * self.mask(features), dim=-1)
        return self._scale * F.linear(masked, self._embeddings)


def fedclip(setting: Setting, study: Study) -> Result:
    """FedAvg of an attention adapter on features that never change."""
    from secure_triplay.model.text import class_embeddings

    model = setting.model(study)
    model.adapter.load_vector(setting.start(model))
    torch.manual_seed(study.seed)
    embeddings = class_embeddings(model.backbone, study.classes)
    network = AttentionAdapter(embeddings, study.training.logit_scale)

    def part(name: str) -> Part:
        encoded = setting.encoded(model, name)
        if not len(encoded):
            return torch.empty(0), encoded.labels
        return torch.from_numpy(model.tower.features(encoded.tokens)), encoded.labels

    def optimiser(weights: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.Adam(weights, lr=ATTENTION_LEARNING_RATE)

    return _average(setting, study, network, part, optimiser)


def fedavg_tower(setting: Setting, study: Study) -> Result:
    """FedAvg of every weight of the image tower in full precision, against fixed text embeddings."""
    from secure_triplay.model.text import class_embeddings

    model = setting.model(study)
    model.adapter.load_vector(setting.start(model))
    embeddings = class_embeddings(model.backbone, study.classes)
    visual = copy.deepcopy(model.backbone.model.visual)  # the model is the setting's, and stays as it is
    for name, weight in visual.named_parameters():
        weight.requires_grad_("lora_" not in name)
    network = WholeTower(visual, embeddings, study.training.logit_scale)

    def part(name: str) -> Part:
        records = setting.records(name)
        images = records.images(np.arange(len(records)), model.backbone.image_size)
        return model.tower.pixels(images), torch.from_numpy(records.labels)

    def optimiser(weights: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.Adam(weights, lr=TOWER_LEARNING_RATE)

    return _average(setting, study, network, part, optimiser, TOWER_ROUNDS)


def _average(
    setting: Setting,
    study: Study,
    network: nn.Module,
    part: Callable[[str], Part],
    optimiser: Callable[[Sequence[nn.Parameter]], torch.optim.Optimizer],
    rounds: int = ROUNDS,
) -> Result:
    """Rounds of local epochs, the mean weighted by record counts."""
    train = {site: part(f"train {site}") for site in setting.sites}
    counts = np.array([len(labels) for _, labels in train.values()], np.float64)
    shares = (counts / counts.sum()).tolist()
    order = torch.Generator().manual_seed(study.seed)
    test = part("test")[0]
    for number in range(1, 1 + rounds):
        local = [_epochs(copy.deepcopy(network), own, optimiser, order) for own in train.values()]
        with torch.no_grad():
            for weights in zip(network.parameters(), *(one.parameters() for one in local), strict=True):
                weights[0].copy_(sum(share * one for share, one in zip(shares, weights[1:], strict=True)))
        setting.round(number, rounds, lambda: _answers(network, test))
    n_params = sum(weight.numel() for weight in network.parameters() if weight.requires_grad)
    answers = Answers(
        {"": _answers(network, test)},
        {site: _answers(network, part(f"held back {site}")[0]) for site in setting.sites},
    )
    return Result(answers, rounds, n_params, 4 * n_params, 4 * n_params)


def _epochs(
    network: nn.Module,
    own: Part,
    optimiser: Callable[[Sequence[nn.Parameter]], torch.optim.Optimizer],
    order: torch.Generator,
) -> nn.Module:
    inputs, labels = own
    steps = optimiser([weight for weight in network.parameters() if weight.requires_grad])
    for _ in range(LOCAL_EPOCHS):
        for rows in torch.split(torch.randperm(len(labels), generator=order), BATCH):
            loss = F.cross_entropy(network(inputs[rows]), labels[rows])
            steps.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            steps.step()
    return network


def _answers(network: nn.Module, inputs: Tensor) -> Labels:
    with torch.no_grad():
        found = [network(rows).argmax(-1) for rows in torch.split(inputs, 256) if len(rows)]
    return torch.cat(found).numpy() if found else np.empty(0, np.int64)
