"""What several test folders share."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent


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
