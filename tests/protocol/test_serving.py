"""The loop around a session: one bad message ends a simulation, and no real site; replies to sums take their time."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress

import pytest
from federation_driver import EPOCH, STUDY, Federation, closing

from secure_triplay.client.answering import serve_one
from secure_triplay.client.app import ask_worker
from secure_triplay.client.serve import answer_requests
from secure_triplay.client.session import Answer
from secure_triplay.errors import ProtocolError
from secure_triplay.wire import Declined, Train, Witness

DECLINED = Declined().to_bytes()


class Serving:
    """A site's loop in a thread, behind a socket: a simulated site's, or with `reply_after_s` a real one's."""

    def __init__(self, session, path, reply_after_s=None):
        self.session, self.path, self.states, self.ended = session, path, [], []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve, args=(session, reply_after_s), daemon=True)
        self._thread.start()

    def _serve(self, session, reply_after_s):
        try:
            if reply_after_s is None:
                answer_requests(self._listener, session, self.states.append)
            while reply_after_s is not None:
                serve_one(self._listener, lambda request: session.answer(request).reply, reply_after_s)
        except ProtocolError as error:
            self.ended.append(error)
        except OSError:
            pass  # closed by the test

    def ask(self, content):
        return ask_worker(self.path, content)

    def close(self):
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(5)
        self._listener.close()


class ThroughTheSocket:
    """What the driver takes for a session."""

    def __init__(self, serving):
        self._serving = serving
        self._session = serving.session

    @property
    def state(self):
        return self._session.state

    def answer(self, content):
        return Answer(self._serving.ask(content))


@pytest.fixture
def federation(tmp_path):
    with closing(Federation(tmp_path / "f", 3, rounds=1)) as made:
        yield made


@pytest.fixture
def serve(federation, tmp_path):
    started = []

    def start(**settings):
        started.append(Serving(federation.sites[0].session, tmp_path / "s", **settings))
        return started[-1]

    yield start
    for one in started:
        one.close()


def test_a_real_site_declines_a_bad_message_and_goes_on(serve):
    serving = serve(reply_after_s=0.0)
    for bad in (b"", b"rubbish", Train("cd" * 32, 1, 1).to_bytes()):
        assert serving.ask(bad) == DECLINED
    assert serving.ask(Train(STUDY, EPOCH, 0).to_bytes()) != DECLINED


def test_a_shim_that_hangs_up_does_not_end_a_real_site(serve):
    serving = serve(reply_after_s=0.0)
    for half in (b"", b"\0\0", (100).to_bytes(8) + b"half"):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(serving.path))
            connection.sendall(half)
    assert serving.ask(Train(STUDY, EPOCH, 0).to_bytes()) != DECLINED


def test_a_simulated_site_stops_at_the_first_refusal_with_its_reason(serve):
    serving = serve()
    assert serving.ask(Train("cd" * 32, 1, 1).to_bytes()) == DECLINED
    serving._thread.join(5)
    assert "another study" in serving.ended[0].what


def test_the_reply_to_a_sum_leaves_at_a_fixed_time_whether_it_was_accepted_or_not(serve, federation):
    serving = serve(reply_after_s=0.4)
    for request in (Witness(STUDY, EPOCH, 0, ()), Witness("cd" * 32, 1, 0, ())):
        started = time.monotonic()
        serving.ask(request.to_bytes())
        assert 0.4 <= time.monotonic() - started < 1.5
    started = time.monotonic()
    serving.ask(Train(STUDY, EPOCH, 9).to_bytes())
    assert time.monotonic() - started < 0.4


def test_a_new_state_is_observed_after_its_reply_and_the_last_one_ends_the_loop(serve, federation):
    serving = serve()
    federation.sites[0].session = ThroughTheSocket(serving)
    federation.run()
    serving._thread.join(5)
    assert [state.round for state in serving.states] == [1]
    assert not serving.ended
    assert serving.states[0].to_bytes() == federation.oracle()[1].to_bytes()
