"""A study as a frozen, validated object: YAML in, `Study` or a `ConfigError` out.

Everything in a study is public: it is what the sites agree on and what an auditor reads. Nothing here is
derived from a site's records; sampling rates, normalisers and weights are constants that people chose.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    PrivateAttr,
    ValidationError,
    field_validator,
    model_validator,
)

from secure_triplay.errors import ConfigError
from secure_triplay.schema import Frozen, lists_to_tuples, read_yaml, readable_error

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,47}$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


class ClassPrompts(Frozen):
    """One class and the sentences that describe it to the text tower."""

    name: Annotated[str, Field(min_length=1, max_length=80)]
    prompts: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)]


class Backbone(Frozen):
    """The frozen model that every site must have, named by hash and licence."""

    source: Literal["packaged", "open_clip", "file"]
    name: str = Field(description="open_clip's model name, or dinov2-small-minilm-l6 for the packaged one")
    pretrained: str | None = Field(None, description="open_clip tag (source open_clip) or path (source file)")
    sha256: Sha256 | None = Field(None, description="of the weight file; packaged: of the image tower's file")
    text_sha256: Sha256 | None = Field(None, description="packaged only: of the text tower's file")
    licence: str
    allowed_licences: tuple[str, ...] = ("Apache-2.0", "MIT", "BSD-3-Clause")
    quantization: Literal["nf4", "int8", "none"] = "nf4"
    compute: Literal["float32", "bfloat16", "auto"] = Field(
        "float32", description="of nf4 layers' products; auto: bfloat16 where the processor has it"
    )
    image_size: Annotated[int, Field(ge=14, le=1024)] = 224
    align_ridge: Positive = Field(0.1, description="packaged only: ridge of the projection's alignment")
    unsafe_random_weights: bool = Field(False, description="for measuring size and speed only")

    @model_validator(mode="after")
    def _complete(self) -> Backbone:
        if self.licence not in self.allowed_licences:
            raise ValueError(
                f"the backbone's licence {self.licence!r} is not among allowed_licences "
                f"{list(self.allowed_licences)}; choose another backbone, or have the licence approved and add it"
            )
        if self.unsafe_random_weights:
            return self
        if self.sha256 is None:
            raise ValueError("sha256 of the weight file is missing; without it nobody knows what was trained")
        if self.source == "packaged" and self.text_sha256 is None:
            raise ValueError("text_sha256 is missing; the packaged backbone has two weight files")
        if self.source != "packaged" and not self.pretrained:
            raise ValueError("pretrained is missing; give open_clip's tag, or the path of the weight file")
        return self


class Adapter(Frozen):
    """The trained part: LoRA on the last blocks of the image tower."""

    kind: Literal["ffa", "lora"] = Field("ffa", description="ffa: A frozen, B trained and sent; lora: both")
    rank: Annotated[int, Field(ge=1, le=256)] = 4
    alpha: Positive = 8.0
    target_modules: str = Field(r"attn\.(qkv|proj)", description="regex, full match inside a block")
    last_blocks: Annotated[int, Field(ge=1, le=64)] = 4
    text_tower: bool = False
    basis: Literal["seed", "public"] = Field(
        "seed", description="ffa: A drawn from the public seed, or fitted to public images (simulation only)"
    )

    @model_validator(mode="after")
    def _basis_fits(self) -> Adapter:
        if self.basis == "public" and (self.kind != "ffa" or self.text_tower):
            raise ValueError(
                "basis: public is for a frozen A of the image tower; it needs kind: ffa, text_tower: false"
            )
        return self

    @field_validator("target_modules")
    @classmethod
    def _compiles(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"{value!r} is not a regular expression: {error}") from error
        return value


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
    public_images: Count = Field(100, description="public images that align the packaged projection")
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
    public_manifest: str | None = Field(None, description="public images that align the packaged projection")
    test_manifest: str | None = Field(None, description="public test images")
    public_images: Annotated[int, Field(ge=0)] = Field(0, description="carved out of `manifest` by patient")
    test_domain: str | None = Field(
        None, description="test on all of this domain of `manifest`; the sites have the others"
    )
    test_fraction: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.2, description="of patients, from `manifest`"
    )
    holdout_fraction: Annotated[float, Field(ge=0, lt=1)] = Field(0.1, description="kept back at each site")
    partition: Partition = Partition(kind="patient")


class Site(Frozen):
    """One site; its weight in the mean is a public constant, never a record count."""

    name: Name
    weight: Positive = 1.0
    manifest: str | None = None
    rank: Annotated[int, Field(ge=1, le=256)] | None = Field(
        None,
        description="kind ffa: how many of adapter.rank columns of each B this site trains; left out: all",
    )


class Training(Frozen):
    """Rounds and local steps; all of it public."""

    rounds: Annotated[int, Field(ge=1, le=10000)]
    steps_per_round: Count = 1
    learning_rate: Positive = Field(1.0, description="of the local steps; the server optimiser has its own")
    logit_scale: Positive = Field(20.0, description="inverse temperature of the cosine head")
    physical_batch_size: Count = Field(128, description="images in memory at once; changes nothing else")

    @field_validator("rounds", mode="before")
    @classmethod
    def _possible(cls, value: Any) -> Any:
        if _is_number(value) and not 1 <= value <= 10_000:
            raise ValueError(
                f"{value:,} rounds of training are impossible; give a whole number from 1 to 10,000 (fewer rounds "
                "cost less privacy)"
            )
        return value


class LocalNoise(Frozen):
    """Each site's noise is enough by itself, whoever else is honest."""

    kind: Literal["local"] = "local"


class SharedNoise(Frozen):
    """Each site adds a share of integer noise, and the shares of a masked sum are enough together.

    The guarantee then holds against those who see sums alone: the server and up to `aggregation.colluders` sites.
    Against more of them it is weaker; `config check` says by how much. Needs masks, one step a round, equal sites.
    """

    kind: Literal["shared"] = "shared"
    clip_steps: Annotated[int, Field(ge=8, le=1 << 20)] = Field(
        1024,
        description="steps of the integer grid in l2_clip_norm; gradients are rounded to it before the noise",
    )
    rounding_cost: Annotated[float, Field(ge=0.001, le=0.5)] = Field(
        0.02,
        description="share by which rounding may lengthen a record's gradient, and so what it adds to the noise",
    )

    @property
    def l2_sensitivity(self) -> int:
        """The longest that one record's rounded gradient can be, in steps of the grid."""
        return math.ceil((1 + self.rounding_cost) * self.clip_steps)


_NOISES: dict[str, type[LocalNoise] | type[SharedNoise]] = {"local": LocalNoise, "shared": SharedNoise}


class DpOn(Frozen):
    """Differential privacy of each site's records or patients; the noise follows from epsilon.

    `sampling_rate` and `expected_batch_size` count units: where the unit is the patient, the share of a
    site's patients that one step draws, and how many that is meant to be.
    """

    epsilon: Annotated[float, Field(ge=0.001, le=100, allow_inf_nan=False)]
    delta: Annotated[float, Field(gt=0, lt=1)]
    unit: Literal["record", "patient"] = "record"
    max_units_per_site: Count = Field(description="public upper bound on records (or patients) at any site")
    max_records_per_patient: Count | None = Field(
        None, description="unit patient: images used of one patient"
    )
    sampling_rate: Annotated[float, Field(gt=0, le=1)]
    expected_batch_size: Positive = Field(
        description="public normaliser of the summed gradients, in records (or patients)"
    )
    l2_clip_norm: Positive = Field(description="bound on the gradient of one record (or one patient)")
    noise: LocalNoise | SharedNoise = Field(
        LocalNoise(), description="local, or shared between sites (only where updates are masked)"
    )

    @field_validator("noise", mode="before")
    @classmethod
    def _which_noise(cls, value: Any) -> Any:
        if isinstance(value, (LocalNoise, SharedNoise)):
            return value
        kind = value.get("kind", "shared") if isinstance(value, dict) else value
        if not isinstance(kind, str) or kind not in _NOISES:
            raise ValueError("noise is local or shared, or `{kind: shared, clip_steps: ...}`")
        return _NOISES[kind].model_validate(value if isinstance(value, dict) else {})

    @field_validator("epsilon", mode="before")
    @classmethod
    def _epsilon_can_be_had(cls, value: Any) -> Any:
        if _is_number(value) and not value >= 0.001:
            raise ValueError(
                f"epsilon {value:g} cannot be had: at 0 nothing may be learned from anybody, and no noise is "
                "enough; choose one above 0 (1 to 10 is usual, smaller protects more)"
            )
        if _is_number(value) and not value <= 100:
            raise ValueError(
                f"epsilon {value:g} protects nobody: an attacker could be certain; choose 100 or less "
                "(1 to 10 is usual)"
            )
        return value

    @field_validator("delta", mode="before")
    @classmethod
    def _delta_means_something(cls, value: Any) -> Any:
        if _is_number(value) and not 0 < value < 1:
            raise ValueError(
                f"delta {value:g} is not a small chance above 0; it is the chance with which the guarantee may fail: "
                "choose 1 / (100 x max_units_per_site) or less; 0 cannot be had with Gaussian noise"
            )
        return value

    @field_validator("sampling_rate", mode="before")
    @classmethod
    def _rate_is_a_share(cls, value: Any) -> Any:
        if _is_number(value) and not 0 < value <= 1:
            raise ValueError(
                f"a step cannot use {value:.4g} of a site: that is "
                + ("more than there is" if value > 1 else "nobody at all")
                + "; give a share above 0 and at most 1"
            )
        return value

    @model_validator(mode="after")
    def _sound(self) -> DpOn:
        most = 1 / (100 * self.max_units_per_site)
        if self.delta > most * (1 + 1e-9):
            raise ValueError(
                f"delta {self.delta:g} is too large: with at most {self.max_units_per_site:,} {self.unit}s at a site "
                f"it may be {most:.2g} at most (1 / (100 x max_units_per_site))"
            )
        if self.expected_batch_size > self.max_units_per_site:
            raise ValueError(
                f"expected_batch_size {self.expected_batch_size:,g} is more {self.unit}s a step than exist: no site "
                f"has more than {self.max_units_per_site:,} (max_units_per_site); ask for fewer, or correct the bound"
            )
        if (self.unit == "patient") != (self.max_records_per_patient is not None):
            raise ValueError("max_records_per_patient belongs to unit: patient, and unit: patient needs it")
        return self


class DpOff(Frozen):
    """No privacy at all: what an adapter reveals is then unbounded. Marked in red wherever it shows."""

    unsafe_dp_off: Literal[True]
    sampling_rate: Annotated[float, Field(gt=0, le=1)]
    expected_batch_size: Positive


class ServerOptimiser(Frozen):
    """The step from the mean update to the next adapter, the same at every site (Reddi 2021)."""

    kind: Literal["fedavg", "fedavgm", "fedadam"] = "fedavg"
    learning_rate: Positive = 1.0
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.99
    tau: Positive = Field(1e-8, description="added to the root of the second moment")
    average_last: Annotated[int, Field(ge=1)] = Field(
        1, description="publish the mean of the last N adapters"
    )


class Codec(Frozen):
    """How an update becomes integers: public range, bits a value."""

    value_bits: Annotated[int, Field(ge=2, le=20)] = 9
    range: Positive | None = Field(None, description="largest |update|; left out: derived from the DP noise")
    range_noise_stds: Positive = Field(
        16.0, description="derived range, in standard deviations of one update (noise: local)"
    )


class Masked(Frozen):
    """Updates are masked before they are encrypted: server and up to `colluders` sites together learn only the sum.

    What is left out follows from the number of sites n: `dropouts` is three in ten, rounded down, and `colluders` as
    many as then can be, n - 2 x dropouts - 1, but at most n - 2. Where only one of the numbers stands, the others are
    as large as it allows. What cannot be had together is refused.
    """

    kind: Literal["masked"] = "masked"
    colluders: Annotated[int, Field(ge=0, le=998)] | None = Field(
        None, description="sites that may help the server, and still nobody sees another site's update"
    )
    dropouts: Annotated[int, Field(ge=0, le=999)] | None = Field(
        None, description="sites that may vanish in a round, and it is still completed"
    )
    threshold: Annotated[int, Field(ge=1, le=1000)] | None = Field(
        None,
        description="sites that make and sign a sum, and give a mask back; more than (n + colluders) / 2",
    )


class SharedKey(Frozen):
    """Updates are encrypted and no more: the server together with one site can read every update."""

    kind: Literal["shared-key"] = "shared-key"


class PublishedAccuracy(Frozen):
    """After the last round: how many of all sites' held-back records the adapter gets right, with noise of its own.

    Its charge counts against the study's epsilon, so the training gets a little more noise for it.
    """

    noise_multiplier: Annotated[float, Field(ge=1, le=1e6)] = Field(
        5.0, description="noise of each site's counts, relative to how far one record (or patient) moves them"
    )


class Study(Frozen):
    """Everything that sites agree on before anything is trained."""

    study: Name
    seed: Annotated[int, Field(ge=0)] = Field(0, description="partition and public draw; never noise or keys")
    classes: Annotated[tuple[ClassPrompts, ...], Field(min_length=2)]
    backbone: Backbone
    adapter: Adapter = Adapter()
    data: Annotated[FashionMnist | Manifest, Field(discriminator="kind")]
    sites: Annotated[tuple[Site, ...], Field(min_length=1, max_length=1000)]
    training: Training
    privacy: DpOn | DpOff
    server_optimiser: ServerOptimiser = ServerOptimiser()
    codec: Codec = Codec()
    aggregation: Masked | SharedKey | None = Field(
        None,
        description="masked or shared-key, or masked with its numbers; left out: masked from three sites on",
    )
    published_accuracy: PublishedAccuracy | None = Field(
        None, description="left out: no figure about held-back records leaves a site"
    )

    @field_validator("privacy", mode="before")
    @classmethod
    def _which_privacy(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return (DpOff if "unsafe_dp_off" in value else DpOn).model_validate(value)

    @field_validator("aggregation", mode="before")
    @classmethod
    def _which_aggregation(cls, value: Any) -> Any:
        kinds: dict[str, type[Masked] | type[SharedKey]] = {"masked": Masked, "shared-key": SharedKey}
        if value is None or isinstance(value, (Masked, SharedKey)):
            return value
        kind = value.get("kind", "masked") if isinstance(value, dict) else value
        if kind not in kinds:
            raise ValueError("aggregation is masked or shared-key, or `{kind: masked, colluders: ...}`")
        return kinds[kind].model_validate(value if isinstance(value, dict) else {})

    @model_validator(mode="after")
    def _noise_can_be_shared(self) -> Study:
        if self.shared_noise is None:
            return self
        for wrong, why in (
            (self.masked is None, "needs `aggregation: masked`: without masks each share stands alone"),
            (self.training.steps_per_round != 1, "needs training.steps_per_round 1: one clipped sum a round"),
            (
                self.dp is not None and self.dp.unit != "record",
                "protects records; patients need `noise: local`",
            ),
            (
                len({site.weight for site in self.sites}) > 1,
                "needs sites of one weight: the sum is not weighted",
            ),
            (any(site.rank is not None for site in self.sites), "needs sites of one rank"),
            (self.codec.range is not None, "derives the range of the sum; leave codec.range out"),
            (
                self.published_accuracy is not None,
                "cannot be had with published_accuracy, whose counts each site noises by itself",
            ),
        ):
            if wrong:
                raise ValueError(f"`noise: shared` {why}")
        return self

    @model_validator(mode="after")
    def _consistent(self) -> Study:
        if isinstance(self.aggregation, Masked) and len(self.sites) < 2:
            raise ValueError("masks need two sites or more; with one, the sum is its update")
        _refuse_repeats("site name", [site.name for site in self.sites])
        _refuse_repeats("class name", [entry.name for entry in self.classes])
        ranks = [site.rank for site in self.sites if site.rank is not None]
        if ranks and (self.adapter.kind != "ffa" or max(ranks) > self.adapter.rank):
            raise ValueError(
                f"a site's rank is a number of columns of B, at most adapter.rank ({self.adapter.rank}), and needs "
                "adapter.kind ffa, where A is public and the same for all"
            )
        if ranks and max(site.rank or self.adapter.rank for site in self.sites) < self.adapter.rank:
            raise ValueError("no site trains all columns; lower adapter.rank to the largest rank of a site")
        if isinstance(self.privacy, DpOff) and self.codec.range is None:
            raise ValueError("codec.range is missing: without DP noise there is nothing to derive it from")
        if self.server_optimiser.average_last > self.training.rounds:
            raise ValueError("server_optimiser.average_last is larger than training.rounds")
        if self.published_accuracy is not None and isinstance(self.privacy, DpOff):
            raise ValueError(
                "published_accuracy has a charge of its own, and a study without privacy has none"
            )
        most = self.dp.max_records_per_patient if self.dp else None
        if most is not None and most > self.training.physical_batch_size:
            raise ValueError(
                f"max_records_per_patient is {most}, but only {self.training.physical_batch_size} images fit into "
                "memory at once (training.physical_batch_size), and one patient's images are taken together; raise "
                "the one or lower the other"
            )
        if isinstance(self.data, Manifest):
            own = [site.manifest is not None for site in self.sites]
            if (self.data.manifest is None) != all(own) or (self.data.manifest is not None and any(own)):
                raise ValueError(
                    "give either data.manifest, or a manifest for every site, not both or neither"
                )
        elif most is not None:
            raise ValueError("unit: patient needs data that name patients; Fashion-MNIST has none")
        elif any(site.manifest for site in self.sites):
            raise ValueError(f"a site names a manifest, but data.kind is {self.data.kind}")
        return self

    _file_sha256: str | None = PrivateAttr(None)

    @property
    def dp(self) -> DpOn | None:
        """The privacy rule, or None where the study runs without."""
        return self.privacy if isinstance(self.privacy, DpOn) else None

    @property
    def shared_noise(self) -> SharedNoise | None:
        """How sites share their noise, or None where each one's is enough by itself."""
        return self.dp.noise if self.dp and isinstance(self.dp.noise, SharedNoise) else None

    @property
    def masked(self) -> Masked | None:
        """What the study says of masks, or None where sites share a key and no more."""
        if self.aggregation is None:
            return Masked() if len(self.sites) >= 3 else None
        return self.aggregation if isinstance(self.aggregation, Masked) else None

    @property
    def total_steps(self) -> int:
        """Noised steps that each site takes over the whole study."""
        return self.training.rounds * self.training.steps_per_round

    @property
    def total_rounds(self) -> int:
        """Rounds of the protocol: those of the training, and one more where an accuracy is published."""
        return self.training.rounds + (self.published_accuracy is not None)

    def canonical(self) -> bytes:
        """The study in one canonical form, without the paths that differ from machine to machine."""
        content = self.model_dump(mode="json")
        for key in ("manifest", "public_manifest", "test_manifest"):
            content["data"].pop(key, None)
        for site in content["sites"]:
            site.pop("manifest")
            if site["rank"] is None:  # a study without ranks keeps the hash that it had before there were any
                site.pop("rank")
        if self.dp and self.shared_noise is None:  # likewise for studies from before noise could be shared
            content["privacy"].pop("noise")
        if self.backbone.source == "file":
            content["backbone"].pop("pretrained")
        return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()

    @property
    def sha256(self) -> str:
        """Hash of the canonical form: what sites approve, and what messages and ledgers name."""
        return hashlib.sha256(self.canonical()).hexdigest()

    @property
    def file_sha256(self) -> str:
        """Hash of the file that the study was read from; of the canonical form where there was none."""
        return self._file_sha256 or self.sha256


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _refuse_repeats(what: str, names: list[str]) -> None:
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"{what} {', '.join(repeated)} stands more than once")


def load_study(path: str | Path) -> Study:
    """The study in a YAML file; relative paths in it are taken from the file's folder.

    Raises ConfigError that names the key and, for an unknown key, the nearest known one.
    """
    path = Path(path)
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise ConfigError("a study is a mapping of keys", where=str(path), fix="start from configs/demo.yaml")
    study = parse_study(content, where=str(path), folder=path.resolve().parent)
    study._file_sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return study


def parse_study(content: dict[str, Any], *, where: str = "study", folder: Path | None = None) -> Study:
    """The study in plain content (as YAML or JSON gives it). Raises ConfigError."""
    content = lists_to_tuples(content)
    if folder is not None:
        content = _resolve_paths(content, folder)
    try:
        return Study.model_validate(content)
    except ValidationError as error:
        raise readable_error(error, where, __name__) from error


def study_schema() -> dict[str, Any]:
    """JSON Schema of a study file, for editors."""
    schema = Study.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    return schema


def _resolve_paths(content: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Relative paths of data and weights, made absolute from the study file's folder."""

    def absolute(part: Any, keys: tuple[str, ...]) -> Any:
        if not isinstance(part, dict):
            return part
        return {k: _absolute(v, folder) if k in keys and isinstance(v, str) else v for k, v in part.items()}

    resolved = dict(content)
    if "data" in content:
        resolved["data"] = absolute(content["data"], ("manifest", "public_manifest", "test_manifest"))
    if isinstance(content.get("sites"), tuple):
        resolved["sites"] = tuple(absolute(site, ("manifest",)) for site in content["sites"])
    if isinstance(content.get("backbone"), dict) and content["backbone"].get("source") == "file":
        resolved["backbone"] = absolute(content["backbone"], ("pretrained",))
    return resolved


def _absolute(path: str, folder: Path) -> str:
    """`~` and `$VARIABLES` expanded, relative to the study file's folder. Raises ConfigError for unset variables."""
    expanded = os.path.expanduser(os.path.expandvars(path))
    if "$" in expanded:
        raise ConfigError(
            f"the path {path} names a variable that is not set",
            where=str(folder),
            fix="set it in the shell, for example BLOOD_CELLS=/data/blood-cells, or write the path out",
        )
    return str(folder / expanded)
