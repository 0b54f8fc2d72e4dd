"""DP-SGD on an adapter, composed of Opacus' pieces (Abadi et al. 2016, algorithm 1).

Each step draws a Poisson sample of the units, sums their gradients clipped to C, adds noise of standard
deviation sigma C, divides by a public constant, and steps:

    theta <- theta - lr * (sum_i clip_C(g_i) + sigma C N(0, I)) / expected_batch_size

A unit is a record, or a patient with all of their records: then g_i is the sum over records of that patient
(`privacy.patients`), and the sum is what is clipped.

Opacus' `make_private` is never called: it would derive the normaliser from the record count. The loss is
fixed and a sum over records, so a loss that compares the records of a batch has no way in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn
from weakref import WeakKeyDictionary

import torch
from opacus.optimizers import DPOptimizer
from opacus.utils.uniform_sampler import UniformWithReplacementSampler
from torch import Tensor, nn

from secure_triplay.errors import DataError, PrivacyError
from secure_triplay.privacy.mechanisms import DpSgd as DpSgd
from secure_triplay.privacy.noise import NoiseSource
from secure_triplay.privacy.patients import Patients, sum_per_patient
from secure_triplay.privacy.per_record import (
    Rows,
    backward_per_record,
    check_per_record_gradients,
    evaluation_mode,
    per_record_gradients,
    record_loss,
    restored,
    row_norms,
    weighted_sum,
)


@dataclass(frozen=True, repr=False)
class SiteOnly:
    """What the records decided. It stays at the site: no repr, no pickle, no path to the wire."""

    batch_sizes: tuple[int, ...]

    def __repr__(self) -> str:
        return "<SiteOnly>"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise PrivacyError(
            "figures that records decided stay at the site", fix="take the rule's `charge`, which is public"
        )


class PoissonSampler(UniformWithReplacementSampler):  # type: ignore[misc]
    """`steps` batches of indices (m,) int64; each unit is in each independently, at the public rate.

    Opacus' sampler with masks from a NoiseSource. A batch may be empty, and is yielded like any other.
    """

    def __init__(self, units: int, sampling_rate: float, steps: int, noise: NoiseSource) -> None:
        super().__init__(num_samples=units, sample_rate=sampling_rate, steps=steps)
        self._noise = noise

    def __iter__(self) -> Iterator[Tensor]:
        for _ in range(self.steps):
            mask = self._noise.poisson_mask(self.num_samples, self.sample_rate)
            yield torch.from_numpy(mask).nonzero().reshape(-1)


class NoisySum(DPOptimizer):  # type: ignore[misc]
    """Opacus' DPOptimizer whose noise comes from a NoiseSource and which counts the steps it noised."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        rule: DpSgd,
        noise: NoiseSource,
        trained: list[Tensor] | None = None,
    ) -> None:
        """`trained`: for each weight a mask of its shape, true where it moves; None: everything does."""
        # "mean" makes Opacus divide the noised sum by `expected_batch_size`. The loss itself is a sum, which
        # is what GradSampleModule is told, so the gradients of single records are the plain ones.
        super().__init__(
            optimizer,
            noise_multiplier=rule.noise_multiplier,
            max_grad_norm=rule.l2_clip_norm,
            expected_batch_size=rule.expected_batch_size,
            loss_reduction="mean",
        )
        self._noise, self._std = noise, rule.noise_std
        self._trained, self.noised_steps = trained, 0

    def keep_trained(self) -> None:
        """Zero the gradients of single records where a weight does not move; before they are clipped."""
        for weight, mask in zip(self.params, self._trained or (), strict=bool(self._trained)):
            weight.grad_sample = weight.grad_sample * mask

    @property
    def accumulated_iterations(self) -> int:
        """One: parts of a batch are added up in `summed_grad`, and nothing else divides."""
        return 1

    def _get_flat_grad_sample(self, p: Any) -> Rows:
        rows: Rows = p.grad_sample
        return rows

    def clip_and_accumulate(self) -> None:
        """Add every record's gradient, over all weights scaled to at most the clip norm, to `summed_grad`."""
        rows = [weight.grad_sample for weight in self.params]
        norms = torch.stack([row_norms(part) for part in rows]).norm(dim=0)
        factors = (self.max_grad_norm / (norms + 1e-6)).clamp(max=1.0)
        for weight, part in zip(self.params, rows, strict=True):
            clipped = weighted_sum(part, factors)
            weight.summed_grad = clipped if weight.summed_grad is None else weight.summed_grad + clipped
            weight.grad_sample = None  # used once

    def add_noise(self) -> None:
        """Turn each `summed_grad` into a noised `grad`; the sum is dropped, so that it is used only once."""
        for index, weight in enumerate(self.params):
            if not torch.isfinite(weight.summed_grad).all():
                raise PrivacyError(
                    "a gradient is not finite",
                    where="training",
                    fix="lower the learning rate, check the images",
                )
            noise = torch.from_numpy(self._noise.gaussian(tuple(weight.shape), self._std))
            if self._trained is not None:
                noise = noise * self._trained[index]  # a constant zero tells nothing, and needs no noise
            # Added in float64 and rounded once: noise rounded by itself would show float32's grid.
            weight.grad = (weight.summed_grad.double() + noise).to(weight.dtype)
            weight.summed_grad = None
        self.noised_steps += 1


def train(
    classifier: nn.Module,
    tokens: Tensor,
    labels: Tensor,
    rule: DpSgd,
    noise: NoiseSource,
    patients: Tensor | None = None,
    trained: list[Tensor] | None = None,
) -> SiteOnly:
    """Take `rule.steps` DP-SGD steps on the classifier's trainable weights, in place.

    `tokens` (n, t, d) float32, `labels` (n,) int64; `classifier` maps tokens to logits (n, n_classes), each
    record's from that record alone. `patients` (n,) int64 says whose record each is; it is needed where
    `rule.unit` is the patient, and unused otherwise. `trained` are public masks, one of each weight's shape: where
    they are false the weight stays what it is, exactly.

    Guarantee: what the weights become is (epsilon, delta)-private per `rule.unit` under add/remove, at the
    price of `rule.charge`. Every step is noised and counted, one with an empty batch too, and nothing
    depends on n but who is drawn. After an exception the weights are what they were; the budget stays spent.

    Raises DataError for records that do not fit, PrivacyError where a rule above cannot be kept.
    """
    weights = checked_weights(classifier, tokens, labels)
    owners = Patients.of(patients, len(labels)) if rule.unit == "patient" else None
    units = len(labels) if owners is None else len(owners)
    sampler = PoissonSampler(units, rule.sampling_rate, rule.steps, noise)
    factored = (
        owners is None and trained is None
    )  # sums per patient and masks need each record's whole gradient
    with restored(weights, only_on_error=True), per_record_gradients(classifier, factored=factored):
        optimizer = NoisySum(torch.optim.SGD(weights, lr=rule.learning_rate), rule, noise, trained)

        def step(drawn: Tensor) -> None:
            parts: list[tuple[Tensor, Tensor | None]]
            if owners is None:
                parts = [(part, None) for part in torch.split(drawn, rule.physical_batch_size)]
            else:
                most = rule.max_records_per_patient
                assert most is not None  # DpSgd holds no other rule for patients
                parts = [*owners.parts(drawn, most, rule.physical_batch_size, noise)]
            for index, (part, counts) in enumerate(parts):  # an empty batch is one part, empty too
                backward_per_record(classifier, weights, tokens[part], labels[part])
                if counts is not None:
                    sum_per_patient(weights, counts)
                optimizer.keep_trained()
                optimizer.signal_skip_step(index + 1 < len(parts))  # clip and add up, but no noise yet
                optimizer.step()
                optimizer.zero_grad()

        sizes = _run(sampler, step)
        if optimizer.noised_steps != rule.steps:
            raise PrivacyError(
                f"{optimizer.noised_steps} steps were noised, {rule.steps} are charged", where="training"
            )
    return SiteOnly(sizes)


def train_unsafe_without_dp(
    classifier: nn.Module,
    tokens: Tensor,
    labels: Tensor,
    *,
    sampling_rate: float,
    expected_batch_size: float,
    steps: int,
    learning_rate: float,
    physical_batch_size: int,
    noise: NoiseSource,
) -> SiteOnly:
    """The same steps with neither clipping nor noise: what the weights then tell of a record is unbounded.

    Sampling and normaliser are those of `train`; `noise` only draws the samples.
    """
    weights = checked_weights(classifier, tokens, labels)
    sampler = PoissonSampler(len(labels), sampling_rate, steps, noise)
    with restored(weights, only_on_error=True), evaluation_mode(classifier):
        optimizer = torch.optim.SGD(weights, lr=learning_rate)

        def step(drawn: Tensor) -> None:
            optimizer.zero_grad()
            for part in torch.split(drawn, physical_batch_size):
                if len(part):
                    loss = record_loss(classifier(tokens[part]), labels[part]) / expected_batch_size
                    loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()

        sizes = _run(sampler, step)
        optimizer.zero_grad()
    return SiteOnly(sizes)


def _run(sampler: PoissonSampler, step: Callable[[Tensor], None]) -> tuple[int, ...]:
    """Every batch that the sampler draws goes into one step, empty ones included."""
    if type(sampler) is not PoissonSampler:
        raise PrivacyError(
            f"batches come from {type(sampler).__name__}",
            where="training",
            fix="take PoissonSampler: the accountant's figure holds for its batches and no others",
        )
    sizes = []
    for drawn in sampler:
        step(drawn)
        sizes.append(len(drawn))
    return tuple(sizes)


_Checked = tuple[tuple[int, ...], tuple[str, ...]]
"""What a check holds for: the shape of a record's tokens, and the names of the weights that are trained."""
_n_classes: WeakKeyDictionary[nn.Module, dict[_Checked, int]] = WeakKeyDictionary()


def checked_weights(classifier: nn.Module, tokens: Tensor, labels: Tensor) -> list[Any]:
    """The trainable weights, once records and classifier are known to fit the rules. Raises DataError, PrivacyError."""
    named = {name: weight for name, weight in classifier.named_parameters() if weight.requires_grad}
    weights = list(named.values())
    if not weights or any(weight.dtype != torch.float32 for weight in weights):
        raise PrivacyError(
            "the classifier has no trainable float32 weights",
            where="training",
            fix="attach an adapter in float32; sums and norms are taken in it",
        )
    if tokens.dtype != torch.float32 or labels.dtype != torch.int64 or labels.shape != tokens.shape[:1]:
        raise DataError(
            f"tokens {tuple(tokens.shape)} {tokens.dtype} and labels {tuple(labels.shape)} {labels.dtype} "
            "do not fit together",
            where="training",
            fix="give one int64 label for each record's float32 tokens",
        )
    if not len(labels):
        raise DataError("there are no records to train on", where="training", fix="check the site's manifest")
    known, shape = _n_classes.setdefault(classifier, {}), tuple(tokens.shape[1:])
    what = (shape, tuple(named))
    if what not in known:  # once for each set of trained weights, not once a round
        known[what] = check_per_record_gradients(classifier, shape)
    if labels.min() < 0 or labels.max() >= known[what]:
        raise DataError(
            f"a label is outside the {known[what]} classes",
            where="training",
            fix="check the manifest against the classes of the study",
        )
    return weights
