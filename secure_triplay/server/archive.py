"""Closed rounds on the server's disk: each sum before it is first sent, and the signatures that it found.

What lies here is public: ciphertexts and signatures that every site gets, and of masked rounds keys, sealed shares
and the seeds that were revealed. It is what a restarted server goes on from, and what a site that was away catches
up with.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import msgpack

from secure_triplay import durable
from secure_triplay.crypto.masking.messages import MaskKeys, SealedShares
from secure_triplay.errors import CryptoError, ProtocolError, RunError
from secure_triplay.wire import (
    MAX_CATCH_UP_BYTES,
    CatchUp,
    Closed,
    Endorsement,
    MemberSeed,
    SessionPlan,
    SumMessage,
)
from secure_triplay.wire.masks import shares_from_list, shares_to_list
from secure_triplay.wire.records import as_lists, from_lists
from secure_triplay.wireformat import list_of

_NAME = re.compile(r"(\d{6,})\.sum")
R = TypeVar("R")


class Archive:
    """The closed rounds of one plan; every file appears whole, and is on disk when `save` returns."""

    def __init__(self, folder: Path, plan: SessionPlan) -> None:
        self._folder, self._plan = folder, plan
        try:
            durable.private_folder(folder)
        except OSError as error:
            raise _unwritable(folder, error) from error

    @property
    def last(self) -> int | None:
        """The last closed round, if there is one."""
        found = [_NAME.fullmatch(path.name) for path in self._folder.iterdir()]
        return max((int(match[1]) for match in found if match), default=None)

    def save_sum(self, total: SumMessage) -> None:
        """Keep a round's sum. Raises RunError where there is another one: a round has one sum for good."""
        path = self._path(total.round, "sum")
        content = total.to_bytes()
        if path.exists() and path.read_bytes() != content:
            raise RunError(
                f"round {total.round} has another sum already",
                where=str(path),
                fix="go on from what lies here; a second sum of a round is never sent",
            )
        self._write(path, content)

    def save_approvals(self, round: int, approvals: tuple[Endorsement, ...]) -> None:
        """Keep the signatures under a round's sum."""
        content = msgpack.packb([[one.site, one.signature] for one in approvals])
        self._write(self._path(round, "approvals"), content)

    def total(self, round: int) -> SumMessage:
        """A round's sum. Raises RunError where it is missing or damaged, or of another plan."""
        path = self._path(round, "sum")
        try:
            total = SumMessage.from_bytes(path.read_bytes())
            total.verify(self._plan, round)
        except (OSError, CryptoError, ProtocolError) as error:
            raise _unreadable("sum", path, error) from error
        return total

    def is_signed(self, round: int) -> bool:
        """Whether a quorum's signatures lie here for a round's sum."""
        return self._path(round, "approvals").exists()

    @property
    def last_signed(self) -> int | None:
        """The last round whose sum a quorum signed, if there is one: a later sum was never opened by anybody."""
        last = self.last
        while last is not None and not self.is_signed(last):
            last = last - 1 if self._path(last - 1, "sum").exists() else None
        return last

    def closed(self, round: int) -> Closed:
        """A round's sum with the signatures under it and, where it is masked, its seeds.

        Raises RunError where it has none yet.
        """
        total, signed = self.total(round), self._records(round, "approvals", Endorsement)
        return Closed(total, signed, self._records(round, "seeds", MemberSeed) if total.members else ())

    def catch_up(self, applied: int, wanted: int) -> CatchUp:
        """The closed rounds after `applied` up to `wanted`, as many as one message carries. Raises RunError."""
        closed, size = [], 0
        for number in range(applied + 1, wanted + 1):
            closed.append(self.closed(number))
            size += len(closed[-1].total.to_bytes())
            if size > MAX_CATCH_UP_BYTES:
                break
        return CatchUp(self._plan.study, self._plan.epoch, tuple(closed))

    # of masked rounds

    def save_mask_keys(self, round: int, keys: tuple[MaskKeys, ...]) -> None:
        """Keep whose keys a round starts with."""
        self._write(self._path(round, "mask-keys"), msgpack.packb(as_lists(keys)))

    def mask_keys(self, round: int) -> tuple[MaskKeys, ...]:
        """Whose keys a round starts with; empty where that is open."""
        return self._records(round, "mask-keys", MaskKeys, empty=True)

    def save_mask_members(self, round: int, members: tuple[SealedShares, ...]) -> None:
        """Keep the members of a round with what they shared."""
        content = msgpack.packb([shares_to_list(one) for one in members])
        self._write(self._path(round, "mask-members"), content)

    def mask_members(self, round: int) -> tuple[SealedShares, ...]:
        """The members of a round; empty where these are open."""
        return self._read(round, "mask-members", _sealed, empty=True)

    def save_mask_seeds(self, round: int, seeds: tuple[MemberSeed, ...]) -> None:
        """Keep the seeds of a round's members; there is nothing more to reveal, and sealed shares go."""
        self._write(self._path(round, "seeds"), msgpack.packb(as_lists(seeds)))
        self._path(round, "mask-members").unlink(missing_ok=True)
        self._path(round, "mask-keys").unlink(missing_ok=True)

    def mask_seeds(self, round: int) -> tuple[MemberSeed, ...]:
        """The seeds of a round's members; empty where they were not revealed yet."""
        return self._records(round, "seeds", MemberSeed, empty=True)

    def _records(self, round: int, what: str, kind: type[R], *, empty: bool = False) -> tuple[R, ...]:
        return self._read(round, what, lambda listed: from_lists(listed, kind, Archive), empty=empty)

    def _read(
        self, round: int, what: str, made: Callable[[list[Any]], tuple[R, ...]], *, empty: bool = False
    ) -> tuple[R, ...]:
        """What is `made` of what lies here of a round; nothing at all only where that may be. Raises RunError."""
        path = self._path(round, what)
        if empty and not path.exists():
            return ()
        try:
            return made(list_of(msgpack.unpackb(path.read_bytes()), Archive))
        except (OSError, ValueError, TypeError, msgpack.UnpackException, CryptoError, ProtocolError) as error:
            raise _unreadable(what, path, error) from error

    def _path(self, round: int, what: str) -> Path:
        return self._folder / f"{round:06d}.{what}"

    def _write(self, path: Path, content: bytes) -> None:
        try:
            durable.replace_private(path, content)
        except OSError as error:
            raise _unwritable(path, error) from error


def _sealed(listed: list[Any]) -> tuple[SealedShares, ...]:
    return tuple(SealedShares(*shares_from_list(one, Archive)) for one in listed)


def _unreadable(what: str, path: Path, error: Exception) -> RunError:
    why = (
        error.strerror if isinstance(error, OSError) else None
    ) or "it is damaged, or of another study or epoch"
    return RunError(
        f"the {what} of round {int(path.stem)} cannot be read: {why}",
        where=str(path),
        fix="restore the server's folder from a backup",
    )


def _unwritable(path: Path, error: OSError) -> RunError:
    return RunError(
        f"the server cannot write a closed round: {error.strerror}",
        where=str(path),
        fix="free some space or make the folder writable, and start the server again",
    )
