"""State at rest: read back by who has the key, in its own place, or an error."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from secure_triplay.client.vault import Vault, new_storage_key
from secure_triplay.errors import CryptoError, RunError

STUDY, OTHER = "ab" * 32, "cd" * 32
KEY = new_storage_key()
SECRET = b"an adapter, or a key" * 50


@pytest.fixture
def vault(tmp_path):
    return Vault(tmp_path / "state", KEY, study=STUDY, epoch=1)


def test_what_was_saved_comes_back_and_the_disk_shows_nothing_of_it(vault, tmp_path):
    vault.save("state", SECRET)
    assert vault.load("state") == SECRET
    assert Vault(tmp_path / "state", KEY, study=STUDY, epoch=1).load("state") == SECRET
    (path,) = (tmp_path / "state").iterdir()
    assert b"adapter" not in path.read_bytes()
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_nothing_saved_is_none_and_nothing_destroyed_comes_back(vault, tmp_path):
    assert vault.load("keys") is None
    vault.save("keys", SECRET)
    vault.destroy("keys")
    vault.destroy("keys")
    assert vault.load("keys") is None
    assert list((tmp_path / "state").iterdir()) == []


def test_what_a_stop_left_of_a_save_is_destroyed_with_what_it_was_to_become(vault, tmp_path, monkeypatch):
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            vault.save("keys", SECRET)
    assert list((tmp_path / "state").iterdir())
    vault.destroy("keys")
    assert list((tmp_path / "state").iterdir()) == []


def test_the_same_content_never_looks_the_same(vault, tmp_path):
    seen = set()
    for _ in range(20):
        vault.save("state", SECRET)
        seen.add((tmp_path / "state" / "state").read_bytes())
    assert len(seen) == 20


@pytest.mark.parametrize("at", [0, 4, 5, 16, 17, 200, -1])
def test_a_changed_file_is_an_error_and_not_a_value(vault, tmp_path, at):
    vault.save("state", SECRET)
    path = tmp_path / "state" / "state"
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(CryptoError, match="damaged"):
        vault.load("state")


@pytest.mark.parametrize("size", [0, 3, 10, 17, 30, -1])
def test_a_truncated_file_is_an_error(vault, tmp_path, size):
    vault.save("state", SECRET)
    path = tmp_path / "state" / "state"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CryptoError):
        vault.load("state")


def test_a_file_passes_for_no_other_name_study_epoch_or_site(vault, tmp_path):
    vault.save("state", SECRET)
    folder = tmp_path / "state"
    (folder / "keys").write_bytes((folder / "state").read_bytes())
    with pytest.raises(CryptoError):
        vault.load("keys")
    for other in (
        Vault(folder, KEY, study=OTHER, epoch=1),
        Vault(folder, KEY, study=STUDY, epoch=2),
        Vault(folder, new_storage_key(), study=STUDY, epoch=1),
    ):
        with pytest.raises(CryptoError):
            other.load("state")


def test_a_write_that_fails_leaves_what_was_there(vault, monkeypatch):
    vault.save("state", b"before")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match="No space left"):
        vault.save("state", SECRET)
    assert vault.load("state") == b"before"


def test_what_was_saved_or_destroyed_is_so_on_the_disk_before_the_call_returns(vault, monkeypatch):
    """Content first, then its name, then the folder that holds the name: else a power cut takes one of them back."""
    happened: list[str] = []
    sync, rename, unlink = os.fsync, Path.rename, Path.unlink

    def synced(descriptor):
        happened.append(f"sync {Path(os.readlink(f'/proc/self/fd/{descriptor}')).name}")
        sync(descriptor)

    def renamed(self, target):
        happened.append(f"rename {self.name}")
        return rename(self, target)

    def unlinked(self, missing_ok=False):
        happened.append(f"unlink {self.name}")
        unlink(self, missing_ok)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "rename", renamed)
    monkeypatch.setattr(Path, "unlink", unlinked)
    vault.save("keys", SECRET)
    assert happened == ["sync keys.part", "rename keys.part", "sync state"]
    happened.clear()
    vault.destroy("keys")
    assert happened == ["unlink keys", "unlink keys.part", "sync state"]


def test_a_key_of_another_length_is_refused(tmp_path):
    with pytest.raises(CryptoError):
        Vault(tmp_path, b"short", study=STUDY, epoch=1)
