"""Lists within lists take some seventy times as much memory as the bytes that make them."""

from __future__ import annotations

import tracemalloc

import msgpack
import numpy as np
import pytest

from secure_triplay.crypto.parameters import PACKED_BYTES
from secure_triplay.server.archive import Archive
from secure_triplay.server.inbox import Inbox, Reason
from secure_triplay.server.rounds import Rounds
from secure_triplay.server.service import Events, Service
from secure_triplay.wire import Approval, CatchUp, Declined, Report, SumMessage, Unmasked, Upload, Witness
from secure_triplay.wireformat import MAGIC, VERSION

N_CHUNKS = 100
"""Of three megabytes an upload."""


def of_lists(message, size):
    """What says that it is such a message, and holds nothing but empty lists."""
    row = b"\xdc\x10\x00" + b"\x90" * 4096
    rows = size // len(row)
    head = b"\xdc" + rows.to_bytes(2) + rows * row
    return MAGIC + bytes((VERSION, message.kind)) + len(head).to_bytes(4) + head


@pytest.fixture
def crowded(make_federation, tmp_path):
    """A round in which a site answers -> the memory that an answer takes besides its own bytes."""
    plan = make_federation(2, N_CHUNKS).plan
    sums = Service(plan, 2, Events(None, False))
    sums.offer = lambda content: Service.offer(sums, [content], len(content))
    rounds = Rounds(plan, rounds=1, quorum=2, sums=sums, archive=Archive(tmp_path, plan))
    rounds.exchange = type(rounds.exchange)("train", 1)
    rounds.begin([0, 1])

    def memory(content):
        tracemalloc.start()
        try:
            rounds.take(0, 1, content)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    return memory


@pytest.mark.parametrize("message", [Upload, Report, Approval, Unmasked, Declined, SumMessage, CatchUp])
def test_an_answer_takes_the_server_no_more_memory_than_an_upload(crowded, message):
    assert crowded(of_lists(message, 2_500_000)) < 32 * N_CHUNKS * 1024


def test_what_a_message_within_an_answer_holds_takes_no_more_memory_either(crowded):
    inner = of_lists(SumMessage, 2_500_000)
    head = Witness("ab" * 32, 4, 1, ())._head()
    head[4] = True
    packed = msgpack.packb(head)
    content = MAGIC + bytes((VERSION, Witness.kind)) + len(packed).to_bytes(4) + packed + inner
    assert crowded(content) < 32 * N_CHUNKS * 1024


def test_the_head_of_an_upload_of_the_most_chunks_is_read_all_the_same(make_federation):
    federation = make_federation(1, 4096)
    zeros = federation.upload(
        "site-0000", ring=(np.zeros((0, 4096)), np.zeros(4096, np.uint64)), c0=bytes(4096 * PACKED_BYTES)
    )
    assert Inbox(federation.plan, 1).receive(zeros.to_bytes()).reason is Reason.NOT_A_CIPHERTEXT
