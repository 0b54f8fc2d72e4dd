"""A run's folder exists whole or not at all."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from secure_triplay.errors import RunError
from secure_triplay.runfolder import run_folder


def test_a_finished_run_is_there_whole(tmp_path):
    with run_folder(tmp_path / "deep" / "run") as folder:
        (folder / "summary.json").write_text("{}")
    assert [path.name for path in (tmp_path / "deep" / "run").iterdir()] == ["summary.json"]
    assert os.listdir(tmp_path / "deep") == ["run"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, SystemExit])
def test_a_stopped_run_leaves_nothing(tmp_path, error):
    with pytest.raises(error), run_folder(tmp_path / "run") as folder:
        (folder / "half").write_text("half")
        raise error
    assert os.listdir(tmp_path) == []


def test_an_existing_folder_is_refused_and_kept(tmp_path):
    (tmp_path / "run").mkdir()
    with pytest.raises(RunError, match="exists"), run_folder(tmp_path / "run"):
        pass
    assert os.listdir(tmp_path) == ["run"]


def test_two_runs_into_one_folder_are_refused(tmp_path):
    with (
        run_folder(tmp_path / "run"),
        pytest.raises(RunError, match="another run"),
        run_folder(tmp_path / "run"),
    ):
        pass


def test_what_a_killed_run_left_is_no_hindrance(tmp_path):
    code = (
        "import os, signal, sys; from pathlib import Path; from secure_triplay.runfolder import run_folder\n"
        "with run_folder(Path(sys.argv[1])) as folder:\n"
        "    (folder / 'half').write_text('half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "run")], check=False)
    assert (tmp_path / "run.partial" / "half").exists()
    with run_folder(tmp_path / "run") as folder:
        assert not (folder / "half").exists()
    assert os.listdir(tmp_path) == ["run"]


def test_a_full_disk_is_said_in_words_and_leaves_nothing(tmp_path):
    with pytest.raises(RunError, match="cannot be written"), run_folder(tmp_path / "run") as folder:
        raise OSError(28, "No space left on device", str(folder / "report.html"))
    assert os.listdir(tmp_path) == []


def test_a_folder_that_cannot_be_made_is_said_in_words(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"), run_folder(tmp_path / "file" / "run"):
        pass
