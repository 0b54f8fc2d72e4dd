"""Sites that are outside their hours decline and say no more; the study waits for them and fails by nothing of it."""

from __future__ import annotations

import pytest
from federation_driver import Federation, RunError, closing

from secure_triplay.wire import Declined

CLOSED = ["outside the hours that this site allows"]


def close(federation: Federation, *indices: int, closed: bool = True) -> None:
    for index in indices:
        federation.sites[index].reasons = CLOSED if closed else []


def test_a_night_in_which_sites_are_closed_costs_no_attempt_and_no_charge(tmp_path):
    with closing(Federation(tmp_path, 4, rounds=2, quorum=3, attempts=2, patient=True)) as federation:
        close(federation, 0, 1)
        nights = 0
        while nights < 6:
            federation.exchange()
            nights += federation.server.resting
        assert federation.server.declined == 2
        close(federation, 0, 1, closed=False)
        federation.run()
        oracle = federation.oracle()[-1].to_bytes()
        assert [state.to_bytes() for state in federation.states().values()] == [oracle] * 4
        assert [site.trained for site in federation.sites.values()] == [[1, 2]] * 4


def test_without_patience_the_same_night_ends_the_study(tmp_path):
    """The control: attempts would be used up."""
    with closing(Federation(tmp_path, 4, rounds=2, quorum=3, attempts=2)) as federation:
        close(federation, 0, 1)
        with pytest.raises(RunError):
            federation.run()


def test_a_quorum_goes_on_without_those_that_are_closed(tmp_path):
    with closing(Federation(tmp_path, 4, rounds=2, quorum=3, attempts=2, patient=True)) as federation:
        close(federation, 3)
        rested = False
        while not federation.server.finished:
            federation.exchange()
            rested |= federation.server.resting
        assert not rested
        assert [header.site for header in federation.archive.total(2).survivors] == [
            "site-0",
            "site-1",
            "site-2",
        ]


def test_sites_that_vanish_still_cost_attempts(tmp_path):
    """Patience is for those who answer: a round that nobody answers is declared failed as before."""
    with closing(Federation(tmp_path, 4, rounds=2, quorum=3, attempts=2, patient=True)) as federation:
        with pytest.raises(RunError):
            federation.run(
                lambda direction, node, content: [] if direction == "up" and node < 2 else [content]
            )
        assert not federation.server.resting


def test_the_server_is_told_no_more_than_declined(tmp_path):
    with closing(Federation(tmp_path, 4, rounds=2, quorum=3, patient=True)) as federation:
        close(federation, 0)
        said: list[bytes] = []

        def wire(direction: str, node: int, content: bytes) -> list[bytes]:
            if direction == "up" and node == 0:
                said.append(content)
            return [content]

        while federation.server.exchange.kind != "train" or federation.server.exchange.round != 1:
            federation.exchange(wire)
        said.clear()
        federation.exchange(wire)
        assert said == [Declined().to_bytes()]
