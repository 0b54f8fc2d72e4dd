"""What several test folders share."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from xdist.scheduler import LoadFileScheduling

HERE = Path(__file__).parent
ROOT = HERE.parent

WAITING = "tests/deploy/"
"""The folder of studies of real processes, which wait for Flower (a node looks for messages every three seconds) three
times as long as they compute."""
_FIRST_HALF = ("test_federation", "test_network", "test_starting", "test_thin_line")


class Rows(LoadFileScheduling):
    """Of several processes one has a file's tests, and two have all that wait."""

    def _split_scope(self, nodeid: str) -> str:
        if not nodeid.startswith(WAITING):
            return str(super()._split_scope(nodeid))
        first = nodeid.removeprefix(WAITING).startswith(_FIRST_HALF)
        return f"{WAITING} {'first' if first else 'second'} half"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Rows:
    """`pytest -n 3` goes by rows."""
    return Rows(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What waits comes first, so that the rest goes on beside it."""
    items.sort(key=lambda item: not item.nodeid.startswith(WAITING))


@pytest.fixture(scope="session")
def root() -> Path:
    """The project's root."""
    return ROOT


@pytest.fixture
def demo() -> dict:
    """The content of configs/demo.yaml, to be changed at will."""
    return yaml.safe_load((ROOT / "configs" / "demo.yaml").read_text())


@pytest.fixture(scope="session")
def fresh_imports():
    """Names of all modules that a fresh interpreter has loaded after importing one."""

    def load(module: str) -> set[str]:
        code = f"import sys, {module}; print('\\n'.join(sys.modules))"
        run = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
        )
        return set(run.stdout.split())

    return load
