"""What several test folders share."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

HERE = Path(__file__).parent
ROOT = HERE.parent

WAITING = (
    ("test_members.py", "test_thin_line.py", "test_epochs.py"),
    ("test_federation.py", "test_network.py", "test_basis.py"),
)
"""Studies of real processes, which wait more than they compute: in two rows, beside all that computes."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With `--dist loadgroup`, one process has a file's tests, or a whole row's; rows come first."""
    rows = {HERE / "deploy" / name: f"row-{row}" for row, names in enumerate(WAITING) for name in names}
    for item in items:
        group = rows.get(item.path, item.path.relative_to(HERE).as_posix())
        item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=lambda item: item.path not in rows)


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
