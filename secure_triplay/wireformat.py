"""How a message becomes bytes and back: one frame, one encoding, every length and type checked.

A message is `S3PL`, version, kind, the length of its head, the head (a msgpack list: no maps, no extension
types) and, where it carries ciphertexts, a body whose length follows from the head. Each message has one
byte string: a head is encoded again and compared, so a longer spelling of the same value is refused like
any other stray bit. The messages themselves are in `wire`.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar, Self, TypeVar

import msgpack

from secure_triplay.crypto.parameters import SEED_BYTES
from secure_triplay.errors import CryptoError, ProtocolError

MAGIC = b"S3PL"
VERSION = 2
PREFIX_BYTES = len(MAGIC) + 2 + 4
MAX_SITES = 4096
MAX_CHUNKS = 4096
MAX_NUMBER = (1 << 32) - 1
MAX_MESSAGE_BYTES = 1 << 30
"""No message is larger, whatever its plan; a plan bounds its uploads and sums far below."""
MAX_REPLY_HEAD_BYTES = 1 << 20
"""No site's answer has a longer head. Whoever takes in many sites' reads none: lists take some seventy times as much
memory as the bytes that make them."""

NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,47}")
_SHA256_HEX = re.compile(r"[0-9a-f]{64}")


class Message:
    """A member of the closed set; `kind` is its byte on the wire."""

    kind: ClassVar[int]

    def _head(self) -> list[Any]:
        raise NotImplementedError

    def _body(self) -> tuple[bytes, ...]:
        return ()

    @classmethod
    def _from_parts(cls, head: list[Any], body: memoryview) -> Self:
        raise NotImplementedError

    def to_bytes(self) -> bytes:
        """The one byte string of this message."""
        head = msgpack.packb(self._head())
        return b"".join((MAGIC, bytes((VERSION, self.kind)), len(head).to_bytes(4), head, *self._body()))

    @classmethod
    def from_bytes(
        cls, content: bytes, *, max_bytes: int = MAX_MESSAGE_BYTES, max_head_bytes: int = MAX_MESSAGE_BYTES
    ) -> Self:
        """The message of this kind that `to_bytes` made into `content`.

        Raises:
            ProtocolError: for anything else; of what is longer than `max_bytes`, or has a head longer than
                `max_head_bytes`, nothing is read.
        """
        require(type(content) is bytes and len(content) <= max_bytes, "it is too large", cls)
        start = MAGIC + bytes((VERSION, cls.kind))
        require(len(content) >= PREFIX_BYTES and content.startswith(start), "it is no such message", cls)
        end = PREFIX_BYTES + int.from_bytes(content[len(start) : PREFIX_BYTES])
        require(end <= len(content), "it is cut short", cls)
        require(end - PREFIX_BYTES <= max_head_bytes, "its head is too large", cls)
        view = memoryview(content)
        try:
            message = cls._from_parts(list_of(_unpacked(view[PREFIX_BYTES:end], cls), cls), view[end:])
        except CryptoError as error:
            raise refused("a field does not hold what it must", cls) from error
        require(msgpack.packb(message._head()) == view[PREFIX_BYTES:end], "it has another encoding", cls)
        return message


MessageType = TypeVar("MessageType", bound=Message)


def read(
    content: bytes,
    *expected: type[MessageType],
    max_bytes: int = MAX_MESSAGE_BYTES,
    max_head_bytes: int = MAX_MESSAGE_BYTES,
) -> MessageType:
    """The message in `content`, of one of the expected kinds. Raises ProtocolError if it is not."""
    for message in expected:
        if content[: len(MAGIC) + 2] == MAGIC + bytes((VERSION, message.kind)):
            return message.from_bytes(content, max_bytes=max_bytes, max_head_bytes=max_head_bytes)
    raise refused("it is none that is expected here", Message)


def _unpacked(head: memoryview, message: type) -> object:
    try:
        return msgpack.unpackb(
            head,
            max_str_len=64,
            max_bin_len=MAX_CHUNKS * SEED_BYTES,
            max_array_len=MAX_SITES,
            max_map_len=0,
            max_ext_len=0,
        )
    except Exception as error:  # on hostile input msgpack raises more kinds than its own
        raise refused("its head cannot be read", message) from error


def list_of(value: object, message: type) -> list[Any]:
    """`value`, which must be a list. Raises ProtocolError otherwise."""
    if type(value) is not list:
        raise refused("a list is due", message)
    return value


def fields_of(value: object, count: int, message: type) -> list[Any]:
    """`value`, which must be a list of `count` fields. Raises ProtocolError otherwise."""
    fields = list_of(value, message)
    require(len(fields) == count, f"{count} fields are due", message)
    return fields


def is_number(value: object, least: int = 0, most: int = MAX_NUMBER) -> bool:
    """Whether it is an int (True is none) within the bounds."""
    return type(value) is int and least <= value <= most


def is_bytes(value: object, length: int) -> bool:
    """Whether it is a byte string of exactly this length."""
    return type(value) is bytes and len(value) == length


def is_text(value: object, pattern: re.Pattern[str]) -> bool:
    """Whether it is a string that the pattern matches as a whole."""
    return type(value) is str and pattern.fullmatch(value) is not None


def is_tuple(value: object, of: type, most: int) -> bool:
    """Whether it is a tuple of one to `most` values of exactly this type."""
    return type(value) is tuple and 1 <= len(value) <= most and all(type(item) is of for item in value)


def require_study(study: object, epoch: object, message: type) -> None:
    """Raise ProtocolError unless study and epoch have the form that every message gives them."""
    require(is_text(study, _SHA256_HEX), "a study is named by its SHA-256 in hex", message)
    require(is_number(epoch), "an epoch is a number", message)


def require(true: bool, what: str, message: type) -> None:
    """Raise ProtocolError with `what` unless `true`."""
    if not true:
        raise refused(what, message)


def refused(what: str, message: type) -> ProtocolError:
    """The error for bytes or values that are no message; it quotes none of them."""
    return ProtocolError(
        f"a message was refused: {what}",
        where=message.__name__,
        fix="check that both sides run the same version and the same study",
    )
