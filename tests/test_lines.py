"""The bad line is as slow, late and breakable as it says: what rests on it would otherwise prove nothing."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time

import pytest

from tests.lines import bad_line


@pytest.fixture
def echo():
    """A server that sends back what it gets."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve():
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(connection,), daemon=True).start()

    def answer(connection):
        with connection:
            try:
                while piece := connection.recv(65536):
                    connection.sendall(piece)
            except OSError:
                return

    threading.Thread(target=serve, daemon=True).start()
    yield listener.getsockname()
    listener.close()


def round_trip(port, content):
    def send():
        with contextlib.suppress(OSError):  # the line broke; the reader says so
            line.sendall(content)

    with socket.create_connection(("127.0.0.1", port), timeout=20) as line:
        threading.Thread(target=send, daemon=True).start()
        got = b""
        while len(got) < len(content):
            piece = line.recv(65536)
            if not piece:
                raise ConnectionError("broken")
            got += piece
        return got


def test_a_line_delays_in_both_directions(echo):
    with bad_line(echo, delay_s=0.2, bytes_per_s=1e9) as line:
        started = time.monotonic()
        assert round_trip(line.port, b"hello") == b"hello"
        assert time.monotonic() - started >= 0.4


def test_a_line_carries_no_more_than_its_rate(echo):
    content = os.urandom(50_000)
    with bad_line(echo, delay_s=0.0, bytes_per_s=100_000) as line:
        started = time.monotonic()
        assert round_trip(line.port, content) == content
        assert time.monotonic() - started >= 0.5


def test_a_line_breaks_what_takes_longer_than_it_holds(echo):
    with bad_line(echo, delay_s=0.0, bytes_per_s=20_000, break_every_s=0.5) as line:
        with pytest.raises(OSError):
            round_trip(line.port, os.urandom(60_000))
        assert round_trip(line.port, b"short") == b"short"
        assert line.broken


def test_a_cut_line_takes_nobody_until_it_is_mended(echo):
    with bad_line(echo, delay_s=0.0) as line:
        line.cut()
        with pytest.raises(OSError):
            round_trip(line.port, b"hello")
        line.mend()
        assert round_trip(line.port, b"hello") == b"hello"
