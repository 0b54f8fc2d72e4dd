"""A pilot reads public images only or pays for others, keeps to a site's limits, and writes a study that runs."""

from __future__ import annotations

import csv
import hashlib
import html
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from rich.console import Console

from secure_triplay.config import load_study, parse_study
from secure_triplay.constants import choose_codec, round_rule
from secure_triplay.data.split import split_study
from secure_triplay.errors import AssetError, ConfigError, DataError, PrivacyError, RunError
from secure_triplay.loading import load_model
from secure_triplay.pilot import page
from secure_triplay.pilot.choices import Choice, Space, own_choice, with_choice
from secure_triplay.pilot.costs import SiteLimits, Speeds, cost, gradient_values
from secure_triplay.pilot.optimiser import Optimiser
from secure_triplay.pilot.page import pilot_table
from secure_triplay.pilot.probe import crypto_seconds
from secure_triplay.pilot.run import Request, run_pilot
from secure_triplay.pilot.sample import caveats, public_sample
from secure_triplay.pilot.search import PRICES, Trial, WorstClass, decide, first, search, untried, what_fits
from secure_triplay.pilot.trial import scaled_rule
from secure_triplay.privacy.per_record import OuterProducts, backward_per_record, per_record_gradients
from secure_triplay.simulate import simulate
from secure_triplay.wire import upload_bytes

SPEEDS = Speeds(
    blocks=1, rank=64, params=2 * 64 * 384, layers=2, tower_blocks=12, tokens=17, width=384, step_s_per_image=0.002,
    encode_s_per_image=0.005, frozen_bytes=66_000_000, loading_bytes=880_000_000,
    loaded_bytes=766_000_000,
    encrypt_s_per_chunk=0.002, open_s_per_chunk=0.01,
)  # fmt: skip
ROOMY = SiteLimits(hours=1000, memory_gib=100)
ADAM, AVERAGE = Optimiser("fedadam", 0.01), Optimiser("fedavg", 0.3)
SHIRT = WorstClass(6, 0.2, 0.1, 20)


def trial(choice: Choice, accuracy: float, hours: float, error: float = 0.01) -> Trial:
    spent = replace(cost_of(choice), hours=hours)
    return Trial(choice, spent, accuracy, error, 0.5, 1.0, SHIRT)


def cost_of(choice: Choice, limits: SiteLimits = ROOMY):
    base = yaml.safe_load((Path(__file__).parents[2] / "configs" / "demo.yaml").read_text())
    study = parse_study(base)
    return cost(parse_study(with_choice(base, study, choice, 8.0)), choice, SPEEDS, limits)


def test_a_choice_stands_in_the_study_as_it_was_meant(demo):
    study = parse_study(demo)
    choice = Choice(
        rank=32, blocks=4, quantization="int8", value_bits=6, batch=200.0, rounds=3, optimiser=AVERAGE
    )
    made = parse_study(with_choice(demo, study, choice, 3.0))
    assert own_choice(made) == choice
    assert made.dp.epsilon == 3.0
    assert made.dp.sampling_rate == pytest.approx(200 / 2000)  # of the 500 / 0.25 units that the study fits
    assert made.adapter.alpha / made.adapter.rank == study.adapter.alpha / study.adapter.rank
    assert made.server_optimiser.average_last == 3  # no more than there are rounds
    assert parse_study(demo) == study  # the content that was given is left as it was


def test_the_bytes_of_a_choice_are_those_of_a_rounds_upload(demo):
    study = parse_study(demo)
    found = cost(study, own_choice(study), SPEEDS, ROOMY)
    assert found.upload_bytes_per_round == upload_bytes(choose_codec(study, found.n_params).n_chunks)
    assert found.n_params == 2 * 64 * 9  # two layers, B in nine directions


def test_few_output_directions_are_offered_where_public_images_give_them_and_are_counted(demo):
    """Ten classes: nine directions, or all 384 outputs of each of two layers."""
    study = parse_study(demo)
    assert Space.around(study, {}).axes["output_rank"] == (None, 9)
    own = own_choice(study)
    whole = replace(own, output_rank=None)
    assert (cost_of(whole).n_params, cost_of(own).n_params) == (2 * 64 * 384, 2 * 64 * 9)
    assert cost_of(whole).upload_bytes_per_round > cost_of(own).upload_bytes_per_round
    made = with_choice(demo, study, whole, 8.0)
    assert "output_rank" not in made["adapter"]
    assert own_choice(parse_study(made)) == whole
    many = [{**demo["classes"][0], "name": f"class {n}"} for n in range(300)]
    usual = Space.around(parse_study({**demo, "classes": many}), {}).axes["output_rank"]
    for directions in usual:  # the study's file takes every one that is offered
        assert own_choice(parse_study(with_choice(demo, study, replace(own, output_rank=directions), 8.0)))
    assert 256 in usual
    demo["adapter"] = {"kind": "ffa", "rank": 4}
    assert Space.around(parse_study(demo), {}).axes["output_rank"] == (None,)


@pytest.mark.parametrize("n_sites", [2, 4])
def test_encryption_is_timed_whether_updates_are_masked_or_not(demo, n_sites):
    """The demo's four sites mask, as any three and more do."""
    study = parse_study({**demo, "sites": demo["sites"][:n_sites]})
    codec = choose_codec(study, 3000)
    assert codec.masked == (n_sites == 4)
    assert all(seconds > 0 for seconds in crypto_seconds(codec))


def test_hours_grow_with_what_they_are_made_of(demo):
    choice = own_choice(parse_study(demo))
    base = cost_of(choice)
    assert cost_of(replace(choice, rounds=2 * choice.rounds)).hours_messages == pytest.approx(
        2 * base.hours_messages
    )
    slow = cost_of(choice, replace(ROOMY, line_mbit_per_s=0.1))
    both = base.upload_bytes_per_round + base.download_bytes_per_round
    gained = 3600 * (slow.hours_line - base.hours_line)
    assert gained == pytest.approx(choice.rounds * both * 8 / 1e6 * (1 / 0.1 - 1 / 10), rel=1e-6)


@pytest.mark.parametrize("targets", [r"attn\.proj|mlp\.fc2", r"attn\.(qkv|proj)"])
@pytest.mark.parametrize("kind", ["ffa", "lora"])
def test_the_memory_of_single_records_gradients_is_what_a_step_holds(content, kind, targets):
    """Against a real step's gradients: in factors behind the last block's attention, whole ones before it."""
    content["adapter"] = {"kind": kind, "rank": 4, "target_modules": targets, "last_blocks": 1}
    study = parse_study(content)
    try:
        model = load_model(study, split_study(study, only=[]).public, bytes(32))
    except AssetError as error:
        pytest.skip(f"weights or images cannot be had here: {error.what}")
    tokens = model.tower.prefix(np.zeros((3, 28, 28, 3), np.uint8))
    weights = [weight for weight in model.classifier.parameters() if weight.requires_grad]
    with per_record_gradients(model.classifier, factored=True):
        backward_per_record(model.classifier, weights, tokens, torch.arange(3))
        rows = [weight.grad_sample for weight in weights]
    parts = [(r.outputs, r.inputs) if isinstance(r, OuterProducts) else (r,) for r in rows]
    held = sum(part.numel() for row in parts for part in row) / 3
    speeds = replace(SPEEDS, rank=4, layers=2, params=model.adapter.n_params, tokens=tokens.shape[1])
    said = gradient_values(study, own_choice(study), speeds, model.adapter.n_params)
    assert (tokens.shape[1] == 2) == ("fc2" in targets)
    if tokens.shape[1] == 2:
        assert said == held < model.adapter.n_params / 3
    else:
        assert 0.5 * said < held <= said == model.adapter.n_params  # a class token's layer holds factors


def test_memory_counts_the_gradients_once_and_one_weights_sums_per_patient_beside_them(demo):
    study = parse_study(demo)
    own, whole = own_choice(study), replace(SPEEDS, tokens=17)
    assert gradient_values(study, own, whole, 1000) == 1000
    demo["privacy"] |= {"unit": "patient", "max_records_per_patient": 4}
    patients = parse_study(
        {**demo, "data": {"kind": "manifest", "manifest": "a.csv", "partition": {"kind": "patient"}}}
    )
    for tokens in (2, 17):
        assert gradient_values(patients, own, replace(SPEEDS, tokens=tokens), 1000) == 1500  # two layers


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        (SiteLimits(hours=0.001, memory_gib=100), r"hours binds.*0\.001 h"),
        (SiteLimits(memory_gib=0.5, hours=1000), r"memory binds.*0\.5 GiB"),
        (SiteLimits(memory_gib=0.5, hours=0.001), r"hours binds.*memory binds"),
        (SiteLimits(line_mbit_per_s=0.001, hours=0.2), r"hours binds.*on the line"),
    ],
)
def test_where_no_choice_meets_the_limits_the_one_that_binds_is_named(limits, said):
    space = Space({"rounds": (4, 8), "batch": (500.0,), "rank": (4, 8), "blocks": (1, 2), "value_bits": (9,),
                   "quantization": ("nf4",), "output_rank": (None,), "optimiser": (ADAM,)})  # fmt: skip
    with pytest.raises(ConfigError, match=said):
        what_fits(space, lambda choice: cost_of(choice, limits), limits)


@pytest.mark.parametrize("value", [float("inf"), float("nan"), -1.0, float("-inf")])
@pytest.mark.parametrize(
    ("limit", "option"),
    [("hours", "--hours"), ("line_mbit_per_s", "--line"), ("memory_gib", "--memory"), ("latency_ms", "--latency"),
     ("round_overhead_s", "--round-overhead"), ("epsilon", "--epsilon")],
)  # fmt: skip
def test_a_limit_that_no_cost_can_be_held_against_is_refused_with_its_option(limit, option, value):
    """Nothing that is not finite can be written into pilot.json, and that would show after all trials."""
    with pytest.raises(ConfigError, match=f"{limit} is {value:g}.*finite") as caught:
        SiteLimits(**{limit: value})
    assert caught.value.where == option


def test_no_latency_and_no_overhead_are_limits_and_no_hours_are_not():
    SiteLimits(latency_ms=0.0, round_overhead_s=0.0)
    with pytest.raises(ConfigError, match="hours is 0"):
        SiteLimits(hours=0.0)


def test_an_epsilon_that_no_noise_gives_is_named():
    def refuse(choice):
        raise PrivacyError("no noise is enough")

    with pytest.raises(ConfigError, match="epsilon binds; none of 2 choices"):
        what_fits(Space({"rounds": (4, 8), "batch": (5.0,), "rank": (4,), "blocks": (1,), "value_bits": (9,),
                         "quantization": ("nf4",), "output_rank": (None,), "optimiser": (ADAM,)}),
                  refuse, ROOMY)  # fmt: skip


def test_the_search_tries_nothing_that_does_not_fit_and_no_more_than_asked(demo):
    own = own_choice(parse_study(demo))
    space = Space({"rounds": (8, 16, 32), "batch": (200.0, 500.0), "rank": (4, 8), "blocks": (1, 2),
                   "value_bits": (6, 9), "quantization": ("nf4",), "output_rank": (9,),
                   "optimiser": (ADAM,)})  # fmt: skip
    limits = SiteLimits(hours=0.12, memory_gib=100)
    fits, costs = what_fits(space, cost_of, limits)
    assert 0 < len(fits) < len(costs) == 48
    tried = []

    def attempt(choice):
        tried.append(choice)
        return Trial(choice, fits[choice], 0.6 + 0.001 * choice.rounds, 0.01, 0.5, 1.0, SHIRT)

    found = search(space, fits, first(own, fits), attempt, limits, most=5)
    assert [one.choice for one in found] == tried
    assert len(tried) == len(set(tried)) == 5
    assert all(choice in fits for choice in tried)


def test_what_is_taken_is_the_cheapest_within_one_standard_error_and_never_what_does_not_fit(demo):
    own = own_choice(parse_study(demo))
    ladder = [replace(own, rounds=n) for n in (1, 2, 3, 4)]
    limits = SiteLimits(hours=10, memory_gib=100)
    trials = [
        trial(ladder[0], 0.70, 1.0), trial(ladder[1], 0.745, 2.0), trial(ladder[2], 0.75, 8.0),
        trial(ladder[3], 0.90, 11.0),  # the best of all, and eleven hours where ten are allowed
    ]  # fmt: skip
    found = decide(trials, limits, ladder[0].optimiser)
    assert found.trial.choice == ladder[1]
    assert found.best.choice == ladder[2]
    assert "one standard error" in found.reason
    assert "would take 8 h instead of 2 h" in found.reason  # what a person gives up is said
    assert "WARNING" not in found.reason
    assert (
        "WARNING" in decide([trial(ladder[0], 0.4, 1.0)], limits, ladder[0].optimiser).reason
    )  # worse than before training
    with pytest.raises(ConfigError, match="hours binds"):
        decide(trials[3:], limits, ladder[0].optimiser)


def test_settings_that_trials_ran_out_for_are_named(demo):
    own = own_choice(parse_study(demo))
    tried = [trial(own, 0.7, 1.0), trial(replace(own, rounds=60), 0.7, 1.0)]
    offered = [one.choice for one in tried] + [replace(own, rank=4), replace(own, value_bits=6)]
    fits = dict.fromkeys(offered, tried[0].cost)
    assert untried(fits, tried) == ("rank", "value_bits")
    assert untried(fits, [*tried, trial(offered[2], 0.7, 1.0)]) == ("value_bits",)
    assert untried(fits, [trial(one, 0.7, 1.0) for one in offered]) == ()


def test_noise_on_public_images_weighs_what_it_will_at_a_real_site(demo):
    rule = round_rule(parse_study(demo))
    small = scaled_rule(rule, units_here=100, real_units=2000)
    assert small.noise_std / small.expected_batch_size == pytest.approx(
        rule.noise_std / rule.expected_batch_size
    )
    assert small.expected_batch_size == pytest.approx(100 * rule.sampling_rate)
    assert small.sampling_rate == rule.sampling_rate


def hashes(records) -> set[str]:
    return {hashlib.sha256(image.tobytes()).hexdigest() for image in records.images(np.arange(len(records)))}


def test_the_sample_holds_no_image_of_any_site_none_that_tests_and_none_that_aligns(content):
    study = parse_study(content)
    try:
        sample, real = public_sample(study, 300), split_study(study)
    except AssetError as error:
        pytest.skip(f"Fashion-MNIST cannot be had here: {error.what}")
    used = [site.train for site in sample.split.sites.values()]
    drawn = set().union(*map(hashes, used), hashes(sample.split.test))
    assert len(drawn) > 290
    for records in (
        real.test,
        real.public,
        *(part for s in real.sites.values() for part in (s.train, s.holdout)),
    ):
        assert not drawn & hashes(records)
    assert not hashes(sample.split.test) & set().union(*map(hashes, used))
    assert sample.training_images == sum(map(len, used))


@pytest.mark.parametrize("size", [100, 300, 2000])
def test_the_samples_sites_differ_in_their_classes_as_the_studys_do_and_what_measures_has_each_alike(
    content, size
):
    """Sites that are alike say nothing of how an optimiser does where they differ."""
    content["sites"] = [{"name": name} for name in ("north", "east", "south", "west")]
    study = parse_study(content)
    try:
        sample = public_sample(study, size)
    except AssetError as error:
        pytest.skip(f"Fashion-MNIST cannot be had here: {error.what}")
    assert sample.partition == "dirichlet"
    counts = np.array([np.bincount(own.train.labels, minlength=10) for own in sample.split.sites.values()])
    assert (counts.max(axis=1) / counts.sum(axis=1)).mean() > 0.2  # alike: near a tenth
    assert (
        np.ptp(counts.sum(axis=0)) <= 1
    )  # all sites together have each class alike, as `union: balanced` asks
    assert np.ptp(np.bincount(sample.split.test.labels, minlength=10)) <= 1


def test_where_the_sample_is_not_like_the_sites_it_says_so(hospital, content):
    sample = public_sample(
        load_study(hospital(70)), 1000
    )  # manifests without patients, by sites of their own
    assert sample.partition == "iid"
    few, other = caveats(load_study(hospital(70)), sample)
    assert (
        "A site of the sample has 14 records where the study's constants fit 80" in few
    )  # 70 x 0.6 / 3; 20 / 0.25
    assert "divided over its sites by iid" in other
    assert "small steps" in few
    content["data"] = {"kind": "fashion-mnist", "partition": {"kind": "iid"}}
    content["sites"] = [{"name": "north"}, {"name": "east"}, {"name": "south"}]
    content["privacy"] |= {"expected_batch_size": 7}  # of 28: 14 are half
    assert caveats(parse_study(content), sample) == []
    (bias,) = caveats(parse_study(content | {"personal_bias": {"in_training": True}}), sample)
    assert "train with the bias of their own classes" in bias
    (other,) = caveats(
        parse_study(content), replace(sample, partition="dirichlet")
    )  # another than the study's
    assert "divided over its sites by dirichlet" in other


def test_test_images_are_used_where_a_person_says_so(content):
    content["data"]["test_images"] = 80
    study = parse_study(content)
    try:
        sample, real = public_sample(study, 300, use_test_images=True), split_study(study)
    except AssetError as error:
        pytest.skip(f"Fashion-MNIST cannot be had here: {error.what}")
    assert "TEST images" in sample.source
    assert sample.training_images + sample.measured_images == 80
    assert hashes(sample.split.test) < hashes(real.test)


@pytest.fixture
def hospital(tmp_path, content):
    """A study of three sites with manifests of their own, which are not on this machine, and public images."""

    def write(n_public: int) -> Path:
        rng = np.random.default_rng(0)
        with (tmp_path / "public.csv").open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["path", "label"])
            for index in range(n_public):
                Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8)).save(tmp_path / f"{index}.png")
                rows.writerow([f"{index}.png", content["classes"][index % 10]["name"]])
        content["data"] = {"kind": "manifest", "public_manifest": "public.csv"}
        content["sites"] = [
            {"name": name, "manifest": f"{name}/absent.csv"} for name in ("north", "east", "south")
        ]
        (tmp_path / "study.yaml").write_text(yaml.safe_dump(content))
        return tmp_path / "study.yaml"

    return write


def test_no_sites_manifest_is_opened(hospital):
    sample = public_sample(load_study(hospital(70)), 1000)
    assert sample.training_images + sample.measured_images <= 70
    assert "public images" in sample.source


def test_too_few_public_images_are_refused_with_what_to_do(hospital):
    with pytest.raises(DataError, match=r"30 public images.*--use-test-images"):
        public_sample(load_study(hospital(30)), 1000)


@pytest.mark.parametrize(
    "axes",
    [{"output_rank": (9,)}, {"rank": (0,)}, {"quantization": ("nf5",)}, {"optimiser": (Optimiser("sgd", 0.1),)},
     {"optimiser": (Optimiser("fedavg", 0.0),)}],
)  # fmt: skip
def test_a_value_that_no_study_may_have_is_refused_before_anything_is_made(tmp_path, content, axes):
    """Few output directions come from public images, which a random A does without."""
    content["adapter"] = {"kind": "ffa", "rank": 4}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(content))
    option = "--" + next(iter(axes)).replace("_", "-")
    with pytest.raises(ConfigError, match=f"in {option};"):
        run_pilot(tmp_path / "study.yaml", tmp_path / "out", Request(axes=axes))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("axes", "option", "said"),
    [
        ({"rank": (4, 0)}, "--rank", "0: must be 1 or more"),
        ({"value_bits": (99,)}, "--bits", "99: must be 20 or less"),
        ({"blocks": (0,)}, "--blocks", "0: must be 1 or more"),
        ({"rounds": (0,)}, "--rounds", "0: 0 rounds of training"),
        ({"batch": (float("nan"),)}, "--batch", "nan: must be a finite number"),
        ({"batch": (-3.0,)}, "--batch", "-3.0: must be more than 0"),
        ({"batch": (1e9,)}, "--batch", "expected_batch_size 1e"),
        ({"batch": (5e-324,)}, "--batch", "5e-324: a step cannot use 0"),
        ({"optimiser": (Optimiser("foo", 1.0),)}, "--optimiser", "foo:1: kind: must be 'fedavg'"),
        (
            {"optimiser": (Optimiser("fedavg", float("inf")),)},
            "--optimiser",
            "fedavg:inf: learning_rate: must",
        ),
        ({"quantization": ("NF4",)}, "--quantization", "NF4: must be 'nf4'"),
        ({"output_rank": (300,)}, "--output-rank", "300: must be 256 or less"),
    ],
)
def test_a_wrong_value_is_blamed_on_its_option_and_on_no_key_that_nobody_wrote(
    tmp_path, content, axes, option, said
):
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError) as caught:
        run_pilot(tmp_path / "study.yaml", tmp_path / "out", Request(axes=axes))
    assert caught.value.where == option
    assert said in caught.value.what
    assert len(caught.value.what.splitlines()) == 1
    for key in ("alpha", "average_last", "sampling_rate"):
        assert key not in caught.value.what
    assert not (tmp_path / "out").exists()


def test_an_epsilon_that_no_study_may_have_is_blamed_on_its_option(tmp_path, content):
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError, match=r"^1000: epsilon 1000 protects nobody") as caught:
        run_pilot(tmp_path / "study.yaml", tmp_path / "out", Request(limits=SiteLimits(epsilon=1000)))
    assert caught.value.where == "--epsilon"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("axes", "own"), [({"blocks": (2, 20)}, 1), ({}, 20), ({}, 64), ({"blocks": (13,)}, 1)]
)
def test_more_blocks_than_the_backbone_has_are_refused_before_anything_is_made(tmp_path, content, axes, own):
    """Costs of every choice would be too low: figures of twelve blocks, taken for those of twenty."""
    content["adapter"]["last_blocks"] = own
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError, match="the backbone has 12 blocks") as caught:
        run_pilot(tmp_path / "study.yaml", tmp_path / "out", Request(axes=axes))
    assert caught.value.where.endswith("--blocks" if axes else "study.yaml (adapter.last_blocks)")
    assert not (tmp_path / "out").exists()


def test_blocks_of_a_tower_that_is_only_known_once_loaded_are_refused_before_any_trial(
    tmp_path, content, monkeypatch
):
    """Every block, in a study, is a number that no cost of one block can be multiplied by."""
    monkeypatch.setattr("secure_triplay.pilot.run.tower_blocks", lambda backbone: None)
    content["adapter"]["last_blocks"] = 64
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(content))
    try:
        with pytest.raises(ConfigError, match="the backbone has 12 blocks"):
            run_pilot(tmp_path / "study.yaml", tmp_path / "out", Request(sample=120))
    except AssetError as error:
        pytest.skip(f"weights or images cannot be had here: {error.what}")
    assert not list((tmp_path / "out" / "trials").iterdir())


def test_no_usual_number_of_blocks_is_more_than_a_tower_has(demo):
    study = parse_study(demo)
    assert Space.around(study, {}, tower_blocks=3).axes["blocks"] == (1, 2)
    assert Space.around(study, {}, tower_blocks=12).axes["blocks"] == (1, 2, 4)
    assert Space.around(study, {}).axes["blocks"] == (1, 2, 4)


def test_a_study_without_privacy_is_refused(content):
    content["privacy"] = {"unsafe_dp_off": True, "sampling_rate": 0.5, "expected_batch_size": 8}
    content["codec"] = {"range": 1.0}
    with pytest.raises(PrivacyError, match="without privacy"):
        own_choice(parse_study(content))


def interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


@pytest.fixture(scope="module")
def finished(tmp_path_factory, small):
    """(folder, what was asked, result) of a pilot that was stopped in its second trial, and again in writing."""
    folder = tmp_path_factory.mktemp("pilot")
    (folder / "small.yaml").write_text(yaml.safe_dump(small()))
    axes = {"rank": (2,), "blocks": (1,), "quantization": ("nf4",), "value_bits": (9,), "batch": (20.0,),
            "rounds": (2,), "output_rank": (9,), "optimiser": (AVERAGE,)}  # fmt: skip
    asked = Request(axes=axes, sample=120, trials=3)
    told: list[tuple[str, int]] = []

    def stop(now: str, done: int, most: int) -> None:
        told.append((now, done))
        if done == 1 and now.startswith("rank"):
            raise KeyboardInterrupt

    try:
        with pytest.raises(KeyboardInterrupt):
            run_pilot(folder / "small.yaml", folder / "out", asked, stop)
    except AssetError as error:
        pytest.skip(f"weights or images cannot be had here: {error.what}")
    (kept,) = [path for path in (folder / "out" / "trials").iterdir() if not path.name.startswith("speeds")]
    assert {path.name for path in (folder / "out").iterdir()} == {"trials", ".lock"}  # nothing half-written
    before = (kept.stat().st_mtime_ns, kept.read_bytes())
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(page, "write_page", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run_pilot(folder / "small.yaml", folder / "out", asked)
    assert (folder / "out" / "pilot.json").exists()
    assert not (folder / "out" / "study.yaml").exists()  # last, so that this goes on
    result = run_pilot(folder / "small.yaml", folder / "out", asked)
    assert (kept.stat().st_mtime_ns, kept.read_bytes()) == before  # not run again
    return folder, asked, result


def test_a_stopped_pilot_goes_on_and_its_files_agree(finished):
    folder, asked, result = finished
    out = folder / "out"
    assert json.loads((out / "pilot.json").read_text()) == result
    assert [one["choice"]["rank"] for one in result["trials"]] == [4, 4, 2]
    assert sum(one["chosen"] for one in result["trials"]) == 1
    assert result["charged"] is None
    page = (out / "pilot.html").read_text()
    assert "No record of any site was read" in page
    assert result["trials"][0]["words"] in page
    assert f"{result['trials'][0]['memory_bytes'] / 2**30:.2f} GiB</td>" in page  # as the limit below it
    for price in PRICES:  # none that is cheaper or as cheap is better
        for one in result["trials"]:
            beaten = any(
                other[price] <= one[price] and other["accuracy"] > one["accuracy"]
                for other in result["trials"]
            )
            assert (price in one["frontier"]) <= (not beaten)
    assert any("hours" in one["frontier"] for one in result["trials"])
    own, other = result["trials"][:2]  # another optimiser, and nothing else that a site would notice
    assert (own["choice"]["optimiser"], other["choice"]["optimiser"]) == (vars(ADAM), vars(AVERAGE))
    assert [own[price] for price in PRICES] == [other[price] for price in PRICES]
    compared = result["server_optimisers"]["words"]
    assert "fedadam 0.01" in compared
    assert "fedavg 0.3" in compared
    assert html.escape(compared.split(",")[0]) in page
    assert f"{own['worst_class']['name']}: " in page
    assert (out / "frontier.svg").read_text().rstrip().endswith("</svg>")
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(pilot_table(result))
    table = console.export_text()
    assert "…" not in table  # nothing is cut at the width of a terminal
    assert len(table.splitlines()) == len(result["trials"]) + 5
    with pytest.raises(RunError, match="there is a study in this folder"):
        run_pilot(folder / "small.yaml", out, asked)


def test_the_study_that_a_pilot_writes_runs_from_end_to_end(finished, tmp_path):
    folder, _, result = finished
    study = load_study(folder / "out" / "study.yaml")
    found = result["chosen"]
    assert own_choice(study) == Choice(**{**found, "optimiser": Optimiser(**found["optimiser"])})
    (chosen,) = [one for one in result["trials"] if one["chosen"]]
    simulate(study, tmp_path / "run")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["upload"]["n_params"] == chosen["n_params"]
    sent = summary["upload"]["bytes_per_site_per_round"]
    assert (
        chosen["upload_bytes_per_round"] <= sent <= chosen["upload_bytes_per_round"] + 2000
    )  # header and signature


@pytest.mark.parametrize(
    ("of", "key", "value"),
    [
        ("speeds", "blocks", 0),
        ("speeds", "blocks", 3),
        ("speeds", "rank", 0),
        ("speeds", "tower_blocks", 0),
        ("speeds", "params", 1.5),
        ("speeds", "step_s_per_image", -1.0),
        ("trial", "accuracy", 7.5),
        ("trial", "n_params", 0),
        ("trial", "worst_class_label", 10),
        ("trial", "worst_class_label", -1),
        ("trial", "worst_class_images", 0),
    ],
)
def test_a_kept_number_that_none_can_be_is_refused_and_nothing_is_run_on_it(
    finished, tmp_path, of, key, value
):
    """Zero blocks divided, and an accuracy above 1 was chosen."""
    folder, asked, _ = finished
    out = tmp_path / "out"
    shutil.copytree(folder / "out" / "trials", out / "trials")
    for path in sorted((out / "trials").iterdir()):
        if path.name.startswith("speeds") == (of == "speeds"):
            path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(RunError, match=f"not a trial's result .{key} cannot be {value}"):
        run_pilot(folder / "small.yaml", out, asked)
