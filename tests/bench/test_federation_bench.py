"""The bench of a real federation: a round lasts from its first message to the first one of the next round."""

from __future__ import annotations

import json

import pytest

from secure_triplay.deploy.bench import round_seconds
from secure_triplay.errors import RunError


def log_of(path, *events):
    path.write_text(
        "".join(json.dumps(dict(zip(("event", "round", "time"), e, strict=True))) + "\n" for e in events)
    )
    return path


def test_a_round_ends_where_the_next_one_begins_and_an_exchange_where_the_next_one_does(tmp_path):
    log = log_of(
        tmp_path / "events.jsonl",
        ("train", 1, 10.0), ("witness", 1, 13.0), ("train", 1, 14.0), ("closed", 1, 15.0), ("train", 2, 18.0),
    )  # fmt: skip
    assert round_seconds(log, 1) == [{"round": 1, "train_s": 3.0, "witness_s": 5.0, "round_s": 8.0}]


@pytest.mark.parametrize("events", [(), (("train", 1, 10.0),), (("opened", 1, 10.0), ("train", 2, 11.0))])
def test_a_log_without_a_rounds_beginning_and_end_is_named(tmp_path, events):
    with pytest.raises(RunError, match="no beginning and end of round 1") as caught:
        round_seconds(log_of(tmp_path / "events.jsonl", *events), 1)
    assert "events.jsonl" in caught.value.where
