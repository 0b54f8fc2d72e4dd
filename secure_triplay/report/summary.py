"""`summary.json`: what a run was, reached, spent and cost, as one frozen, validated object.

A summary that contradicts itself (a mean that is not one, a worst site that is not the worst, an epsilon
where DP was off) is refused when it is made and when it is read, so nothing downstream has to doubt it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from secure_triplay import durable
from secure_triplay.errors import RunError
from secure_triplay.schema import Frozen

Fraction = Annotated[float, Field(ge=0, le=1)]
Seconds = Annotated[float, Field(ge=0)]
Bytes = Annotated[int, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Name = Annotated[str, Field(min_length=1)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
ByRound = tuple[Fraction, ...]


class SiteAccuracy(Frozen):
    """Accuracy on the records that one site kept back; `records` of them. `final` is the shared adapter's."""

    baseline: Fraction
    final: Fraction
    records: Count | None = None
    personal: Fraction | None = Field(
        None, description="of this site's personal adapter, on the same records; left out: it has none"
    )


class WorstSite(Frozen):
    """The site with the lowest final accuracy."""

    name: Name
    baseline: Fraction
    final: Fraction


class PublishedCounts(Frozen):
    """Right answers among all sites' held-back records, as the sites released them: noised, summed under encryption."""

    correct: float
    records: float
    noise_std: Annotated[float, Field(gt=0)] = Field(description="of each of the two figures, in records")
    sites: Count


class Accuracy(Frozen):
    """Accuracy of the model without adapter and with the final one; `per_round[r]` is after round r + 1."""

    baseline: Fraction
    final: Fraction
    test_records: Count | None = Field(
        None, description="public test records behind baseline, final, per_round"
    )
    baseline_is: str = "the model without adapter"
    per_round: ByRound = ()
    per_site: dict[Name, SiteAccuracy] = Field({})
    per_site_per_round: dict[Name, ByRound] = Field({})
    worst_site: WorstSite | None = None
    published: PublishedCounts | None = Field(
        None, description="what the study released; the rest is the harness'"
    )

    @property
    def has_personal(self) -> bool:
        """Whether any site has a personal adapter."""
        return any(site.personal is not None for site in self.per_site.values())

    @model_validator(mode="after")
    def _worst_is_worst(self) -> Self:
        if (self.worst_site is None) != (not self.per_site):
            raise ValueError("worst_site and per_site go together")
        if self.worst_site is not None:
            named = self.per_site.get(self.worst_site.name)
            if named is None or (named.baseline, named.final) != (
                self.worst_site.baseline,
                self.worst_site.final,
            ):
                raise ValueError(
                    f"worst_site {self.worst_site.name!r} does not stand in per_site with these figures"
                )
            if named.final > min(site.final for site in self.per_site.values()):
                raise ValueError(
                    f"worst_site {self.worst_site.name!r} is not the site with the lowest final accuracy"
                )
        return self


class SharedNoiseMade(Frozen):
    """Noise that sites shared: what the guarantee counts on, and what is left where that fails."""

    colluders: Count
    honest_shares: Count
    clip_steps: Count
    l2_sensitivity: Count = Field(description="longest rounded gradient of one record, in steps of the grid")
    share_std: Annotated[float, Field(gt=0)] = Field(description="of one site's noise, in steps of the grid")
    sum_bits: Count = Field(description="of a value of the sum: none needs more, but for one in 2^40 studies")
    epsilon_alone: Annotated[float, Field(ge=0)] | None = Field(
        description="of one share by itself: against all other sites, or the server with more than `colluders`"
    )


class SitePrivacy(Frozen):
    """What one site's records were charged; epsilon and delta are None where DP was off."""

    site: Name
    epsilon: Annotated[float, Field(ge=0)] | None
    delta: Annotated[float, Field(gt=0, lt=1)] | None
    unit: Literal["record", "patient"]
    accountant: str
    noise_multiplier: Annotated[float, Field(ge=0)]
    sampling_rate: Annotated[float, Field(gt=0, le=1)]
    steps: Annotated[int, Field(ge=0)]
    neighbouring: Literal["add/remove"] = "add/remove"
    epsilon_budget: Annotated[float, Field(gt=0)] | None = Field(None, description="the study's target")
    epsilon_check_prv: Annotated[float, Field(ge=0)] | None = Field(
        None, description="by Opacus' PRV accountant"
    )
    epsilon_by_round: tuple[Annotated[float, Field(ge=0)], ...] = ()
    l2_clip_norm: Annotated[float, Field(gt=0)] | None = None
    shared_noise: SharedNoiseMade | None = Field(
        None, description="left out: each site's noise is enough by itself"
    )


class Upload(Frozen):
    """Bytes on the wire per site and round (everything but TLS), and what plain fp32 would take."""

    bytes_per_site_per_round: Bytes
    n_params: Count
    plaintext_fp32_bytes: Bytes
    bytes_per_param: Annotated[float, Field(ge=0)]
    download_bytes_per_site_per_round: Bytes
    download_bytes_per_param: Annotated[float, Field(ge=0)]

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        if self.plaintext_fp32_bytes != 4 * self.n_params:
            raise ValueError("plaintext_fp32_bytes is not 4 x n_params")
        for total, each in (
            (self.bytes_per_site_per_round, self.bytes_per_param),
            (self.download_bytes_per_site_per_round, self.download_bytes_per_param),
        ):
            if abs(each - total / self.n_params) > 0.005 + 0.005 * each:
                raise ValueError(
                    f"{each:g} bytes a parameter is not {total:,} bytes / {self.n_params:,} parameters"
                )
        return self


class RoundTiming(Frozen):
    """Where one round's time went; work is summed over the sites, `wall_s` is elapsed."""

    train_s: Seconds
    encode_encrypt_s: Seconds
    server_sum_s: Seconds
    decrypt_apply_s: Seconds
    wall_s: Seconds


class Timing(Frozen):
    """Where the run's time went: work is summed over sites and rounds, `setup_s` and `wall_s` are elapsed."""

    train_s: Seconds
    encode_encrypt_s: Seconds
    server_sum_s: Seconds
    decrypt_apply_s: Seconds
    wall_s: Seconds
    setup_s: Seconds = 0.0
    by_round: tuple[RoundTiming, ...] = ()

    @property
    def encryption_s(self) -> float:
        """Encoding, encryption, the server's sum and decryption together."""
        return self.encode_encrypt_s + self.server_sum_s + self.decrypt_apply_s


class Memory(Frozen):
    """Peak resident memory of one client process and of the process that receives and sums."""

    client_peak_bytes: Bytes
    server_peak_bytes: Bytes


class BackboneUsed(Frozen):
    """The frozen model, by the keys that name it in a study, and what its weights took in memory."""

    name: Name
    sha256: Sha256 | Literal["random"]
    licence: str
    quantization: Literal["nf4", "int8", "none"]
    frozen_bytes: Bytes
    source: Literal["packaged", "open_clip", "file"]
    pretrained: str | None = None
    text_sha256: Sha256 | None = None
    image_size: Count = 224
    align_ridge: float = 0.1
    aligned_on_public_images: Annotated[int, Field(ge=0)] = 0
    unsafe_random_weights: bool = False


class AdapterMade(Frozen):
    """The trained part; `n_params` are the parameters that travelled."""

    kind: Literal["ffa", "lora"]
    rank: Count
    alpha: float
    target_modules: str
    last_blocks: Count
    n_params: Count
    text_tower: bool = False
    files_sha256: dict[str, Sha256] = Field({})


class Federation(Frozen):
    """Who took part. `records_per_site` stays in the simulation harness: no site ever sends its count."""

    sites: Annotated[tuple[Name, ...], Field(min_length=1)]
    data: str = ""
    records_per_site: dict[Name, Annotated[int, Field(ge=0)]] = Field({})
    uploads_refused: Annotated[int, Field(ge=0)] = 0
    encryption: dict[str, str | int | float] = Field({}, description="public parameters of codec and CKKS")
    aggregation: Literal["masked", "shared-key"] = "shared-key"
    colluders: Annotated[int, Field(ge=0)] | None = Field(
        None,
        description="masked: sites that may help the server, and still nobody sees another site's update",
    )
    threshold: Count | None = Field(None, description="masked: sites without which no sum is opened")

    @model_validator(mode="after")
    def _numbers_of_masks(self) -> Self:
        if (self.aggregation == "masked") != (self.colluders is not None and self.threshold is not None):
            raise ValueError("colluders and threshold belong to masked aggregation, which needs both")
        return self


class HarnessOnly(Frozen):
    """Which figures the simulation harness read from the sites' own folders: they never travelled."""

    travelled: Literal[False] = False
    fields: tuple[str, ...] = (
        "accuracy.per_site",
        "accuracy.per_site_per_round",
        "accuracy.worst_site",
        "federation.records_per_site",
        "timing",
        "memory.client_peak_bytes",
    )
    note: str = (
        "The simulation harness read these figures from the sites' own folders. No site sent them, no budget "
        "was charged for them, and in a real federation nobody but the site itself would have them."
    )


class Summary(Frozen):
    """All of `summary.json`."""

    schema_version: Literal[2] = 2
    study: Name
    seed: Annotated[int, Field(ge=0)]
    rounds: Count
    config_sha256: Sha256
    dp: Literal["on", "off"]
    accuracy: Accuracy
    privacy: tuple[SitePrivacy, ...]
    upload: Upload
    timing: Timing
    memory: Memory
    backbone: BackboneUsed
    adapter: AdapterMade
    federation: Federation
    harness_only: HarnessOnly = HarnessOnly()
    versions: dict[str, str] = Field({})
    started_utc: str | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        sites = set(self.federation.sites)
        if len(sites) != len(self.federation.sites):
            raise ValueError("federation.sites names a site twice")
        if [entry.site for entry in self.privacy] != list(self.federation.sites):
            raise ValueError("privacy has not one entry per site, in the order of federation.sites")
        for named in (
            self.accuracy.per_site,
            self.accuracy.per_site_per_round,
            self.federation.records_per_site,
        ):
            if not set(named) <= sites:
                raise ValueError(f"not a site of this federation: {', '.join(sorted(set(named) - sites))}")
        for entry in self.privacy:
            if (entry.epsilon is None or entry.delta is None) != (self.dp == "off"):
                raise ValueError(f"dp is {self.dp}, but site {entry.site!r} has epsilon {entry.epsilon}")
            if self.dp == "on" and entry.noise_multiplier == 0:
                raise ValueError(f"site {entry.site!r} claims an epsilon without noise")
        series: list[tuple[object, ...]] = [self.accuracy.per_round, self.timing.by_round]
        series += [
            *self.accuracy.per_site_per_round.values(),
            *(entry.epsilon_by_round for entry in self.privacy),
        ]
        if any(len(values) not in (0, self.rounds) for values in series):
            raise ValueError(f"a series by round has neither {self.rounds} values nor none")
        if self.adapter.n_params != self.upload.n_params:
            raise ValueError("adapter.n_params and upload.n_params differ")
        if (self.backbone.sha256 == "random") != self.backbone.unsafe_random_weights:
            raise ValueError("a backbone of random weights has the sha256 `random`, and no other has")
        return self

    def to_json(self) -> str:
        """The summary as indented JSON with a final newline; `model_validate_json` gives an equal object."""
        return self.model_dump_json(indent=2) + "\n"


def write_summary(summary: Summary, path: str | Path) -> Path:
    """Write `summary.json` whole or not at all. Raises RunError."""
    return write_text(Path(path), summary.to_json())


def write_text(path: Path, text: str) -> Path:
    """Write UTF-8 text so that `path` holds all of it or what it held before. Raises RunError."""
    try:
        durable.replace(path, text.encode())
    except OSError as error:
        raise RunError(
            f"the file cannot be written: {error.strerror}",
            where=str(path),
            fix="check that the folder exists, is yours, and that the disk has room",
        ) from error
    return path
