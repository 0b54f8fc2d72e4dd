"""What a simulation starts ends with it, also where it is killed without warning."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

_STARTS = """
import subprocess, sys, time
from secure_triplay.lifetime import ending_with_this_process
sleeps = [sys.executable, "-c", "import time; time.sleep(600)"]
child = subprocess.Popen(ending_with_this_process(sleeps) if sys.argv[1] == "bound" else sleeps, start_new_session=True)
print(child.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("how", ["bound", "free"])
def test_a_command_ends_with_the_process_that_started_it_and_was_killed(how: str):
    with subprocess.Popen([sys.executable, "-c", _STARTS, how], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        with pytest.raises(psutil.TimeoutExpired):
            child.wait(1)  # as long as its parent is there, it is
        parent.kill()
        parent.wait()
        _, left = psutil.wait_procs([child], timeout=10 if how == "bound" else 1)
        assert bool(left) is (how == "free")
        for one in left:
            one.kill()


def test_a_command_whose_parent_ended_before_it_was_bound_ends_at_once(tmp_path: Path):
    touched = tmp_path / "ran"
    command = [sys.executable, "-m", "secure_triplay.lifetime", "1", "/usr/bin/touch", str(touched)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGTERM
    assert not touched.exists()
