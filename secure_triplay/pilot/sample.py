"""The pilot's images: public ones, and none of a site's.

Where a study divides Fashion-MNIST, every image of it is public, and the sample is drawn from those that no site
has. Elsewhere it is the study's public images. Either way it is the public test images where a person says so.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from secure_triplay.config import FashionMnist, Study
from secure_triplay.data.partition import balanced_draw, iid, stream
from secure_triplay.data.records import Codes, Records
from secure_triplay.data.split import SiteData, Split, divide, spare_fashion, split_study
from secure_triplay.errors import DataError

FEWEST = 60
_MEASURED_SHARE = 0.4
_BATCH = 256


@dataclass(frozen=True)
class Sample:
    """Public records as a split of their own: `split.public` aligns, its sites train, its test records measure."""

    split: Split
    source: str
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
    units = np.arange(len(drawn)) if drawn.patients is None else drawn.patients
    present = rng.permutation(np.unique(units))
    measured = np.isin(units, present[: max(1, round(_MEASURED_SHARE * len(present)))])
    train, test = drawn.take(np.flatnonzero(~measured)), drawn.take(np.flatnonzero(measured))
    shares = _shares(study, train, rng)
    none = train.take([])
    sites = {
        site.name: SiteData(train.take(share), none) for site, share in zip(study.sites, shares, strict=True)
    }
    return Sample(Split(own.public, test, sites), source, sum(map(len, shares)), len(test))


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


def _shares(study: Study, records: Records, rng: np.random.Generator) -> tuple[Codes, ...]:
    """The study's own skew where public images allow it; equal sites, their classes alike, otherwise."""
    n_sites = len(study.sites)
    if len(records) < n_sites:
        raise DataError(
            f"{len(records)} public images are too few for {n_sites} sites",
            where="data",
            fix="name more public images",
        )
    try:
        return divide(records, study.data.partition, n_sites, None, rng)
    except DataError:
        return iid(len(records), [len(records) // n_sites] * n_sites, rng)
