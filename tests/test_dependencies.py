"""What is imported is declared: nothing works only because another package happens to bring it."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

OURS = {"secure_triplay", "tests"}


def normal(name: str) -> str:
    """A distribution's name as the package registry compares it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def imported(folder: Path) -> dict[str, Path]:
    """Top-level modules that files below a folder import, also inside functions, and one file that does."""
    found = {}
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names.append(node.module)
            found |= {name.partition(".")[0]: path for name in names}
    return found


def undeclared(folder: Path, requirements: list[str]) -> dict[str, Path]:
    """Modules of others that `folder` imports, and no declared distribution has."""
    declared = {normal(re.match(r"[\w.-]+", each)[0]) for each in requirements}
    brings = packages_distributions()
    local = {path.stem for path in folder.rglob("*.py")} | OURS | sys.stdlib_module_names
    return {
        module: path
        for module, path in imported(folder).items()
        if module not in local and not declared & {normal(each) for each in brings.get(module, ())}
    }


@pytest.fixture(scope="module")
def project(root):
    return tomllib.loads((root / "pyproject.toml").read_text())["project"]


def test_every_package_that_is_imported_is_declared(root, project):
    assert not undeclared(root / "secure_triplay", project["dependencies"])


def test_every_package_that_a_test_imports_is_declared(root, project):
    assert not undeclared(root / "tests", project["dependencies"] + project["optional-dependencies"]["dev"])


def test_every_declared_package_is_locked(root, project):
    locked = set(
        re.findall(r"^([\w.-]+)(?:\[.*\])?==", (root / "requirements.lock").read_text(), re.MULTILINE)
    )
    for each in project["dependencies"] + project["optional-dependencies"]["dev"]:
        assert normal(re.match(r"[\w.-]+", each)[0]) in {normal(name) for name in locked}


@pytest.mark.parametrize(
    "line", ["import jinja2", "def f():\n    from jinja2.nodes import Node", "import nowhere.at_all"]
)
def test_an_import_that_nobody_declared_is_found(tmp_path, line):
    (tmp_path / "module.py").write_text(f"import json\nimport numpy\n{line}\n")
    assert len(undeclared(tmp_path, ["numpy>=2", "markupsafe>=3"])) == 1
    assert not undeclared(tmp_path, ["numpy>=2", "Jinja2>=3"]) or "nowhere" in line
