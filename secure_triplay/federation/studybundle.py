"""The study's bundle: the one public file from which every site knows what it joins, and with whom.

Study, roster, server, certificate authority, rules of a round and the app bundle, signed by the coordinator; with
`adapter.basis: public` also the frozen A matrices and output directions, which two processors would not compute alike.
A coordinator could show two sites two different bundles, or put a sham site on the roster, which would then receive
the key. So sites compare a short code over all of it among themselves, out of band, and confirm it.
"""

from __future__ import annotations

import base64
import hashlib
import json
from functools import cached_property
from typing import Any, ClassVar, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from secure_triplay import __version__
from secure_triplay.config import Manifest, Sha256, Study, parse_study
from secure_triplay.constants import masks_for
from secure_triplay.crypto.double import DoubleIdentity, DoubleSigner
from secure_triplay.crypto.identity import Purpose, transcript
from secure_triplay.crypto.masking.parameters import require_threshold
from secure_triplay.errors import ConfigError, CryptoError
from secure_triplay.federation.bundle import build_app, package_sha256
from secure_triplay.federation.documents import Document, keys_of
from secure_triplay.federation.enrolment import Enrolment
from secure_triplay.matrices import from_bytes
from secure_triplay.schema import Frozen, lists_to_tuples, readable_error

AT_THE_SITE = "at-the-site"
"""Stands where a path would; each site puts its own in its place."""

_CODE_COST = 1 << 15
_CODE_BYTES = 13
_ALPHABET = "ABCDEFGHJKMNPQRSTUVWXYZ23456789"


class Rules(Frozen):
    """How rounds end: `quorum` uploads make a sum and as many signatures open it; deadlines are per exchange."""

    quorum: int = Field(ge=1)
    deadline_s: float = Field(gt=0, le=7 * 24 * 3600)

    @classmethod
    def stated(cls, quorum: int, deadline_s: float) -> Rules:
        """The rules that a person asks for. Raises ConfigError where rounds could not end by them."""
        try:
            return cls(quorum=quorum, deadline_s=deadline_s)
        except ValidationError as error:
            raise readable_error(
                error,
                "--quorum and --deadline",
                __name__,
                "a quorum is more than half of the sites and no more than all; a deadline is a number of seconds, "
                "a week at most",
            ) from error


def least_quorum(study: Study, n_sites: int) -> int:
    """The fewest sites that may make a sum: the masks' threshold, or more than half. Raises ConfigError."""
    masking = masks_for(study, n_sites)
    return n_sites // 2 + 1 if masking is None else masking.threshold


class StudyBundle(Document):
    """PUBLIC. Everything that sites agree on in one key epoch. `founding` is the hash of the first epoch's bundle."""

    version: Literal[1] = 1
    study: dict[str, Any]
    study_sha256: Sha256
    epoch: int = Field(ge=1)
    founding: Sha256 | None
    enrolments: tuple[str, ...] = Field(min_length=1, max_length=1000)
    server: str = Field(pattern=r"^[A-Za-z0-9.\-:\[\]]{1,255}:[0-9]{1,5}$")
    ca_certificate: str
    rules: Rules
    package_version: str
    package_sha256: Sha256
    app: str
    basis: str | None
    """Base64 of `matrices`: the study's frozen A, where it is fitted to public images."""

    purpose: ClassVar[Purpose] = Purpose.STUDY_BUNDLE
    called: ClassVar[str] = "study bundle"

    @field_validator("app")
    @classmethod
    def _some_app(cls, value: str) -> str:
        base64.b64decode(value, validate=True)
        return value

    @field_validator("basis")
    @classmethod
    def _some_basis(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                from_bytes(base64.b64decode(value, validate=True))
            except ConfigError as error:
                raise ValueError(error.what) from error
        return value

    @model_validator(mode="after")
    def _consistent(self) -> StudyBundle:
        study = self.parsed_study()
        if study.sha256 != self.study_sha256:
            raise ValueError("the study is not the one that is named by its hash")
        sites = [site.name for site in study.sites]
        members = self.members
        if list(members) != [site for site in sites if site in members]:
            raise ValueError("the roster is not a part of the study's sites, in the study's order")
        if len({entry.ed25519 for entry in members.values()}) < len(members):
            raise ValueError("one identity stands under two names")
        if not len(members) < 2 * self.rules.quorum <= 2 * len(members):
            raise ValueError(
                f"a quorum is more than half of the {len(members)} sites and no more than all, not "
                f"{self.rules.quorum}"
            )
        try:
            require_threshold(masks_for(study, len(members)), self.rules.quorum, len(members))
        except ConfigError as error:
            raise ValueError(f"{error.what}; {error.fix}") from error
        if (self.epoch == 1) != (self.founding is None):
            raise ValueError("the first epoch has no founding bundle, and every other has")
        if (study.adapter.basis == "public") != (self.basis is not None):
            raise ValueError(
                "a bundle carries a basis where its study says adapter.basis: public, and nowhere else"
            )
        return self

    def parsed_study(self) -> Study:
        """The study without paths. Raises ValueError where it is none."""
        try:
            return parse_study(self.study)
        except ConfigError as error:
            raise ValueError(error.what) from error

    @cached_property
    def members(self) -> dict[str, Enrolment]:
        """Enrolments by site, each verified, in the study's order. Raises ConfigError, CryptoError."""
        entries = [Enrolment.read(text.encode(), where="study bundle") for text in self.enrolments]
        if len({entry.site for entry in entries}) < len(entries):
            raise ValueError("a site stands on the roster twice")
        return {entry.site: entry for entry in entries}

    @cached_property
    def identities(self) -> dict[str, DoubleIdentity]:
        """Both signing keys of every site, in the study's order."""
        return {site: entry.signer for site, entry in self.members.items()}

    @property
    def app_bytes(self) -> bytes:
        """The Flower app bundle."""
        return base64.b64decode(self.app)

    @property
    def app_sha256(self) -> str:
        """Its hash: what a person approves."""
        return hashlib.sha256(self.app_bytes).hexdigest()

    @property
    def basis_bytes(self) -> bytes | None:
        """The frozen A matrices, for `load_model`; None where A is drawn from `adapter_seed`."""
        return None if self.basis is None else base64.b64decode(self.basis)

    @property
    def adapter_seed(self) -> bytes:
        """Seed of the frozen A matrices: from the founding bundle, so that it outlives key epochs and nobody
        chooses it.
        """
        founding = self.sha256 if self.founding is None else bytes.fromhex(self.founding)
        return hashlib.sha256(transcript(b"adapter seed 2", founding)).digest()

    @property
    def code(self) -> str:
        """The roster code: five groups of four letters and digits over everything in here, to be read out.

        Close to 100 bits, each try made slow (scrypt): two bundles with one code are out of reach even for a
        coordinator that writes both.
        """
        digest = hashlib.scrypt(
            self.canonical(), salt=b"secure_triplay roster code 1", n=_CODE_COST, r=8, p=1, maxmem=1 << 26
        )
        number = int.from_bytes(digest[:_CODE_BYTES])
        letters = ""
        for _ in range(20):
            number, index = divmod(number, len(_ALPHABET))
            letters += _ALPHABET[index]
        return "-".join(letters[i : i + 4] for i in range(0, 20, 4))

    def require_code(self, given: str) -> None:
        """Return nothing if a person typed this bundle's code. Raises CryptoError."""
        if _plain(given) != _plain(self.code):
            raise CryptoError(
                "this is not the code of the bundle in front of you: somebody was given another bundle",
                where="roster code",
                fix="confirm nothing; find out with the other sites, over the phone, whose bundle differs",
            )

    def study_here(self, paths: SitePaths, site: str) -> Study:
        """The study with this site's own paths in it; its hash stays the same. Raises ConfigError."""
        content = json.loads(json.dumps(self.study))
        if content["data"]["kind"] == "manifest":
            content["data"]["public_manifest"] = paths.public_manifest
            content["data"]["test_manifest"] = paths.test_manifest
            for entry in content["sites"]:
                if entry["name"] == site:
                    entry["manifest"] = paths.manifest
        if content["backbone"]["source"] == "file":
            content["backbone"]["pretrained"] = paths.backbone
        return parse_study(content, where="study bundle")


class SitePaths(Frozen):
    """Where at one site its data and weights lie; these paths never leave it."""

    manifest: str | None = None
    public_manifest: str | None = None
    test_manifest: str | None = None
    backbone: str | None = None


def make_bundle(
    study: Study,
    enrolments: dict[str, bytes],
    coordinator: DoubleSigner,
    *,
    server: str,
    ca_certificate: bytes,
    rules: Rules,
    epoch: int = 1,
    founding: bytes | None = None,
    basis: bytes | None = None,
) -> StudyBundle:
    """The bundle of one epoch, whose roster are the enrolled sites of the study. Raises ConfigError.

    `basis` is what `compute_basis` made for the founding bundle; every later epoch carries the same.
    """
    names = [site.name for site in study.sites]
    unknown = sorted(set(enrolments) - set(names))
    if unknown:
        raise ConfigError(
            f"the study's file does not name {', '.join(unknown)}",
            where="sites",
            fix="list every site that may ever take part in the study's `sites`; who takes part in an epoch is "
            "the roster",
        )
    content = {
        **keys_of(coordinator),
        "study": lists_to_tuples(without_paths(study)),
        "study_sha256": study.sha256,
        "epoch": epoch,
        "founding": None if founding is None else founding.hex(),
        "enrolments": tuple(enrolments[name].decode() for name in names if name in enrolments),
        "server": server,
        "ca_certificate": ca_certificate.decode(),
        "rules": rules,
        "package_version": __version__,
        "package_sha256": package_sha256(),
        "app": base64.b64encode(build_app()).decode(),
        "basis": None if basis is None else base64.b64encode(basis).decode(),
    }
    try:
        return StudyBundle.model_validate(content)
    except ValueError as error:
        raise ConfigError(
            "no bundle can be made of this: " + _reasons(error),
            where=study.study,
            fix="mend the study or its options",
        ) from error


def without_paths(study: Study) -> dict[str, Any]:
    """The study's content with a word where this machine's paths stood. Raises ConfigError for a shared manifest."""
    content: dict[str, Any] = study.model_dump(mode="json")
    if isinstance(study.data, Manifest):
        if study.data.manifest is not None:
            raise ConfigError(
                "one manifest for all sites is for simulations: here each site has its own",
                where="data.manifest",
                fix=f"remove it, and give every site `manifest: {AT_THE_SITE}`",
            )
        for key in ("public_manifest", "test_manifest"):
            if content["data"][key] is not None:
                content["data"][key] = AT_THE_SITE
        for site in content["sites"]:
            site["manifest"] = AT_THE_SITE
    if study.backbone.source == "file":
        content["backbone"]["pretrained"] = AT_THE_SITE
    return json.loads(json.dumps(content))  # type: ignore[no-any-return]


def _plain(code: str) -> str:
    return "".join(letter for letter in code.upper() if letter.isalnum())


def _reasons(error: ValueError) -> str:
    errors = getattr(error, "errors", None)
    if errors is None:
        return str(error)
    return "; ".join(str(item["msg"]).removeprefix("Value error, ") for item in errors())
