"""Each record's gradient is its own, on every kind of model that a study may name."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import nn

from secure_triplay.errors import PrivacyError
from secure_triplay.privacy import per_record
from secure_triplay.privacy.per_record import (
    OuterProducts,
    backward_per_record,
    check_per_record_gradients,
    per_record_gradients,
    record_loss,
    row_norms,
    weighted_sum,
)

MODELS = [
    ("open_clip", {"kind": "ffa"}),
    ("open_clip", {"kind": "lora"}),
    ("timm", {"kind": "ffa"}),
    ("timm", {"kind": "lora"}),
    ("timm", {"kind": "ffa", "quantization": "int8"}),
    ("open_clip", {"kind": "lora", "quantization": "none", "last_blocks": 3}),
    ("open_clip", {"kind": "ffa", "text": True}),
]


def by_hooks(classifier, tokens, labels):
    weights = [weight for weight in classifier.parameters() if weight.requires_grad]
    with per_record_gradients(classifier):
        backward_per_record(classifier, weights, tokens, labels)
        return [weight.grad_sample.clone() for weight in weights]


def by_factors(classifier, tokens, labels):
    """What training sees: factors where a layer has them, multiplied out here."""
    weights = [weight for weight in classifier.parameters() if weight.requires_grad]
    with per_record_gradients(classifier, factored=True):
        backward_per_record(classifier, weights, tokens, labels)
        return [weight.grad_sample for weight in weights]


def one_record_at_a_time(classifier, tokens, labels):
    weights = [weight for weight in classifier.parameters() if weight.requires_grad]
    losses = [record_loss(classifier(tokens[i : i + 1]), labels[i : i + 1]) for i in range(len(labels))]
    single = [torch.autograd.grad(loss, weights) for loss in losses]
    return [torch.stack(rows) for rows in zip(*single, strict=True)]


@pytest.mark.parametrize(("tower", "settings"), MODELS)
def test_gradient_of_every_record_and_weight_equals_autograd_on_that_record_alone(
    make_classifier, tower, settings
):
    classifier, adapter, tokens = make_classifier(tower, **settings)
    labels = torch.arange(len(tokens)) % 3
    found, expected = by_hooks(classifier, tokens, labels), one_record_at_a_time(classifier, tokens, labels)
    assert len(found) == len(adapter.weights)
    for ours, exact in zip(found, expected, strict=True):
        gap = (ours - exact).flatten(1).norm(dim=1)
        size = exact.flatten(1).norm(dim=1)
        assert (size > 0).all()
        assert (gap <= 1e-4 * size).all()


@pytest.mark.parametrize(
    ("settings", "factored"),
    [
        ({"target_modules": r"attn\.out_proj|mlp\.c_proj"}, True),  # one token a record
        ({"target_modules": r"mlp\.c_fc", "kind": "lora"}, True),
        ({"target_modules": r"attn\.v_proj"}, False),  # every token
    ],
)
def test_norms_and_weighted_sums_of_factored_gradients_are_those_of_the_gradients_multiplied_out(
    make_classifier, settings, factored
):
    classifier, _, tokens = make_classifier("open_clip", last_blocks=1, **settings)
    labels, factors = torch.arange(len(tokens)) % 3, torch.linspace(0.0, 1.0, len(tokens))
    found, expected = by_factors(classifier, tokens, labels), one_record_at_a_time(classifier, tokens, labels)
    assert all(isinstance(rows, OuterProducts) == factored for rows in found)
    for rows, exact in zip(found, expected, strict=True):
        size = exact.flatten(1).norm(dim=1)
        assert (size > 0).all()
        assert torch.allclose(row_norms(rows), size, rtol=1e-4)
        summed = (exact * factors[:, None, None]).sum(dim=0)
        assert float((weighted_sum(rows, factors) - summed).norm()) <= 1e-4 * float(summed.norm())


class Twice(nn.Module):
    """One layer that every record passes twice, a single token each time: no outer product alone."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 6, bias=False)

    def forward(self, tokens):
        return self.layer(torch.tanh(self.layer(tokens))).squeeze(1)


def test_a_layer_that_a_record_passes_twice_is_not_taken_for_an_outer_product():
    model, tokens, labels = Twice(), torch.randn(5, 1, 6), torch.arange(5)
    (found,), (exact,) = by_factors(model, tokens, labels), one_record_at_a_time(model, tokens, labels)
    assert not isinstance(found, OuterProducts)
    assert torch.allclose(found, exact, rtol=1e-4, atol=1e-6)


def test_nf4_gradient_agrees_with_a_finite_difference(make_classifier):
    """Autograd on the quantized model could be wrong in the same way for one record and for many."""
    classifier, _, tokens = make_classifier("timm")
    labels = torch.arange(len(tokens)) % 5
    gradients = by_hooks(classifier, tokens, labels)
    weights = [weight for weight in classifier.parameters() if weight.requires_grad]
    for weight, rows in zip(weights, gradients, strict=True):
        total = rows.sum(dim=0)
        step = 1e-2 * total / total.norm()
        with torch.no_grad():
            weight += step
            above = record_loss(classifier(tokens), labels)
            weight -= 2 * step
            below = record_loss(classifier(tokens), labels)
            weight += step
        assert float((above - below) / 2e-2) == pytest.approx(float(total.norm()), rel=0.02)


@pytest.mark.parametrize("tower", ["open_clip", "timm"])
def test_gradients_survive_an_evaluation_in_between(make_classifier, tower):
    """bitsandbytes may repack 4-bit weights in evaluation, after which no gradient passes them."""
    classifier, _, tokens = make_classifier(tower)
    labels = torch.arange(len(tokens)) % 5
    before = by_hooks(classifier, tokens, labels)
    classifier.eval()
    with torch.no_grad():
        classifier(tokens)
    for first, second in zip(before, by_hooks(classifier, tokens, labels), strict=True):
        assert torch.equal(first, second)


def test_gradient_of_a_record_does_not_depend_on_who_else_was_drawn(make_classifier):
    classifier, _, tokens = make_classifier("timm")
    labels = torch.arange(len(tokens)) % 5
    whole = by_hooks(classifier, tokens, labels)
    part = by_hooks(classifier, tokens[3:5], labels[3:5])
    for rows, few in zip(whole, part, strict=True):
        assert torch.allclose(rows[3:5], few, rtol=1e-4, atol=1e-6)


class MixesRecords(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 4)

    def forward(self, tokens):
        features = self.layer(tokens).mean(dim=1)
        return features - 0.5 * features.mean(dim=0)  # as a contrastive loss or batch statistics would


class SequenceFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 4)

    def forward(self, tokens):
        return self.layer(tokens.transpose(0, 1)).mean(dim=0)


class Once(nn.Module):
    """One token a record, so that its gradients come in factors."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 4, bias=False)

    def forward(self, tokens):
        return self.layer(tokens).mean(dim=1)


class Honest(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 4)

    def forward(self, tokens):
        return self.layer(tokens).mean(dim=1)


def test_check_accepts_an_honest_model_and_puts_its_weights_back():
    model = Honest()
    before = model.layer.weight.detach().clone()
    assert check_per_record_gradients(model, (5, 6)) == 4
    assert torch.equal(model.layer.weight, before)


@pytest.mark.parametrize("value", [lambda found: 0.9 * found, lambda found: found * float("nan")])
@pytest.mark.parametrize("what", ["row_norms", "weighted_sum"])
@pytest.mark.parametrize("factored", [True, False])
def test_check_sees_a_wrong_norm_and_a_wrong_sum_of_either_kind(monkeypatch, what, value, factored):
    """Of factors and of whole gradients: one of the two is made wrong, and a value that is no number too."""
    honest = getattr(per_record, what)

    def wrong(rows, *more):
        found = honest(rows, *more)
        return value(found) if isinstance(rows, OuterProducts) == factored else found

    model = Once()
    assert check_per_record_gradients(model, (1, 6)) == 4
    monkeypatch.setattr(per_record, what, wrong)
    with pytest.raises(PrivacyError, match="off by"):
        check_per_record_gradients(model, (1, 6))


@pytest.mark.parametrize("model", [MixesRecords, SequenceFirst])
@pytest.mark.parametrize("n_tokens", [3, 4, 6])
def test_check_refuses_a_model_whose_records_are_not_apart(model, n_tokens):
    with pytest.raises(PrivacyError):
        check_per_record_gradients(model(), (n_tokens, 6))


def leftovers(classifier) -> list[str]:
    found = [
        name
        for weight in classifier.parameters()
        for name in ("grad_sample", "summed_grad", "_forward_counter", "_current_grad_sample")
        if hasattr(weight, name)
    ]
    for module in classifier.modules():
        found += [
            name
            for name in ("activations", "max_batch_len", "autograd_grad_sample_hooks")
            if hasattr(module, name)
        ]
        found += ["hook"] * (len(module._forward_hooks) + len(module._backward_hooks))
        found += ["forward"] * ("forward" in vars(module))
    return found + ["grad" for weight in classifier.parameters() if weight.grad is not None]


def test_nothing_of_the_records_and_no_hook_stays_on_the_model(make_classifier):
    classifier, _, tokens = make_classifier("open_clip")
    labels = torch.arange(len(tokens)) % 5
    keys, modes = list(classifier.state_dict()), [module.training for module in classifier.modules()]
    for factored in (False, True):
        with per_record_gradients(classifier, factored=factored):
            weights = [weight for weight in classifier.parameters() if weight.requires_grad]
            backward_per_record(classifier, weights, tokens, labels)
            assert leftovers(classifier)
        assert leftovers(classifier) == []
    assert list(classifier.state_dict()) == keys
    assert [module.training for module in classifier.modules()] == modes
    pickle.dumps({name: weight for name, weight in classifier.named_parameters() if weight.requires_grad})

    def interrupted():
        with per_record_gradients(classifier):
            classifier(tokens)  # activations are recorded, backward never runs
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert leftovers(classifier) == []


@pytest.mark.parametrize(("tower", "settings"), MODELS)
def test_the_sum_of_gradients_that_are_not_clipped_is_never_formed(tower, settings, make_classifier):
    classifier, _, tokens = make_classifier(tower, **settings)
    weights = [weight for weight in classifier.parameters() if weight.requires_grad]
    with per_record_gradients(classifier):
        record_loss(classifier(tokens), torch.zeros(len(tokens), dtype=torch.int64)).backward()
        assert weights
        assert all(weight.grad is None and weight.grad_sample is not None for weight in weights)


def test_frozen_layers_are_never_touched(make_classifier):
    classifier, _, tokens = make_classifier("timm")
    frozen = {n: w.detach().clone() for n, w in classifier.named_parameters() if not w.requires_grad}
    with per_record_gradients(classifier):
        hooked = [m for m in classifier.modules() if m._forward_hooks or m._backward_hooks]
        assert hooked
        assert all(type(m) is nn.Linear and m.weight.requires_grad for m in hooked)
        weights = [weight for weight in classifier.parameters() if weight.requires_grad]
        backward_per_record(classifier, weights, tokens, torch.zeros(len(tokens), dtype=torch.int64))
        assert not any(hasattr(w, "grad_sample") for w in classifier.parameters() if not w.requires_grad)
    for name, weight in classifier.named_parameters():
        if name in frozen:
            assert torch.equal(weight, frozen[name])
