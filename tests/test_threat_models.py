"""A threat model means what it says: it names tests that exist, and one that contradicts itself is refused."""

from __future__ import annotations

import ast

import pytest
import yaml

from secure_triplay.attacks.attack import Observable
from secure_triplay.attacks.registry import ATTACKS, AUDITS, load_attack
from secure_triplay.attacks.threat import load_threat_model, load_threat_models
from secure_triplay.errors import ConfigError

NAMES = {
    "active-server",
    "adapter-holder",
    "curious-server",
    "curious-site",
    "malicious-site",
    "network-observer",
    "server-disk-insider",
    "server-with-few-sites",
    "server-with-one-site",
}


@pytest.fixture
def content(root) -> dict:
    """A threat model that holds, to be spoilt."""
    return yaml.safe_load((root / "threat_models" / "curious-site.yaml").read_text())


@pytest.fixture
def refused(content, tmp_path):
    """Save the content -> the error with which it is refused, in one line."""

    def load(name: str = "curious-site") -> str:
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(content))
        with pytest.raises(ConfigError) as caught:
            load_threat_model(path)
        assert caught.value.where == str(path)
        assert caught.value.fix
        return " ".join(str(caught.value).split())

    return load


def test_every_adversary_of_the_design_has_a_file_that_holds(root):
    assert {model.name for model in load_threat_models(root / "threat_models")} == NAMES


def test_every_test_that_a_threat_model_names_exists(root):
    for model in load_threat_models(root / "threat_models", check_needs=False):
        named = [node for nodes in model.tested_by.values() for node in nodes]
        for node in named:
            file, _, name = node.partition("::")
            tree = ast.parse((root / file).read_text())
            tests = {part.name for part in ast.walk(tree) if isinstance(part, ast.FunctionDef)}
            assert name in tests if name else any(test.startswith("test_") for test in tests), node


def test_every_cell_has_an_audit_or_a_test(root):
    for model in load_threat_models(root / "threat_models", check_needs=False):
        for asset in model.assets:
            assert model.audits_of(asset) or model.tested_by.get(asset), f"{model.name}: {asset}"


def test_every_attack_and_audit_is_named_by_a_threat_model(root):
    named = {name for model in load_threat_models(root / "threat_models") for name in model.audits}
    assert named == {*ATTACKS, *AUDITS}


def test_server_together_with_one_site_does_not_claim_that_updates_are_protected(root):
    model = load_threat_model(root / "threat_models" / "server-with-one-site.yaml")
    assert "an update" in model.not_protected
    assert all("encryption" not in defences for defences in model.rests_on.values())


def test_the_readme_of_the_folder_explains_every_key_and_every_observable(root):
    text = (root / "threat_models" / "README.md").read_text()
    for key in yaml.safe_load((root / "threat_models" / "active-server.yaml").read_text()):
        assert f"`{key}`" in text
    for seen in Observable:
        assert f"`{seen.value}`" in text


def test_an_observable_that_does_not_exist_is_named_with_the_nearest(content, refused):
    content["observes"].append("agregates")
    assert "observes" in (said := refused())
    assert "did you mean `aggregates`?" in said


def test_an_unknown_audit_is_named_with_the_nearest(content, refused):
    content["audits"]["epsilom"] = ["membership"]
    assert "there is no audit 'epsilom'; did you mean `epsilon`?" in refused()


def test_an_unknown_key_is_named_with_the_nearest(content, refused):
    content["must_not_lern"] = content.pop("must_not_learn")
    assert "did you mean `must_not_learn`?" in refused()


def test_who_observes_the_shared_key_cannot_be_forbidden_to_learn_it(content, refused):
    content["must_not_learn"].append("the key")
    content["rests_on"]["the key"] = ["verification"]
    assert "contradiction: it must not learn 'the key', and observes 'shared key'" in refused()


def test_nothing_rests_on_encryption_against_who_has_the_key(content, refused):
    content["rests_on"]["an image"] = ["encryption"]
    assert "contradiction: 'an image' rests on encryption, and it observes the shared key" in refused()


def test_what_is_both_protected_and_not_is_a_contradiction(content, refused):
    content["not_protected"].append("an image")
    assert "contradiction: 'an image' rests on dp, and is not_protected" in refused()


def test_a_claim_that_rests_on_nothing_is_refused(content, refused):
    del content["rests_on"]["an image"]
    assert "'an image' has no line under rests_on" in refused()


def test_an_audit_that_needs_what_is_not_observed_is_a_contradiction(content, refused):
    name = next(name for name in content["audits"] if name in ATTACKS)
    need = sorted(load_attack(name).needs)[0]
    content["observes"].remove(need.value)
    assert f"the audit {name} needs {need.value}" in refused()


def test_an_audit_of_something_that_is_not_at_stake_is_refused(content, refused):
    content["audits"]["epsilon"] = ["an accuracy"]
    assert "audits.epsilon names 'an accuracy', which is neither under" in refused()


def test_a_threat_model_without_audits_is_refused(content, refused):
    content["audits"] = {}
    assert "audits" in refused()


def test_a_threat_model_under_another_name_is_refused(refused):
    assert "calls itself 'curious-site', and its file 'curious-server.yaml'" in refused("curious-server")


def test_a_threat_model_of_another_version_is_refused(content, refused):
    content["version"] = 2
    assert "is of version 2; this program reads version 1" in refused()


def test_what_is_no_mapping_and_what_is_no_file_get_a_sentence(tmp_path):
    (tmp_path / "list.yaml").write_text("- a\n")
    with pytest.raises(ConfigError, match="a threat model is a mapping of keys"):
        load_threat_model(tmp_path / "list.yaml")
    with pytest.raises(ConfigError, match="there is no threat model here"):
        load_threat_models(tmp_path / "empty")
