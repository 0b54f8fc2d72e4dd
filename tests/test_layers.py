"""The architecture as a test: lower layers never import higher ones, and the server reaches no key."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    command = Path(sys.executable).with_name("lint-imports")
    return subprocess.run([command, "--no-cache"], cwd=folder, capture_output=True, text=True, check=False)


def test_lower_layers_never_import_higher_ones(root):
    run = lint_imports(root)
    assert run.returncode == 0, run.stdout


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("server/sum.py", "from secure_triplay.client import ckks"),
        ("server/inbox.py", "import tenseal"),
        ("crypto/codec.py", "from secure_triplay import wire"),
        ("deploy/server/app.py", "from secure_triplay.client import keys"),
    ],
)
def test_a_forbidden_import_is_caught(root, tmp_path, module, line):
    shutil.copytree(root / "secure_triplay", tmp_path / "secure_triplay")
    shutil.copy(root / "pyproject.toml", tmp_path)
    path = tmp_path / "secure_triplay" / module
    path.write_text(path.read_text() + f"\n\ndef _smuggled():\n    {line}\n")
    assert lint_imports(tmp_path).returncode == 1


def test_the_simulation_harness_holds_no_model_and_no_torch(fresh_imports):
    loaded = fresh_imports("secure_triplay.simulate")
    assert not loaded & {"torch", "peft", "opacus", "open_clip"}


def test_checking_a_configuration_needs_no_torch(fresh_imports):
    assert "torch" not in fresh_imports("secure_triplay.describe")
