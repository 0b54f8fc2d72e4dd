"""Where records come from, and which sites have them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from secure_triplay.config.kinds import Count, Name, Positive
from secure_triplay.schema import Frozen


class Partition(Frozen):
    """How a data set is divided over simulated sites."""

    kind: Literal["iid", "dirichlet", "domain", "long-tail", "patient"] = "iid"
    alpha: Positive = Field(0.3, description="dirichlet: smaller is more skewed")
    union: Literal["as-drawn", "balanced"] = Field(
        "as-drawn", description="dirichlet, balanced: all sites together have each class alike"
    )
    imbalance: Annotated[float, Field(ge=1)] = Field(50.0, description="long-tail: first class / last class")
    size_ratio: Annotated[float, Field(ge=1, le=1000)] = Field(
        1.0, description="largest site / smallest, the others between in equal steps of a factor"
    )
    scanners: Literal["same", "differ"] = Field(
        "same", description="differ: each simulated site's images get the fixed shift of data/scanners.py"
    )

    @model_validator(mode="after")
    def _sizes_can_be_chosen(self) -> Partition:
        if self.size_ratio != 1 and self.kind in ("domain", "patient"):
            raise ValueError(f"kind: {self.kind} gives every record away, so size_ratio has no say")
        return self


class FashionMnist(Frozen):
    """Fashion-MNIST divided over simulated sites; public images come from outside every site's share."""

    kind: Literal["fashion-mnist"]
    public_images: Count = Field(
        100, description="public images: they align the packaged projection, and give A (`basis: public`)"
    )
    test_images: Annotated[int, Field(ge=1, le=10000)] = 2000
    records_per_site: Count = 2000
    holdout_per_site: Annotated[int, Field(ge=0)] = Field(
        200, description="kept back at the site, never trained on"
    )
    partition: Partition = Partition()


class Manifest(Frozen):
    """Site data by manifest: CSV with path,label and optionally patient_id,domain.

    Either every site names its own manifest, or one `manifest` is divided over simulated sites by patient.
    """

    kind: Literal["manifest"]
    manifest: str | None = Field(None, description="one manifest, divided over simulated sites")
    public_manifest: str | None = Field(
        None,
        description="images that anybody may see: they align the packaged projection, and give A (`basis: public`)",
    )
    test_manifest: str | None = Field(None, description="public test images")
    public_images: Annotated[int, Field(ge=0)] = Field(
        0, description="carved out of `manifest` by patient; nothing protects them"
    )
    test_domain: str | None = Field(
        None, description="test on all of this domain of `manifest`; the sites have the others"
    )
    test_fraction: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.2, description="of patients, from `manifest`"
    )
    holdout_fraction: Annotated[float, Field(ge=0, lt=1)] = Field(0.1, description="kept back at each site")
    partition: Partition = Partition(kind="patient")

    @property
    def only_for_one_manifest(self) -> tuple[str, ...]:
        """What was set that says how `manifest` is divided, by name."""
        names = ("partition", "public_images", "test_fraction", "test_domain")
        return tuple(name for name in names if getattr(self, name) != type(self).model_fields[name].default)


class Site(Frozen):
    """One site; its weight in the mean is a public constant, never a record count."""

    name: Name
    weight: Positive = 1.0
    manifest: str | None = None
    rank: Annotated[int, Field(ge=1, le=256)] | None = Field(
        None,
        description="kind ffa: how many of adapter.rank columns of each B this site trains; left out: all",
    )
