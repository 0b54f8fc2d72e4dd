"""The pilot's images: public ones, and none of a site's.

Where a study divides Fashion-MNIST, every image of it is public, and the sample is drawn from those that no site
has. Elsewhere it is the study's public images. Either way it is the public test images where a person says so.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from secure_triplay.config import FashionMnist, Study
from secure_triplay.data.partition import balanced_draw, iid, stream
from secure_triplay.data.records import Codes, Records
from secure_triplay.data.split import SiteData, Split, divide, spare_fashion, split_study
from secure_triplay.errors import DataError
from secure_triplay.pilot.choices import site_units

FEWEST = 60
_MEASURED_SHARE = 0.4
_BATCH = 256


@dataclass(frozen=True)
class Sample:
    """Public records as a split of their own: `split.public` aligns, its sites train, its test records measure.

    `partition` is how they are divided over the sites: the study's own kind, or `iid` where they do not allow it.
    """

    split: Split
    source: str
    partition: str
    training_images: int
    measured_images: int

    def sha256(self, image_size: int) -> str:
        """Hash of what a model sees of it: images at their loaded size, labels, and which records are one patient's.

        The images that align are in it, as each site's are for itself.
        """
        found = hashlib.sha256()
        for records in (
            self.split.public,
            self.split.test,
            *(own.train for own in self.split.sites.values()),
        ):
            found.update(f"{len(records)} {records.patients is not None}\n".encode())
            found.update(records.labels.tobytes())
            found.update(b"" if records.patients is None else records.patients.tobytes())
            for rows in np.split(np.arange(len(records)), range(_BATCH, len(records), _BATCH)):
                found.update(records.images(rows, image_size).tobytes() if len(rows) else b"")
        return found.hexdigest()


def public_sample(study: Study, size: int, *, use_test_images: bool = False) -> Sample:
    """At most `size` public images, divided over as many sites as the study has. Raises DataError where too few."""
    own = split_study(study, only=[])  # opens no site's manifest
    if use_test_images:
        records, source = own.test, "the study's public TEST images (measure the finished model on others)"
    elif isinstance(study.data, FashionMnist):
        records, source = spare_fashion(study), "Fashion-MNIST's training images that no site has"
    else:
        records, source = own.public, "the study's public images, which also align the projection"
    if len(records) < FEWEST:
        raise DataError(
            f"there are {len(records)} public images to try settings on; fewer than {FEWEST} say nothing",
            where="data",
            fix=_more_of_them(study, use_test_images),
        )
    rng = stream(study.seed, "pilot")
    drawn = records.take(balanced_draw(records.labels, min(size, len(records)), rng, where="sample"))
    measured = _measured(drawn, rng)
    train, test = drawn.take(np.flatnonzero(~measured)), drawn.take(np.flatnonzero(measured))
    partition, shares = _shares(study, train, rng)
    none = train.take([])
    sites = {
        site.name: SiteData(train.take(share), none) for site, share in zip(study.sites, shares, strict=True)
    }
    return Sample(Split(own.public, test, sites), source, partition, sum(map(len, shares)), len(test))


def caveats(study: Study, sample: Sample) -> list[str]:
    """In which ways the sample's sites are not like the study's, as far as that may turn a choice: a sentence each."""
    found = []
    units = [
        len(own.train) if own.train.patients is None else len(np.unique(own.train.patients))
        for own in sample.split.sites.values()
    ]
    here, there = float(np.mean(units)), site_units(study)
    if here < there / 2:
        found.append(
            f"A site of the sample has {here:,.0f} {study.dp.unit if study.dp else 'record'}s where the study's "
            f"constants fit {there:,.0f}; in our own runs small steps did better at small sites than at large ones "
            "(--sample takes more images, where there are more)."
        )
    if sample.partition != study.data.partition.kind or any(site.manifest for site in study.sites):
        found.append(
            f"The sample is divided over its sites by {sample.partition}, which is not how the sites' own records "
            "are: which server optimiser is best may depend on that."
        )
    if study.trains_with_bias:
        found.append(
            "The study's sites train with the bias of their own classes (personal_bias.in_training), and those of the "
            "sample do not."
        )
    return found


def _more_of_them(study: Study, use_test_images: bool) -> str:
    fashion = isinstance(study.data, FashionMnist)
    if use_test_images:
        return "raise test_images" if fashion else "name a test_manifest with more of them"
    more = (
        "lower records_per_site"
        if fashion
        else "name a public_manifest with more of them, or raise public_images"
    )
    return f"{more}; or say --use-test-images"


def _measured(records: Records, rng: np.random.Generator) -> NDArray[np.bool_]:
    """(n,) true for what measures and does not train: of each class alike, or whole patients."""
    if records.patients is None:
        chosen = balanced_draw(records.labels, round(_MEASURED_SHARE * len(records)), rng, where="sample")
        return np.isin(np.arange(len(records)), chosen)
    present = rng.permutation(np.unique(records.patients))
    return np.isin(records.patients, present[: max(1, round(_MEASURED_SHARE * len(present)))])


def _shares(study: Study, records: Records, rng: np.random.Generator) -> tuple[str, tuple[Codes, ...]]:
    """The study's own skew where public images allow it; equal sites, their classes alike, otherwise.

    All images are given away, but for a `long-tail`, which leaves out what would make rare classes frequent. So the
    classes of all sites together are alike, as `union: balanced` asks; to search for that needs images to spare.
    """
    n_sites, rule = len(study.sites), study.data.partition
    if len(records) < n_sites:
        raise DataError(
            f"{len(records)} public images are too few for {n_sites} sites",
            where="data",
            fix="name more public images",
        )
    try:
        return rule.kind, divide(records, rule.model_copy(update={"union": "as-drawn"}), n_sites, None, rng)
    except DataError:
        return "iid", iid(len(records), [len(records) // n_sites] * n_sites, rng)
