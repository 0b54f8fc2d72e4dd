"""Parts of messages: flat dataclasses as lists of their fields, in their order."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from typing import Any, TypeVar

from secure_triplay.wireformat import fields_of, list_of, require

R = TypeVar("R")


def as_lists(records: Iterable[object]) -> list[list[Any]]:
    """Each record as the list of its fields."""
    return [[getattr(record, field.name) for field in fields(record)] for record in records]  # type: ignore[arg-type]


def from_lists(value: object, kind: type[R], message: type) -> tuple[R, ...]:
    """What `as_lists` was given. Raises ProtocolError for anything else."""
    count = len(fields(kind))  # type: ignore[arg-type]
    return tuple(kind(*fields_of(one, count, message)) for one in list_of(value, message))


def require_records(value: object, kind: type, most: int, message: type) -> None:
    """Raise ProtocolError unless `value` is a tuple of at most `most` of exactly this kind."""
    right = type(value) is tuple and len(value) <= most and all(type(one) is kind for one in value)
    require(right, f"0 to {most} of {kind.__name__} are due", message)
