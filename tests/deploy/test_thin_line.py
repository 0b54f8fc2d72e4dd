"""A site behind 1 Mbit/s with 200 ms of delay, whose connections all break every few seconds, completes rounds."""

from __future__ import annotations

import pytest

from secure_triplay.ledger.ledger import TRAINING, Ledger
from tests.lines import bad_line

from .conftest import NAMES, Federation, running

ROUNDS, THIN = 2, "south"


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A finished study, and the line that one of its sites had."""
    # Time for a lost message to be sent four times (at 0, 20, 60 and 120 s): of two sends both may be lost.
    made = Federation.make(tmp_path_factory.mktemp("thin"), rounds=ROUNDS, deadline_s=180.0)
    host, port = made.server.bundle.server.rsplit(":", 1)
    with (
        bad_line((host, int(port)), bytes_per_s=125_000, delay_s=0.2, break_every_s=7) as line,
        running(made),
    ):
        made.start_server()
        for name in NAMES:
            made.start_site(name, *([f"127.0.0.1:{line.port}"] if name == THIN else []))
        made.start_run()
        assert made.ended("run") == 0
        yield made, line, made.adapters()


def test_the_line_was_as_bad_as_it_says(study):
    _, line, _ = study
    assert line.broken >= 4
    assert line.carried_bytes > 60_000


def test_the_site_behind_it_took_part_and_ends_with_the_same_adapter(study):
    made, _, found = study
    assert any(THIN in names for names in made.survivors())
    assert all((one == found[0]).all() for one in found)


def test_no_retry_over_it_was_charged(study):
    made, _, _ = study
    with Ledger.open(made.sites[THIN].ledger, None) as ledger:
        rounds = [one.round for one in ledger.books.reservations.values() if one.what == TRAINING]
    assert sorted(rounds) == list(range(1, ROUNDS + 1))
