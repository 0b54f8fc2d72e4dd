import tracemalloc

import pytest

from secure_triplay.crypto.packing import unpack60
from secure_triplay.crypto.parameters import MODULUS
from secure_triplay.errors import ProtocolError
from secure_triplay.server.inbox import Inbox
from secure_triplay.server.sum import RunningSum
from secure_triplay.wire import SumMessage, unpack_tags


def verified(federation, site, ring=None):
    return Inbox(federation.plan, 1).receive(federation.upload(site, ring=ring).to_bytes())


def test_sum_is_the_sum_modulo_q_of_every_coefficient_and_tag(federation):
    rings = {name: federation.ring(i) for i, name in enumerate(federation.names)}
    total = RunningSum.empty(federation.plan.n_chunks)
    for name, ring in rings.items():
        total = total.add(verified(federation, name, ring))
    message = SumMessage.from_bytes(total.message("train").to_bytes())
    c0, tags = unpack60(message.c0, federation.plan.n_chunks), unpack_tags(message.tags)
    for chunk in range(federation.plan.n_chunks):
        assert int(tags[chunk]) == sum(int(ring[1][chunk]) for ring in rings.values()) % MODULUS
        columns = zip(*(ring[0][chunk].tolist() for ring in rings.values()), strict=True)
        assert c0[chunk].tolist() == [sum(column) % MODULUS for column in columns]


def test_largest_coefficients_do_not_overflow(make_federation):
    federation = make_federation(9, 1)
    c0, tags = federation.ring(0)
    c0[:, ::2], tags[:] = MODULUS - 1, MODULUS - 1
    upload = verified(federation, federation.names[0])
    total = RunningSum.empty(1)
    for name in federation.names:
        header = verified(federation, name).header
        total = total.add(type(upload)(header, c0.copy(), tags.copy()))
    assert int(total.c0[0, 0]) == 9 * (MODULUS - 1) % MODULUS
    assert int(total.tags[0]) == 9 * (MODULUS - 1) % MODULUS


def test_order_of_arrival_does_not_show_in_the_message(federation):
    uploads = [verified(federation, name) for name in federation.names]
    messages = []
    for order in (uploads, uploads[::-1], uploads[2:] + uploads[:2]):
        total = RunningSum.empty(federation.plan.n_chunks)
        for upload in order:
            total = total.add(upload)
        messages.append(total.message("finish").to_bytes())
    assert messages[0] == messages[1] == messages[2]


def test_survivors_are_those_whose_uploads_are_in_the_sum_and_verify(federation):
    total = RunningSum.empty(federation.plan.n_chunks)
    for name in federation.names[1:3]:
        total = total.add(verified(federation, name))
    message = total.message("train")
    assert [header.site for header in message.survivors] == list(federation.names[1:3])
    assert message.verify(federation.plan, 1, fewest=2) is None
    assert not message.last


def test_no_site_is_added_twice(federation):
    upload = verified(federation, "site-0000")
    total = RunningSum.empty(federation.plan.n_chunks).add(upload)
    with pytest.raises(ProtocolError):
        total.add(upload)


def test_an_upload_of_another_size_is_not_added(federation):
    with pytest.raises(ProtocolError):
        RunningSum.empty(federation.plan.n_chunks + 1).add(verified(federation, "site-0000"))


def test_there_is_no_message_of_an_empty_sum(federation):
    with pytest.raises(ProtocolError):
        RunningSum.empty(federation.plan.n_chunks).message("train")


def test_memory_does_not_grow_with_the_number_of_sites(make_federation):
    """Beyond one batch of ciphertexts each further site costs its header: a few hundred bytes."""
    federation = make_federation(24, 8)
    batch_bytes = 8 * 4096 * 8
    contents = (federation.upload(name).to_bytes() for name in federation.names)
    inbox, total = Inbox(federation.plan, 1), RunningSum.empty(8)
    held = []
    tracemalloc.start()
    for content in contents:
        upload = inbox.receive(content)
        inbox, total = inbox.after(upload), total.add(upload)
        del content, upload
        held.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert held[-1] - held[2] < 21 * 4096 < batch_bytes
