"""A message's bytes as Flower carries them: in pieces, so that a line that breaks goes on at the next piece.

Flower sends each record of a message by a request of its own, and a record that arrived once is not sent again with
the same message: so the same bytes go on where they broke off. One record would have to pass as a whole between two
breaks of the line. Each piece begins with its number, since Flower takes no message with two equal records.
"""

from __future__ import annotations

from flwr.app import ConfigRecord, RecordDict

RECORD = "secure-triplay"
"""Start of every record's name, and the name of its one field."""
PIECE_BYTES, MOST_PIECES = 1 << 16, 1 << 10
_NUMBER_BYTES = 4


def pack(content: bytes) -> RecordDict:
    """The records that carry `content`."""
    size = max(PIECE_BYTES, -(-len(content) // MOST_PIECES))
    starts = range(0, max(len(content), 1), size)
    pieces = [content[start : start + size] for start in starts]
    return RecordDict(
        {
            _name(i): ConfigRecord({RECORD: i.to_bytes(_NUMBER_BYTES) + piece})
            for i, piece in enumerate(pieces)
        }
    )


def unpack(records: RecordDict) -> bytes:
    """What `pack` was given. Raises ValueError for records that it does not make."""
    count = len(records)
    if not 0 < count <= MOST_PIECES or set(records) != {_name(i) for i in range(count)}:
        raise ValueError("these are not the records of one message")
    pieces: list[bytes] = []
    for i in range(count):
        record = records[_name(i)]
        piece = record.get(RECORD) if isinstance(record, ConfigRecord) and len(record) == 1 else None
        if not isinstance(piece, bytes) or piece[:_NUMBER_BYTES] != i.to_bytes(_NUMBER_BYTES):
            raise ValueError("a record does not hold its piece of the message")
        pieces.append(piece[_NUMBER_BYTES:])
    return b"".join(pieces)


def _name(number: int) -> str:
    return f"{RECORD}-{number:04d}"
