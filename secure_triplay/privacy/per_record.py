"""The gradient of each record's own loss, by Opacus' hooks, on whatever adapter a classifier carries.

Everything that privacy is computed from passes here: a row that held part of another record's gradient would
be clipped by itself, and the bound on one record's influence would be gone without any sign of it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from opacus.grad_sample import GradSampleModule
from torch import Tensor, nn
from torch.nn import functional as F

from secure_triplay.errors import PrivacyError


def record_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """The one loss there is: cross-entropy, summed over records, so each record's gradient is its own."""
    return F.cross_entropy(logits.float(), labels, reduction="sum")


@dataclass(frozen=True, repr=False)
class OuterProducts:
    """Gradients of n records on a linear layer that each record passes once, as one token: `outputs` x `inputs`.

    `outputs` (n, d_out), the loss' gradient at the layer's output, and `inputs` (n, d_in), both float32. A record's
    gradient is their outer product, which nobody needs: its norm is the product of two norms (Goodfellow 2015,
    arXiv 1510.01799), and a weighted sum over records is one matrix product (Bu et al. 2023, arXiv 2210.00038).
    """

    outputs: Tensor
    inputs: Tensor

    def __len__(self) -> int:
        return len(self.outputs)

    def whole(self) -> Tensor:
        """Multiplied out, (n, d_out, d_in)."""
        return torch.einsum("ni,nj->nij", self.outputs, self.inputs)


Rows = Tensor | OuterProducts
"""Gradients of n records on one weight: (n, *shape), or the factors of each."""


def row_norms(rows: Rows) -> Tensor:
    """Euclidean norm of each record's gradient on one weight, (n,)."""
    if isinstance(rows, OuterProducts):
        return row_norms(rows.outputs) * row_norms(rows.inputs)
    norms: Tensor = rows.flatten(start_dim=1).norm(dim=1)
    return norms


def weighted_sum(rows: Rows, factors: Tensor) -> Tensor:
    """Sum over records of `factors` (n,) times the gradient on one weight, in the weight's shape."""
    if isinstance(rows, OuterProducts):
        return (rows.outputs * factors[:, None]).T @ rows.inputs
    return torch.einsum("i,i...", factors, rows)


class _Hooks(GradSampleModule):  # type: ignore[misc]
    """Opacus' hooks; with `factored`, linear layers that see one token a record leave `OuterProducts`."""

    def __init__(self, owners: nn.ModuleList, factored: bool) -> None:
        self._factored = factored
        super().__init__(owners, batch_first=True, loss_reduction="sum", strict=True)
        self._linears = [module for module in owners if _is_plain(module)]
        for module in self._linears:
            module.forward = _of_input_alone(module)  # type: ignore[method-assign, assignment]

    def to_standard_module(self) -> nn.Module:
        """As Opacus has it; every layer is also a function of its weight again."""
        for module in self._linears:
            del module.forward  # the instance's; the class' own is back
        standard: nn.Module = super().to_standard_module()
        return standard

    def capture_backprops_hook(
        self,
        module: nn.Module,
        _forward_input: Any,
        forward_output: Any,
        loss_reduction: str,
        batch_first: bool,
    ) -> None:
        """Where a layer ran once, on one token a record: keep the factors; else what Opacus does."""
        back: Tensor = forward_output[0].detach()
        own: list[Any] = _own(module)
        once = own[0]._forward_counter == 1 and not hasattr(own[0], "_current_grad_sample")
        one_token = _is_plain(module) and back.numel() == len(back) * back.shape[-1]
        if not (self._factored and one_token and once):
            super().capture_backprops_hook(
                module, _forward_input, forward_output, loss_reduction, batch_first
            )
            return
        (inputs,), back = self.rearrange_grad_samples(
            module=module, backprops=back, loss_reduction=loss_reduction, batch_first=batch_first
        )
        own[0].grad_sample = OuterProducts(back.flatten(1).float(), inputs.detach().flatten(1).float())
        own[0]._forward_counter -= 1
        module.__dict__.pop("max_batch_len", None)


def _is_plain(module: nn.Module) -> TypeGuard[nn.Linear]:
    return type(module) is nn.Linear and len(_own(module)) == 1


def _of_input_alone(module: nn.Linear) -> Callable[[Tensor], Tensor]:
    """A linear layer's forward without its weight in autograd's graph.

    Hooks see the gradient at the output all the same. What autograd would add for the weight is the sum over records
    before clipping: nothing may use it, and where a layer sees every token it is one more matrix product a layer.
    """

    def forward(x: Tensor) -> Tensor:
        output = F.linear(x, module.weight.detach())
        if torch.is_grad_enabled() and not output.requires_grad:
            output.requires_grad_()  # the lowest layer's: its hook waits for this gradient
        return output

    return forward


@contextmanager
def per_record_gradients(classifier: nn.Module, *, factored: bool = False) -> Iterator[None]:
    """Opacus' hooks on every module of the classifier that owns a trainable weight; no trace of them after.

    GradSampleModule is given those modules alone, so it never touches a frozen layer, a quantized one
    included. Everything else runs in evaluation mode, since nothing may mix the records of a batch. Putting
    the hooks on and off takes a millisecond or two (measured), so they are not left on between rounds, where
    every evaluation would pay for them and gradients of single records would stay in memory.

    With `factored`, a weight's gradients may be `OuterProducts`.
    """
    owners = [module for module in classifier.modules() if any(w.requires_grad for w in _own(module))]
    with evaluation_mode(classifier), warnings.catch_warnings():
        # Inputs of the lowest adapted layer need no gradients; its outputs' gradients are all that is used.
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        for module in owners:
            module.training = True  # Opacus records a module's inputs only in training mode
        hooks = _Hooks(nn.ModuleList(owners), factored)
        try:
            yield
        finally:
            hooks.to_standard_module()
            for module in owners:
                module.training = False  # as it is inside `evaluation_mode`, which gives its own mode back
                for name in ("activations", "max_batch_len"):  # left by a step that was interrupted
                    module.__dict__.pop(name, None)
                for weight in _own(module):
                    weight.__dict__.pop("summed_grad", None)
                    weight.grad = None


def backward_per_record(
    classifier: nn.Module, weights: Sequence[Any], tokens: Tensor, labels: Tensor
) -> None:
    """Set each weight's `grad_sample` to (n, *shape) float32, or its factors: the gradient of each record's own loss.

    To be called inside `per_record_gradients`. Raises PrivacyError where a layer saw something else than
    records first.
    """
    n = len(labels)
    if n:
        record_loss(classifier(tokens), labels).backward()  # type: ignore[no-untyped-call]
    for weight in weights:
        if not n:
            weight.grad_sample = weight.new_zeros((0, *weight.shape))
            continue
        rows = weight.grad_sample
        if isinstance(rows, OuterProducts):
            if len(rows) == n and (rows.outputs.shape[1], rows.inputs.shape[1]) == weight.shape:
                weight.grad = None
                continue
            rows = rows.whole()
        if rows is None or len(rows) % n or rows.shape[1:] != weight.shape:
            shape = None if rows is None else tuple(rows.shape)
            raise PrivacyError(
                f"a layer gave gradients of shape {shape} for {n} records",
                where="training",
                fix="adapt layers that every record passes, with records in the first dimension",
            )
        # A layer that ran k times a record, such as one of the text tower once a prompt, has k rows for each.
        # Norms are taken in float32 whatever the layer computed in.
        weight.grad_sample = (rows if len(rows) == n else rows.unflatten(0, (n, -1)).sum(dim=1)).float()
        weight.grad = None  # the sum over records, unclipped: nothing may use it


def check_per_record_gradients(classifier: nn.Module, shape: tuple[int, ...]) -> int:
    """Compare gradients by hooks with plain autograd, record by record, on three random inputs of `shape`.

    Silently wrong ones have been reported (Opacus issue 820). No site data is used, and the weights are put
    back. Returns the number of classes. Raises PrivacyError where they differ by more than 0.001 of
    their norm (0.05 where layers multiply in bfloat16, which keeps eight bits), or a record's gradient
    depends on what else is in the batch.
    """
    weights: list[Any] = [weight for weight in classifier.parameters() if weight.requires_grad]
    half = any(getattr(part, "compute_dtype", None) == torch.bfloat16 for part in classifier.modules())
    tolerance = 0.05 if half else 1e-3
    public = torch.Generator().manual_seed(0)
    tokens = torch.randn((3, *shape), generator=public)
    with restored(weights), torch.enable_grad():
        with torch.no_grad():
            for weight in weights:  # at B = 0 every gradient of A is zero, and would agree with anything
                weight.add_(torch.randn(weight.shape, generator=public), alpha=0.02)
        ways: list[list[Rows]] = []
        for factored in (
            True,
            False,
        ):  # what training asks of either: a record's own part of the sum, and its norm
            with per_record_gradients(classifier, factored=factored):
                with torch.no_grad():
                    classes = int(classifier(tokens).shape[-1])
                labels = torch.arange(3) % classes
                backward_per_record(classifier, weights, tokens, labels)
                ways.append([weight.grad_sample for weight in weights])
        with evaluation_mode(classifier):
            for i in range(3):
                loss = record_loss(classifier(tokens[i : i + 1]), labels[i : i + 1])
                alone = torch.autograd.grad(loss, weights)
                for rows in ways:
                    pairs = list(zip(rows, alone, strict=True))
                    _require_close(
                        [weighted_sum(r, torch.eye(3)[i]) - one for r, one in pairs], alone, tolerance
                    )
                    _require_close([row_norms(r)[i] - one.norm() for r, one in pairs], alone, tolerance)
    return classes


def _require_close(gaps: Sequence[Tensor], alone: Sequence[Tensor], tolerance: float) -> None:
    if not _norm(gaps) <= tolerance * _norm(alone):  # written so that NaN fails
        raise PrivacyError(
            f"gradients of single records are off by {_norm(gaps):.2g} in {_norm(alone):.2g}",
            where="training",
            fix="choose other target modules or another backbone; clipping would bound nothing",
        )


@contextmanager
def evaluation_mode(classifier: nn.Module) -> Iterator[None]:
    """No dropout and no batch statistics inside; each module's own mode is back afterwards."""
    training = [module for module in classifier.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def restored(weights: Sequence[Tensor], *, only_on_error: bool = False) -> Iterator[None]:
    """The weights hold afterwards what they held before, bit for bit."""
    before = [weight.detach().clone() for weight in weights]
    done = False
    try:
        yield
        done = only_on_error
    finally:
        if not done:
            with torch.no_grad():
                for weight, value in zip(weights, before, strict=True):
                    weight.copy_(value)


def _own(module: nn.Module) -> list[nn.Parameter]:
    return [weight for weight in module._parameters.values() if weight is not None]


def _norm(parts: Sequence[Tensor]) -> float:
    return float(torch.cat([part.reshape(-1) for part in parts]).norm())
