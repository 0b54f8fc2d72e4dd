"""DP-SGD: the sum is bounded, the noise is of the right size, and nothing hangs on the record count."""

from __future__ import annotations

import copy
import inspect
import math
import pickle

import numpy as np
import pytest
import torch
from opacus.utils.uniform_sampler import UniformWithReplacementSampler
from scipy import stats
from torch import nn

from secure_triplay.errors import DataError, PrivacyError
from secure_triplay.privacy import training
from secure_triplay.privacy.mechanisms import DpSgd
from secure_triplay.privacy.noise import NoiseSource
from secure_triplay.privacy.per_record import backward_per_record, per_record_gradients
from secure_triplay.privacy.training import NoisySum, PoissonSampler, train, train_unsafe_without_dp


def rule(**changes) -> DpSgd:
    settings = {
        "noise_multiplier": 1.0,
        "l2_clip_norm": 0.5,
        "sampling_rate": 0.5,
        "expected_batch_size": 7.0,
        "steps": 3,
        "learning_rate": 0.8,
        "physical_batch_size": 64,
    }
    return DpSgd(**(settings | changes))


class Toy(nn.Module):
    """(n, 3, 8) tokens -> (n, 4) logits through two layers, so that one norm has to span several weights."""

    def __init__(self, width: int = 8):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.first, self.second = nn.Linear(8, width), nn.Linear(width, 4, bias=False)
        with torch.no_grad():
            for weight in self.parameters():
                weight.copy_(0.4 * torch.randn(weight.shape, generator=generator))

    def forward(self, tokens):
        return 3 * self.second(torch.tanh(self.first(tokens))).mean(dim=1)


def records(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((n, 3, 8), generator=generator), torch.randint(0, 4, (n,), generator=generator)


def flat(model: nn.Module) -> np.ndarray:
    return torch.cat([w.detach().reshape(-1) for w in model.parameters() if w.requires_grad]).double().numpy()


def naive_dp_sgd(model, tokens, labels, r: DpSgd, noise: NoiseSource | None) -> None:
    """The formula of the module's docstring, one record at a time, in float64."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    for _ in range(r.steps):
        drawn = noise.poisson_mask(len(labels), r.sampling_rate)
        sums = [torch.zeros(weight.shape, dtype=torch.float64) for weight in weights]
        for i in np.flatnonzero(drawn):
            loss = nn.functional.cross_entropy(model(tokens[i : i + 1]), labels[i : i + 1])
            gradient = torch.autograd.grad(loss, weights)
            norm = math.sqrt(sum(float(part.double().square().sum()) for part in gradient))
            for total, part in zip(sums, gradient, strict=True):
                total += min(1.0, r.l2_clip_norm / (norm + 1e-6)) * part.double()
        with torch.no_grad():
            for weight, total in zip(weights, sums, strict=True):
                total += torch.from_numpy(noise.gaussian(tuple(weight.shape), r.noise_std))
                weight -= (r.learning_rate * total / r.expected_batch_size).float()


@pytest.mark.parametrize("physical", [64, 5, 1])
@pytest.mark.parametrize("noise_multiplier", [1e-9, 1.0])
def test_training_is_the_plain_formula(noise_multiplier, physical):
    """Same seed, so the same samples and noise: every coordinate agrees, not only a statistic."""
    tokens, labels = records(30)
    r = rule(noise_multiplier=noise_multiplier, physical_batch_size=physical, l2_clip_norm=1.5)
    ours, oracle = Toy(), Toy()
    drawn = train(ours, tokens, labels, r, NoiseSource.unsafe_from_seed(4))
    naive_dp_sgd(oracle, tokens, labels, r, NoiseSource.unsafe_from_seed(4))
    moved = flat(oracle) - flat(Toy())
    assert np.linalg.norm(moved) > 0.1
    assert np.abs(flat(ours) - flat(oracle)).max() < 1e-6
    assert len(drawn.batch_sizes) == r.charge.steps == 3


@pytest.mark.parametrize(("tower", "kind"), [("open_clip", "lora"), ("timm", "ffa")])
def test_training_a_4_bit_tower_is_the_plain_formula(make_classifier, tower, kind):
    r = rule(l2_clip_norm=0.3, physical_batch_size=3, learning_rate=0.3, steps=2)
    results = []
    for run in (train, naive_dp_sgd):
        classifier, adapter, tokens = make_classifier(tower, kind=kind)
        run(classifier, tokens, torch.arange(len(tokens)) % 5, r, NoiseSource.unsafe_from_seed(6))
        results.append(adapter.vector())
    before = make_classifier(tower, kind=kind)[1].vector()
    assert np.abs(results[0] - results[1]).max() < 1e-5 < 1e-2 < np.abs(results[0] - before).max()


def test_a_model_left_in_training_mode_is_trained_without_dropout_or_batch_statistics():
    class Noisy(Toy):
        def __init__(self):
            super().__init__()
            self.drop, self.normalise = nn.Dropout(0.5), nn.BatchNorm1d(3, affine=False)

        def forward(self, tokens):
            return super().forward(self.normalise(self.drop(tokens)))

    tokens, labels = records(30)
    ours, oracle = Noisy().train(), Noisy().eval()
    train(ours, tokens, labels, rule(), NoiseSource.unsafe_from_seed(4))
    naive_dp_sgd(oracle, tokens, labels, rule(), NoiseSource.unsafe_from_seed(4))
    assert np.abs(flat(ours) - flat(oracle)).max() < 1e-6
    assert (ours.normalise.running_mean == 0).all()
    assert ours.drop.training


def clipped_sum(model, tokens, labels, clip: float, factored: bool = False) -> np.ndarray:
    """What is added up for one batch, before any noise."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    with per_record_gradients(model, factored=factored):
        r = rule(l2_clip_norm=clip)
        optimizer = NoisySum(torch.optim.SGD(weights, lr=1.0), r, NoiseSource())
        backward_per_record(model, weights, tokens, labels)
        optimizer.clip_and_accumulate()
        return torch.cat([weight.summed_grad.reshape(-1) for weight in weights]).double().numpy()


class OneToken(nn.Module):
    """(n, 3, 8) tokens -> (n, 4) logits through two layers that see one token a record: gradients in factors."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(24, 8, bias=False), nn.Linear(8, 4, bias=False)

    def forward(self, tokens):
        return 3 * self.second(torch.tanh(self.first(tokens.flatten(1))))


def test_training_on_factored_gradients_is_the_plain_formula():
    tokens, labels = records(30)
    r = rule(noise_multiplier=1e-9, physical_batch_size=5, l2_clip_norm=1.5)
    ours = OneToken()
    oracle = copy.deepcopy(ours)
    before = flat(ours)
    train(ours, tokens, labels, r, NoiseSource.unsafe_from_seed(4))
    naive_dp_sgd(oracle, tokens, labels, r, NoiseSource.unsafe_from_seed(4))
    assert np.abs(flat(ours) - flat(oracle)).max() < 1e-6 < 0.01 < np.abs(flat(ours) - before).max()


@pytest.mark.parametrize("make", [Toy, OneToken])
@pytest.mark.parametrize("clip", [1e-3, 0.3, 2.0])
def test_adding_or_removing_one_record_moves_the_clipped_sum_by_at_most_the_bound(clip, make):
    model, generator = make(), np.random.default_rng(0)
    factored = make is OneToken
    worst = 0.0
    for trial in range(60):
        n = int(generator.integers(1, 12))
        tokens, labels = records(n + 1, seed=trial)
        tokens = tokens * float(10 ** generator.uniform(-2, 3))
        with_it, without = (
            clipped_sum(model, tokens, labels, clip, factored),
            clipped_sum(model, tokens[:n], labels[:n], clip, factored),
        )
        worst = max(worst, np.linalg.norm(with_it - without))
        alone = np.linalg.norm(clipped_sum(model, tokens[n:], labels[n:], clip, factored))
        assert alone <= clip * (1 + 1e-6)
    assert 0.9 * clip < worst <= clip * (1 + 1e-5)  # float32 sums of up to 13 gradients


def test_the_bound_holds_on_a_4_bit_tower_and_gradients_there_do_exceed_it(make_classifier):
    classifier, _, tokens = make_classifier("timm")
    labels = torch.arange(len(tokens)) % 5
    free = [
        np.linalg.norm(clipped_sum(classifier, tokens[i : i + 1], labels[i : i + 1], 1e9)) for i in range(12)
    ]
    clip = float(np.median(free))
    whole = clipped_sum(classifier, tokens, labels, clip)
    for i in range(12):
        keep = torch.arange(12) != i
        change = np.linalg.norm(whole - clipped_sum(classifier, tokens[keep], labels[keep], clip))
        assert change <= clip * (1 + 1e-5)
        assert change == pytest.approx(min(free[i], clip), rel=1e-3)
    assert max(free) > 1.05 * clip


def test_every_empty_step_is_noised_and_counted():
    """60 steps at a rate so small that nobody is drawn: only noise moves the weights, in all 60 steps."""
    tokens, labels = records(20)
    r = rule(sampling_rate=1e-7, steps=60)
    model = Toy(width=400)
    before = flat(model)
    report = train(model, tokens, labels, r, NoiseSource.unsafe_from_seed(8))
    assert report.batch_sizes == (0,) * 60
    assert r.charge.steps == 60
    moved = flat(model) - before
    expected = 60 * (r.learning_rate * r.noise_multiplier * r.l2_clip_norm / r.expected_batch_size) ** 2
    low, high = (stats.chi2.ppf(p, len(moved)) / len(moved) for p in (1e-6, 1 - 1e-6))
    assert 0.88 < low < np.mean(moved**2) / expected < high < 1.12


def test_each_single_empty_step_moves_every_weight():
    tokens, labels = records(20)
    model = Toy()
    for step in range(60):
        before = flat(model)
        train(model, tokens, labels, rule(sampling_rate=1e-7, steps=1), NoiseSource.unsafe_from_seed(step))
        assert (flat(model) != before).all()


@pytest.mark.parametrize(
    "changes", [{}, {"l2_clip_norm": 2.0}, {"noise_multiplier": 3.0}, {"expected_batch_size": 70.0}]
)
@pytest.mark.parametrize("n", [1, 300])
def test_noise_has_standard_deviation_sigma_c_over_b_whatever_the_record_count(changes, n):
    """Labels of a one-class model give no gradient, so what moves the weights is noise alone."""

    class OneClass(Toy):
        def forward(self, tokens):
            return super().forward(tokens)[:, :1]

    r = rule(sampling_rate=0.3, steps=1, learning_rate=1.0, **changes)
    model = OneClass(width=700)
    before = flat(model)
    report = train(
        model, records(n)[0], torch.zeros(n, dtype=torch.int64), r, NoiseSource.unsafe_from_seed(11)
    )
    moved = flat(model) - before
    moved = moved[moved != 0]
    assert len(moved) > 6000
    ratio = np.mean(moved**2) / (r.noise_multiplier * r.l2_clip_norm / r.expected_batch_size) ** 2
    low, high = (stats.chi2.ppf(p, len(moved)) / len(moved) for p in (1e-9, 1 - 1e-9))
    assert low < ratio < high
    assert stats.kstest(moved / moved.std(), "norm").pvalue > 1e-6
    assert sum(report.batch_sizes) <= n


def test_normaliser_ignores_the_record_count():
    """With everybody drawn, twice the records move the weights twice as far; divided by n they would not."""
    tokens, labels = records(10)
    r = rule(sampling_rate=1.0, steps=1, noise_multiplier=1e-9)
    moves = []
    for times in (1, 2):
        model = Toy()
        train(model, tokens.repeat(times, 1, 1), labels.repeat(times), r, NoiseSource())
        moves.append(flat(model) - flat(Toy()))
    assert np.allclose(moves[1], 2 * moves[0], rtol=1e-4, atol=1e-6)
    assert np.linalg.norm(moves[0]) > 0.1


def test_noise_is_added_in_float64_and_rounded_once():
    """Noise rounded before it is added lies on float32's grid, whose low bits tell the sum (Mironov 2012)."""
    weight = nn.Parameter(torch.zeros(5000))
    noisy = NoisySum(torch.optim.SGD([weight], lr=1.0), rule(), NoiseSource.unsafe_from_seed(9))
    summed = torch.linspace(-3, 3, 5000)
    weight.summed_grad = summed.clone()
    noisy.add_noise()
    exact = summed.double().numpy() + NoiseSource.unsafe_from_seed(9).gaussian(5000, 0.5)
    assert (weight.grad.numpy() == exact.astype(np.float32)).all()
    assert weight.summed_grad is None


def test_two_runs_never_draw_the_same_noise():
    tokens, labels = records(20)
    results = []
    for _ in range(5):
        model = Toy()
        train(model, tokens, labels, rule(sampling_rate=1e-7, steps=1), NoiseSource())
        results.append(flat(model))
    for i in range(5):
        for j in range(i):
            assert (results[i] != results[j]).all()


def test_two_rounds_from_one_source_never_share_noise():
    tokens, labels, noise = *records(20), NoiseSource.unsafe_from_seed(1)
    moves = []
    for _ in range(2):
        model = Toy()
        train(model, tokens, labels, rule(sampling_rate=1e-7, steps=1), noise)
        moves.append(flat(model) - flat(Toy()))
    assert (moves[0] != moves[1]).all()
    assert abs(np.corrcoef(*moves)[0, 1]) < 0.6


def test_batches_are_poisson_samples_at_the_public_rate():
    tokens, labels = records(80)
    report = train(Toy(), tokens, labels, rule(sampling_rate=0.2, steps=400), NoiseSource.unsafe_from_seed(3))
    sizes = np.array(report.batch_sizes)
    mean, variance = 80 * 0.2, 80 * 0.2 * 0.8
    assert abs(sizes.mean() - mean) < 5 * math.sqrt(variance / 400)
    low, high = (stats.chi2.ppf(p, 399) / 399 for p in (1e-6, 1 - 1e-6))
    assert low < sizes.var(ddof=1) / variance < high  # shuffled batches of one size have none


def test_batches_from_any_other_sampler_are_refused_before_the_first_step():
    class Shuffled(PoissonSampler):
        def __iter__(self):
            yield from torch.randperm(self.num_samples).split(4)

    opacus = UniformWithReplacementSampler(num_samples=20, sample_rate=0.2, steps=5)
    for other in (Shuffled(20, 0.2, 5, NoiseSource()), opacus, torch.arange(20).split(4)):
        taken = []
        with pytest.raises(PrivacyError, match="PoissonSampler"):
            training._run(other, taken.append)
        assert taken == []
    assert issubclass(PoissonSampler, UniformWithReplacementSampler)


@pytest.mark.parametrize("physical", [1, 3, 7])
def test_micro_batches_change_nothing_but_memory(physical):
    tokens, labels = records(40)
    results = []
    for size in (physical, 64):
        model = Toy()
        train(
            model,
            tokens,
            labels,
            rule(physical_batch_size=size, sampling_rate=0.9),
            NoiseSource.unsafe_from_seed(2),
        )
        results.append(flat(model))
    assert np.abs(results[0] - results[1]).max() < 1e-6


def test_micro_batches_bound_the_records_in_memory_at_once():
    seen = []

    class Watching(Toy):
        def forward(self, tokens):
            seen.append(len(tokens))
            return super().forward(tokens)

    tokens, labels = records(40)
    model = Watching()
    train(model, tokens, labels, rule(), NoiseSource())
    seen.clear()
    train(model, tokens, labels, rule(physical_batch_size=6, sampling_rate=1.0, steps=1), NoiseSource())
    assert seen == [6] * 6 + [4]


def test_noise_is_drawn_once_a_step_not_once_a_micro_batch(monkeypatch):
    drawn = []
    plain = NoiseSource.gaussian
    monkeypatch.setattr(NoiseSource, "gaussian", lambda *args: drawn.append(1) or plain(*args))
    tokens, labels = records(40)
    train(Toy(), tokens, labels, rule(physical_batch_size=4, sampling_rate=1.0, steps=5), NoiseSource())
    assert len(drawn) == 5 * 3  # three weights


def test_the_loss_is_not_an_argument():
    """A loss that compares the records of a batch has no way in; a model that does is refused elsewhere."""
    taken = list(inspect.signature(train).parameters)
    assert taken == ["classifier", "tokens", "labels", "rule", "noise", "patients", "trained"]

    class Contrastive(Toy):
        def forward(self, tokens):
            logits = super().forward(tokens)
            return logits - logits.logsumexp(dim=0)

    model = Contrastive()
    with pytest.raises(PrivacyError):
        train(model, *records(10), rule(), NoiseSource())
    assert (flat(model) == flat(Toy())).all()


class MixesWhileFirstIsTrained(Toy):
    """Right gradients of `second`; those of `first` hold a part of every record in the batch. Logits are the Toy's."""

    def forward(self, tokens):
        hidden = torch.tanh(self.first(tokens))
        hidden = hidden + (hidden - hidden.detach()).mean(dim=0)
        return 3 * self.second(hidden).mean(dim=1)


@pytest.mark.parametrize("unsafe", [False, True])
def test_weights_that_are_trained_only_later_are_checked_before_they_are(unsafe):
    model = MixesWhileFirstIsTrained()
    tokens, labels = records(10)
    run = run_unsafe if unsafe else (lambda *args: train(*args, rule(), NoiseSource()))
    model.first.requires_grad_(False)
    run(model, tokens, labels)
    model.first.requires_grad_(True)
    before = flat(model)
    for _ in range(2):  # a refusal is not forgotten
        with pytest.raises(PrivacyError, match="gradients of single records"):
            run(model, tokens, labels)
    model.second.requires_grad_(False)
    with pytest.raises(PrivacyError, match="gradients of single records"):
        run(model, tokens, labels)
    model.second.requires_grad_(True)
    assert (flat(model) == before).all()


def test_each_set_of_trained_weights_is_checked_once(monkeypatch):
    checked = []
    plain = training.check_per_record_gradients

    def counted(classifier, shape):
        checked.append([name for name, weight in classifier.named_parameters() if weight.requires_grad])
        return plain(classifier, shape)

    monkeypatch.setattr(training, "check_per_record_gradients", counted)
    model = Toy()
    for turn in (True, False, True, False):
        model.first.requires_grad_(turn)
        model.second.requires_grad_(not turn)
        train(model, *records(10), rule(), NoiseSource())
    assert checked == [["first.weight", "first.bias"], ["second.weight"]]


@pytest.mark.parametrize("mode", [True, False])
def test_after_training_nothing_of_the_records_is_left_on_the_model(make_classifier, mode):
    classifier, _, tokens = make_classifier("timm")
    classifier.train(mode)
    modes = [module.training for module in classifier.modules()]
    train(classifier, tokens, torch.arange(12) % 5, rule(physical_batch_size=4), NoiseSource())
    for weight in classifier.parameters():
        assert weight.grad is None
        assert not {"grad_sample", "summed_grad", "_forward_counter"} & set(vars(weight))
    for module in classifier.modules():
        assert not module._forward_hooks
        assert not module._backward_hooks
        assert not hasattr(module, "activations")
    assert [module.training for module in classifier.modules()] == modes


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("unsafe", [False, True])
def test_training_that_stops_half_way_leaves_the_weights_as_they_were(error, unsafe):
    class Breaks(Toy):
        calls = -1_000

        def forward(self, tokens):
            self.calls += 1
            if self.calls > 2:
                raise error("stopped")
            return super().forward(tokens)

    model = Breaks()
    tokens, labels = records(20)
    train(model, tokens, labels, rule(steps=1), NoiseSource())
    before, model.calls = flat(model), 0
    run = run_unsafe if unsafe else (lambda *args, steps: train(*args, rule(steps=steps), NoiseSource()))
    with pytest.raises(error):
        run(model, tokens, labels, steps=5)
    assert (flat(model) == before).all()


def test_a_gradient_that_is_not_finite_is_refused_and_never_applied():
    tokens, labels = records(20)
    tokens[3] = math.nan
    model = Toy()
    with pytest.raises(PrivacyError, match="not finite"):
        train(model, tokens, labels, rule(sampling_rate=1.0), NoiseSource())
    assert (flat(model) == flat(Toy())).all()


def test_a_skipped_noise_step_is_noticed(monkeypatch):
    monkeypatch.setattr(
        NoisySum, "add_noise", lambda self: [setattr(w, "grad", w.summed_grad) for w in self.params]
    )
    model = Toy()
    with pytest.raises(PrivacyError, match="charged"):
        train(model, *records(20), rule(), NoiseSource())
    assert (flat(model) == flat(Toy())).all()


def test_what_records_decided_cannot_be_printed_or_sent():
    report = train(Toy(), *records(9), rule(sampling_rate=1.0), NoiseSource())
    assert report.batch_sizes == (9, 9, 9)
    assert repr(report) == "<SiteOnly>"
    with pytest.raises(PrivacyError):
        pickle.dumps(report)


def broken_records(case):
    tokens, labels = records(10)
    if case == "no records":
        return tokens[:0], labels[:0]
    if case == "fewer labels":
        return tokens, labels[:9]
    if case == "label -100":  # what cross_entropy would skip without a word
        return tokens, labels.index_fill(0, torch.tensor([2]), -100)
    if case == "label too large":
        return tokens, labels.index_fill(0, torch.tensor([2]), 4)
    if case == "float labels":
        return tokens, labels.float()
    return tokens.double(), labels


@pytest.mark.parametrize(
    "case", ["no records", "fewer labels", "label -100", "label too large", "float labels", "double tokens"]
)
def test_records_that_do_not_fit_are_refused(case):
    with pytest.raises(DataError):
        train(Toy(), *broken_records(case), rule(), NoiseSource())


def test_weights_in_half_precision_or_none_at_all_are_refused():
    with pytest.raises(PrivacyError, match="float32"):
        train(Toy().to(torch.bfloat16), *records(10), rule(), NoiseSource())
    with pytest.raises(PrivacyError, match="float32"):
        train(Toy().requires_grad_(False), *records(10), rule(), NoiseSource())


def run_unsafe(model, tokens, labels, **changes):
    settings = {
        "sampling_rate": 1.0,
        "expected_batch_size": 20.0,
        "steps": 4,
        "learning_rate": 0.8,
        "physical_batch_size": 64,
        "noise": NoiseSource(),
    }
    return train_unsafe_without_dp(model, tokens, labels, **(settings | changes))


@pytest.mark.parametrize("physical", [64, 3])
def test_without_privacy_everybody_drawn_it_is_plain_gradient_descent(physical):
    tokens, labels = records(20)
    ours, central = Toy(), Toy()
    run_unsafe(ours, tokens, labels, physical_batch_size=physical)
    optimizer = torch.optim.SGD(central.parameters(), lr=0.8)
    for _ in range(4):
        optimizer.zero_grad()
        nn.functional.cross_entropy(central(tokens), labels).backward()
        optimizer.step()
    assert np.abs(flat(ours) - flat(central)).max() < 1e-6


def test_without_privacy_samples_and_normaliser_stay_public_and_empty_steps_count():
    tokens, labels = records(20)
    model = Toy()
    report = run_unsafe(model, tokens, labels, sampling_rate=1e-7, steps=10)
    assert report.batch_sizes == (0,) * 10
    assert (flat(model) == flat(Toy())).all()
    single, double = Toy(), Toy()
    run_unsafe(single, tokens, labels, steps=1)
    run_unsafe(double, tokens.repeat(2, 1, 1), labels.repeat(2), steps=1)
    assert np.allclose(flat(double) - flat(Toy()), 2 * (flat(single) - flat(Toy())), rtol=1e-4, atol=1e-6)


def test_weights_that_a_site_does_not_train_stay_bit_for_bit_and_take_no_room_in_the_norm():
    tokens, labels = records(40)
    r = rule(noise_multiplier=1e-9, l2_clip_norm=0.01, sampling_rate=1.0, steps=1)
    masked, narrow = Toy(), Toy()
    weights = [weight for weight in masked.parameters() if weight.requires_grad]
    masks = [torch.zeros_like(weight, dtype=torch.bool) for weight in weights]
    masks[0][:3] = True  # three rows of the first layer
    before = flat(masked)
    train(masked, tokens, labels, r, NoiseSource(), trained=masks)
    moved = flat(masked) - before
    chosen = torch.cat([mask.reshape(-1) for mask in masks]).numpy()
    assert not moved[~chosen].any()
    # by hand: each record's gradient over these rows alone, clipped by its own norm
    total = torch.zeros(3, 8, dtype=torch.float64)
    for i in range(len(labels)):
        loss = nn.functional.cross_entropy(narrow(tokens[i : i + 1]), labels[i : i + 1])
        (gradient,) = torch.autograd.grad(loss, [narrow.first.weight])
        part = gradient[:3].double()
        total += min(1.0, 0.01 / (float(part.norm()) + 1e-6)) * part
    expected = -(r.learning_rate * total / r.expected_batch_size).reshape(-1).numpy()
    assert moved[chosen] == pytest.approx(expected, abs=1e-7)
    assert np.abs(expected).max() > 1e-4

    noisy = Toy()
    train(noisy, tokens, labels, rule(noise_multiplier=50.0), NoiseSource(), trained=masks)
    drift = flat(noisy) - before
    assert not drift[~chosen].any()
    assert np.abs(drift[chosen]).max() > 0.1
