"""Plant each mistake in a copy of this program, run the tests that should catch it, and note who did.

A detector that always fails would catch everything, so the same tests also run on clean copies, where any alarm
is false. Each clean run draws noise, keys, samples and records anew, also where a test names a seed (see `fresh`):
it is a new try, not a repetition.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import secure_triplay
from secure_triplay import __version__
from secure_triplay.attacks.planted import fresh
from secure_triplay.attacks.planted.patch import Patch, load_patches
from secure_triplay.errors import RunError
from secure_triplay.runfolder import run_folder

SCHEMA = 1
_COPIED = ("secure_triplay", "tests", "configs", "threat_models", "pyproject.toml", "README.md")
_LIMIT_S = 600
_FAILED, _PASSED = 1, 0


@dataclass(frozen=True)
class TestRun:
    """What became of some tests: names that failed, how pytest ended, and how long it took."""

    __test__ = False

    failed: tuple[str, ...]
    exit_code: int
    seconds: float
    said: str


def audit_planted(
    out: Path,
    tell: Callable[[int, int], None],
    only: Sequence[str] | None = None,
    *,
    clean_runs: int = 1,
) -> dict[str, Any]:
    """Run the audit and write `result.json` and `README.md` into the folder `out`; returns the result.

    `valid` is true when every mistake was caught by every test that it names, and no clean run raised an alarm.
    Raises ConfigError for an unknown name in `only` or a patch that no longer fits the code, RunError where the
    tests are not at hand or `out` exists.
    """
    patches = load_patches(only)
    root = project_root()
    for patch in patches:
        patch.planted(root)  # refuses a stale patch before an hour of tests, not after
    nodes = sorted({node for patch in patches for node in patch.caught_by})
    entries: list[dict[str, Any]] = []
    alarms: list[dict[str, Any]] = []
    total = len(patches) + clean_runs
    with run_folder(out) as folder, working_copy(root) as copy:
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:  # clean copies are only read
            runs = pool.map(lambda n: run_tests(copy, nodes, clean_run=n + 1), range(clean_runs))
            for number, clean in enumerate(runs):
                tell(number, total)
                if clean.exit_code != _PASSED:
                    alarms.append({"run": number + 1, "failed": list(clean.failed), "said": clean.said})
        for number, patch in enumerate(patches):
            tell(clean_runs + number, total)
            entries.append(plant(copy, patch))
        tell(total, total)
        caught = sum(entry["outcome"] == "caught" for entry in entries)
        result = {
            "schema": SCHEMA,
            "version": __version__,
            "command": f"secure-triplay audit planted --clean-runs {clean_runs} --out DIR",
            "valid": caught == len(entries) and not alarms,
            "planted": len(entries),
            "caught": caught,
            "clean_runs": clean_runs,
            "false_alarms": alarms,
            "detectors": nodes,
            "mistakes": entries,
        }
        (folder / "result.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        (folder / "README.md").write_text(readme(result), encoding="utf-8")
    return result


def plant(copy: Path, patch: Patch) -> dict[str, Any]:
    """One mistake's entry of the result. The copy is as it was afterwards.

    `caught` means that every test named by the patch failed; `partly` and `missed` that some or all passed;
    `broken` that the planted code did not even load, which proves nothing about the tests.
    """
    planted = patch.planted(copy)
    clean = {path: path.read_text(encoding="utf-8") for path in planted}
    try:
        _write(planted)
        run = run_tests(copy, patch.caught_by)
    finally:
        _write(clean)
    by = tuple(node for node in patch.caught_by if _failed(node, run.failed))
    if run.exit_code not in (_FAILED, _PASSED):
        outcome = "broken"
    else:
        outcome = "caught" if len(by) == len(patch.caught_by) else "partly" if by else "missed"
    return {
        "name": patch.name,
        "mistake": patch.mistake,
        "made_by": patch.made_by,
        "outcome": outcome,
        "caught_by": list(by),
        "not_caught_by": [node for node in patch.caught_by if node not in by],
        "seconds": round(run.seconds, 1),
        **({"said": run.said} if outcome == "broken" else {}),
    }


@contextmanager
def working_copy(root: Path) -> Iterator[Path]:
    """A copy of the project in a temporary folder, which is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="secure-triplay-planted-") as name:
        copy = Path(name)
        for part in _COPIED:
            source = root / part
            if source.is_dir():
                shutil.copytree(source, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
            elif source.is_file():
                shutil.copy(source, copy / part)
        _require_copy_is_used(copy)
        yield copy


def run_tests(copy: Path, nodes: Iterable[str], *, clean_run: int = 0) -> TestRun:
    """Run tests of the copy, on the copy's own package, in a process of their own.

    With the number of a clean run (from 1) every seed in a test stands for another stream.
    """
    report = copy / f"planted-report-{clean_run}.xml"
    report.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", *nodes]
    environment = _environment(copy)
    if clean_run:
        command += ["-p", fresh.__name__]
        environment[fresh.RUN] = str(clean_run)
    started = time.perf_counter()
    try:
        done = subprocess.run(
            command, cwd=copy, env=environment, capture_output=True, text=True, timeout=_LIMIT_S
        )
        exit_code = done.returncode
        said = (done.stdout + done.stderr).replace(str(copy), "COPY")[-1500:]
    except subprocess.TimeoutExpired:
        exit_code, said = -1, f"no end after {_LIMIT_S} s"
    seconds = time.perf_counter() - started
    return TestRun(_failures(report), exit_code, seconds, "" if exit_code == _PASSED else said)


def readme(result: dict[str, Any]) -> str:
    """The table of who catches what, as Markdown."""
    lines = [
        "# Planted bugs",
        "",
        "Each line is a mistake that somebody really made, planted in a copy of this program. The tests named",
        "beside it ran on that copy, and must fail; on clean copies the same tests must pass, with other noise,",
        "samples and records in each run.",
        "",
        f"{result['caught']} of {result['planted']} caught; {result['clean_runs']} clean runs of all "
        f"{len(result['detectors'])} tests raised {len(result['false_alarms'])} alarms."
        + ("" if result["valid"] else " **NOT VALID.**"),
        "",
        "```console",
        f"$ {result['command']}",
        "```",
        "",
        "| mistake | made before | outcome | caught by |",
        "|---|---|---|---|",
    ]
    for entry in result["mistakes"]:
        by = "<br>".join(f"`{node}`" for node in entry["caught_by"]) or "nobody"
        missing = entry["not_caught_by"] if entry["outcome"] == "partly" else ()
        by += "".join(f"<br>not by `{node}`" for node in missing)
        lines.append(
            f"| **{entry['name']}**: {entry['mistake']} | {entry['made_by']} | {entry['outcome']} | {by} |"
        )
    return "\n".join(lines) + "\n"


def project_root() -> Path:
    """Where package and tests lie side by side. Raises RunError in an installation without tests."""
    root = Path(secure_triplay.__file__).resolve().parents[1]
    if not (root / "tests").is_dir():
        raise RunError("there are no tests beside the package", where=str(root),
                       fix="run this audit in a checkout of the project")  # fmt: skip
    return root


def _failed(node: str, failed: Iterable[str]) -> bool:
    """Whether a test failed, in any of its parametrised forms."""
    file, test = node.removesuffix("]").split("::")
    wanted = f"{file.removesuffix('.py').replace('/', '.')}::{test}"
    return any(name == wanted or name.startswith(wanted + "[") for name in failed)


def _failures(report: Path) -> tuple[str, ...]:
    """Names `module::test` of the tests that failed, from pytest's own report."""
    if not report.exists():
        return ()
    return tuple(
        f"{case.get('classname')}::{case.get('name')}"
        for case in ElementTree.parse(report).iter("testcase")  # noqa: S314  (written by our own pytest)
        if case.find("failure") is not None or case.find("error") is not None
    )


def _require_copy_is_used(copy: Path) -> None:
    """An audit of the installed package instead of the copy would catch nothing and notice nothing."""
    code = "import secure_triplay; print(secure_triplay.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=copy, env=_environment(copy), capture_output=True, text=True
    )
    if not done.stdout.strip().startswith(str(copy.resolve())):
        raise RunError(
            f"tests would run on {done.stdout.strip() or done.stderr[-300:]}, not on the copy",
            where=str(copy),
            fix="run this audit in the project's own environment (make env)",
        )


def _environment(copy: Path) -> dict[str, str]:
    # no byte code: Python would take the clean module's for a planted one of the same size and second
    return os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}


def _write(texts: dict[Path, str]) -> None:
    for path, text in texts.items():
        path.write_text(text, encoding="utf-8")
