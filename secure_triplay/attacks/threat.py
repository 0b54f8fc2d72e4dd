"""Threat models: one file per adversary, with what it observes, what it must not learn, and who tests that.

A file makes claims, and this module refuses the ones that cannot be meant: an adversary who must not learn
what it is given, an audit that needs more than the adversary observes, a claim that rests on nothing.
"""

from __future__ import annotations

import difflib
import hashlib
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BeforeValidator, Field, PrivateAttr, ValidationError, model_validator

from secure_triplay.attacks.attack import Attack, Observable
from secure_triplay.attacks.registry import load_attacks, require_known
from secure_triplay.config import Name
from secure_triplay.errors import ConfigError
from secure_triplay.schema import Frozen, lists_to_tuples, read_mapping, readable_error

VERSION = 1
_FIX = "the files in threat_models/ are examples; the README of that folder explains every key"


class Asset(StrEnum):
    """What an adversary must not learn or change."""

    KEY = "the key"
    UPDATE = "an update"
    """The plain update of one site in one round."""
    ADAPTER = "the adapter"
    IMAGE = "an image"
    MEMBERSHIP = "membership"
    """Whether a record took part, beyond what epsilon allows."""
    COUNT = "a record count"
    ACCURACY = "an accuracy"
    SUM = "the sum"
    """What sites open is the sum of the listed sites' updates of this round, each once."""
    MODEL = "the model"
    """The adapter is as good as honest updates make it."""


class Defence(StrEnum):
    """What a claim may rest on."""

    ENCRYPTION = "encryption"
    MASKS = "masks"
    """Masks that cancel in the sum of the sites alone (`crypto.masking`)."""
    DP = "dp"
    VERIFICATION = "verification"
    """Signatures and the MAC of a sum, checked before anything is decrypted."""
    ROUNDING = "exact rounding"
    """Sums are rounded to exact integers before anybody sees them."""
    EQUAL_SIZES = "equal sizes"
    """Every site's messages have the same public size, whatever it holds."""


_Choice = TypeVar("_Choice", bound=StrEnum)


def _one_of(kind: type[_Choice], what: str) -> BeforeValidator:
    """Turn a file's text into a member of a closed set, or name the nearest one."""

    def choose(value: Any) -> Any:
        if isinstance(value, kind):
            return value
        names = [member.value for member in kind]
        if value in names:
            return kind(value)
        near = difflib.get_close_matches(str(value), names, n=1, cutoff=0.5)
        hint = f"did you mean `{near[0]}`?" if near else f"there are: {', '.join(names)}"
        raise ValueError(f"there is no {what} of that name; {hint}")

    return BeforeValidator(choose)


Observed = Annotated[Observable, _one_of(Observable, "observable")]
AssetName = Annotated[Asset, _one_of(Asset, "asset")]
DefenceName = Annotated[Defence, _one_of(Defence, "defence")]
Sentence = Annotated[str, Field(min_length=3)]
NodeId = Annotated[str, Field(pattern=r"^tests/[\w/.-]+\.py(::\w+)?$")]

_GIVES: dict[Observable, tuple[Asset, ...]] = {
    Observable.SHARED_KEY: (Asset.KEY,),
    Observable.AGGREGATES: (Asset.ADAPTER,),
    Observable.RELEASED_ADAPTER: (Asset.ADAPTER,),
}


class ThreatModel(Frozen):
    """One adversary. Every asset that it must not learn or change either rests on defences or is not protected."""

    version: Literal[1] = Field(description="of the format of this file")
    name: Name
    title: Sentence
    summary: Sentence
    observes: Annotated[tuple[Observed, ...], Field(min_length=1)]
    given_to_controls: tuple[Observed, ...] = Field(
        (), description="what only the positive controls are given, with a defence switched off"
    )
    may: Annotated[tuple[Sentence, ...], Field(min_length=1)]
    must_not_learn: tuple[AssetName, ...] = ()
    must_not_change: tuple[AssetName, ...] = ()
    rests_on: dict[AssetName, Annotated[tuple[DefenceName, ...], Field(min_length=1)]] = Field(
        {}, description="asset -> the defences that prevent it together"
    )
    not_protected: tuple[AssetName, ...] = Field((), description="at stake, and nothing prevents it")
    assumes: Annotated[tuple[Sentence, ...], Field(min_length=1)]
    audits: Annotated[dict[str, tuple[AssetName, ...]], Field(min_length=1)] = Field(
        description="attack or audit -> the assets that it goes after"
    )
    tested_by: dict[AssetName, tuple[NodeId, ...]] = Field({}, description="asset -> tests")
    not_tested: Annotated[tuple[Sentence, ...], Field(min_length=1)]

    _sha256: str = PrivateAttr("")

    @property
    def assets(self) -> tuple[Asset, ...]:
        """Everything at stake, in the file's order."""
        return tuple(dict.fromkeys((*self.must_not_learn, *self.must_not_change)))

    @property
    def sha256(self) -> str:
        """Hash of the file that it was read from."""
        return self._sha256

    def audits_of(self, asset: Asset) -> tuple[str, ...]:
        """The attacks and audits that go after an asset."""
        return tuple(name for name, assets in self.audits.items() if asset in assets)

    @model_validator(mode="after")
    def _means_something(self) -> ThreatModel:
        if not self.assets:
            raise ValueError("must_not_learn and must_not_change are both empty; then nothing is claimed")
        for name, assets in self.audits.items():
            require_known(name)
            _all_at_stake(self, f"audits.{name}", assets)
            if not assets:
                raise ValueError(f"audits.{name}: say which assets it goes after")
        _all_at_stake(self, "rests_on", tuple(self.rests_on))
        _all_at_stake(self, "not_protected", self.not_protected)
        _all_at_stake(self, "tested_by", tuple(self.tested_by))
        both = set(self.observes) & set(self.given_to_controls)
        if both:
            raise ValueError(
                f"contradiction: given_to_controls lists {sorted(both)[0].value!r}, which it observes anyway"
            )
        for asset in self.assets:
            _claim_makes_sense(self, asset)
        return self


def _all_at_stake(model: ThreatModel, key: str, assets: tuple[Asset, ...]) -> None:
    for asset in assets:
        if asset not in model.assets:
            raise ValueError(
                f"{key} names {asset.value!r}, which is neither under must_not_learn nor must_not_change"
            )


def _claim_makes_sense(model: ThreatModel, asset: Asset) -> None:
    protected, excused = asset in model.rests_on, asset in model.not_protected
    if protected and excused:
        raise ValueError(
            f"contradiction: {asset.value!r} rests on {', '.join(model.rests_on[asset])}, and is not_protected"
        )
    if not protected and not excused:
        raise ValueError(f"{asset.value!r} has no line under rests_on, and is not listed as not_protected")
    for seen in model.observes:
        if asset in model.must_not_learn and asset in _GIVES.get(seen, ()):
            raise ValueError(
                f"contradiction: it must not learn {asset.value!r}, and observes {seen.value!r}, which gives it"
            )
    has_key = Observable.SHARED_KEY in model.observes
    if has_key and Defence.ENCRYPTION in model.rests_on.get(asset, ()):
        raise ValueError(
            f"contradiction: {asset.value!r} rests on encryption, and it observes the shared key that opens it"
        )


def require_grants(model: ThreatModel, attacks: tuple[Attack, ...], where: str) -> None:
    """Raise ConfigError where an attack is built from something that the adversary does not observe."""
    granted = {*model.observes, *model.given_to_controls}
    for attack in attacks:
        missing = sorted(need.value for need in attack.needs - granted)
        if missing:
            raise ConfigError(
                f"contradiction: the audit {attack.name} needs {', '.join(missing)}, which this adversary "
                "does not observe",
                where=where,
                fix="remove the audit, or add what it needs to observes",
            )


def load_threat_model(path: str | Path, *, check_needs: bool = True) -> ThreatModel:
    """The threat model in a YAML file.

    `check_needs` also imports the attacks that it names, and holds what they need against what it grants.
    Raises ConfigError that names key and reason, with the nearest known name.
    """
    path = Path(path)
    content = read_mapping(path, "a threat model", _FIX)
    if content.get("version", VERSION) != VERSION:
        raise ConfigError(
            f"this threat model is of version {content['version']!r}; this program reads version {VERSION}",
            where=str(path),
            fix="use the program that it was written for, or bring the file to this version",
        )
    try:
        model = ThreatModel.model_validate(lists_to_tuples(content))
    except ValidationError as error:
        raise readable_error(error, str(path), __name__, _FIX) from error
    if model.name != path.stem:
        raise ConfigError(
            f"the threat model calls itself {model.name!r}, and its file {path.name!r}",
            where=str(path),
            fix="give both the same name",
        )
    model._sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    if check_needs:
        require_grants(model, load_attacks(model.audits), str(path))
    return model


def load_threat_models(folder: Path, *, check_needs: bool = True) -> tuple[ThreatModel, ...]:
    """Every threat model of a folder, by name. Raises ConfigError, also where there is none."""
    paths = sorted(folder.glob("*.yaml"))
    if not paths:
        raise ConfigError(
            "there is no threat model here", where=str(folder), fix="run it where threat_models/ lies"
        )
    return tuple(load_threat_model(path, check_needs=check_needs) for path in paths)
