"""Over a grid that loses messages a question is asked again, and each is answered once."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import pytest
from flwr.supercore.task_identity import TaskIdentity

from secure_triplay import parcel
from secure_triplay.server.carrier import Carrier

NODE, OTHER = 1, 2


class Grid:
    """Keeps what was pushed; a test says what is answered, and when."""

    def __init__(self) -> None:
        self.pushed: list[tuple[str, int, bytes]] = []
        self.replies: list[SimpleNamespace] = []
        self.nodes = [NODE, OTHER]
        self.slow: dict[str, threading.Event] = {}

    def get_node_ids(self):
        return self.nodes

    def push_messages(self, messages):
        (message,) = messages
        number = f"m{len(self.pushed)}"
        self.pushed.append((number, message.metadata.dst_node_id, parcel.unpack(message.content)))
        return [number]

    def reply(self, to: str, content: bytes | None) -> None:
        self.replies.append(
            SimpleNamespace(
                metadata=SimpleNamespace(reply_to_message_id=to),
                content=None if content is None else parcel.pack(content),
                has_error=lambda: content is None,
            )
        )

    def pull_messages(self, numbers):
        mine = [one for one in self.replies if one.metadata.reply_to_message_id in numbers]
        self.replies = [one for one in self.replies if one not in mine]
        for one in mine:
            if one.metadata.reply_to_message_id in self.slow:
                self.slow[one.metadata.reply_to_message_id].wait(30)
        return mine


@pytest.fixture(autouse=True)
def _inside_a_flower_task(monkeypatch):
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


@pytest.fixture
def grid():
    return Grid()


@pytest.fixture
def clock(monkeypatch):
    """Time stands still unless a test moves it on."""
    now = SimpleNamespace(s=1000.0)
    monkeypatch.setattr("secure_triplay.server.carrier.time.monotonic", lambda: now.s)
    return now


def sent(grid: Grid) -> list[tuple[int, bytes]]:
    return [(node, content) for _, node, content in grid.pushed]


def test_a_lost_question_is_asked_again_with_the_same_bytes_after_one_interval(grid, clock):
    carrier = Carrier(grid, 3600, retry_s=20)
    carrier.ask(NODE, 1, b"question")
    clock.s += 19
    assert list(carrier.answers()) == []
    assert len(grid.pushed) == 1
    clock.s += 1
    list(carrier.answers())
    assert sent(grid) == [(NODE, b"question")] * 2


def test_it_is_asked_more_rarely_the_longer_nothing_comes(grid, clock):
    carrier = Carrier(grid, 3600, retry_s=20)
    carrier.ask(NODE, 1, b"question")
    for _ in range(300):
        clock.s += 1
        list(carrier.answers())
    assert len(grid.pushed) == 7  # at 0, 20, 60, 120, 180, 240, 300


def test_a_node_that_takes_long_is_given_twice_as_long_the_next_time(grid, clock):
    carrier = Carrier(grid, 3600, retry_s=20)
    carrier.ask(NODE, 1, b"S3PL\1\1 train 1")
    clock.s += 100
    grid.reply("m0", b"answer")
    assert list(carrier.answers()) == [(NODE, 1, b"answer")]
    before = len(grid.pushed)
    carrier.ask(NODE, 2, b"S3PL\1\1 train 2")
    clock.s += 199
    list(carrier.answers())
    assert len(grid.pushed) == before + 1
    carrier.ask(NODE, 3, b"S3PL\1\2 another kind")
    clock.s += 20
    list(carrier.answers())
    assert len(grid.pushed) == before + 3


def test_of_two_answers_to_one_question_the_first_counts(grid, clock):
    twice: list[int] = []
    carrier = Carrier(grid, 3600, retry_s=20, again=twice.append)
    carrier.ask(NODE, 1, b"question")
    clock.s += 20
    list(carrier.answers())
    grid.reply("m0", b"answer")
    grid.reply("m1", b"answer")
    assert list(carrier.answers()) == [(NODE, 1, b"answer")]
    assert twice == [len(b"answer")]
    clock.s += 1000
    list(carrier.answers())
    assert len(grid.pushed) == 2


def test_what_was_given_up_comes_with_its_old_number_and_is_not_asked_again(grid, clock):
    carrier = Carrier(grid, 3600, retry_s=20)
    carrier.ask(NODE, 1, b"question")
    carrier.begin()
    clock.s += 1000
    grid.reply("m0", b"late")
    assert list(carrier.answers()) == [(NODE, 1, b"late")]
    assert len(grid.pushed) == 1


def test_an_error_of_a_node_that_is_there_is_a_lost_message(grid, clock):
    carrier = Carrier(grid, 3600, retry_s=20)
    carrier.ask(NODE, 1, b"question")
    grid.reply("m0", None)
    assert list(carrier.answers()) == []
    clock.s += 20
    list(carrier.answers())
    assert len(grid.pushed) == 2


def test_a_node_that_is_gone_is_not_waited_for(grid, clock):
    carrier = Carrier(grid, 3600, retry_s=20)
    carrier.ask(NODE, 1, b"question")
    grid.nodes = [OTHER]
    grid.reply("m0", None)
    assert list(carrier.answers()) == [(NODE, 1, b"")]


def test_a_node_that_gives_nothing_but_errors_is_not_asked_for_ever(grid, clock):
    carrier = Carrier(grid, 3600, retry_s=20)
    carrier.ask(NODE, 1, b"question")
    answers: list[tuple[int, int, bytes]] = []
    for _ in range(20):
        grid.reply(grid.pushed[-1][0], None)
        answers += carrier.answers()
        clock.s += 1000
        answers += carrier.answers()
    assert answers == [(NODE, 1, b"")]
    assert len(grid.pushed) < 10


def test_a_grid_that_loses_nothing_is_sent_nothing_twice(grid, clock):
    carrier = Carrier(grid, 3600)
    carrier.ask(NODE, 1, b"question")
    clock.s += 3599
    list(carrier.answers())
    assert len(grid.pushed) == 1


def test_an_answer_that_stays_half_on_its_way_holds_up_nobody_else(grid, monkeypatch):
    monkeypatch.setattr("secure_triplay.server.carrier._LOOK_S", 0.05)
    carrier = Carrier(grid, 3600, retry_s=1000)
    carrier.ask(NODE, 1, b"question")
    carrier.ask(OTHER, 1, b"question")
    grid.slow["m0"] = threading.Event()
    grid.reply("m0", b"slow")
    assert list(carrier.answers()) == []
    grid.reply("m1", b"quick")
    assert list(carrier.answers()) == [(OTHER, 1, b"quick")]
    grid.slow["m0"].set()
    assert until_answered(carrier) == [(NODE, 1, b"slow")]


def test_a_look_that_goes_on_is_no_reason_to_give_up_what_it_brings(grid, monkeypatch):
    """Flower says of an answer that an earlier look has taken that there is none."""
    monkeypatch.setattr("secure_triplay.server.carrier._LOOK_S", 0.05)
    carrier = Carrier(grid, 3600, retry_s=1000)
    carrier.ask(NODE, 1, b"question")
    grid.slow["m0"] = threading.Event()
    grid.reply("m0", b"slow")
    assert list(carrier.answers()) == []
    waiting, grid.slow = grid.slow["m0"], {}
    grid.reply("m0", None)
    assert list(carrier.answers()) == []
    waiting.set()
    assert until_answered(carrier) == [(NODE, 1, b"slow")]
    assert len(grid.pushed) == 1


def test_a_look_that_ends_with_nothing_was_a_lost_answer(grid, monkeypatch):
    monkeypatch.setattr("secure_triplay.server.carrier._LOOK_S", 0.05)
    carrier = Carrier(grid, 3600, retry_s=0.2)
    carrier.ask(NODE, 1, b"question")
    ends, plain = threading.Event(), grid.pull_messages

    def never_whole(numbers):
        ends.wait(30)
        return []

    grid.pull_messages = never_whole
    list(carrier.answers())
    grid.pull_messages = plain
    grid.reply("m0", None)
    list(carrier.answers())
    ends.set()
    deadline = time.monotonic() + 20
    while len(grid.pushed) < 2:
        assert time.monotonic() < deadline
        assert list(carrier.answers()) == []
    grid.reply(grid.pushed[-1][0], b"answer")
    assert until_answered(carrier) == [(NODE, 1, b"answer")]


def until_answered(carrier: Carrier) -> list[tuple[int, int, bytes]]:
    deadline = time.monotonic() + 20
    found: list[tuple[int, int, bytes]] = []
    while not found:
        assert time.monotonic() < deadline
        found += carrier.answers()
    return found


def test_what_flower_raises_reaches_whoever_asked(grid, clock):
    carrier = Carrier(grid, 3600, retry_s=20)
    carrier.ask(NODE, 1, b"question")

    def stopped(numbers):
        raise ConnectionError("the run was stopped")

    grid.pull_messages = stopped
    with pytest.raises(ConnectionError, match="the run was stopped"):
        list(carrier.answers())
