"""A stock SuperNode waits for ever where the app process of a message died; the site notices, and starts it again."""

from __future__ import annotations

import os
import sys
import time

import pytest

from secure_triplay.deploy.processes import Kept
from secure_triplay.deploy.site import start
from secure_triplay.federation.join import JoinedStudy
from secure_triplay.federation.processes import environment

from .conftest import NAMES, Federation

TAKEN = "Receiving: train message (ID: 1)\nReceived successfully\nStart `flwr-clientapp` process\n"
UP = "Starting Flower SuperNode\nSuperNode ID: 7\n"
LOST = "SSL/TLS handshake error detected.\nUNEXPECTED_EOF_WHILE_READING\nStarting Flower SuperExec\n"
SENT = TAKEN + "Sending: train message (ID: 2)\nSent successfully\n"


@pytest.fixture
def node(tmp_path):
    """A process in the SuperNode's place, whose log a test writes."""
    (tmp_path / "empty").mkdir()
    kept = Kept(
        "supernode", [sys.executable, "-c", "import time; time.sleep(60)"], tmp_path, dict(os.environ)
    )
    kept.start()
    yield kept
    kept.stop()


@pytest.fixture
def clock(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(start.time, "monotonic", lambda: now[0])
    return now


def after(watch: start.Watch, clock: list[float], seconds: float) -> bool:
    found = False
    for _ in range(int(seconds)):
        clock[0] += 1
        found |= watch.stuck()
    return found


def test_a_message_whose_app_process_is_gone_is_noticed_after_a_while(node, clock):
    node.log.write_text(TAKEN)
    watch = start.Watch(node)
    assert not after(watch, clock, 15)
    assert after(watch, clock, 30)


@pytest.mark.parametrize("before", ["", UP, SENT], ids=["at once", "registered", "at work"])
def test_a_node_whose_connection_ended_in_a_handshake_is_noticed_after_a_while(node, clock, before):
    node.log.write_text(before + LOST)
    watch = start.Watch(node)
    assert not after(watch, clock, 15)
    assert after(watch, clock, 30)


@pytest.mark.parametrize(
    "log",
    ["", SENT, TAKEN + UP, LOST + UP, LOST + SENT],
    ids=["nothing", "answered", "anew", "anew after a lost line", "at work after one"],
)
def test_a_node_that_owes_nothing_is_left_alone(node, clock, log):
    node.log.write_text(log)
    assert not after(start.Watch(node), clock, 300)


def test_a_node_whose_app_process_is_at_work_is_left_alone(node, clock, monkeypatch):
    node.log.write_text(TAKEN)
    monkeypatch.setattr(start, "_has_app_process", lambda pid: True)
    assert not after(start.Watch(node), clock, 3000)


def test_a_site_connects_when_its_worker_is_ready_and_not_before(tmp_path, monkeypatch):
    """What a server sees of a site's start tells nothing of how long its images took to encode."""
    made = Federation.make(tmp_path, rounds=1)
    home = made.sites[NAMES[0]]
    joined = JoinedStudy.open(home)
    go, connected = tmp_path / "go", tmp_path / "connected"
    worker = (
        "import pathlib, sys, time\n"
        "from secure_triplay.client.journal import Journal\n"
        "journal = Journal(pathlib.Path(sys.argv[1]))\n"
        "journal.write('encoding', done=1, total=2)\n"
        "while not pathlib.Path(sys.argv[2]).exists(): time.sleep(0.05)\n"
        "journal.write('ready')\n"
        "time.sleep(60)\n"
    )
    node = f"import pathlib, time\npathlib.Path({str(connected)!r}).touch()\ntime.sleep(60)\n"
    monkeypatch.setattr(start, "_node_command", lambda *_: [sys.executable, "-c", node])
    left_behind = Kept(
        "supernode",
        [sys.executable, "-c", node],
        joined.folder / "flower",
        environment(joined.folder / "flower"),
    )
    left_behind.start()  # by a supervisor that was killed
    while not connected.exists():
        time.sleep(0.05)
    connected.unlink()
    heard, seen = [], []

    def stop() -> bool:
        seen.append((go.exists(), connected.exists(), left_behind.pid is None))
        if len(seen) == 10:
            go.touch()
        return seen[-1][1] or len(seen) > 200

    command = [sys.executable, "-c", worker, str(joined.folder), str(go)]
    start.start_site(home, joined, heard.append, worker_command=command, stop=stop)
    assert seen[:10] == [(False, False, True)] * 10
    assert seen[-1][:2] == (True, True)
    assert [event["event"] for event in heard if event["event"] != "operator"] == ["encoding", "ready"]
