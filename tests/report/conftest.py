from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from secure_triplay.report.summary import Summary

COMMITTED = Path(__file__).with_name("summary.json")


@pytest.fixture
def content() -> dict[str, Any]:
    """The committed summary as plain JSON content, free to be changed; its figures are invented."""
    loaded: dict[str, Any] = json.loads(COMMITTED.read_text(encoding="utf-8"))
    return loaded


@pytest.fixture
def summary(content: dict[str, Any]) -> Summary:
    return Summary.model_validate_json(json.dumps(content))


@pytest.fixture
def personal(content: dict[str, Any]) -> dict[str, Any]:
    """The content where every site but the second has a personal adapter, a point better each than the shared one."""
    for index, site in enumerate(content["accuracy"]["per_site"].values()):
        site["personal"] = None if index == 1 else min(1.0, site["final"] + 0.01)
    return content


@pytest.fixture
def unsafe(content: dict[str, Any]) -> Summary:
    """The same run without differential privacy."""
    content["dp"] = "off"
    for entry in content["privacy"]:
        entry |= {
            "epsilon": None,
            "delta": None,
            "noise_multiplier": 0.0,
            "epsilon_by_round": [],
            "epsilon_check_prv": None,
            "epsilon_budget": None,
            "accountant": "none",
        }
    return Summary.model_validate_json(json.dumps(content))


@pytest.fixture
def renamed(content: dict[str, Any]) -> Callable[[str, str], Summary]:
    """The committed summary with one site under another name, everywhere."""

    def rename(old: str, new: str) -> Summary:
        text = json.dumps(content).replace(json.dumps(old), json.dumps(new))
        return Summary.model_validate_json(text)

    return rename


@pytest.fixture
def large(content: dict[str, Any]) -> Summary:
    """A federation of forty sites, the worst one last."""
    names = [f"hospital-number-{index:02d}" for index in range(40)]
    rounds, privacy = content["rounds"], content["privacy"][0]
    content["federation"] |= {"sites": names, "records_per_site": dict.fromkeys(names, 500)}
    content["privacy"] = [privacy | {"site": name} for name in names]
    content["accuracy"] |= {
        "per_site": {
            name: {"baseline": 0.5, "final": 0.9 - index / 100, "records": 50}
            for index, name in enumerate(names)
        },
        "per_site_per_round": {name: [0.6 + index / 200] * rounds for index, name in enumerate(names)},
        "worst_site": {"name": names[-1], "baseline": 0.5, "final": 0.9 - 39 / 100},
    }
    return Summary.model_validate_json(json.dumps(content))
