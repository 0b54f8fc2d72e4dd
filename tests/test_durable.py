"""What a power cut, a full disk or a second writer must not do to a file: nothing is half there, lost or open."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from secure_triplay import durable
from secure_triplay.client.vault import Vault
from secure_triplay.crypto.identity import SigningIdentity
from secure_triplay.errors import CryptoError
from secure_triplay.server.archive import Archive
from secure_triplay.wire import SessionPlan, Site


@pytest.fixture
def happened(monkeypatch):
    """What is asked of the operating system, in order: names of files that are made, synced, named and removed."""
    seen: list[str] = []

    def watch(owner: object, verb: str, name: str) -> None:
        real = getattr(owner, name)

        def watched(first, *rest, **more):
            path = os.readlink(f"/proc/self/fd/{first}") if isinstance(first, int) else str(first)
            seen.append(f"{verb} {Path(path).name}")
            return real(first, *rest, **more)

        monkeypatch.setattr(owner, name, watched)

    watch(os, "sync", "fsync")
    watch(os, "name", "replace")
    watch(os, "name", "rename")
    watch(os, "name", "link")
    return seen


@pytest.fixture
def full(monkeypatch):
    def no_space(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    return lambda: monkeypatch.setattr(os, "fsync", no_space)


@pytest.fixture
def open_umask():
    old = os.umask(0)
    yield
    os.umask(old)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_content_is_on_disk_before_its_name_and_the_name_before_the_call_returns(happened, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    durable.write_new(folder / "new", b"1")
    draft = happened[0].removeprefix("sync ")
    assert happened == [f"sync {draft}", f"name {draft}", "sync folder"]
    assert draft.startswith(".new.")
    happened.clear()
    durable.replace_private(folder / "private", b"1")
    assert happened == ["sync private.part", "name private.part", "sync folder"]
    happened.clear()
    durable.replace(folder / "public", b"1")
    draft = happened[0].removeprefix("sync ")
    assert happened == [f"sync {draft}", f"name {draft}", "sync folder"]
    assert draft.startswith(".public.")
    happened.clear()
    durable.remove(folder / "private")
    assert happened == ["sync folder"]
    happened.clear()
    with durable.new_folder(folder / "made"):
        pass
    assert happened[0].startswith("name .made.")
    assert happened[1:] == ["sync folder"]
    assert names(folder) == ["made", "new", "public"]


def test_a_folder_of_what_must_not_be_lost_has_its_name_on_disk_before_anything_is_in_it(happened, tmp_path):
    """A vault's, and that of closed rounds: a power cut takes a folder with everything in it."""
    identity = SigningIdentity.generate().identity
    plan = SessionPlan("ab" * 32, bytes(32), 1, 1, (Site("north", identity),))
    closed = tmp_path / "server" / "closed"
    Archive(closed, plan)
    assert happened == [f"sync {tmp_path.name}", "sync server"]
    happened.clear()
    Vault(tmp_path / "state" / "epoch-1", bytes(32), study="ab" * 32, epoch=1).save("keys", b"key")
    assert happened[:2] == [f"sync {tmp_path.name}", "sync state"]
    assert happened[2:] == ["sync keys.part", "name keys.part", "sync epoch-1"]
    made = [tmp_path / "state", tmp_path / "state" / "epoch-1", closed]
    assert {stat.S_IMODE(folder.stat().st_mode) for folder in made} == {0o700}
    happened.clear()
    durable.private_folder(closed)
    assert happened == []


@pytest.mark.usefixtures("open_umask")
def test_only_its_user_can_read_what_is_private(tmp_path):
    durable.write_new(tmp_path / "new", b"key")
    durable.replace_private(tmp_path / "state", b"key")
    with open(tmp_path / "log", "a", opener=durable.private_file) as log:
        log.write("event\n")
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o600}
    with durable.new_folder(tmp_path / "folder", mode=0o700):
        pass
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o700


def test_a_private_file_that_others_can_read_is_refused_and_a_link_to_one_too(tmp_path):
    durable.write_new(tmp_path / "key", b"content")
    assert durable.read_private(tmp_path / "key") == b"content"
    (tmp_path / "link").symlink_to(tmp_path / "key")
    with pytest.raises(OSError, match="symbolic link"):
        durable.read_private(tmp_path / "link")
    for mode in (0o604, 0o640, 0o620):
        (tmp_path / "key").chmod(mode)
        with pytest.raises(CryptoError, match="other users") as refused:
            durable.read_private(tmp_path / "key")
        assert "chmod 600" in refused.value.fix


def test_a_new_file_overwrites_none(tmp_path):
    durable.write_new(tmp_path / "key", b"first")
    (tmp_path / "dangling").symlink_to(tmp_path / "elsewhere")
    for name in ("key", "dangling"):
        with pytest.raises(FileExistsError):
            durable.write_new(tmp_path / name, b"second")
    assert (tmp_path / "key").read_bytes() == b"first"
    assert names(tmp_path) == ["dangling", "key"]


def test_a_full_disk_leaves_no_half_of_a_new_file(tmp_path, full):
    full()
    with pytest.raises(OSError, match="No space"):
        durable.write_new(tmp_path / "key", b"content")
    assert names(tmp_path) == []


def test_a_new_file_that_a_kill_cut_short_is_not_there_and_can_be_made_again(tmp_path):
    code = (
        "import os, sys; from pathlib import Path; from secure_triplay import durable\n"
        "os.fsync = lambda _: os.kill(os.getpid(), 9)\n"
        "durable.write_new(Path(sys.argv[1]), b'secret')"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path / "key")], check=False)
    assert killed.returncode == -9
    assert not (tmp_path / "key").exists()
    durable.write_new(tmp_path / "key", b"secret")
    assert (tmp_path / "key").read_bytes() == b"secret"


@pytest.mark.parametrize("write", [durable.replace, durable.replace_private])
def test_a_full_disk_leaves_what_was_there(tmp_path, full, write):
    (tmp_path / "file").write_bytes(b"before")
    full()
    with pytest.raises(OSError, match="No space"):
        write(tmp_path / "file", b"after")
    assert (tmp_path / "file").read_bytes() == b"before"
    assert write is durable.replace_private or names(tmp_path) == ["file"]


def test_what_a_stop_left_of_a_private_file_is_overwritten_and_removed_with_it(tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            durable.replace_private(tmp_path / "keys", b"a longer secret")
    assert names(tmp_path) == ["keys.part"]
    durable.replace_private(tmp_path / "keys", b"secret")
    assert (tmp_path / "keys").read_bytes() == b"secret"
    (tmp_path / "keys.part").write_bytes(b"half a secret")
    durable.remove(tmp_path / "keys")
    durable.remove(tmp_path / "keys")
    assert names(tmp_path) == []


def test_whoever_reads_while_two_processes_replace_a_file_sees_one_of_them_whole(tmp_path):
    path = tmp_path / "file"
    durable.replace(path, b"a" * 100_000)
    code = (
        "import sys; from pathlib import Path; from secure_triplay import durable\n"
        "for _ in range(50): durable.replace(Path(sys.argv[1]), sys.argv[2].encode() * 100_000)"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, str(path), letter]) for letter in "bc"]
    seen = set()
    while any(writer.poll() is None for writer in writers):
        content = path.read_bytes()
        assert len(content) == 100_000
        seen |= set(content)
    assert [writer.returncode for writer in writers] == [0, 0]
    assert seen <= set(b"abc")
    assert len(set(path.read_bytes())) == 1
    assert names(tmp_path) == ["file"]


def test_a_folder_that_is_stopped_half_way_is_not_there(tmp_path):
    with pytest.raises(KeyboardInterrupt), durable.new_folder(tmp_path / "bundle") as draft:
        (draft / "half").write_text("x")
        raise KeyboardInterrupt
    assert names(tmp_path) == []
    (tmp_path / "bundle").mkdir()
    with durable.new_folder(tmp_path / "bundle") as draft:
        (draft / "whole").write_text("x")
    assert names(tmp_path / "bundle") == ["whole"]
    with pytest.raises(OSError, match="not empty"), durable.new_folder(tmp_path / "bundle") as draft:
        (draft / "other").write_text("x")
    assert names(tmp_path / "bundle") == ["whole"]
