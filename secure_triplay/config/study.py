"""A study: everything that sites agree on before anything is trained."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any

from pydantic import Field, PrivateAttr, field_validator, model_validator

from secure_triplay.config.aggregation import Codec, Masked, SharedKey
from secure_triplay.config.data import FashionMnist, Manifest, Site
from secure_triplay.config.kinds import Name
from secure_triplay.config.model import Adapter, Backbone, ClassPrompts
from secure_triplay.config.privacy import DpOff, DpOn, SharedNoise
from secure_triplay.config.training import PersonalBias, PublishedAccuracy, ServerOptimiser, Training
from secure_triplay.schema import Frozen


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
    personal_bias: PersonalBias | None = Field(
        None, description="left out: a site's personal adapter knows nothing of how frequent its classes are"
    )

    @field_validator("privacy", mode="before")
    @classmethod
    def _which_privacy(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        if "unsafe_dp_off" not in value:
            return DpOn.model_validate(value)
        private = [key for key in DpOn.model_fields if key in value and key not in DpOff.model_fields]
        if private:
            raise ValueError(
                f"unsafe_dp_off trains without privacy, and {', '.join(private)} are of training with it: leave out "
                "the one or the others"
            )
        return DpOff.model_validate(value)

    @field_validator("aggregation", mode="before")
    @classmethod
    def _which_aggregation(cls, value: Any) -> Any:
        kinds: dict[str, type[Masked] | type[SharedKey]] = {"masked": Masked, "shared-key": SharedKey}
        if value is None or isinstance(value, (Masked, SharedKey)):
            return value
        kind = value.get("kind", "masked") if isinstance(value, dict) else value
        if not isinstance(kind, str) or kind not in kinds:
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
            (
                self.personal_bias is not None,
                "cannot be had with personal_bias: sites that share noise have no personal adapter",
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
        if self.personal_bias is not None and isinstance(self.privacy, DpOff):
            raise ValueError("personal_bias has a charge of its own, and a study without privacy has none")
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
            ignored = self.data.only_for_one_manifest
            if self.data.manifest is None and ignored:
                raise ValueError(
                    f"{', '.join(f'data.{name}' for name in ignored)}: each site brings a manifest of its own, and "
                    "this says how one is divided; leave it out, and name data.public_manifest or data.test_manifest"
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
    def trains_with_bias(self) -> bool:
        """Whether the bias of a site's own classes stands in the logits that it trains on."""
        return self.personal_bias is not None and self.personal_bias.in_training

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
        if self.adapter.output_rank is None:
            content["adapter"].pop("output_rank")
        if self.personal_bias is None:
            content.pop("personal_bias")
        elif not self.trains_with_bias:
            content["personal_bias"].pop("in_training")
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


def _refuse_repeats(what: str, names: list[str]) -> None:
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"{what} {', '.join(repeated)} stands more than once")
