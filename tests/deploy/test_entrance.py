"""The door of the SuperLink: 2 GB of zeros are refused, counted and logged before they are in memory."""

from __future__ import annotations

import asyncio
import json

import pytest

from secure_triplay.deploy.server.superlinkmain import MOST_REQUEST_BYTES, Entrance

PIECE = bytes(1 << 16)


def ask(tmp_path, pieces, *, headers=(), path="/v1/fleet/push-object", client="10.1.2.3", kind="http"):
    """Status, what the app behind was given, how many pieces were taken, and what was logged."""
    given, sent, taken = [], [], 0
    source = iter(pieces)

    async def app(scope, receive, send):
        body, more = b"", True
        while more:
            event = await receive()
            body, more = body + event["body"], event["more_body"]
        given.append(body)
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def receive():
        nonlocal taken
        taken += 1
        piece = next(source, None)
        return {"type": "http.request", "body": piece or b"", "more_body": piece is not None}

    async def send(event):
        sent.append(event)

    scope = {"type": kind, "path": path, "client": (client, 1), "headers": list(headers)}
    log = tmp_path / "refused.jsonl"
    asyncio.run(Entrance(app, log)(scope, receive, send))
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    return sent[0].get("status"), given, taken, lines


def zeros(size):
    return (PIECE for _ in range(size // len(PIECE)))


def test_two_gigabytes_of_zeros_are_refused_by_what_their_header_says(tmp_path):
    size = 2_000_000_000
    headers = [(b"content-length", str(size).encode())]
    status, given, taken, lines = ask(tmp_path, zeros(size), headers=headers)
    assert (status, given, taken) == (413, [], 0)
    assert [(line["reason"], line["bytes"], line["client"]) for line in lines] == [
        ("oversized-request", size, "10.1.2.3")
    ]


@pytest.mark.parametrize("headers", [(), [(b"content-length", b"10")]], ids=["unsaid", "a lie"])
def test_two_gigabytes_that_are_not_announced_are_refused_after_the_size_of_a_piece(tmp_path, headers):
    status, given, taken, lines = ask(tmp_path, zeros(2_000_000_000), headers=headers)
    assert (status, given) == (413, [])
    assert taken <= MOST_REQUEST_BYTES // len(PIECE) + 2
    assert [line["reason"] for line in lines] == ["oversized-request"]


def test_a_piece_of_a_message_passes_whole(tmp_path):
    content = bytes(range(256)) * 4096
    pieces = [content[i : i + 1000] for i in range(0, len(content), 1000)]
    assert len(content) == 1 << 20 <= MOST_REQUEST_BYTES
    status, given, _, lines = ask(tmp_path, pieces)
    assert (status, given, lines) == (200, [content], [])


def test_what_may_not_come_from_afar_is_logged_too(tmp_path):
    status, given, _, lines = ask(tmp_path, [b"x"], path="/v1/control/start-run")
    assert (status, given) == (403, [])
    assert [(line["reason"], line["path"]) for line in lines] == [("not-from-afar", "/v1/control/start-run")]
