"""What a cell's file holds, checked before it is taken for a result: a table has no figure that cannot be one."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import ConfigDict, Field, ValidationError

from secure_triplay.config import Study
from secure_triplay.schema import Frozen

Share = Annotated[float, Field(ge=0, le=1)]
Whole = Annotated[int, Field(ge=0, le=2**63)]
Seconds = Annotated[float, Field(ge=0, le=1e12)]


class Point(Frozen):
    """One look at a method while it trained."""

    round: Annotated[int, Field(ge=1, le=2**31)]
    cpu_seconds: float
    accuracy: Share


class Noise(Frozen):
    """What of a study's noise is shown; there is more."""

    model_config = ConfigDict(extra="allow")

    kind: str
    std_of_mean: Annotated[float, Field(ge=0)]
    noise_multiplier: Annotated[float, Field(ge=0)]
    accountant: str
    epsilon: Annotated[float, Field(ge=0)]


class Figures(Frozen):
    """All that tables, plots and sums read of a cell. What later states of the program added may be missing."""

    model_config = ConfigDict(extra="allow")

    data: str
    method: str
    seed: int
    accuracy: Share
    worst_site: Share | None
    worst_site_public: Share
    mean_site: Share | None
    by_site: dict[str, Share]
    by_class: list[Share | None]
    worst_class: Share
    head: Share | None
    middle: Share | None
    tail: Share | None
    epsilon: Annotated[float, Field(gt=0)] | None
    delta: Annotated[float, Field(gt=0, lt=1)] | None
    rounds: Whole
    n_params: Whole
    noise: Noise | None = None
    upload_bytes: Whole
    download_bytes: Whole | None = None
    curve: list[Point] = Field(default_factory=list)
    class_counts: dict[str, list[Whole]] | None = None
    peak_bytes: Whole | None = None
    seconds: Seconds
    cpu_seconds: Seconds
    loading_cpu_seconds: Seconds = 0.0
    encoding_cpu_seconds: Seconds = 0.0
    encoded_images: Whole = 0
    image_frozen_bytes: Whole | None = None
    made_by: dict[str, str] | None = None


def wrong_in(found: Any, data: str, method: str, study: Study) -> str:
    """Why a cell's content is no result of this method on this data with this study, or nothing."""
    try:
        figures = Figures.model_validate(found)
    except ValidationError as error:
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc'])) or 'the file'}: {first['msg']}"
    sites, n_classes = {site.name for site in study.sites}, len(study.classes)
    for name, said, due in (
        ("data", figures.data, data),
        ("method", figures.method, method),
        ("seed", figures.seed, study.seed),
        ("by_class", len(figures.by_class), n_classes),
    ):
        if said != due:
            return f"{name}: {said} where {due} is due"
    if not figures.by_site.keys() <= sites:
        return "by_site: it names a site that the study has not"
    counts = figures.class_counts or {}
    lengths = {len(one) for one in counts.values()}
    if "class_counts" in found and (counts.keys() != sites or lengths != {n_classes}):
        return "class_counts: they are not of the study's sites and classes"
    return ""
