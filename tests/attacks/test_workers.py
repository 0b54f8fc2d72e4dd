"""Attacks in processes of their own: the same figures whatever their number, and no error that is lost."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal

import pytest
import yaml

from secure_triplay.attacks.suite import run_suite
from secure_triplay.attacks.threat import load_threat_model
from secure_triplay.attacks.workers import in_workers, tell_parent
from secure_triplay.errors import DataError, RunError


def job(what: str, number: int) -> tuple[int, int, str]:
    import torch

    tell_parent(what, number, 9)
    if what == "bad data":
        raise DataError("too few", where="data", fix="more")
    if what == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "forever":
        signal.pause()
    return number, torch.get_num_threads(), os.environ["OMP_NUM_THREADS"]


def test_results_come_in_the_order_of_the_calls_each_from_one_thread_and_progress_is_told(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    told = []
    found = in_workers(job, [("a", 1), ("b", 2), ("c", 3)], workers=2, tell=lambda *step: told.append(step))
    assert found == [(1, 1, "1"), (2, 1, "1"), (3, 1, "1")]
    assert sorted(told) == [("a", 1, 9), ("b", 2, 9), ("c", 3, 9)]
    assert os.environ["OMP_NUM_THREADS"] == "7"


@pytest.mark.parametrize(("what", "error"), [("bad data", DataError), ("killed", RunError)])
def test_the_first_error_ends_every_worker_and_is_raised(what, error):
    with pytest.raises(error) as caught:
        in_workers(job, [("forever", 1), (what, 2)], workers=2, tell=lambda *step: None)
    if what == "bad data":
        assert (caught.value.what, caught.value.fix) == ("too few", "more")
    assert not multiprocessing.active_children()


def test_same_seed_gives_the_same_report_whatever_the_number_of_workers(attacked, root, tmp_path):
    """Keys and ciphertexts differ from run to run; what is reported of them does not, but for the seconds."""
    content = yaml.safe_load((root / "threat_models" / "server-with-one-site.yaml").read_text())
    content["audits"] = {
        "shared-key": ["an update", "an image"],
        "identification": ["membership"],
    }
    (tmp_path / "server-with-one-site.yaml").write_text(yaml.safe_dump(content))
    models = [load_threat_model(tmp_path / "server-with-one-site.yaml")]
    reports = []
    for workers in (1, 2):
        out = tmp_path / f"with-{workers}"
        run_suite(attacked, models, out, seed=5, quick=True, workers=workers)
        report = json.loads((out / "report.json").read_text())
        for path in report["differs_between_runs"]:
            part, every, key = path.split(".")
            assert every == "*"
            for control in report[part].values():
                control.pop(key, None)
        reports.append(report)
    assert reports[0] == reports[1]
    assert len(reports[0]["findings"]) > 10
    pictures = [sorted((tmp_path / f"with-{n}" / "pictures").rglob("*.png")) for n in (1, 2)]
    assert [path.read_bytes() for path in pictures[0]] == [path.read_bytes() for path in pictures[1]]
