"""From a study to its records: public ones, test ones, and each site's, none of them in two places.

Where patients are named, no patient is in two of these either. Every draw is seeded by the study's public
seed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from secure_triplay.assets import fashion_mnist
from secure_triplay.config import FashionMnist, Manifest, Partition, Study
from secure_triplay.data.fashion import load_fashion_mnist
from secure_triplay.data.manifest import FileRecords, load_manifest
from secure_triplay.data.partition import (
    Shares,
    balanced_dirichlet,
    balanced_draw,
    by_domain,
    by_patient,
    dirichlet,
    iid,
    long_tail,
    long_tail_total,
    site_sizes,
    stream,
)
from secure_triplay.data.records import ArrayRecords, Codes, Records
from secure_triplay.data.scanners import SCANNERS, ScannedRecords
from secure_triplay.errors import DataError

_WHERE = "data.partition"
_NO_RECORDS = ArrayRecords(np.empty((0, 1, 1), np.uint8), np.empty(0, np.int64))


@dataclass(frozen=True)
class SiteData:
    """One site's records: those that it trains on, and those that it keeps back to measure with."""

    train: Records
    holdout: Records


@dataclass(frozen=True)
class Split:
    """A study's records. `public` and `test` are public and may be empty; `sites` are private."""

    public: Records
    test: Records
    sites: dict[str, SiteData]

    def check(self) -> None:
        """Read every image once. Raises DataError naming the first that cannot be used."""
        for records in (self.public, self.test):
            records.check()
        for site in self.sites.values():
            site.train.check()
            site.holdout.check()


def split_study(
    study: Study, *, only: Sequence[str] | None = None, notify: Callable[[str], None] | None = None
) -> Split:
    """The study's records; with `only`, those of the named sites, and no other site's manifest is opened.

    Raises DataError where data are missing, unfit or too few, AssetError where a packaged set cannot be had.
    """
    names = [site.name for site in study.sites]
    if unknown := sorted(set(only or ()) - set(names)):
        raise DataError(
            f"no such site: {', '.join(unknown)}", where="sites", fix=f"sites are {', '.join(names)}"
        )
    if isinstance(study.data, FashionMnist):
        split = _split_fashion(study, study.data, notify)
    elif study.data.manifest is not None:
        split = _split_one_manifest(study, study.data, study.data.manifest)
    else:
        return _own_manifests(study, study.data, names if only is None else list(only))
    if study.data.partition.scanners == "differ":
        split = Split(split.public, split.test, _scanned(split.sites))
    if only is None:
        return split
    return Split(split.public, split.test, {name: split.sites[name] for name in only})


def load_public(study: Study) -> Records:
    """The study's public images alone; no site's manifest is opened, unless one is divided over simulated sites.

    Raises DataError or AssetError.
    """
    data = study.data
    if isinstance(data, FashionMnist) or data.manifest is not None:
        return split_study(study, only=[]).public
    if data.public_manifest is None:
        return _NO_RECORDS
    return load_manifest(data.public_manifest, [entry.name for entry in study.classes])


def _scanned(sites: dict[str, SiteData]) -> dict[str, SiteData]:
    """Each site's images as its own scanner takes them, training and held-back ones alike."""
    return {
        name: SiteData(
            *(ScannedRecords(part, SCANNERS[place % len(SCANNERS)]) for part in (own.train, own.holdout))
        )
        for place, (name, own) in enumerate(sites.items())
    }


def _split_fashion(study: Study, data: FashionMnist, notify: Callable[[str], None] | None) -> Split:
    """Public and site records from the official training split, test records from the official test split."""
    folder = fashion_mnist(notify)
    classes = [entry.name for entry in study.classes]
    train, test = load_fashion_mnist(folder, "train", classes), load_fashion_mnist(folder, "test", classes)
    public, shares = _fashion_rows(study, data, train)
    measured = _balanced(test, data.test_images, study.seed, "test")
    sites: dict[str, SiteData] = {}
    for site, share in zip(study.sites, shares, strict=True):
        mixed = stream(study.seed, f"holdout {site.name}").permutation(share)
        kept, used = np.sort(mixed[: data.holdout_per_site]), np.sort(mixed[data.holdout_per_site :])
        sites[site.name] = SiteData(train=train.take(used), holdout=train.take(kept))
    return Split(train.take(public), test.take(measured), sites)


def _fashion_rows(study: Study, data: FashionMnist, train: Records) -> tuple[Codes, Shares]:
    """Rows of the training split: public ones, and each site's."""
    public = _balanced(train, data.public_images, study.seed, "public")
    rest = np.setdiff1d(np.arange(len(train)), public)
    trained = site_sizes(
        data.records_per_site * len(study.sites), len(study.sites), data.partition.size_ratio
    )
    sizes = [size + data.holdout_per_site for size in trained]
    shares = divide(train.take(rest), data.partition, len(study.sites), sizes, stream(study.seed, "sites"))
    return public, tuple(rest[share] for share in shares)


def spare_fashion(study: Study) -> Records:
    """Fashion-MNIST's training images that are neither public in the study nor at any of its sites.

    Raises DataError where the study's data are others.
    """
    if not isinstance(study.data, FashionMnist):
        raise DataError("these are a site's own data", where="data", fix="take its public images")
    train = load_fashion_mnist(fashion_mnist(None), "train", [entry.name for entry in study.classes])
    public, shares = _fashion_rows(study, study.data, train)
    return train.take(np.setdiff1d(np.arange(len(train)), np.concatenate([public, *shares])))


def _balanced(records: Records, n: int, seed: int, purpose: str) -> Codes:
    return balanced_draw(records.labels, n, stream(seed, purpose), where=f"data.{purpose}_images")


def _split_one_manifest(study: Study, data: Manifest, path: str) -> Split:
    """One manifest over simulated sites; test and public records carved out first, by patient where named."""
    classes = [entry.name for entry in study.classes]
    records = load_manifest(path, classes)
    rest = np.arange(len(records))
    test: Records
    public: Records
    if data.test_domain is not None:
        chosen, rest = _leave_out(records, data.test_domain)
        test = records.take(chosen)
    elif data.test_manifest is None:
        chosen, rest = _carve(_units(records), rest, data.test_fraction, stream(study.seed, "test"))
        test = records.take(chosen)
    else:
        test = load_manifest(data.test_manifest, classes)
    if data.public_manifest is None:
        chosen, rest = _carve_public(records, rest, data.public_images, stream(study.seed, "public"))
        public = records.take(chosen)
    else:
        public = load_manifest(data.public_manifest, classes)
    private = records.take(rest)
    _refuse_shared_images({"the public images": public, "the test images": test, "the sites": private})
    shares = divide(private, data.partition, len(study.sites), None, stream(study.seed, "sites"))
    sites = {
        site.name: _draw_back(private.take(share), data.holdout_fraction, study.seed, site.name)
        for site, share in zip(study.sites, shares, strict=True)
    }
    return Split(public, test, sites)


def _own_manifests(study: Study, data: Manifest, names: list[str]) -> Split:
    """Each site its own manifest; public and test images only from manifests that are named as such."""
    classes = [entry.name for entry in study.classes]
    paths = {site.name: str(site.manifest) for site in study.sites}
    own = {name: load_manifest(paths[name], classes) for name in names}
    public, test = (
        _NO_RECORDS if path is None else load_manifest(path, classes)
        for path in (data.public_manifest, data.test_manifest)
    )
    _refuse_shared_images({"the public images": public, "the test images": test, **own})
    sites = {name: _hold_back(own[name], data.holdout_fraction, study.seed, name) for name in names}
    return Split(public, test, sites)


def divide(
    records: Records, rule: Partition, n_sites: int, sizes: list[int] | None, rng: np.random.Generator
) -> Shares:
    """Shares of the records by the study's rule; without `sizes`, equal ones of all that there are.

    Raises DataError where the rule asks for more records, or for columns, than there are.
    """
    if sizes is None:
        n = long_tail_total(records.labels, rule.imbalance) if rule.kind == "long-tail" else len(records)
        sizes = site_sizes(n, n_sites, rule.size_ratio)
    asked = sizes
    skewed = balanced_dirichlet if rule.union == "balanced" else dirichlet
    rules: dict[str, Callable[[], Shares]] = {
        "iid": lambda: iid(len(records), asked, rng),
        "dirichlet": lambda: skewed(records.labels, asked, rule.alpha, rng),
        "long-tail": lambda: long_tail(records.labels, asked, rule.imbalance, rng),
        "domain": lambda: by_domain(_column(records.domains, "domain"), n_sites, rng),
        "patient": lambda: by_patient(_column(records.patients, "patient_id"), n_sites, rng),
    }
    shares = rules[rule.kind]()
    if not all(len(share) for share in shares):
        raise DataError(
            f"{len(records)} records are too few for {n_sites} sites", where=_WHERE, fix="name fewer sites"
        )
    if records.patients is not None:
        seen = np.concatenate([np.unique(records.patients[share]) for share in shares])
        if len(np.unique(seen)) != len(seen):
            raise DataError(
                f"partition {rule.kind!r} puts images of one patient at several sites",
                where=_WHERE,
                fix="use kind: patient, which keeps each patient's images together",
            )
    return shares


def _column(codes: Codes | None, name: str) -> Codes:
    if codes is None:
        raise DataError(
            f"the data name no {name}",
            where=_WHERE,
            fix=f"add a column {name} to the manifest, or choose another kind of partition",
        )
    return codes


def _carve(units: Codes, rest: Codes, fraction: float, rng: np.random.Generator) -> tuple[Codes, Codes]:
    """Records of a fraction of the units among `rest` (one at least, unless it is 0), and the others."""
    present = rng.permutation(np.unique(units[rest]))
    n_chosen = max(1, round(fraction * len(present))) if fraction else 0
    chosen = np.isin(units[rest], present[:n_chosen])
    return rest[chosen], rest[~chosen]


def _leave_out(records: FileRecords, domain: str) -> tuple[Codes, Codes]:
    """All records of a domain, and all others (leave-one-domain-out)."""
    codes = _column(records.domains, "domain")
    if domain not in records.domain_names:
        raise DataError(
            f"the data have no domain {domain!r}",
            where="data.test_domain",
            fix=f"domains are {', '.join(records.domain_names)}",
        )
    chosen = codes == records.domain_names.index(domain)
    return np.flatnonzero(chosen), np.flatnonzero(~chosen)


def _carve_public(records: FileRecords, rest: Codes, n: int, rng: np.random.Generator) -> tuple[Codes, Codes]:
    """`n` records, balanced over the classes of as many patients as hold them; those patients stay public."""
    units = _units(records)
    present = rng.permutation(np.unique(units[rest]))
    if records.patients is None:
        chosen = rest
    else:
        held = np.cumsum([(units[rest] == unit).sum() for unit in present])
        chosen = rest[np.isin(units[rest], present[: np.searchsorted(held, n) + 1 if n else 0])]
    drawn = chosen[balanced_draw(records.labels[chosen], n, rng, where="data.public_images")]
    used = chosen if records.patients is not None else drawn
    return drawn, np.setdiff1d(rest, used)


def _hold_back(records: FileRecords, fraction: float, seed: int, site: str) -> SiteData:
    """A site's records as training and held-back ones: a unit is held back where a hash of its own name says so.

    The hash is of the public seed, the site's name and the unit's (`FileRecords.units`), and of nothing else: one
    unit more or less moves no other from one part to the other. What a site releases is private for adding or
    removing a unit only because of that. About the fraction is held back, and at a small site perhaps nothing.
    """
    salt = f"{seed}\0{site}\0".encode()
    numbers = [hashlib.sha256(salt + name.encode()).digest()[:8] for name in records.units]
    kept = np.array([int.from_bytes(number, "big") < fraction * 2**64 for number in numbers])
    return _divided(records, np.flatnonzero(kept), np.flatnonzero(~kept), fraction, site)


def _draw_back(records: Records, fraction: float, seed: int, site: str) -> SiteData:
    """The same at a simulated site, with exactly the fraction of its units: nobody's privacy rests on it there."""
    everything = np.arange(len(records))
    kept, used = _carve(_units(records), everything, fraction, stream(seed, f"holdout {site}"))
    return _divided(records, kept, used, fraction, site)


def _divided(records: Records, kept: Codes, used: Codes, fraction: float, site: str) -> SiteData:
    if not len(used):
        raise DataError(
            f"site {site} has no records left to train on after {fraction:.0%} are held back",
            where="data.holdout_fraction",
            fix="hold back less, or give the site more patients",
        )
    return SiteData(train=records.take(used), holdout=records.take(kept))


def _units(records: Records) -> Codes:
    """What may not be torn apart: patients, or records where no patients are named."""
    return np.arange(len(records)) if records.patients is None else records.patients


def _refuse_shared_images(parts: dict[str, Records]) -> None:
    """Manifests may overlap by mistake; a test image that was trained on would make every figure a lie."""
    owner: dict[Path, str] = {}
    for name, records in parts.items():
        if not isinstance(records, FileRecords):
            continue
        for image, row in zip(records.paths, records.rows, strict=True):
            if owner.setdefault(image, name) != name:
                raise DataError(
                    f"image {image.name} belongs to {owner[image]} and to {name}",
                    where=f"{records.manifest}, row {row}",
                    fix="list each image in one manifest only",
                )
