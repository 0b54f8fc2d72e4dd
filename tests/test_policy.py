"""A site's policy binds whatever a study asks, and says why."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml

from secure_triplay.config import DpOff, Masked, PublishedAccuracy, SharedKey, load_study
from secure_triplay.errors import ConfigError, PrivacyError
from secure_triplay.policy import (
    check_hours,
    check_participants,
    check_terms,
    load_policy,
    policy_schema,
)
from secure_triplay.policy.checks import next_opening

ROOT = Path(__file__).resolve().parents[1]
POLICIES = ROOT / "configs" / "policies"
NOON = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)  # a Monday


@pytest.fixture(scope="module")
def demo():
    return load_study(ROOT / "configs" / "demo.yaml")


@pytest.fixture
def made(tmp_path):
    """A policy file: one of the ready-made ones with some keys changed; None takes a key out."""

    def make(base: str = "public-data", **keys: object):
        content = yaml.safe_load((POLICIES / f"{base}.yaml").read_text())
        for key, value in keys.items():
            content[key] = value
            if value is ...:
                del content[key]
        path = tmp_path / "policy.yaml"
        path.write_text(yaml.safe_dump(content))
        return load_policy(path)

    return make


def rules(refusals) -> set[str]:
    return {refusal.rule for refusal in refusals}


@pytest.mark.parametrize("name", ["strict", "research", "public-data"])
def test_ready_made_policies_load_and_are_commented(name):
    assert load_policy(POLICIES / f"{name}.yaml").policy == name
    assert (POLICIES / f"{name}.yaml").read_text().count("#") >= 5


def test_public_data_policy_accepts_the_demo(demo):
    policy = load_policy(POLICIES / "public-data.yaml")
    assert check_terms(policy, demo) == []
    assert check_hours(policy, NOON) is None


def test_strict_policy_refuses_the_demo_and_says_why(demo):
    policy = load_policy(POLICIES / "strict.yaml")
    refusals = [*check_terms(policy, demo), check_hours(policy, NOON)]
    assert rules(refusals) >= {
        "epsilon_per_study",
        "epsilon_per_year",
        "smallest_privacy_unit",
        "delta",
        "fewest_participants",
        "allowed_backbone_sha256",
        "allowed_hours",
    }
    for refusal in refusals:
        assert refusal.asked
        assert refusal.allowed
        assert refusal.fix
    assert "epsilon 8; the policy allows 3 a study at most" in str(refusals[0])


def test_research_policy_asks_for_the_patient_unit(demo):
    policy = load_policy(POLICIES / "research.yaml")
    assert check_hours(policy, NOON) is None
    refusals = check_terms(policy, demo)
    assert rules(refusals) == {"smallest_privacy_unit"}
    dp = demo.privacy.model_copy(update={"unit": "patient", "max_records_per_patient": 4, "delta": 1e-7})
    by_patient = demo.model_copy(update={"privacy": dp.model_copy(update={"max_units_per_site": 20000})})
    assert check_terms(policy, by_patient) == []


def test_a_study_that_underestimates_the_sites_patients_is_refused(made, demo):
    policy = made(delta={"times_patients": 100, "most_records": 50000})
    refusals = check_terms(policy, demo)
    assert [r.rule for r in refusals] == ["delta", "delta"]
    assert "at most 2,000 records" in refusals[0].asked
    assert "2e-07 at most" in refusals[1].allowed


def test_delta_exactly_at_the_limit_is_allowed_and_just_above_refused(made, demo):
    dp = demo.privacy
    at = demo.model_copy(
        update={"privacy": dp.model_copy(update={"delta": 1 / (100 * dp.max_units_per_site)})}
    )
    above = demo.model_copy(
        update={"privacy": dp.model_copy(update={"delta": 1.01 / (100 * dp.max_units_per_site)})}
    )
    assert check_terms(made(), at) == []
    assert rules(check_terms(made(), above)) == {"delta"}


def test_a_study_without_privacy_is_refused_unless_the_site_allows_it(made, demo):
    off = demo.model_copy(
        update={"privacy": DpOff(unsafe_dp_off=True, sampling_rate=0.5, expected_batch_size=10.0)}
    )
    assert rules(check_terms(made(unsafe_allow_dp_off=False), off)) == {"unsafe_allow_dp_off"}
    assert check_terms(made(unsafe_allow_dp_off=True), off) == []


@pytest.mark.parametrize("aggregation", [None, Masked(), SharedKey()])
def test_two_sites_need_consent_of_their_own_masked_or_not(made, demo, aggregation):
    """The sum itself tells each the other's update: no mask helps there."""
    two = demo.model_copy(update={"sites": demo.sites[:2], "aggregation": aggregation})
    assert rules(check_terms(made(allow_two_site_studies=False), two)) == {"allow_two_site_studies"}
    assert check_terms(made(allow_two_site_studies=True), two) == []
    assert rules(check_terms(made(allow_two_site_studies=False, fewest_participants=3), two)) == {
        "fewest_participants"
    }


@pytest.mark.parametrize(("participants", "allowed"), [(0, False), (1, False), (2, True), (3, True)])
def test_a_round_of_one_is_never_allowed(made, participants, allowed):
    assert (check_participants(made(), participants) is None) == allowed


def test_unknown_weights_and_licences_are_refused(made, demo):
    listed = made(allowed_backbone_sha256=[demo.backbone.sha256])
    assert [r.rule for r in check_terms(listed, demo)] == ["allowed_backbone_sha256"]  # the text tower
    both = made(allowed_backbone_sha256=[demo.backbone.sha256, demo.backbone.text_sha256])
    assert check_terms(both, demo) == []
    assert rules(check_terms(made(allowed_backbone_sha256=[]), demo)) == {"allowed_backbone_sha256"}
    assert rules(check_terms(made(allowed_licences=["MIT"]), demo)) == {"allowed_licences"}
    random = demo.backbone.model_copy(
        update={"sha256": None, "text_sha256": None, "unsafe_random_weights": True}
    )
    refusals = check_terms(both, demo.model_copy(update={"backbone": random}))
    assert "no hash" in refusals[0].asked


NIGHT = [{"days": ["mon"], "from": "20:00", "until": "06:00"}]


@pytest.mark.parametrize(
    ("moment", "allowed"),
    [
        (datetime(2026, 11, 23, 18, 59, tzinfo=UTC), False),  # 19:59 in Berlin
        (datetime(2026, 11, 23, 19, 0, tzinfo=UTC), True),
        (datetime(2026, 11, 24, 4, 59, tzinfo=UTC), True),  # Tuesday morning belongs to Monday's night
        (datetime(2026, 11, 24, 5, 0, tzinfo=UTC), False),
        (datetime(2026, 11, 23, 3, 0, tzinfo=UTC), False),  # Monday morning belongs to Sunday's
    ],
)
def test_hours_are_local_and_a_night_belongs_to_the_day_it_begins(made, moment, allowed):
    policy = made(allowed_hours=NIGHT, timezone="Europe/Berlin")
    assert (check_hours(policy, moment) is None) == allowed


def test_a_refusal_by_the_hour_says_when_it_opens(made, demo):
    policy = made(allowed_hours=NIGHT, timezone="Europe/Berlin")
    refusal = check_hours(policy, NOON)
    assert "mon 13:00 (Europe/Berlin)" in refusal.asked
    assert "mon 20:00" in refusal.fix
    assert next_opening(policy, NOON) == datetime(2026, 11, 23, 19, 0, tzinfo=UTC)
    assert check_terms(policy, demo) == []


def test_a_time_without_a_zone_is_refused(made):
    with pytest.raises(PrivacyError):
        check_hours(made(), NOON.replace(tzinfo=None))


def test_a_published_accuracy_needs_the_right_to_export_one(made, demo):
    publishing = demo.model_copy(update={"published_accuracy": PublishedAccuracy()})
    assert check_terms(made(), publishing) == []
    assert "may_export" in rules(check_terms(made(may_export=["adapter"]), publishing))
    assert check_terms(made(may_export=["adapter"]), demo) == []


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"epsilon_per_studdy": 3.0}, "epsilon_per_studdy: unknown key; did you mean `epsilon_per_study`?"),
        ({"allow_two_sites_studies": True}, "did you mean `allow_two_site_studies`?"),
        ({"epsilon_per_study": ...}, "epsilon_per_study: missing"),
        ({"allowed_backbone_sha256": ...}, "allowed_backbone_sha256: missing"),
        ({"allowed_hours": ...}, "allowed_hours: missing"),
        ({"epsilon_per_study": 0}, "epsilon_per_study: must be more than 0"),
        ({"epsilon_per_study": 20.0, "epsilon_per_year": 10.0}, "larger than epsilon_per_year"),
        ({"delta": {"times_patients": 10}}, "must be 100 or more"),
        ({"fewest_participants": 1}, "must be 2 or more"),
        ({"fewest_participants": 3}, "allow_two_site_studies is true"),
        ({"timezone": "Europe/Berlinn"}, "no such time zone"),
        ({"allowed_hours": [{"from": 1080, "until": "06:00"}]}, "in quotes"),
        ({"allowed_hours": [{"from": "06:00", "until": "06:00"}]}, "no time at all"),
        ({"allowed_hours": [{"days": [], "from": "06:00", "until": "07:00"}]}, "allowed_hours"),
        ({"allowed_hours": "sometimes"}, "allowed_hours"),
        ({"allowed_backbone_sha256": ["abc"]}, "allowed_backbone_sha256"),
        ({"unsafe_allow_dp_off": "yes please"}, "must be true or false"),
    ],
)
def test_a_wrong_policy_is_refused_with_its_key(made, keys, says):
    with pytest.raises(ConfigError) as refused:
        made(**keys)
    assert says in refused.value.what
    assert refused.value.fix


@pytest.mark.parametrize("text", ["", "- a\n", "policy: a\npolicy: b\n", "policy: [\n"])
def test_a_file_that_is_no_policy_is_refused(tmp_path, text):
    path = tmp_path / "policy.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError):
        load_policy(path)


def test_a_missing_policy_is_an_error_and_not_a_permission(tmp_path):
    with pytest.raises(ConfigError):
        load_policy(tmp_path / "policy.yaml")


def test_schema_names_every_key():
    schema = policy_schema()
    assert {"epsilon_per_study", "allowed_hours", "may_export"} <= set(schema["properties"])
    assert set(schema["required"]) >= {
        "epsilon_per_study",
        "smallest_privacy_unit",
        "allowed_hours",
        "may_export",
    }
