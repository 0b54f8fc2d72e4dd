"""Search for secrets in what a process holds in memory, and in what lies in a folder.

A needle is a secret in one form in which a program could hold it: as the library's own words, as it travels, as
float32. Of each a few windows of `WINDOW_BYTES` are searched, so that a part of it is found too; a window of few
different bytes (such as zeros) would be found everywhere and is never used.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from secure_triplay.errors import RunError

WINDOW_BYTES = 32
WINDOWS = 8
_LEAST_DIFFERENT_BYTES = 9
_PIECE_BYTES = 1 << 22
_TABLE_BITS = 20
_LONGEST_TAIL_BYTES = 256
_LEAST_DIFFERENT_IN_8 = 5
_MAP_LINE = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (\S{4}) \S+ \S+ \S+\s*(.*)")


@dataclass(frozen=True, repr=False)
class Needle:
    """SECRET. Windows of one secret in one form; `what` and `form` are names for the report."""

    what: str
    form: str
    windows: tuple[bytes, ...]

    @classmethod
    def of(cls, what: str, form: str, content: bytes | NDArray[np.generic]) -> Needle:
        """Up to `WINDOWS` windows spread over the content. Raises RunError where it has none that tells anything."""
        raw = content if isinstance(content, bytes) else np.ascontiguousarray(content).tobytes()
        last = len(raw) - WINDOW_BYTES
        starts: Iterable[int] = np.linspace(0, last, 64 * WINDOWS, dtype=int) & ~7 if last >= 0 else ()
        found: dict[bytes, None] = {}
        for start in starts:
            window = raw[start : start + WINDOW_BYTES]
            if len(set(window)) >= _LEAST_DIFFERENT_BYTES:
                found.setdefault(window)
        windows = tuple(found)
        if not windows:
            raise RunError(
                f"{what} as {form} has no window that would be recognised",
                where="memory search",
                fix="search for content that is neither empty nor constant",
            )
        step = max(1, len(windows) // WINDOWS)
        return cls(what, form, windows[::step][:WINDOWS])

    @classmethod
    def text(cls, what: str, form: str, content: str) -> Needle:
        """A text as it would stand in a log or message; searched whole."""
        return cls(what, form, (content.encode(),))

    def __repr__(self) -> str:
        return f"<Needle {self.what} as {self.form}>"


@dataclass(frozen=True)
class Hit:
    """A needle that was found: which, where, and how many of its windows."""

    what: str
    form: str
    where: str
    windows: int


@dataclass(frozen=True)
class Searched:
    """What was found, and how much was looked at."""

    hits: tuple[Hit, ...]
    bytes_searched: int
    unreadable: tuple[str, ...] = ()

    def __add__(self, other: Searched) -> Searched:
        return Searched(
            self.hits + other.hits,
            self.bytes_searched + other.bytes_searched,
            self.unreadable + other.unreadable,
        )


def search_process(
    pid: int, needles: Iterable[Needle], name: str = "", *, written_only: bool = False
) -> Searched:
    """Everything that a process has mapped and that can be read, device memory apart.

    With `written_only` not what it maps of files and cannot write to: program code, as it lies on the disk.

    The process is not stopped: what it frees meanwhile may be missed, so a search is repeated at several moments.
    Raises RunError where the process is gone or may not be looked into.
    """
    wanted, label = tuple(needles), name or f"process {pid}"
    counts: dict[Needle, set[bytes]] = {needle: set() for needle in wanted}
    total, unreadable = 0, []
    try:
        with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
            for start, end, where in _regions(maps.read(), written_only):
                tail = b""
                for at in range(start, end, _PIECE_BYTES):
                    try:
                        piece = os.pread(memory.fileno(), min(_PIECE_BYTES, end - at), at)
                    except OSError:
                        unreadable.append(f"{label} {where or hex(at)}")
                        break
                    total += len(piece)
                    tail = _look(tail + piece, counts)
    except OSError as error:
        raise RunError(
            f"the memory of {label} cannot be read: {error.strerror}",
            where=f"/proc/{pid}/mem",
            fix="run the audit as the user who owns the process, or as root (ptrace_scope may forbid it)",
        ) from error
    return Searched(_hits(counts, label), total, tuple(unreadable))


def search_folder(folder: Path, needles: Iterable[Needle]) -> Searched:
    """Every file below the server's folder, databases and logs included. Links are not followed."""
    counted = Searched((), 0)
    wanted = tuple(needles)
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()):
        counts: dict[Needle, set[bytes]] = {needle: set() for needle in wanted}
        tail, size = b"", 0
        with path.open("rb") as file:
            while piece := file.read(_PIECE_BYTES):
                size += len(piece)
                tail = _look(tail + piece, counts)
        label = f"server/{path.relative_to(folder)}"
        counted += Searched(_hits(counts, label), size)
    return counted


def children(pid: int) -> tuple[int, ...]:
    """A process and all that came from it, by /proc."""
    found, queue = [], [pid]
    while queue:
        current = queue.pop()
        found.append(current)
        for task in Path(f"/proc/{current}/task").glob("*/children"):
            try:
                queue += [int(child) for child in task.read_text().split()]
            except OSError:
                continue  # it ended meanwhile
    return tuple(found)


def _regions(maps: str, written_only: bool) -> Iterator[tuple[int, int, str]]:
    for line in maps.splitlines():
        match = _MAP_LINE.fullmatch(line)
        if match is None:
            continue
        start, end, rights, where = match.groups()
        if written_only and "w" not in rights and where.startswith("/"):
            continue
        if rights.startswith("r") and not where.startswith(("/dev/", "[vvar", "[vsyscall")):
            yield int(start, 16), int(end, 16), where


def _look(piece: bytes, counts: Mapping[Needle, set[bytes]]) -> bytes:
    """Note which windows stand in the piece; the end of it, for one that is cut in two.

    All windows at once: a table tells of each 8 bytes of the piece, at every offset, whether a window may begin so.
    """
    if piece.count(0) == len(piece):  # memory that was reserved and never written
        return piece[-_LONGEST_TAIL_BYTES:]
    starts: dict[bytes, list[tuple[bytes, set[bytes]]]] = {}
    for needle, found in counts.items():
        for window in needle.windows:
            if window in found:
                continue
            if len(set(window[:8])) < _LEAST_DIFFERENT_IN_8:  # too short, or it begins like much else
                found.update({window} if window in piece else ())
            else:
                starts.setdefault(window[:8], []).append((window, found))
    if starts:
        table = np.zeros(1 << _TABLE_BITS, bool)
        table[_hashed(np.frombuffer(b"".join(starts), "<u8"))] = True
        for offset in range(min(8, len(piece) - 7)):
            words = np.frombuffer(piece, "<u8", (len(piece) - offset) // 8, offset)
            for index in np.flatnonzero(table[_hashed(words)]):
                at = offset + 8 * int(index)
                for window, found in starts.get(piece[at : at + 8], ()):
                    if piece.startswith(window, at):
                        found.add(window)
    longest = max((len(window) for needle in counts for window in needle.windows), default=1)
    return piece[-(longest - 1) :] if longest > 1 else b""


def _hashed(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Places of 8-byte words in a table of 2**_TABLE_BITS (multiplicative hashing, Knuth 1973, 6.4)."""
    return (words * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(64 - _TABLE_BITS)


def _hits(counts: Mapping[Needle, set[bytes]], where: str) -> tuple[Hit, ...]:
    return tuple(
        Hit(needle.what, needle.form, where, len(found)) for needle, found in counts.items() if found
    )
