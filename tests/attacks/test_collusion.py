"""Server and sites together: t-1 get nothing of one site's update but what the sum tells, t get it all."""

from __future__ import annotations

import copy
import json
from itertools import combinations

import numpy as np
import pytest
from typer.testing import CliRunner

from secure_triplay.attacks.collusion import audit
from secure_triplay.attacks.collusion.coalition import opened, sum_of_the_others, update_of
from secure_triplay.attacks.collusion.federation import VICTIM, Federation
from secure_triplay.attacks.matrix import read_audits
from secure_triplay.cli import app
from secure_triplay.client.masking import MaskingSite
from secure_triplay.crypto.masking import MaskingParameters
from secure_triplay.privacy.noise import NoiseSource

PARAMETERS = MaskingParameters.choose(6, colluders=1, dropouts=2)
T = PARAMETERS.threshold
N_PARAMS = 9_000


@pytest.fixture(scope="module")
def federation():
    return Federation(PARAMETERS, value_bits=12, n_params=N_PARAMS, limit=1.0)


@pytest.fixture(scope="module")
def updates(federation):
    draw = np.random.default_rng(0)
    return {name: draw.uniform(-1, 1, N_PARAMS).astype(np.float32) for name in federation.names}


@pytest.fixture(scope="module")
def played(federation, updates):
    noise = NoiseSource.unsafe_from_seed(0)
    inputs = {name: federation.quantised(update, noise) for name, update in updates.items()}
    return federation.play(inputs, encrypted=federation.names)


def near(federation, found, truth):
    return float(np.mean(np.abs(found - truth) <= federation.masked.step * 1.001))


def test_every_coalition_of_t_opens_the_update_and_none_of_fewer_does(federation, updates, played):
    assert T == 4
    others = federation.names[1:]
    for sites in combinations(others, T):
        found = opened(played.coalition(sites), VICTIM)
        assert found.masks_left == 0
        assert near(federation, found.update, updates[VICTIM]) == 1.0
    for size in range(T):
        for sites in combinations(others, size):
            found = opened(played.coalition(sites), VICTIM)
            assert found.masks_left == len(others) - size
            assert near(federation, found.update, updates[VICTIM]) < 0.01
            assert abs(np.corrcoef(found.update, updates[VICTIM])[0, 1]) < 0.06


def test_the_self_mask_comes_off_by_what_honest_sites_reveal_and_alone_helps_nobody(played):
    """All b are known after a round, by design; what hides the update are the masks of honest pairs."""
    nobody = opened(played.coalition(()), VICTIM)
    assert nobody.masks_left == len(played.everything.members) - 1


def test_all_but_one_of_the_others_hold_every_pair_and_open_it_without_a_share():
    """With n - 1 sites on its side no scheme hides the last one: the sum itself tells."""
    federation = Federation(
        MaskingParameters.choose(3, colluders=1, dropouts=0), value_bits=9, n_params=50, limit=1.0
    )
    noise = NoiseSource.unsafe_from_seed(1)
    update = np.linspace(-1, 1, 50, dtype=np.float32)
    inputs = {name: federation.quantised(update, noise) for name in federation.names}
    held = federation.play(inputs, encrypted=federation.names).coalition(federation.names[1:])
    assert held.context.parameters.share_threshold == 3
    assert near(federation, opened(held, VICTIM).update, update) == 1.0


def test_without_masks_one_site_is_enough(federation, updates):
    integers = federation.quantised(updates[VICTIM], NoiseSource.unsafe_from_seed(2))
    plain = federation.plain
    found = update_of(plain, plain.pack(federation.without_masks(integers)))
    assert near(federation, found, updates[VICTIM]) == 1.0


def test_what_the_coalition_learns_by_design_is_the_sum_of_the_others(federation, updates, played):
    total, honest = sum_of_the_others(played.coalition(federation.names[1:T]))
    assert honest == 3
    left = [VICTIM, *federation.names[T:]]
    assert np.abs(total - sum(updates[name] for name in left)).max() <= 3 * federation.masked.step


def test_honest_sites_refuse_a_second_list_and_the_audit_sees_it_when_they_do_not(
    federation, updates, played, monkeypatch
):
    assert played.second_list_refused

    def lenient(self, survivors, masked_with):
        if "survivors" not in self._state:
            self._keep(survivors=list(survivors))

    monkeypatch.setattr(MaskingSite, "agree", lenient)
    inputs = {name: federation.quantised(u, NoiseSource.unsafe_from_seed(3)) for name, u in updates.items()}
    assert not federation.play(inputs, encrypted=()).second_list_refused


GOOD = {"psnr_db": 31.0, "ssim": 0.9, "gain_db": 20.0, "gain_db_interval": [19.0, 21.0], "named": 12, "tries": 12,
        "named_interval": [0.7, 1.0], "masks_left": 0}  # fmt: skip
NOTHING = GOOD | {"psnr_db": 10.0, "ssim": 0.1, "gain_db": 0.0, "gain_db_interval": [0.0, 0.0], "named": 0,
                  "named_interval": [0.0, 0.3], "masks_left": 2}  # fmt: skip
ARMS = {audit.CLEAR: GOOD, audit.NO_MASKS: GOOD, audit.FEWER: NOTHING, audit.ENOUGH: GOOD}


@pytest.mark.parametrize("arm", [audit.CLEAR, audit.NO_MASKS, audit.ENOUGH])
@pytest.mark.parametrize(
    "worse", [{"psnr_db": 24.9}, {"ssim": 0.79}, {"named": 11}, {"psnr_db": np.nan}, {"ssim": np.nan}]
)
def test_an_arm_that_has_to_succeed_and_does_not_makes_the_audit_invalid(arm, worse):
    assert audit.judge(ARMS, True, 500)[0] == "pass"
    assert audit.judge(ARMS | {arm: GOOD | worse}, True, 500)[0] == "invalid"


@pytest.mark.parametrize(
    "more",
    [
        {"gain_db_interval": [0.1, 3.0]},
        {"gain_db_interval": [np.nan, np.nan]},
        {"named_interval": [0.01, 0.4]},
        {"masks_left": 0},
    ],
)
def test_more_than_the_mean_image_or_a_guess_fails(more):
    assert audit.judge(ARMS | {audit.FEWER: NOTHING | more}, True, 500)[0] == "fail"
    assert audit.judge(ARMS, False, 500)[0] == "fail"


@pytest.mark.parametrize(("verdict", "code"), [("pass", 0), ("fail", 1), ("invalid", 2)])
def test_exit_code_is_that_of_the_verdict_and_all_files_are_written(
    root, tmp_path, monkeypatch, verdict, code
):
    committed = root / "audits" / "collusion"
    result = json.loads((committed / "result.json").read_text()) | {"verdict": verdict}

    def stand_in(study, out, seed, quick, tell):
        assert (study.study, seed, quick) == ("demo", 3, True)
        (out / "result.json").write_text(json.dumps(result))
        (out / "pictures.png").write_bytes((committed / "pictures.png").read_bytes())
        return copy.deepcopy(result)

    monkeypatch.setattr("secure_triplay.attacks.collusion.audit_collusion", stand_in)
    monkeypatch.setattr("secure_triplay.loading.fetch_assets", lambda study: None)
    study, out = str(root / "configs" / "demo.yaml"), tmp_path / "out"
    done = CliRunner().invoke(app, ["audit", "collusion", study, "--out", str(out), "--quick", "--seed", "3"])
    assert done.exit_code == code, done.output
    assert verdict.upper() in done.output
    assert sorted(path.name for path in out.iterdir()) == ["pictures.png", "report.html", "result.json"]


def test_the_committed_result_is_of_this_setting_and_follows_from_its_own_figures(root):
    committed = root / "audits" / "collusion"
    result = json.loads((committed / "result.json").read_text())
    judged = audit.judge(result["arms"], result["second_list_refused"], result["setting"]["gallery"])
    assert [result["verdict"], result["reason"]] == list(judged)
    assert not result["quick"]
    assert (result["setting"]["threshold"], result["setting"]["value_bits"]) == (audit.T, audit.VALUE_BITS)
    assert read_audits(root / "audits").verdicts["collusion"].verdict == result["verdict"]
    page = (committed / "README.md").read_text()
    for got in result["arms"].values():
        assert f"| {got['psnr_db']:.1f} | {got['ssim']:.2f} | {got['named']} of {got['tries']} |" in page


def test_the_whole_audit_finds_the_picture_with_t_sites_and_nothing_with_fewer(
    attacked, tmp_path, monkeypatch
):
    """On three images: too few for a verdict on guessing, but not for the picture."""
    for name, value in (("_IMAGES", 3), ("_PUBLIC", 1), ("_GALLERY", 100)):
        monkeypatch.setattr(audit, name, {True: value})
    result = audit.audit_collusion(attacked, tmp_path, quick=True)
    arms = result["arms"]
    assert arms[audit.ENOUGH]["psnr_db"] == arms[audit.NO_MASKS]["psnr_db"]
    for arm in (
        audit.CLEAR,
        audit.NO_MASKS,
        audit.ENOUGH,
    ):  # what today's attack has to find, or a verdict is void
        assert arms[arm]["psnr_db"] >= audit.PSNR_GOAL_DB
        assert arms[arm]["ssim"] >= audit.SSIM_GOAL
    assert arms[audit.FEWER]["psnr_db"] == result["mean_image"]["psnr_db"] < 20
    assert result["what_the_sum_shows"]["sum_is_exact"]
    assert (tmp_path / "pictures.png").stat().st_size > 0
