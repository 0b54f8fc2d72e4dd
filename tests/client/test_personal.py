"""A site's personal adapter: the stated formula, none where updates carry too little noise, and no bad sums."""

from __future__ import annotations

import math
import struct

import numpy as np
import pytest
import yaml

from secure_triplay.client.kept import ROUND, carry_own, carry_update, count_own, keep_update, kept_update
from secure_triplay.client.optimiser import GlobalState
from secure_triplay.client.personal import OwnUpdates, personal_adapter, why_none
from secure_triplay.client.round import Learned
from secure_triplay.client.vault import Vault, new_storage_key
from secure_triplay.config import parse_study
from secure_triplay.constants import choose_codec, noise_multiplier, update_noise_std
from secure_triplay.errors import ConfigError, CryptoError, PrivacyError

N = 7


def updates(count: int) -> list[np.ndarray]:
    return [np.random.default_rng(i).normal(0, 1e-3, N).astype(np.float32) for i in range(count)]


def summed(made: list[np.ndarray]) -> OwnUpdates:
    own = OwnUpdates.none(N)
    for number, update in enumerate(made, 1):
        own = own.add(update, number)
    return own


@pytest.fixture
def vault(tmp_path):
    return Vault(tmp_path / "one", new_storage_key(), study="ab" * 32, epoch=1)


def kept(update: np.ndarray | None) -> Learned:
    return Learned(np.arange(N, dtype=np.int64) - 3, update=update)


def test_the_personal_adapter_is_the_stated_formula():
    made, published, std = updates(4), updates(9)[8], 3e-4
    found = summed(made).personal(published, std)
    slow = [
        float(published[i]) + 0.002 * math.fsum(float(u[i]) for u in made) / (std * math.sqrt(4))
        for i in range(N)
    ]
    assert found.dtype == np.float32
    assert np.abs(found - np.array(slow)).max() <= 1e-9


def test_with_class_counts_the_adapter_is_the_same_and_the_logits_have_the_stated_bias(demo):
    demo["personal_bias"] = {"noise_multiplier": 20.0}
    study, made, published = parse_study(demo), updates(4), updates(9)[8]
    counts = np.array([900.0, 60, 20, 20, 20, 20, 20, -13, 20, 3])  # below the noise of 20 all are 20
    found = personal_adapter(study, summed(made), published, pytest.fail, counts)
    moved = summed(made).personal(published, update_noise_std(study)) - published
    assert (found.adapter == published + moved).all()
    assert found.bias == pytest.approx([1.5 * math.log(n / 1120) for n in (900, 60, *[20] * 8)])
    without = personal_adapter(study, summed(made), published, pytest.fail, None)
    assert without.bias is None
    assert (without.adapter == published + moved).all()


def test_updates_of_noise_alone_move_each_coordinate_by_0_002_however_many_and_however_large():
    rng = np.random.default_rng(0)
    for rounds, std in ((1, 1e-5), (25, 0.3)):
        own = OwnUpdates.none(20_000)
        for number in range(1, rounds + 1):
            own = own.add(rng.normal(0, std, 20_000).astype(np.float32), number)
        assert own.personal(np.zeros(20_000, np.float32), std).std() == pytest.approx(0.002, rel=0.03)


def test_the_noise_of_an_update_is_that_of_its_public_constants(demo):
    demo["privacy"].pop("noise", None)
    demo["training"] |= {"steps_per_round": 4}
    study = parse_study(demo)
    batch, clip = demo["privacy"]["expected_batch_size"], demo["privacy"]["l2_clip_norm"]
    each = demo["training"]["learning_rate"] * noise_multiplier(study) * clip / batch
    assert update_noise_std(study) == pytest.approx(each * 2)
    if study.codec.range is None:
        assert choose_codec(study, 100).limit == study.codec.range_noise_stds * update_noise_std(study)


def test_a_round_counts_once_however_often_it_is_added():
    one, two = updates(2)
    own = OwnUpdates.none(N).add(one, 3)
    for number in (3, 2, 1):
        assert own.add(two, number) is own
    later = own.add(two, 7)
    assert (later.count, later.last) == (2, 7)
    assert (later.total == one.astype(np.float64) + two).all()


def test_there_is_none_without_an_update_and_without_noise():
    with pytest.raises(PrivacyError):
        OwnUpdates.none(N).personal(np.zeros(N, np.float32), 1.0)
    for std in (0.0, -1.0, math.nan):
        with pytest.raises(PrivacyError):
            summed(updates(1)).personal(np.zeros(N, np.float32), std)


def test_studies_that_share_their_noise_or_have_none_give_no_personal_adapter_and_say_why(demo):
    said: list[str] = []

    def personal(content: dict) -> np.ndarray | None:
        return personal_adapter(
            parse_study(content),
            summed(updates(2)),
            np.zeros(N, np.float32),
            lambda event, what: said.append(f"{event}: {what}"),
        )

    assert personal(demo) is not None
    assert said == []
    shared = yaml.safe_load(yaml.safe_dump(demo))
    shared["privacy"] |= {"noise": {"clip_steps": 450, "rounding_cost": 0.04}}
    assert personal(shared) is None
    rate = {name: demo["privacy"][name] for name in ("sampling_rate", "expected_batch_size")}
    assert personal({**demo, "privacy": {"unsafe_dp_off": True, **rate}, "codec": {"range": 1.0}}) is None
    assert len(said) == 2
    assert "no personal adapter: sites share their noise" in said[0]
    assert "without privacy" in said[1]
    for content in (shared, {**demo, "privacy": {"unsafe_dp_off": True, **rate}, "codec": {"range": 1.0}}):
        with pytest.raises(ConfigError):
            update_noise_std(parse_study(content))


def test_a_site_that_never_trained_has_none_and_says_so(demo):
    said: list[str] = []
    study = parse_study(demo)
    assert why_none(study) is None
    own = OwnUpdates.none(N)
    assert personal_adapter(study, own, np.zeros(N, np.float32), lambda e, what: said.append(what)) is None
    assert said == ["this site trained in no round"]


def test_a_sum_comes_back_bit_by_bit():
    own = summed(updates(3))
    again = OwnUpdates.from_bytes(own.to_bytes(), N)
    assert (again.count, again.last) == (3, 3)
    assert again.total.tobytes() == own.total.tobytes()


def broken_sums() -> list[bytes]:
    good = summed(updates(3)).to_bytes()
    head = struct.Struct(">QQQ")
    body = good[head.size :]
    nan = body[:-8] + struct.pack("<d", math.nan)
    heads = [head.pack(*numbers) for numbers in ((3, 4, N), (0, 0, N), (3, 0, N), (3, 3, N + 1))]
    return [b"", good[:-1], good[: head.size], good + b"\0", *(one + body for one in heads), good[:24] + nan]


@pytest.mark.parametrize("content", broken_sums())
def test_a_sum_that_is_cut_or_contradicts_itself_is_refused(content, vault):
    vault.save("own", content)
    with pytest.raises(CryptoError):
        count_own(vault, 3, N)


def test_a_sum_of_another_adapter_is_refused():
    with pytest.raises(CryptoError):
        OwnUpdates.from_bytes(summed(updates(1)).to_bytes(), N + 1)
    for bad in (np.zeros(N + 1, np.float32), np.full(N, np.nan, np.float32)):
        with pytest.raises(CryptoError):
            OwnUpdates.none(N).add(bad, 1)


def test_what_was_learned_comes_back_with_its_update_or_without(vault):
    for update in (updates(1)[0], None):
        keep_update(vault, 5, kept(update))
        number, learned = kept_update(vault)
        assert (number, learned.integers.tolist()) == (5, list(range(-3, N - 3)))
        assert learned.update is None if update is None else (learned.update == update).all()
        assert kept_update(vault, 4) is None


def test_what_was_learned_and_is_cut_or_of_an_older_version_is_refused(vault):
    keep_update(vault, 5, kept(updates(1)[0]))
    good = vault.load("update")
    older = struct.pack(">Q", 5) + np.arange(N).astype("<i8").tobytes()
    for content in (b"", good[:-1], good[:10], good[: 17 + 8 * N], good + b"\0", older):
        vault.save("update", content)
        with pytest.raises(CryptoError, match="cut, or of an older version"):
            kept_update(vault)


def test_an_update_counts_when_its_round_closed_and_not_before(vault):
    update = updates(1)[0]
    keep_update(vault, 5, kept(update))
    assert count_own(vault, 4, N).count == 0
    assert kept_update(vault, 5) is not None
    for _ in range(2):
        own = count_own(vault, 5, N)
        assert (own.count, own.last) == (1, 5)
        assert (own.total == update).all()
        assert kept_update(vault) is None


def test_a_study_that_begins_anew_in_the_next_epoch_begins_with_no_updates(vault, tmp_path):
    later = [Vault(tmp_path / str(i), new_storage_key(), study="ab" * 32, epoch=2) for i in range(2)]
    for number in (1, 2):
        keep_update(vault, number, kept(updates(2)[number - 1]))
        count_own(vault, number, N)
    carry_own(vault, later[0], 2, N)
    carry_own(vault, later[1], 0, N)
    assert (count_own(later[0], 2, N).count, count_own(later[1], 0, N).count) == (2, 0)


@pytest.mark.parametrize("upload", [None, 1])
def test_an_update_that_never_left_is_trained_anew_in_the_next_epoch_where_it_is_settled(
    vault, tmp_path, upload
):
    """What is carried goes out under the old charge, so nothing is that no charge was settled with."""
    later = Vault(tmp_path / "later", new_storage_key(), study="ab" * 32, epoch=2)
    state = GlobalState(1, np.zeros(N), np.zeros(N), np.zeros(N))
    keep_update(vault, 2, kept(updates(1)[0]))
    if upload is not None:  # of the round before
        vault.save("upload", ROUND.pack(upload) + b"ciphertext")
    carry_update(vault, later, state)
    assert later.load("carried") is None
    assert kept_update(later) is None
    vault.save("upload", ROUND.pack(2) + b"ciphertext")
    carry_update(vault, later, state)
    assert later.load("carried") == ROUND.pack(2)
    assert (kept_update(later, 2)[1].integers == kept(None).integers).all()
