"""Reconstruction attacks find the image where nothing defends it, and nothing where something does."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from secure_triplay.attacks import released as released_adapter
from secure_triplay.attacks.attack import Setting
from secure_triplay.attacks.finding import Arm
from secure_triplay.attacks.identification import Candidates, identify, one_token_layer, residuals
from secure_triplay.attacks.images import closeness, fit_prior, pictures_of, psnr_db
from secure_triplay.attacks.inversion import span_of
from secure_triplay.attacks.observe import PublicModel, Uploads
from secure_triplay.attacks.peer import PeerSees, fitted, open_round
from secure_triplay.attacks.scene import key_ceremony, open_scene, public_images, victims
from secure_triplay.attacks.scoring import gain_finding, mean_interval
from secure_triplay.attacks.span import NAIVE, SpanAttacker, Victim, attack_images
from secure_triplay.model.adapter import EVERY_BLOCK
from secure_triplay.privacy.noise import NoiseSource
from secure_triplay.wire import Upload

RANK = 32


@pytest.fixture(scope="module")
def plain(attacked):
    """A scene with plain LoRA on every block, its attacker, and a few images of a site."""
    scene = open_scene(attacked, "lora", rank=RANK, last_blocks=EVERY_BLOCK)
    model = PublicModel.of(scene)
    attacker = SpanAttacker(model, fit_prior(public_images(attacked).learned, scene.size))
    records, chosen = victims(attacked, 6, seed=0)
    return scene, attacker, records, chosen


@pytest.fixture(scope="module")
def sites(plain):
    scene, attacker, _, _ = plain
    return key_ceremony(scene.study, attacker.model.n_params)


def attacked_in(plain, arm, sites=None, **how):
    scene, attacker, records, chosen = plain
    victim = Victim(scene, arm, sites, **how)
    return attack_images(victim, attacker, records, chosen[:4], seed=0, public=4)


def test_span_inversion_recovers_an_image_from_plain_lora_gradients(plain):
    tried = attacked_in(plain, Arm.NOTHING)
    assert np.median(tried.psnr_db) > 25
    assert np.median(tried.ssim) > 0.8


def test_span_inversion_recovers_an_image_from_a_difference_after_local_steps(plain):
    tried = attacked_in(plain, Arm.NOTHING, steps=5, learning_rate=0.01)
    assert np.median(tried.psnr_db) > 25


def test_a_rank_below_the_number_of_tokens_needs_several_rounds(attacked):
    scene = open_scene(attacked, "lora", rank=8, last_blocks=EVERY_BLOCK)
    attacker = SpanAttacker(PublicModel.of(scene), fit_prior(public_images(attacked).learned, scene.size))
    records, chosen = victims(attacked, 2, seed=0)
    truth = pictures_of(records, chosen[:1], scene.size)[0]
    one, four = (Victim(scene, Arm.NOTHING, None, rounds=n).sends(records, int(chosen[0]), 1) for n in (1, 4))
    assert psnr_db(attacker.pictures(one, (NAIVE,))[0], attacker.prior.mean) == 100  # says nothing
    assert psnr_db(attacker.pictures(four, (NAIVE,))[0], truth) > 25


def test_noise_of_the_study_leaves_only_the_mean_image(plain):
    tried = attacked_in(plain, Arm.DP)
    assert tried.gains_db == (0.0,) * 4
    assert tried.naive_gain_db < 0


def test_ciphertext_bytes_give_the_mean_image(plain, sites):
    scene, attacker, records, chosen = plain
    tried = attacked_in(plain, Arm.ENCRYPTION, sites)
    assert all(np.array_equal(found, attacker.prior.mean) for found in tried.found)
    sent = Victim(scene, Arm.ENCRYPTION, sites).sends(records, int(chosen[0]), 1)
    assert Upload.from_bytes(sent.contents[0]).header.n_chunks == sites.codec.n_chunks  # a real message


def test_the_attack_sees_only_what_its_observation_grants(plain):
    """No image, label, record or key is within reach of what the pure part is given."""
    _, attacker, _, _ = plain
    assert {field.name for field in dataclasses.fields(Uploads)} == {"contents", "encrypted"}
    assert {field.name for field in dataclasses.fields(PeerSees)} == {"mean", "own", "n_sites"}
    public = {field.name for field in dataclasses.fields(PublicModel)}
    assert public == {"names", "shapes", "frozen", "first"}
    assert set(vars(attacker)) == {"model", "prior", "_layers", "_plain", "_inversion"}


def test_frozen_a_hides_the_image_while_its_rank_is_below_the_number_of_tokens(attacked):
    scene = open_scene(attacked, "ffa", rank=8, last_blocks=EVERY_BLOCK)
    attacker = SpanAttacker(PublicModel.of(scene), fit_prior(public_images(attacked).learned, scene.size))
    records, chosen = victims(attacked, 1, seed=0)
    sent = Victim(scene, Arm.NOTHING, None, rounds=4).sends(records, int(chosen[0]), 1)
    assert attacker.spans(sent.updates(attacker.model.n_params)) == [None]


@pytest.mark.parametrize(("kind", "rank"), [("lora", RANK), ("ffa", RANK), ("ffa", None)])
def test_members_of_small_batches_are_named_and_noise_hides_them(attacked, kind, rank):
    scene = open_scene(attacked, kind, rank=rank)
    own = attacked.adapter
    if rank is None:  # the study's own adapter, whose B lies in nine directions
        assert scene.model.adapter.n_params == 2 * own.output_rank * own.rank
    records, chosen = victims(attacked, 40, seed=0)
    gallery = scene.tokens(records, chosen)
    candidates = Candidates.of(scene, gallery[0])
    open_rate = identify(scene, Arm.NOTHING, gallery, candidates, repeats=1, seed=0).rate
    noisy_rate = identify(scene, Arm.DP, gallery, candidates, repeats=1, seed=0).rate
    assert open_rate == 1.0
    assert noisy_rate < 0.5


def test_a_peer_of_two_gets_the_others_update_to_the_codecs_step(attacked):
    scene = open_scene(attacked, "ffa", rank=RANK)
    records, chosen = victims(attacked, 2, seed=0)
    noise = NoiseSource.unsafe_from_seed(0)
    tokens, labels = scene.tokens(records, chosen)
    updates = [scene.update(tokens[[i]], labels[[i]], private=False, noise=noise) for i in range(2)]
    sites = fitted(key_ceremony(attacked, len(updates[0]), 2), np.concatenate(updates), 16)
    seen = open_round(sites, updates, noise)
    assert np.abs(seen.others - updates[1]).max() <= sites.codec.step * 1.01
    model = PublicModel.of(scene)
    found = residuals(
        Uploads((seen.others.astype("<f4").tobytes(),), encrypted=False),
        Candidates.of(scene, tokens),
        model,
        one_token_layer(model, scene),
    )
    assert found.argmin() == 1


def test_the_span_of_rows_is_their_span():
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(5, 30))
    span = span_of(rng.normal(size=(9, 5)) @ inputs, 5)
    assert np.abs(inputs - inputs @ span @ span.T).max() < 1e-10
    assert span_of(rng.normal(size=(4, 30)), 5) is None  # fewer rows than inputs
    assert span_of(rng.normal(size=(9, 5)), 5) is None  # it fills the space


def test_closeness_is_perfect_for_the_same_picture_and_falls_with_noise():
    picture = np.random.default_rng(0).random((3, 32, 32))
    same, far = closeness(picture, picture), closeness(picture, 1 - picture)
    assert (same.psnr_db, round(same.ssim, 9)) == (100.0, 1.0)
    assert far.psnr_db < 10
    assert psnr_db(picture, picture + 0.1) == pytest.approx(20.0)


def test_intervals_and_verdicts_follow_from_the_gains():
    mean, (low, high) = mean_interval([1.0, 2.0, 3.0])
    assert mean == 2.0
    assert (low, high) == pytest.approx((2 - 2.484138, 2 + 2.484138), abs=1e-5)  # t(0.975, 2) / sqrt(3)
    assert gain_finding("a", Arm.DP, "lora", [5.0, 5.1, 5.2]).verdict == "leaks"
    assert gain_finding("a", Arm.NOTHING, "lora", [5.0, 5.1, 5.2]).verdict == "leaks, as stated"
    assert gain_finding("a", Arm.DP, "lora", [0.0, 0.0, 0.0]).verdict == "nothing found"


@pytest.mark.parametrize("target", [r"attn\.proj|mlp\.fc2", r".*proj", r"attn\.(qkv|proj)"])
def test_an_adapter_on_every_block_reads_a_blocks_input_whatever_the_study_adapts(attacked, target):
    """`.*proj` would match a q_proj, which this tower has not: its projection is fused."""
    adapter = attacked.adapter.model_copy(update={"target_modules": target})
    study = attacked.model_copy(update={"adapter": adapter})
    scene = open_scene(study, "lora", rank=4, last_blocks=EVERY_BLOCK)
    assert PublicModel.of(scene).inputs_of_block(0) == ["visual.trunk.blocks.0.attn.qkv"]
    assert scene.study.adapter.alpha / 4 == adapter.alpha / adapter.rank  # another rank, the same scale


@pytest.mark.parametrize(
    ("broken", "stand_in"),
    [
        (None, None),
        ("released", lambda scene, *_, **__: released_adapter._zero_b(scene)),  # nothing is trained
        ("nearer_to_members", lambda found, *_: [0.0] * len(found)),  # nothing is told apart
    ],
)
def test_the_control_of_the_released_adapter_is_valid_only_where_it_learnt_and_records_are_told_apart(
    attacked, tmp_path, monkeypatch, broken, stand_in
):
    if broken:
        monkeypatch.setattr(released_adapter, broken, stand_in)
    (control,) = released_adapter.run(Setting(attacked, 0, True, tmp_path)).controls
    # an untrained model is as sure: that pictures can be found for a class says no more
    assert control.figures["sure"] >= 0.9
    assert control.valid is (broken is None)
