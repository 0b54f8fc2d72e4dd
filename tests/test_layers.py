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
        ("deploy/server/new.py", "from secure_triplay.deploy.site import worker"),
        ("deploy/processes.py", "import tenseal"),
        ("deploy/site/start.py", "from secure_triplay.deploy.server import coordinator"),
        ("deploy/site/new.py", "from secure_triplay.server import sum"),
        ("constants.py", "from secure_triplay.data import split"),
        ("privacy/accounting.py", "import torch"),
    ],
)
def test_a_forbidden_import_is_caught(root, tmp_path, module, line):
    shutil.copytree(root / "secure_triplay", tmp_path / "secure_triplay")
    shutil.copy(root / "pyproject.toml", tmp_path)
    path = tmp_path / "secure_triplay" / module
    path.write_text((path.read_text() if path.exists() else "") + f"\n\ndef _smuggled():\n    {line}\n")
    run = lint_imports(tmp_path)
    assert run.returncode == 1
    assert "BROKEN" in run.stdout


def test_the_simulation_harness_holds_no_model_and_no_torch(fresh_imports):
    loaded = fresh_imports("secure_triplay.simulate")
    assert not loaded & {"torch", "peft", "opacus", "open_clip"}


def test_checking_a_configuration_needs_no_torch(fresh_imports):
    assert "torch" not in fresh_imports("secure_triplay.describe")


def test_a_studys_public_constants_are_computed_without_torch_and_without_data(root):
    study = f"load_study({str(root / 'configs' / 'demo.yaml')!r})"
    run = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys\nfrom secure_triplay.config import load_study\nfrom secure_triplay import constants as c\n"
            f"study = {study}\nc.choose_codec(study, 1_152), c.epsilon_of_study(study)\n"
            "print(*sys.modules, sep='\\n')",
        ],
        capture_output=True,
        text=True,
        check=True,
        cwd=root,
    )
    loaded = set(run.stdout.split())
    assert "dp_accounting" in loaded  # the noise was computed
    assert not loaded & {"torch", "opacus", "PIL", "secure_triplay.data", "secure_triplay.model"}
