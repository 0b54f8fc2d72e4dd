"""What several test folders share."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

HERE = Path(__file__).parent
ROOT = HERE.parent

WAITING = "deploy"
"""The folder of studies of real processes, which wait more than other tests compute."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With `--dist loadgroup`, one process has a file's tests, and one has all that wait, from the start."""
    for item in items:
        where = item.path.relative_to(HERE)
        waits = where.parts[0] == WAITING
        item.add_marker(pytest.mark.xdist_group(WAITING if waits else where.as_posix()))
    items.sort(key=lambda item: item.path.relative_to(HERE).parts[0] != WAITING)


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
