from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from secure_triplay.assets import FASHION_MNIST
from secure_triplay.config import load_study
from secure_triplay.data import split as split_module
from secure_triplay.data.records import Records
from secure_triplay.data.split import Split, load_public, split_study
from secure_triplay.errors import AssetError, DataError
from secure_triplay.fetch import cache_dir

FASHION = [
    "t-shirt",
    "trousers",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
]
CLASSES = ("cat", "dog", "horse")


def parts(split: Split) -> dict[str, Records]:
    named: dict[str, Records] = {"public": split.public, "test": split.test}
    for name, site in split.sites.items():
        named[f"{name} train"], named[f"{name} holdout"] = site.train, site.holdout
    return named


def assert_no_image_twice(split: Split) -> None:
    seen = [path for part in parts(split).values() for path in getattr(part, "paths", ())]
    assert len(seen) == len(set(seen))


def assert_no_patient_in_two_parts(split: Split) -> None:
    seen: list[int] = []
    for part in parts(split).values():
        assert part.patients is not None
        seen.extend(np.unique(part.patients).tolist())
    assert len(seen) == len(set(seen))


def image_numbers(records: Records) -> list[int]:
    """The number that each miniature Fashion-MNIST image states about itself."""
    images = records.images(range(len(records))).astype(int)
    return (images[:, 0, 0, 0] + 256 * images[:, 0, 1, 0]).tolist()


@pytest.fixture
def fashion(monkeypatch: pytest.MonkeyPatch, fashion_folder: Path, make_study: Any) -> Any:
    monkeypatch.setattr(split_module, "fashion_mnist", lambda notify: fashion_folder)

    def split(
        *, sites: int = 3, seed: int = 0, classes: Any = FASHION, only: Any = None, **data: Any
    ) -> Split:
        settings = {"kind": "fashion-mnist", "public_images": 50, "test_images": 100, "records_per_site": 200,
                    "holdout_per_site": 40, **data}  # fmt: skip
        return split_study(make_study(settings, sites=sites, seed=seed, classes=classes), only=only)

    return split


@pytest.mark.parametrize(
    "rule", [{"kind": "iid"}, {"kind": "dirichlet", "alpha": 0.3}, {"kind": "long-tail", "imbalance": 5.0}]
)
def test_public_images_and_all_sites_are_disjoint_and_as_large_as_the_study_says(
    fashion: Any, rule: Any
) -> None:
    split = fashion(partition=rule)
    assert list(split.sites) == ["site-0", "site-1", "site-2"]
    assert len(split.public) == 50
    assert [(len(site.train), len(site.holdout)) for site in split.sites.values()] == [(200, 40)] * 3
    of_training_split = [
        number for name, part in parts(split).items() if name != "test" for number in image_numbers(part)
    ]
    assert len(of_training_split) == len(set(of_training_split)) == 50 + 3 * 240


def test_images_to_spare_are_all_that_are_neither_public_nor_at_any_site(
    fashion: Any, make_study: Any
) -> None:
    split = fashion()
    settings = {"kind": "fashion-mnist", "public_images": 50, "test_images": 100, "records_per_site": 200,
                "holdout_per_site": 40}  # fmt: skip
    spare = image_numbers(split_module.spare_fashion(make_study(settings, sites=3, classes=FASHION)))
    used = [number for name, part in parts(split).items() if name != "test" for number in image_numbers(part)]
    assert sorted(spare + used) == list(range(2000))


def test_scanners_change_pixels_at_the_sites_and_nothing_else(fashion: Any) -> None:
    plain, scanned = fashion(), fashion(partition={"kind": "iid", "scanners": "differ"})
    for name, part in parts(scanned).items():
        same = np.array_equal(part.images([0, 1]), parts(plain)[name].images([0, 1]))
        assert same == (not name.startswith(("site-1", "site-2")))  # the first site's scanner changes nothing
        assert part.labels.tolist() == parts(plain)[name].labels.tolist()


def test_sites_differ_in_size_as_asked_with_the_same_records_in_all(fashion: Any) -> None:
    split = fashion(partition={"kind": "dirichlet", "size_ratio": 9.0})
    sizes = [len(site.train) for site in split.sites.values()]
    assert sizes[0] == pytest.approx(9 * sizes[2], rel=0.05)
    assert sizes[1] == pytest.approx(3 * sizes[2], rel=0.05)
    assert sum(sizes) == 600
    assert [len(site.holdout) for site in split.sites.values()] == [40] * 3


def test_public_and_test_images_are_balanced_over_the_classes(fashion: Any) -> None:
    split = fashion(partition={"kind": "dirichlet", "alpha": 0.1})
    assert np.bincount(split.public.labels, minlength=10).tolist() == [5] * 10
    assert np.bincount(split.test.labels, minlength=10).tolist() == [10] * 10


def test_test_images_come_from_the_official_test_split(fashion: Any, fashion_folder: Path) -> None:
    split = fashion()
    codes = np.frombuffer((fashion_folder / "t10k-labels-idx1-ubyte").read_bytes()[8:], np.uint8)
    assert codes[image_numbers(split.test)].tolist() == split.test.labels.tolist()


def test_a_holdout_has_its_sites_own_mixture_of_classes(fashion: Any) -> None:
    split = fashion(
        sites=2, partition={"kind": "dirichlet", "alpha": 0.2}, records_per_site=400, holdout_per_site=100
    )
    sites = split.sites.values()
    train = [np.bincount(site.train.labels, minlength=10) / 400 for site in sites]
    holdout = [np.bincount(site.holdout.labels, minlength=10) / 100 for site in sites]
    for mine, other in ((0, 1), (1, 0)):
        assert np.abs(train[mine] - holdout[mine]).sum() < 0.5 * np.abs(train[mine] - holdout[other]).sum()


def test_more_public_images_do_not_change_which_are_drawn_for_test(fashion: Any) -> None:
    assert image_numbers(fashion().test) == image_numbers(fashion(public_images=10).test)


def test_the_studys_seed_decides_every_draw(fashion: Any) -> None:
    first, again, other = fashion(), fashion(), fashion(seed=1)
    for name, part in parts(first).items():
        assert image_numbers(part) == image_numbers(parts(again)[name])
        assert image_numbers(part) != image_numbers(parts(other)[name])


def test_only_the_named_sites_come_back_and_are_as_in_the_whole(fashion: Any) -> None:
    whole, one = fashion(), fashion(only=["site-1"])
    assert list(one.sites) == ["site-1"]
    assert image_numbers(one.sites["site-1"].train) == image_numbers(whole.sites["site-1"].train)
    with pytest.raises(DataError, match="no such site: nobody"):
        fashion(only=["nobody"])


@pytest.mark.parametrize(("kind", "column"), [("domain", "domain"), ("patient", "patient_id")])
def test_a_partition_that_the_data_have_no_column_for_is_refused(
    fashion: Any, kind: str, column: str
) -> None:
    with pytest.raises(DataError, match=f"name no {column}"):
        fashion(partition={"kind": kind})


def test_more_records_than_the_data_set_has_are_refused(fashion: Any) -> None:
    with pytest.raises(DataError, match="records are asked for"):
        fashion(records_per_site=700)
    with pytest.raises(DataError, match=r"data\.public_images"):
        fashion(public_images=2001)
    with pytest.raises(DataError, match=r"data\.test_images"):
        fashion(test_images=601)


def test_no_patient_is_in_two_of_public_test_sites_and_holdouts(folder: Any, make_study: Any) -> None:
    manifest = folder.patients(40, 5)
    data = {
        "kind": "manifest",
        "manifest": str(manifest),
        "public_images": 12,
        "test_fraction": 0.2,
        "holdout_fraction": 0.25,
    }
    for seed in range(5):
        split = split_study(make_study(data, sites=3, seed=seed))
        assert_no_patient_in_two_parts(split)
        assert_no_image_twice(split)
        assert len(split.public) == 12
        assert len(np.unique(split.test.patients)) == 8
        held_by_sites = sum(len(site.train) + len(site.holdout) for site in split.sites.values())
        n_public_patients = 3  # of 5 images each, for 12 public ones
        assert held_by_sites == 5 * (40 - 8 - n_public_patients)
        split.check()


def test_without_patients_records_are_divided_and_every_one_is_used_once(
    folder: Any, make_study: Any
) -> None:
    for number in range(60):
        folder.add(f"{number}.png", CLASSES[number % 3])
    data = {
        "kind": "manifest",
        "manifest": str(folder.write()),
        "public_images": 6,
        "partition": {"kind": "dirichlet"},
    }
    split = split_study(make_study(data, sites=3))
    assert_no_image_twice(split)
    assert sum(len(part) for part in parts(split).values()) == 60
    assert np.bincount(split.public.labels).tolist() == [2, 2, 2]
    assert len(split.test) == 12


def test_one_domain_a_site(folder: Any, make_study: Any) -> None:
    folder.columns = ["path", "label", "domain"]
    for number in range(30):
        folder.add(f"{number}.png", CLASSES[number % 3], "photo" if number < 15 else "sketch")
    data = {"kind": "manifest", "manifest": str(folder.write()), "partition": {"kind": "domain"}}
    split = split_study(make_study(data, sites=2))
    for code, site in enumerate(split.sites.values()):
        assert site.train.domains is not None
        assert set(site.train.domains.tolist()) == {code}
    assert split.sites["site-0"].train.domain_names == ("photo", "sketch")


@pytest.mark.parametrize("kind", ["iid", "dirichlet", "long-tail"])
def test_a_partition_that_tears_a_patient_apart_is_refused(folder: Any, make_study: Any, kind: str) -> None:
    data = {
        "kind": "manifest",
        "manifest": str(folder.patients(12, 5)),
        "partition": {"kind": kind, "imbalance": 1.0},
    }
    with pytest.raises(DataError, match="one patient at several sites"):
        split_study(make_study(data, sites=2))


def own_manifests(folder: Any, names: tuple[str, ...], n_patients: int = 6) -> list[dict[str, str]]:
    kind = type(folder)
    return [
        {"name": name, "manifest": str(kind(folder.folder / name).patients(n_patients, 3))} for name in names
    ]


def test_each_site_may_bring_its_own_manifest(folder: Any, make_study: Any) -> None:
    sites = own_manifests(folder, ("north", "south"))
    public = type(folder)(folder.folder / "public").patients(2, 3)
    data = {"kind": "manifest", "public_manifest": str(public), "holdout_fraction": 0.34}
    split = split_study(make_study(data, sites=sites))
    for name, site in split.sites.items():
        for part in (site.train, site.holdout):
            assert all(path.parts[-3] == name for path in part.paths)  # type: ignore[attr-defined]
        assert site.train.patients is not None
        assert site.holdout.patients is not None
        assert set(site.train.patients).isdisjoint(site.holdout.patients)
        assert len(site.train) + len(site.holdout) == 18
    assert len(split.public) == 6
    assert len(split.test) == 0
    assert split.test.images([], size=14).shape == (0, 14, 14, 3)
    assert_no_image_twice(split)


def test_a_site_opens_no_other_sites_manifest(folder: Any, make_study: Any) -> None:
    sites = own_manifests(folder, ("north", "south"))
    Path(sites[1]["manifest"]).unlink()
    study = make_study({"kind": "manifest"}, sites=sites)
    assert list(split_study(study, only=["north"]).sites) == ["north"]
    with pytest.raises(DataError, match="south"):
        split_study(study)


def test_public_images_are_read_without_any_other_manifest(folder: Any, make_study: Any) -> None:
    public = type(folder)(folder.folder / "public").patients(2, 3)
    sites = [{"name": name, "manifest": "at-the-site"} for name in ("north", "south")]
    data = {"kind": "manifest", "public_manifest": str(public), "test_manifest": "at-the-site"}
    found = load_public(make_study(data, sites=sites))
    assert {path.parts[-3] for path in found.paths} == {"public"}  # type: ignore[attr-defined]
    assert len(found) == 6
    assert len(load_public(make_study({"kind": "manifest"}, sites=sites))) == 0


def test_an_image_that_is_private_and_in_the_test_manifest_too_is_refused(
    folder: Any, make_study: Any
) -> None:
    sites = own_manifests(folder, ("north", "south"))
    data = {"kind": "manifest", "test_manifest": sites[1]["manifest"]}
    with pytest.raises(DataError, match="belongs to the test images and to south"):
        split_study(make_study(data, sites=sites))


def test_named_public_and_test_manifests_leave_all_of_the_private_one_to_the_sites(
    folder: Any, make_study: Any
) -> None:
    kind = type(folder)
    manifests = {name: str(kind(folder.folder / name).patients(4, 3)) for name in ("all", "public", "test")}
    data = {"kind": "manifest", "manifest": manifests["all"], "public_manifest": manifests["public"],
            "test_manifest": manifests["test"], "public_images": 5}  # fmt: skip
    split = split_study(make_study(data, sites=2))
    assert sum(len(site.train) + len(site.holdout) for site in split.sites.values()) == 12
    assert len(split.public) == len(split.test) == 12


@pytest.mark.parametrize("by_patient", [True, False])
@pytest.mark.parametrize("removed", [0, 7, -1])
def test_one_unit_less_at_a_site_moves_no_other_unit_into_or_out_of_training(
    folder: Any, make_study: Any, by_patient: bool, removed: int
) -> None:
    """Adding or removing a unit must change the training set by that unit, or its noise covers too little."""
    manifest = folder.patients(40, 3)
    header, *rows = manifest.read_text().splitlines()
    if not by_patient:
        header, rows = header.rpartition(",")[0], [row.rpartition(",")[0] for row in rows]
    sites = [{"name": "north", "manifest": str(manifest)}, *own_manifests(folder, ("south",))]
    study = make_study({"kind": "manifest", "holdout_fraction": 0.3}, sites=sites)

    def parts(kept: list[str]) -> tuple[set[Any], set[Any]]:
        manifest.write_text("\n".join([header, *kept]) + "\n")
        site = split_study(study, only=["north"]).sites["north"]
        return set(site.train.paths), set(site.holdout.paths)  # type: ignore[attr-defined]

    train, holdout = parts(rows)
    assert 0 < len(holdout) < len(train)
    unit = rows[removed].rpartition(",")[2] if by_patient else rows[removed]
    left = [row for row in rows if not row.endswith(unit)]
    assert len(rows) - len(left) == (3 if by_patient else 1)
    fewer_train, fewer_holdout = parts(left)
    assert fewer_train <= train
    assert fewer_holdout <= holdout
    assert len(fewer_train) + len(fewer_holdout) == len(left)


def test_about_the_fraction_of_units_is_held_back_and_other_units_by_another_seed(
    folder: Any, make_study: Any
) -> None:
    sites = own_manifests(folder, ("north", "south"), n_patients=300)
    data = {"kind": "manifest", "holdout_fraction": 0.25}
    studies = [make_study(data, sites=sites, seed=seed) for seed in (0, 1)]
    held = [set(split_study(study, only=["north"]).sites["north"].holdout.paths) for study in studies]  # type: ignore[attr-defined]
    for one in held:
        assert abs(len(one) / 900 - 0.25) < 4 * (0.25 * 0.75 / 300) ** 0.5  # four standard errors
    assert held[0] != held[1]


def test_a_site_whose_every_patient_is_held_back_says_so(folder: Any, make_study: Any) -> None:
    sites = own_manifests(folder, ("north", "south"), n_patients=1)
    with pytest.raises(DataError, match="site north has no records left"):
        split_study(make_study({"kind": "manifest", "holdout_fraction": 0.999}, sites=sites))
    split = split_study(make_study({"kind": "manifest", "holdout_fraction": 0.0}, sites=sites))
    assert len(split.sites["north"].train) == 3
    assert len(split.sites["north"].holdout) == 0


def test_too_few_patients_for_the_sites_are_refused(folder: Any, make_study: Any) -> None:
    data = {"kind": "manifest", "manifest": str(folder.patients(3, 2))}
    with pytest.raises(DataError, match="2 patients cannot be divided over 3 sites"):
        split_study(make_study(data, sites=3))


def test_a_bad_image_is_found_by_the_early_check_of_the_whole_split(folder: Any, make_study: Any) -> None:
    manifest = folder.patients(10, 2)
    (folder.folder / "p7/1.png").write_bytes(b"broken")
    split = split_study(make_study({"kind": "manifest", "manifest": str(manifest)}))
    with pytest.raises(DataError, match=r"row 17 \(1.png\)"):
        split.check()


def test_fashion_mnist_itself_splits_as_the_demo_asks(make_study: Any) -> None:
    folder = cache_dir() / "fashion-mnist"
    if not all((folder / name).exists() for name in FASHION_MNIST.sha256):
        pytest.skip("Fashion-MNIST is not in the cache (the demo fetches it)")
    data = {"kind": "fashion-mnist", "partition": {"kind": "dirichlet"}}
    split = split_study(make_study(data, sites=4, classes=FASHION))
    assert np.bincount(split.public.labels).tolist() == [10] * 10
    assert [len(site.train) for site in split.sites.values()] == [2000] * 4


def test_a_real_manifest_with_patients_is_divided_by_patient(make_study: Any) -> None:
    """Set SECURE_TRIPLAY_TEST_MANIFEST to a manifest with patient_id, and ..._CLASSES to its labels."""
    manifest, classes = (os.environ.get(f"SECURE_TRIPLAY_TEST_{name}") for name in ("MANIFEST", "CLASSES"))
    if not manifest or not classes:
        pytest.skip("SECURE_TRIPLAY_TEST_MANIFEST and SECURE_TRIPLAY_TEST_CLASSES name no real data")
    data = {"kind": "manifest", "manifest": manifest, "public_images": 50}
    split = split_study(make_study(data, sites=4, classes=classes.split(",")))
    assert_no_patient_in_two_parts(split)
    assert_no_image_twice(split)
    assert split.sites["site-0"].train.images([0, 1], size=56).shape == (2, 56, 56, 3)


def test_a_balanced_union_has_each_class_alike_while_its_sites_are_skewed(root):
    """The demo's own partition: what its configuration says is what its sites get."""
    study = load_study(root / "configs" / "demo.yaml")
    try:
        split = split_study(study)
    except AssetError as error:
        pytest.skip(f"Fashion-MNIST cannot be had here: {error.what}")
    held = [np.concatenate([site.train.labels, site.holdout.labels]) for site in split.sites.values()]
    counts = np.stack([np.bincount(labels, minlength=10) for labels in held])
    assert counts.sum(axis=1).tolist() == [2120] * 4
    assert np.abs(counts.sum(axis=0) - 848).max() <= 4
    assert (counts < 40).sum() >= 8
