"""What a person says of a ledger, before it stands there for good: who answers, and why one replaces another."""

from __future__ import annotations

from secure_triplay.errors import ConfigError
from secure_triplay.ledger.entries import MAX_NAME

_MAX_REASON = 2000


def require_person(name: str, where: str) -> None:
    """Return nothing if it names somebody, who then stands in the ledger. Raises ConfigError."""
    missing = "nobody is named, and a person answers for this", "give the name of the person who does"
    _require_line(name, "somebody's name", MAX_NAME, where, missing)


def require_reason(reason: str, where: str) -> None:
    """Return nothing if it says something that can stand in every export. Raises ConfigError."""
    missing = "no reason is given, and every export will show it", "say what happened, in a sentence"
    _require_line(reason, "a reason", _MAX_REASON, where, missing)


def _require_line(text: str, what: str, most: int, where: str, missing: tuple[str, str]) -> None:
    """`missing`: what is wrong with an empty text, and what to do."""
    if not text.strip():
        raise ConfigError(missing[0], where=where, fix=missing[1])
    if not text.isprintable() or len(text) > most:
        raise ConfigError(
            f"{text[:40]!r} cannot stand in a ledger as {what}",
            where=where,
            fix=f"give it on one line, in UTF-8, in at most {most:,} letters",
        )
