"""What goes wrong in a worker is told to its operator in words, and to nobody else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from secure_triplay.client.job import Job
from secure_triplay.client.worker import _told_to_operator
from secure_triplay.config import load_study


@pytest.fixture
def job(root, tmp_path):
    study = load_study(root / "configs" / "demo.yaml")
    return Job(study, 1, "north", tmp_path, tmp_path / "s", (0, 1), 1)


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_said_as_one_whoever_met_it(job, error):
    assert "no space left on device" in _told_to_operator(job, error).what.lower()


def test_a_crash_leaves_its_trace_to_this_user_alone(job):
    try:
        raise ValueError("shape (3, 56, 56)")
    except ValueError as error:
        told = _told_to_operator(job, error)
    trace = Path(told.where)
    assert "ValueError: shape (3, 56, 56)" in trace.read_text()
    assert trace.stat().st_mode & 0o777 == 0o600
    os.unlink(trace)
