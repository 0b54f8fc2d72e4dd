"""What a study says of shared noise: off by default, only under masks, and people are told whom it holds against."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import yaml

from secure_triplay.config import SharedNoise, parse_study
from secure_triplay.constants import choose_codec, epsilon_of_shares, masks_for, round_rule, share_rule
from secure_triplay.crypto.wrapping import WrappingCodec
from secure_triplay.describe import describe, read_this
from secure_triplay.errors import ConfigError, PrivacyError, SecureTriplayError
from secure_triplay.experiments.methods import METHODS, method
from secure_triplay.experiments.noise import noise_of
from secure_triplay.federation.studybundle import least_quorum
from secure_triplay.pilot.choices import own_choice
from secure_triplay.planner.plan import plan_budget
from secure_triplay.policy import check_terms, load_policy
from secure_triplay.privacy.accounting import epsilon

ROOT = Path(__file__).parent.parent
DEMO = yaml.safe_load((ROOT / "configs" / "demo.yaml").read_text())
N_PARAMS = 24_576


def content_of(n_sites=4, noise="shared", **more) -> dict:
    content = copy.deepcopy(DEMO) | {"sites": [{"name": f"s-{i}"} for i in range(n_sites)]} | more
    content["privacy"] = DEMO["privacy"] | {"noise": noise} | more.get("privacy", {})
    return content


def study_of(*args, **more):
    return parse_study(content_of(*args, **more))


def test_noise_is_each_sites_own_unless_a_study_says_otherwise():
    study = parse_study(DEMO)
    assert study.shared_noise is None
    assert share_rule(study) is None
    assert not isinstance(choose_codec(study, N_PARAMS), WrappingCodec)
    assert parse_study(content_of(noise="local")) == parse_study(content_of(noise={"kind": "local"}))


def test_a_study_without_shared_noise_keeps_the_hash_that_it_had_before_there_was_any():
    study = parse_study(DEMO)
    assert "noise" not in json.loads(study.canonical())["privacy"]
    assert study.sha256 == parse_study(content_of(noise="local", sites=DEMO["sites"])).sha256
    shared = [study_of(), study_of(noise={"clip_steps": 512}), study_of(noise={"rounding_cost": 0.05})]
    assert len({one.sha256 for one in (*shared, study_of(noise="local"))}) == 4


def test_what_it_says_is_taken_over():
    study = study_of(noise={"kind": "shared", "clip_steps": 320, "rounding_cost": 0.04})
    assert study.shared_noise == SharedNoise(clip_steps=320, rounding_cost=0.04)
    rule = share_rule(study)
    assert (rule.honest_shares, rule.colluders) == (2, 1)  # of four sites three make a sum, and one colludes
    assert (rule.clip_steps, rule.l2_sensitivity) == (320, 333)
    codec = choose_codec(study, N_PARAMS)
    assert isinstance(codec, WrappingCodec)
    assert codec.step == pytest.approx(1.0 / 320 / 1000)
    ten = share_rule(study_of(10))
    assert (ten.honest_shares, ten.colluders) == (4, 3)


REFUSED = {
    "shared key": ({"aggregation": "shared-key"}, "aggregation: masked"),
    "two sites, which share a key": ({"n_sites": 2}, "aggregation: masked"),
    "several steps a round": ({"training": DEMO["training"] | {"steps_per_round": 2}}, "steps_per_round 1"),
    "weights": ({"sites": [{"name": "a", "weight": 2.0}, {"name": "b"}, {"name": "c"}]}, "one weight"),
    "ranks": ({"sites": [{"name": "a", "rank": 2}, {"name": "b"}, {"name": "c"}]}, "one rank"),
    "a range": ({"codec": {"range": 0.1}}, "codec.range"),
    "published accuracy": ({"published_accuracy": {}}, "published_accuracy"),
    "another word": ({"noise": "secret"}, "local or shared"),
    "a number": ({"noise": 3}, "local or shared"),
    "a list": ({"noise": ["shared"]}, "local or shared"),
    "an unknown key": ({"noise": {"clip": 3}}, "clip"),
    "too coarse a grid": ({"noise": {"clip_steps": 4}}, "clip_steps"),
    "rounding for nothing": ({"noise": {"rounding_cost": 0.0}}, "rounding_cost"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_studies_that_cannot_share_noise_are_refused_with_the_reason(case):
    change, words = REFUSED[case]
    with pytest.raises(ConfigError, match=words):
        study_of(**change)


def test_a_study_whose_noise_cannot_be_drawn_rightly_is_refused_when_it_is_checked():
    with pytest.raises(PrivacyError, match="drawn rightly") as refused:
        share_rule(study_of(noise={"clip_steps": 1 << 20}))
    assert refused.value.where == "privacy.noise.clip_steps"


def test_patients_are_refused_with_the_reason():
    content = yaml.safe_load((ROOT / "configs" / "blood-cells.yaml").read_text())
    content["privacy"]["noise"] = "shared"
    with pytest.raises(ConfigError, match="patients need"):
        parse_study(content)


def test_a_study_without_privacy_has_no_noise_to_share():
    off = {"unsafe_dp_off": True, "sampling_rate": 0.5, "expected_batch_size": 5, "noise": "shared"}
    with pytest.raises(ConfigError):
        parse_study(DEMO | {"privacy": off, "codec": {"range": 0.1}})


@pytest.mark.parametrize("aggregation", [{"colluders": 0}, {"colluders": 0, "dropouts": 1}])
def test_every_site_knows_its_own_share_so_one_colluder_at_least_is_counted(aggregation):
    with pytest.raises(ConfigError, match="knows its own share"):
        share_rule(study_of(aggregation={"kind": "masked", **aggregation}))
    with pytest.raises(ConfigError, match="knows its own share"):
        share_rule(study_of(2, aggregation="masked"))


ROSTERS = [(10, 10, True), (10, 9, True), (10, 8, False), (10, 3, False), (4, 3, True)]


@pytest.mark.parametrize(("study_sites", "there", "fits"), ROSTERS)
def test_a_roster_that_has_fewer_honest_shares_than_the_noise_counts_on_is_refused(study_sites, there, fits):
    """The noise of ten counts on four honest sites beside three that collude. Eight mask with six to a sum."""
    study = study_of(study_sites)
    if fits:
        assert masks_for(study, there).threshold == least_quorum(study, there)
    else:
        for ask in (masks_for, least_quorum):
            with pytest.raises(ConfigError, match="counts on 4 honest"):
                ask(study, there)
    assert masks_for(study_of(study_sites, noise="local"), there) is not None


def test_what_a_coalition_of_more_learns_is_bounded_by_what_is_left():
    study = study_of()
    dp, rule = study.dp, share_rule(study)
    by_shares = [epsilon_of_shares(study, left) for left in (1, 2, 3)]
    assert 0.99 * dp.epsilon < by_shares[1] <= dp.epsilon
    assert by_shares == sorted(by_shares, reverse=True)
    assert by_shares[0] == pytest.approx(epsilon([rule.charged_for(1)] * study.total_steps, dp.delta))


@pytest.mark.parametrize("n_sites", [3, 4, 10])
def test_people_are_told_against_whom_the_guarantee_holds_and_what_is_left_against_others(n_sites):
    study = study_of(n_sites)
    alone = epsilon_of_shares(study, 1)
    c, m = share_rule(study).colluders, share_rule(study).honest_shares
    for text in (dict(describe(study))["Privacy"], read_this(study, n_sites)):
        assert f"no more than {c} site" in text
        assert f"the {m} shares that are left" in text
        assert f"the server with more than {c}, only a site's own share is left: epsilon" in text
        said = float(text.split("own share is left: epsilon ")[1].split(". In")[0])
        assert alone <= said < alone + 0.11
        assert f"with fewer than {m + c} sites nothing is unmasked" in text
        assert (f"Against {c + 1} other sites without the server" in text) is (n_sites > 3)
    assert "is shared" not in dict(describe(study_of(n_sites, noise="local")))["Privacy"]
    assert "sums of shared noise" in dict(describe(study))["Upload"]


def test_whatever_looks_at_one_sites_own_step_refuses_such_a_study():
    study = study_of()
    for ask in (round_rule, plan_budget, own_choice):
        with pytest.raises(ConfigError, match="noise: local"):
            ask(study)
    method("eps8").check(study)
    for name in ("adjusted", "alternating", "personalised"):
        with pytest.raises(SecureTriplayError):
            METHODS[name].check(study)


def test_a_site_takes_part_only_where_a_person_allowed_that_its_epsilon_rests_on_others():
    policy = load_policy(ROOT / "configs" / "policies" / "public-data.yaml")
    allows = policy.model_copy(update={"allow_shared_noise": True})
    assert "allow_shared_noise" in {refusal.rule for refusal in check_terms(policy, study_of())}
    assert "allow_shared_noise" not in {refusal.rule for refusal in check_terms(allows, study_of())}
    assert "allow_shared_noise" not in {
        refusal.rule for refusal in check_terms(policy, study_of(noise="local"))
    }


def test_the_table_of_noises_says_what_is_in_the_mean():
    local, shared = noise_of(study_of(noise="local"), N_PARAMS), noise_of(study_of(), N_PARAMS)
    rule = share_rule(study_of())
    assert local["std_of_mean"] == pytest.approx(2 * 1.0 * local["noise_multiplier"] / 4000)
    # four shares, of which two are counted, each of half the variance
    assert shared["std_of_mean"] == pytest.approx(2**0.5 * rule.noise_multiplier * 1045 * 1 / 1024 / 4000)
    assert shared["std_of_mean"] < local["std_of_mean"]
    assert (local["accountant"], shared["accountant"]) == ("PLD (dp-accounting)", "Renyi (dp-accounting)")
    assert max(local["epsilon"], shared["epsilon"]) <= 8
