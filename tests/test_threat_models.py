"""A threat model names tests that exist, and says what nobody tests."""

from __future__ import annotations

import yaml


def test_every_threat_model_names_tests_that_exist_and_what_is_not_tested(root):
    files = sorted((root / "threat_models").glob("*.yaml"))
    assert files
    for path in files:
        content = yaml.safe_load(path.read_text())
        assert set(content) == {
            "name",
            "observes",
            "may",
            "must_not_learn",
            "assumes",
            "tested_by",
            "not_tested",
        }
        assert content["name"] == path.stem
        assert content["tested_by"]
        for test in content["tested_by"]:
            file, _, name = test.partition("::")
            assert f"def {name}" in (root / file).read_text(), test
