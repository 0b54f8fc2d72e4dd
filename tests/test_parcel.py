"""A message in pieces: what comes out is what went in, or nothing does."""

from __future__ import annotations

import os

import pytest
from flwr.app import ConfigRecord, RecordDict

from secure_triplay import parcel


@pytest.mark.parametrize("size", [0, 1, parcel.PIECE_BYTES, parcel.PIECE_BYTES + 1, 5 * parcel.PIECE_BYTES])
def test_what_is_unpacked_is_what_was_packed(size):
    content = os.urandom(size)
    assert parcel.unpack(parcel.pack(content)) == content


def test_no_piece_is_larger_than_what_passes_a_thin_line_in_a_second():
    pieces = parcel.pack(bytes(1_000_000)).values()
    assert max(len(record[parcel.RECORD]) for record in pieces) <= 125_000


def test_a_huge_message_stays_within_the_number_of_pieces_that_is_accepted():
    content = bytes(parcel.PIECE_BYTES * parcel.MOST_PIECES + 1)
    records = parcel.pack(content)
    assert len(records) <= parcel.MOST_PIECES
    assert parcel.unpack(records) == content


def test_no_two_pieces_are_equal_since_flower_takes_no_message_with_equal_ones():
    pieces = [record[parcel.RECORD] for record in parcel.pack(bytes(4 * parcel.PIECE_BYTES)).values()]
    assert len(set(pieces)) == len(pieces) == 4


def test_the_same_bytes_are_the_same_pieces_so_that_a_retry_goes_on_where_it_broke_off():
    content = os.urandom(3 * parcel.PIECE_BYTES)
    assert [r.object_id for r in parcel.pack(content).values()] == [
        r.object_id for r in parcel.pack(content).values()
    ]


def changed(change) -> RecordDict:
    records = dict(parcel.pack(bytes(3 * parcel.PIECE_BYTES)))
    change(records, list(records))
    return RecordDict(records)


@pytest.mark.parametrize(
    "change",
    [
        lambda records, names: records.clear(),
        lambda records, names: records.pop(names[1]),
        lambda records, names: records.update({"other": records.pop(names[2])}),
        lambda records, names: records.update({names[0]: ConfigRecord({parcel.RECORD: "text"})}),
        lambda records, names: records.update({names[0]: ConfigRecord({"other": b"x"})}),
        lambda records, names: records.update(
            {names[0]: ConfigRecord({parcel.RECORD: b"x", "accuracy": 0.9})}
        ),
    ],
    ids=["none", "one missing", "another name", "not bytes", "another field", "a stowaway"],
)
def test_any_other_records_are_refused(change):
    with pytest.raises(ValueError, match=r"record"):
        parcel.unpack(changed(change))
