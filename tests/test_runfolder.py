"""A run's folder exists whole or not at all."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from secure_triplay.errors import RunError
from secure_triplay.runfolder import alone_in, run_folder


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


def test_a_folder_of_the_users_own_that_ends_in_partial_is_never_emptied(tmp_path):
    own = tmp_path / "mine.partial"
    own.mkdir()
    (own / "thesis.txt").write_text("years of work")
    with pytest.raises(RunError, match="no run of ours") as refused, run_folder(tmp_path / "mine"):
        pass
    assert str(own) in refused.value.where
    assert "another --out" in refused.value.fix
    assert [path.read_text() for path in own.iterdir()] == ["years of work"]


def test_a_lock_of_a_folder_that_grows_is_no_leave_to_empty_it(tmp_path):
    """A grid's or a pilot's folder, named so."""
    with alone_in(tmp_path / "grid.partial"):
        (tmp_path / "grid.partial" / "cells").mkdir()
    with pytest.raises(RunError, match="no run of ours"), run_folder(tmp_path / "grid"):
        pass
    assert (tmp_path / "grid.partial" / "cells").exists()


@pytest.mark.parametrize("marked", [False, True])
def test_nothing_is_emptied_through_a_link(tmp_path, marked):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").write_text("kept")
    if marked:
        (elsewhere / ".secure-triplay-run").touch()
    (tmp_path / "run.partial").symlink_to(elsewhere)
    with pytest.raises(RunError, match="not a folder"), run_folder(tmp_path / "run"):
        pass
    assert (elsewhere / "precious").read_text() == "kept"
    (tmp_path / "run.partial").unlink()
    (tmp_path / "run.partial").mkdir()
    (tmp_path / "run.partial" / "precious").write_text("kept")
    (tmp_path / "run.partial" / ".secure-triplay-run").symlink_to(elsewhere / "precious")
    with pytest.raises(RunError, match="no run of ours"), run_folder(tmp_path / "run"):
        pass
    assert (tmp_path / "run.partial" / "precious").read_text() == "kept"


def test_a_file_in_the_place_of_the_unfinished_run_is_refused_and_kept(tmp_path):
    (tmp_path / "run.partial").write_text("kept")
    with pytest.raises(RunError, match="not a folder"), run_folder(tmp_path / "run"):
        pass
    assert (tmp_path / "run.partial").read_text() == "kept"


def test_an_empty_folder_in_the_place_of_the_unfinished_run_is_no_hindrance(tmp_path):
    """As a run leaves it that is killed before it has made its mark."""
    (tmp_path / "run.partial").mkdir()
    with run_folder(tmp_path / "run") as folder:
        (folder / "summary.json").write_text("{}")
    assert os.listdir(tmp_path) == ["run"]


def test_links_that_a_killed_run_left_are_removed_and_not_followed(tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("kept")
    (tmp_path / "run.partial").mkdir()
    (tmp_path / "run.partial" / ".secure-triplay-run").touch()
    (tmp_path / "run.partial" / "link").symlink_to(tmp_path / "precious")
    with run_folder(tmp_path / "run"):
        pass
    assert os.listdir(tmp_path / "run") == []
    assert (tmp_path / "precious" / "file").read_text() == "kept"


@pytest.mark.parametrize("target", ["nowhere", "run"])
def test_a_link_that_leads_nowhere_is_refused_before_anything_is_run(tmp_path, target):
    (tmp_path / "run").symlink_to(tmp_path / target)
    ran = False
    with pytest.raises(RunError, match="exists"), run_folder(tmp_path / "run"):
        ran = True
    assert not ran
    assert os.listdir(tmp_path) == ["run"]


def test_a_finished_run_whose_name_was_taken_meanwhile_is_kept_and_named(tmp_path):
    with (
        pytest.raises(RunError, match="finished and whole") as failed,
        run_folder(tmp_path / "run") as folder,
    ):
        (folder / "summary.json").write_text("{}")
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "other").write_text("kept")
    assert failed.value.where == str(tmp_path / "run.partial")
    assert os.listdir(tmp_path / "run.partial") == ["summary.json"]
    assert os.listdir(tmp_path / "run") == ["other"]
    (tmp_path / "run" / "other").unlink()
    (tmp_path / "run").rmdir()
    with pytest.raises(RunError, match="no run of ours"), run_folder(tmp_path / "run"):
        pass
    assert os.listdir(tmp_path / "run.partial") == ["summary.json"]
