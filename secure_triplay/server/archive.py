"""Closed rounds on the server's disk: each sum before it is first sent, and the signatures that it found.

What lies here is public: ciphertexts and signatures that every site gets. It is what a restarted server goes on
from, and what a site that was away catches up with.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import msgpack

from secure_triplay.errors import ProtocolError, RunError
from secure_triplay.wire import Closed, Endorsement, SessionPlan, SumMessage

_NAME = re.compile(r"(\d{6,})\.sum")


class Archive:
    """The closed rounds of one plan; every file appears whole, and is on disk when `save` returns."""

    def __init__(self, folder: Path, plan: SessionPlan) -> None:
        self._folder, self._plan = folder, plan
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
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
        except OSError as error:
            raise RunError(
                f"the sum of round {round} cannot be read: {error.strerror}",
                where=str(path),
                fix="restore the server's folder from a backup",
            ) from error
        return total

    def is_signed(self, round: int) -> bool:
        """Whether a quorum's signatures lie here for a round's sum."""
        return self._path(round, "approvals").exists()

    def closed(self, round: int) -> Closed:
        """A round's sum with the signatures under it. Raises RunError where it has none yet."""
        path = self._path(round, "approvals")
        try:
            listed = msgpack.unpackb(path.read_bytes())
            return Closed(self.total(round), tuple(Endorsement(*one) for one in listed))
        except (OSError, ValueError, TypeError, msgpack.UnpackException, ProtocolError) as error:
            raise RunError(
                f"the signatures under the sum of round {round} cannot be read",
                where=str(path),
                fix="restore the server's folder from a backup",
            ) from error

    def _path(self, round: int, what: str) -> Path:
        return self._folder / f"{round:06d}.{what}"

    def _write(self, path: Path, content: bytes) -> None:
        draft = path.with_suffix(path.suffix + ".part")
        try:
            with open(draft, "wb", opener=_private_file) as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            draft.rename(path)
            folder = os.open(self._folder, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            raise _unwritable(path, error) from error


def _private_file(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _unwritable(path: Path, error: OSError) -> RunError:
    return RunError(
        f"the server cannot write a closed round: {error.strerror}",
        where=str(path),
        fix="free some space or make the folder writable, and start the server again",
    )
