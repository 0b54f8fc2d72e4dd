"""A study whose A and output directions are fitted to public images: the signed bundle carries them, and a site takes
no others."""

from __future__ import annotations

import base64
import copy
import json
import re
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from typer.testing import CliRunner

from secure_triplay import loading
from secure_triplay.cli import app
from secure_triplay.data.split import load_public
from secure_triplay.errors import AssetError, ConfigError, CryptoError, ProtocolError
from secure_triplay.federation import join
from secure_triplay.federation.serverfolder import ServerFolder
from secure_triplay.federation.sitefolder import SiteFolder
from secure_triplay.federation.studybundle import SitePaths, StudyBundle

from .conftest import NAMES, World, copied, make_site, study_content

RANK, DIRECTIONS = 8, 9
WIDTHS = {"visual.trunk.blocks.11.attn.proj": 384, "visual.trunk.blocks.11.mlp.fc2": 1536}
SHAPES = {name: (RANK, width) for name, width in WIDTHS.items()} | {
    f"{name}.outputs": (DIRECTIONS, 384) for name in WIDTHS
}


def fitted_content() -> dict:
    content = study_content()
    content["adapter"] = {
        "kind": "ffa",
        "rank": RANK,
        "alpha": 16.0,
        "target_modules": r"attn\.proj|mlp\.fc2",
        "last_blocks": 1,
        "basis": "public",
        "output_rank": DIRECTIONS,
    }
    return content


def joined_at(world: World, name: str) -> join.JoinedStudy:
    world.join(name)
    return world.joined(name)


def made(folder: Path, content: dict) -> World:
    """A coordinator's folder of a study, and its sites."""
    sites = {name: make_site(folder, name) for name in NAMES}
    (folder / "study.yaml").write_text(yaml.safe_dump(content))
    files = [site.enrolment_file for site in sites.values()]
    try:
        server = ServerFolder.create(
            folder / "coordinator", folder / "study.yaml", files, server="127.0.0.1:8443"
        )
    except ConfigError as error:
        if isinstance(error.__cause__, AssetError):
            pytest.skip(f"weights or images cannot be had here: {error}")
        raise
    return World(folder, sites, server)


@pytest.fixture(scope="module")
def fitted_template(tmp_path_factory) -> Path:
    """Made once, since a model is loaded for it, and copied for each test."""
    return made(tmp_path_factory.mktemp("fitted"), fitted_content()).folder


@pytest.fixture
def fitted(fitted_template, tmp_path) -> World:
    return copied(fitted_template, tmp_path / "fitted")


def matrices(content: bytes) -> dict[str, np.ndarray]:
    """The format read by hand: length of the header, header, values."""
    (length,) = struct.unpack("<Q", content[:8])
    head, values = json.loads(content[8 : 8 + length]), content[8 + length :]
    found = {}
    for name, entry in head.items():
        assert entry["dtype"] == "F16"
        begin, end = entry["data_offsets"]
        found[name] = np.frombuffer(values[begin:end], "<f2").reshape(entry["shape"])
    return found


def written(arrays: dict[str, np.ndarray]) -> str:
    """The same, the other way round, for the bundle's field."""
    head, values = {}, b""
    for name, array in sorted(arrays.items()):
        end = len(values) + array.nbytes
        kind = {"float16": "F16", "float32": "F32"}[array.dtype.name]
        head[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [len(values), end]}
        values += array.tobytes()
    text = json.dumps(head, separators=(",", ":"))
    text += " " * (-len(text) % 8)
    return base64.b64encode(struct.pack("<Q", len(text)) + text.encode() + values).decode()


def installed(study, basis: bytes | None) -> dict[str, np.ndarray]:
    """A's and output directions in a site's model."""
    model = loading.load_model(study, load_public(study), b"seed", basis).backbone.model
    found = {
        name.removesuffix(".lora_A.default.weight"): weight.detach().numpy().copy()
        for name, weight in model.named_parameters()
        if ".lora_A." in name
    }
    return found | {
        name.replace(".lora_B.default.directions", ".outputs"): values.T.numpy().copy()
        for name, values in model.named_buffers()
        if name.endswith(".directions")
    }


def bits(arrays: dict[str, np.ndarray]) -> dict[str, bytes]:
    return {name: array.astype("<f4").tobytes() for name, array in arrays.items()}


def test_two_processors_end_with_the_a_of_the_bundle_bit_for_bit(fitted, monkeypatch):
    joined = joined_at(fitted, "north")
    outer = json.loads((fitted.sites["north"].path / "studies" / "demo" / "study.bundle").read_text())
    carried = matrices(base64.b64decode(outer["study bundle"]["basis"]))
    assert {name: a.shape for name, a in carried.items()} == SHAPES
    own = {}
    for dtype in (torch.float32, torch.bfloat16):
        monkeypatch.setattr(loading, "compute_dtype", lambda study, dtype=dtype: dtype)
        taken = installed(joined.study, joined.bundle.basis_bytes)
        assert bits(taken) == bits(carried), dtype
        own[dtype] = installed(joined.study, None)
    assert bits(own[torch.float32]) != bits(own[torch.bfloat16])  # what each would have computed by itself


def test_a_simulation_computes_the_a_that_a_real_study_carries(fitted):
    study = joined_at(fitted, "north").study
    assert bits(installed(study, None)) == bits(matrices(fitted.server.bundle.basis_bytes))


def test_a_bundle_has_a_basis_where_its_study_asks_for_one_and_nowhere_else(fitted, world):
    basis = fitted.server.bundle.basis
    for server, change in ((fitted, {"basis": None}), (world, {"basis": basis})):
        bundle = server.server.bundle
        StudyBundle.read(bundle.signed(server.server.signer), where="x")
        with pytest.raises(ConfigError, match="no study bundle"):
            StudyBundle.read(server.file(bundle, **change), where="x")
        with pytest.raises(ConfigError, match="carries a basis where its study says"):
            server.rebuilt(basis=None if change["basis"] is None else base64.b64decode(basis))


def test_a_changed_basis_breaks_signature_and_roster_code(fitted):
    bundle = fitted.server.bundle
    other = {name: -a for name, a in matrices(bundle.basis_bytes).items()}  # of the same span
    outer = json.loads(fitted.server.public_bundle.read_text())
    outer["study bundle"]["basis"] = written(other)
    with pytest.raises(CryptoError, match="does not verify"):
        StudyBundle.read(json.dumps(outer).encode(), where="x")
    second = StudyBundle.read(fitted.file(bundle, basis=written(other)), where="x")
    assert second.code != bundle.code
    assert second.sha256 != bundle.sha256


def damaged(a: dict[str, np.ndarray]) -> dict[str, str]:
    """What no bundle may carry, in the field's encoding."""
    first, good = next(iter(a)), base64.b64decode(written(a))
    blank = {first: np.full_like(a[first], np.nan)}
    boundless = {first: np.full_like(a[first], np.inf)}
    (length,) = struct.unpack("<Q", good[:8])
    spaced = struct.pack("<Q", length + 8) + good[8 : 8 + length] + b" " * 8 + good[8 + length :]
    assert matrices(spaced).keys() == a.keys()  # the same matrices, in another spelling
    return {
        "NaN": written(a | blank),
        "infinity": written(a | boundless),
        "truncated": base64.b64encode(good[:-1]).decode(),
        "longer": base64.b64encode(good + b"\0").decode(),
        "another spelling": base64.b64encode(spaced).decode(),
        "float32": written({name: values.astype(np.float32) for name, values in a.items()}),
        "not a matrix": written({name: values.reshape(-1) for name, values in a.items()}),
        "nothing": written({}),
        "empty": "",
        "no base64": "%%%%",
    }


def test_a_basis_that_is_damaged_or_not_finite_makes_no_bundle_whoever_signed_it(fitted):
    bundle = fitted.server.bundle
    a = matrices(bundle.basis_bytes)
    assert written(a) == bundle.basis  # so that only the damage tells
    for what, field in damaged(a).items():
        with pytest.raises(ConfigError, match="no study bundle"):
            StudyBundle.read(fitted.file(bundle, basis=field), where="x")
            pytest.fail(what)


def unfit(a: dict[str, np.ndarray]) -> dict[str, tuple[dict[str, np.ndarray], str]]:
    """Well-formed matrices that are not this study's, and the words with which a site refuses them."""
    first, outputs, second, _ = a
    rows = np.random.default_rng(0).uniform(-1, 1, a[first].shape) / np.sqrt(a[first].shape[1])
    other, span = "of another adapter", "not of the public images here"
    return {
        "a row less": (a | {first: a[first][1:]}, other),
        "other columns": (a | {first: a[second]}, other),
        "a layer less": ({first: a[first]}, other),
        "a layer more": (a | {"visual.trunk.blocks.10.mlp.fc2": a[second]}, other),
        "another name": ({first: a[first], second.replace("11", "10"): a[second]}, other),
        "random rows": (a | {first: rows.astype(np.float16)}, span),
        "larger rows": (a | {second: (2 * a[second]).astype(np.float16)}, span),
        "no rows": (a | {second: 0 * a[second]}, span),
        "no output directions": ({name: rows for name, rows in a.items() if name != outputs}, other),
        "an output direction less": (a | {outputs: a[outputs][1:]}, other),
        "other output directions": (a | {outputs: np.roll(a[outputs], 1, axis=1)}, span),
        "longer output directions": (a | {outputs: (2 * a[outputs]).astype(np.float16)}, span),
    }


def one_model_for_all(monkeypatch) -> None:
    """A site's backbone is loaded once, and each `load_model` from here on is given a copy of it."""
    load, kept = loading.aligned_backbone, []

    def copy_of_the_first(study, public):
        if not kept:
            kept.append((study, load(study, public)))
        assert kept[0][0] == study
        return copy.deepcopy(kept[0][1])

    monkeypatch.setattr(loading, "aligned_backbone", copy_of_the_first)


def test_a_basis_of_other_layers_or_beyond_the_public_images_is_refused_by_the_site(fitted, monkeypatch):
    joined = joined_at(fitted, "north")
    one_model_for_all(monkeypatch)
    right = joined.bundle.basis_bytes
    assert bits(installed(joined.study, right)) == bits(matrices(right))  # so that only the basis tells
    for what, (arrays, words) in unfit(matrices(joined.bundle.basis_bytes)).items():
        raw = fitted.file(joined.bundle, basis=written(arrays))
        signed = StudyBundle.read(raw, where="x")  # well formed and well signed
        with pytest.raises(ConfigError, match=words):
            installed(joined.study, signed.basis_bytes)
            pytest.fail(what)


def pictures(folder: Path, seed: int) -> Path:
    """A manifest of 30 smooth random pictures."""
    folder.mkdir()
    coarse = np.random.default_rng(seed).integers(0, 256, (30, 5, 5, 3)).astype(np.uint8)
    names = [entry["name"] for entry in fitted_content()["classes"]]
    lines = ["path,label"]
    for number, pixels in enumerate(coarse):
        Image.fromarray(pixels).resize((56, 56), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
        lines.append(f"{number}.png,{names[number % len(names)]}")
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")
    return folder / "manifest.csv"


def test_a_site_needs_its_own_copy_of_the_public_images(tmp_path):
    content = fitted_content()
    public = pictures(tmp_path / "at the coordinator", 0)
    content["data"] = {"kind": "manifest", "public_manifest": str(public), "test_manifest": "not here"}
    content["sites"] = [{"name": name, "manifest": "at-the-site"} for name in NAMES]
    bundle = made(tmp_path, content).server.bundle
    assert "at the coordinator" not in bundle.canonical().decode()
    same, other = (pictures(tmp_path / name, seed) for name, seed in (("same", 0), ("other", 1)))

    def taken(manifest: Path) -> dict[str, np.ndarray]:
        paths = SitePaths(manifest="own.csv", public_manifest=str(manifest))
        return installed(bundle.study_here(paths, "north"), bundle.basis_bytes)

    assert bits(taken(same)) == bits(matrices(bundle.basis_bytes))
    with pytest.raises(ConfigError, match="not of the public images here"):
        taken(other)


def test_later_epochs_keep_the_basis_and_a_site_takes_no_other(fitted):
    joined, site = joined_at(fitted, "north"), fitted.sites["north"]
    founding = fitted.server.bundle
    later = fitted.server.next_epoch(remove=["south"])
    assert later.basis == founding.basis
    turned = {name: a[::-1].copy() for name, a in matrices(later.basis_bytes).items()}  # would pass as public
    installed(joined.study, base64.b64decode(written(turned)))
    raw = fitted.file(later, basis=written(turned))
    with pytest.raises(ProtocolError, match="another basis"):
        join.succeed(site, joined, StudyBundle.read(raw, where="x"), raw)
    (fitted.folder / "other.bundle").write_bytes(raw)
    with pytest.raises(ProtocolError, match="another basis"):
        join.look(site, fitted.folder / "other.bundle", SitePaths())
    after = join.succeed(site, joined, later, fitted.server.public_bundle.read_bytes())
    assert after.bundle.basis == founding.basis


def test_who_decides_for_a_site_reads_that_the_bundle_brings_a(fitted, world):
    def page(server: ServerFolder, site: SiteFolder) -> str:
        shown = CliRunner().invoke(app, ["site", "join", str(server.public_bundle), "--site", str(site.path)])
        return " ".join(shown.output.split())

    text = page(fitted.server, fitted.sites["north"])
    size = sum(2 * rows * columns for rows, columns in SHAPES.values())
    (said,) = re.findall(r"Basis The bundle brings A and output directions, ([0-9,]+) bytes", text)
    assert size < int(said.replace(",", "")) < size + 500
    assert "fitted to public images; B is trained and sent, in the 9 directions of a layer's outputs" in text
    text = page(world.server, world.sites["north"])
    assert "Read this" in text
    assert "Basis" not in text
    assert "fitted to public images" not in text


@pytest.mark.parametrize("manifest", [None, "missing.csv"])
def test_a_coordinator_without_the_public_images_is_told_so_and_nothing_is_left(tmp_path, manifest):
    content = fitted_content()
    content["data"] = {"kind": "manifest", "public_manifest": manifest}
    content["sites"] = [{"name": name, "manifest": "at-the-site"} for name in NAMES]
    with pytest.raises(ConfigError, match="cannot be computed here") as caught:
        made(tmp_path, content)
    assert "adapter.basis" in caught.value.where
    assert "public images on its own machine" in caught.value.fix
    assert not (tmp_path / "coordinator").exists()
