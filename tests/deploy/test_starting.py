"""Starting a server or a site: twice, and where it cannot work."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from secure_triplay.deploy.server.app import FINISHED, FOLDER_VARIABLE, RUNNING
from secure_triplay.deploy.server.coordinator import change_roster, is_running, start_server, status
from secure_triplay.deploy.site.start import start_site
from secure_triplay.errors import ConfigError, RunError
from secure_triplay.federation.join import JoinedStudy

from .conftest import Federation

WAITS = [sys.executable, "-c", "import time; time.sleep(600)"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return Federation.make(tmp_path_factory.mktemp("starting"), rounds=1, names=("north", "east"))


def until(true: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 120
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_second_start_of_a_running_site_is_refused_and_ends_nothing_of_the_first(made):
    site, enough = made.sites["north"], threading.Event()
    joined = JoinedStudy.open(site)
    noted = joined.folder / "flower" / "worker.pid"

    def take_part(said: list[dict], stop: Callable[[], bool]) -> None:
        start_site(site, joined, said.append, worker_command=WAITS, stop=stop)

    said: list[dict] = []
    first = threading.Thread(target=take_part, args=(said, enough.is_set))
    first.start()
    try:
        until(noted.exists)
        pid = noted.read_text()
        with pytest.raises(RunError, match="takes part in the study already"):
            take_part([], lambda: True)
        time.sleep(0.5)
        assert (noted.read_text(), said) == (pid, [])
    finally:
        enough.set()
        first.join()
    take_part([], lambda: True)


def test_a_second_start_of_a_running_server_is_refused_and_ends_nothing_of_the_first(made):
    enough, said = threading.Event(), []
    first = threading.Thread(
        target=start_server,
        args=(made.server, said.append),
        kwargs={"host": "127.0.0.1", "stop": enough.is_set},
    )
    first.start()
    try:
        until(lambda: said)
        assert "lets in 2 sites" in said[0]["text"]
        with pytest.raises(RunError, match="is running already"):
            start_server(made.server, print, host="127.0.0.1", stop=lambda: True)
        time.sleep(1.0)
        assert len(said) == 1
    finally:
        enough.set()
        first.join()


def test_a_site_and_a_study_go_on_over_logs_that_a_full_disk_tore(made):
    site = made.sites["east"]
    joined = JoinedStudy.open(site)
    journal = joined.folder / "journal.jsonl"
    journal.write_bytes(b'{"event": "measu{"event": "ready", "time": 1.0}\n')  # as an older version left it
    start_site(site, joined, print, worker_command=WAITS, stop=lambda: True)
    events = made.server.path / "rounds" / "epoch-1" / "events.jsonl"
    events.parent.mkdir(exist_ok=True)
    events.write_bytes(b'{"time": 1.0, "eve{"time": 2.0, "event": "closed", "round": 1}\n')
    assert status(made.server)["last_closed_round"] == 0


@pytest.mark.parametrize("host", ["192.0.2.2", "::", "triplay.example.org"])
def test_a_server_is_not_started_on_an_address_on_which_it_could_not_let_any_site_in(made, host):
    """Sites are let in over loopback, by which alone the SuperLink takes this machine's own commands."""
    with pytest.raises(ConfigError, match="cannot listen on"):
        start_server(made.server, print, host=host, stop=lambda: True)


@pytest.mark.parametrize("listens", [True, False])
def test_a_server_whose_port_another_one_has_says_so_at_once_and_never_that_it_listens(made, listens):
    """Also where every site was let in before, so that nothing else is asked of the SuperLink."""
    port, said = int(made.server.bundle.server.rpartition(":")[2]), []
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        if listens:
            other.listen()
        with pytest.raises(RunError, match=f"cannot listen on 127.0.0.1:{port}: Address already in use"):
            start_server(made.server, said.append, host="127.0.0.1", stop=lambda: True)
    assert said == []


def test_another_studys_serverapp_under_a_number_that_was_noted_is_not_taken_for_this_ones(made, tmp_path):
    """As after a power cut, when numbers are given out anew: stopping this server would end that one."""
    running = made.server.path / "rounds" / RUNNING
    command = [sys.executable, "-c", "import time; time.sleep(60)", "flwr-serverapp"]
    for folder, is_own in ((tmp_path, False), (made.server.path, True)):
        one = subprocess.Popen(command, env=os.environ | {FOLDER_VARIABLE: str(folder)})
        running.write_text(json.dumps({"pid": one.pid, "epoch": 1}))
        try:
            until(lambda one=one: b"flwr" in Path(f"/proc/{one.pid}/cmdline").read_bytes())
            assert is_running(made.server) == is_own
        finally:
            one.kill()
            one.wait()
            running.unlink()


def test_a_study_that_has_ended_is_not_sent_to_stop_first_where_its_roster_is_to_change(made):
    """`study stop` answers that no run is going on, and so both sent each other round."""
    finished = made.server.path / "rounds" / FINISHED
    finished.write_bytes(b"")
    with pytest.raises(RunError, match="has ended") as refused:
        change_roster(made.server)
    finished.unlink()
    assert "stop" not in refused.value.fix
