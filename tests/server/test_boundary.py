"""The server can decrypt nothing because nothing that could is there; and what is there is looked at here."""

import subprocess
import sys
from pathlib import Path

import pytest

import secure_triplay.server
from secure_triplay.server.process import SummingProcess

ROOT = Path(secure_triplay.__file__).parent.parent
MODULES = sorted(
    path.stem for path in Path(secure_triplay.server.__file__).parent.glob("*.py") if path.stem != "__init__"
)
FORBIDDEN = ("torch", "peft", "opacus", "open_clip", "timm", "tenseal", "bitsandbytes", "transformers", "PIL",
             "secure_triplay.client", "secure_triplay.model", "secure_triplay.privacy", "secure_triplay.data",
             "secure_triplay.config")  # fmt: skip
ONLY_IN_A_CLIENT = ("flwr", "ray", "matplotlib", "scipy")
ON_FLOWERS_GRID = ("app", "carrier")


def modules_after(statement):
    """Names of all modules that a fresh interpreter holds after a statement."""
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); {statement}; print(*sorted(sys.modules), sep='\\n')"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def among(modules, forbidden):
    return sorted(
        name for name in modules if any(name == each or name.startswith(each + ".") for each in forbidden)
    )


def test_the_check_sees_what_it_looks_for():
    """The positive control: an import that must be found is found."""
    assert "secure_triplay.config" in among(modules_after("import secure_triplay.config"), FORBIDDEN)


@pytest.mark.parametrize("module", [name for name in MODULES if name not in ON_FLOWERS_GRID])
def test_server_module_loads_nothing_that_trains_or_decrypts(module):
    loaded = modules_after(f"import secure_triplay.server.{module}")
    assert f"secure_triplay.server.{module}" in loaded
    assert among(loaded, FORBIDDEN + ONLY_IN_A_CLIENT) == []


@pytest.mark.parametrize("module", ON_FLOWERS_GRID)
def test_server_app_loads_nothing_that_trains_or_decrypts(module):
    assert among(modules_after(f"import secure_triplay.server.{module}"), FORBIDDEN) == []


def test_live_summing_process_has_mapped_no_library_that_trains_or_decrypts(federation):
    with SummingProcess(federation.plan, quorum=1) as summing:
        summing.open(1)
        summing.offer(federation.upload("site-0000").to_bytes())
        maps = Path(f"/proc/{summing.pid}/maps").read_text()
        files = {line.split(maxsplit=5)[5] for line in maps.splitlines() if len(line.split(maxsplit=5)) == 6}
    libraries = {Path(file).name for file in files if ".so" in file}
    assert any("numpy" in file for file in files), "the control: what is mapped is seen"
    for part in ("torch", "sealapi", "seal", "tenseal", "bitsandbytes", "libc10", "mkl"):
        assert not [name for name in libraries if part in name.lower()]


def test_summing_process_runs_isolated_with_an_empty_environment(federation, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    monkeypatch.setenv("SOME_SITES_SECRET", "swordfish")
    with SummingProcess(federation.plan, quorum=1) as summing:
        environment = Path(f"/proc/{summing.pid}/environ").read_bytes()
        command = Path(f"/proc/{summing.pid}/cmdline").read_bytes().split(b"\0")
        descriptors = [path.resolve() for path in Path(f"/proc/{summing.pid}/fd").iterdir()]
        folder = Path(f"/proc/{summing.pid}/cwd").resolve()
    names = {entry.split(b"=")[0].decode() for entry in environment.split(b"\0") if entry}
    assert names <= {"LANG", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"}
    assert b"-I" in command
    assert str(folder) == "/"
    assert len([each for each in descriptors if "socket:" in str(each)]) == 1
    assert len(descriptors) <= 4
