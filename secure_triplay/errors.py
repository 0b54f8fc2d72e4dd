"""Errors that say what happened, where, and what to do next.

Every error that a person can cause or meet is a `SecureTriplayError`. The command prints its three
parts and exits with `exit_code`; nothing else of the program's state is shown.
"""

from __future__ import annotations


class SecureTriplayError(Exception):
    """An error with `what` happened, `where`, and `fix`: what to do next."""

    exit_code = 1

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        self.what, self.where, self.fix = what, where, fix
        super().__init__("; ".join(part for part in (what, where and f"in {where}", fix) if part))

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuilt, (type(self), self.what, self.where, self.fix)


def _rebuilt(kind: type[SecureTriplayError], what: str, where: str, fix: str) -> SecureTriplayError:
    """An error as it came from another process of this machine."""
    return kind(what, where=where, fix=fix)


class ConfigError(SecureTriplayError):
    """A study or policy file is wrong, or asks for what cannot be done."""

    exit_code = 3


class DataError(SecureTriplayError):
    """A manifest, an image or a label is missing, unreadable or inconsistent."""

    exit_code = 4


class AssetError(SecureTriplayError):
    """Weights or a packaged data set could not be had, or are not the ones that were named."""

    exit_code = 5


class PrivacyError(SecureTriplayError):
    """A step would break a privacy rule or exceed a budget, and was refused."""

    exit_code = 6


class CryptoError(SecureTriplayError):
    """Keys, ciphertexts, tags or signatures do not verify or do not fit."""

    exit_code = 7


class ProtocolError(SecureTriplayError):
    """Bytes from another party are not the message that the round expects."""

    exit_code = 8


class RunError(SecureTriplayError):
    """A run could not start, go on or be written."""

    exit_code = 9


class CrashError(SecureTriplayError):
    """A mistake of this program, and none of who uses it."""

    exit_code = 70  # EX_SOFTWARE of sysexits.h
