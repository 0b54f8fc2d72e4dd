"""A person at a site decides: what the study asks, whether the policy allows it, and the confirmation that binds.

look      read the bundle, hold it against this site's own keys, package and policy; nothing is written
confirm   the person compared the roster code with the other sites: approve, record, pin
succeed   a later epoch of the same study that brings nobody new needs no person
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from secure_triplay import __version__
from secure_triplay.config import Study
from secure_triplay.constants import protects_less
from secure_triplay.errors import ConfigError, CryptoError, PrivacyError, ProtocolError, RunError
from secure_triplay.federation.approval import AppApproval, write_trust_file
from secure_triplay.federation.bundle import package_sha256, require_own_app
from secure_triplay.federation.ca import make_ca, make_server_certificate
from secure_triplay.federation.documents import keys_of
from secure_triplay.federation.files import make_folder, read_public, write_public, write_secret
from secure_triplay.federation.joined import Joined
from secure_triplay.federation.sitefolder import STUDIES, SiteFolder
from secure_triplay.federation.studybundle import SitePaths, StudyBundle
from secure_triplay.ledger.budget import Limits
from secure_triplay.ledger.entries import Decided
from secure_triplay.ledger.ledger import Ledger
from secure_triplay.ledger.persons import require_person
from secure_triplay.ledger.start import adopt
from secure_triplay.ledger.study import policy_limits, study_releases
from secure_triplay.policy import (
    ReadPolicy,
    Refusal,
    SitePolicy,
    check_participants,
    check_terms,
    read_policy,
)

BUNDLE, NEXT, PATHS, TRUST = "study.bundle", "next.bundle", "paths.json", "trusted.yaml"
LOCAL_CA, LOCAL_CERTIFICATE, LOCAL_KEY, SERVER_CA = "local-ca.crt", "local.crt", "local.key", "server-ca.crt"
_ASK_AGAIN = "ask the coordinator for the bundle again"


@dataclass(frozen=True)
class Asked:
    """What a bundle asks of this site; `refusals` are the rules that it breaks of `policy`, the site's own as read."""

    bundle: StudyBundle
    raw: bytes
    study: Study
    paths: SitePaths
    policy: ReadPolicy
    refusals: tuple[Refusal, ...]


@dataclass(frozen=True)
class JoinedStudy:
    """A study that this site takes part in, from its folder."""

    folder: Path
    bundle: StudyBundle
    study: Study

    @classmethod
    def open(cls, site: SiteFolder, name: str | None = None) -> JoinedStudy:
        """The study as it was joined. Raises ConfigError, CryptoError or RunError."""
        folder = site.study(name)
        bundle = read_bundle(folder / BUNDLE)
        raw = read_public(folder / PATHS, "list of paths", "join the study again")
        try:
            paths = SitePaths.model_validate_json(raw)
        except ValueError as error:
            raise ConfigError(
                "the list of paths is damaged", where=str(folder / PATHS), fix="join the study again"
            ) from error
        return cls(folder, bundle, bundle.study_here(paths, site.name))


def read_bundle(path: Path) -> StudyBundle:
    """The bundle in a file, its signatures verified. Raises ConfigError or CryptoError."""
    return StudyBundle.read(read_public(path, "study bundle", _ASK_AGAIN), where=str(path))


def look(site: SiteFolder, file: Path, paths: SitePaths) -> Asked:
    """What the bundle in a file asks.

    Raises where it is not for this site, or would run code that is not here already.
    """
    raw = read_public(file, "study bundle", _ASK_AGAIN)
    bundle = StudyBundle.read(raw, where=str(file))
    own = bundle.members.get(site.name)
    if own is None or own != site.enrolment:
        raise CryptoError(
            f"{site.name} is not on this study's roster" + (" with the keys of this folder" if own else ""),
            where="study bundle",
            fix=f"send {site.enrolment_file.name} to the coordinator, and ask for a bundle with it",
        )
    if (bundle.package_version, bundle.package_sha256) != (__version__, package_sha256()):
        raise RunError(
            f"the study is for secure_triplay {bundle.package_version} ({bundle.package_sha256[:16]}…), and "
            f"here is {__version__} ({package_sha256()[:16]}…)",
            where="study bundle",
            fix="install the very package that the coordinator has, at every site",
        )
    require_own_app(bundle.app_bytes)
    study = bundle.study_here(paths, site.name)
    _require_goes_on(site.path / STUDIES / study.study, bundle)
    policy = read_policy(site.policy_file)
    return Asked(bundle, raw, study, paths, policy, tuple(refusals(policy.rules, study, bundle)))


def refusals(policy: SitePolicy, study: Study, bundle: StudyBundle) -> list[Refusal]:
    """Every rule of the policy that the study breaks, for its smallest possible sum too."""
    found = check_terms(policy, study)
    for participants in {len(bundle.members), bundle.rules.quorum}:
        refusal = check_participants(policy, participants)
        if refusal is not None and refusal not in found:
            found.append(refusal)
    return found


def changed_limits(site: SiteFolder, policy: SitePolicy) -> tuple[Limits, Limits] | None:
    """What the ledger counts against, and what the policy was edited to since; None where they are alike.

    Raises RunError where no ledger was started.
    """
    with Ledger.open(site.ledger, None) as ledger:
        kept, edited = ledger.books.limits, policy_limits(policy)
    return None if kept == edited else (kept, edited)


def confirm(site: SiteFolder, asked: Asked, *, code: str, approved_by: str) -> Path:
    """Bind the site: put the policy that was shown in force, approve charges, record who confirmed what, pin the app.

    Returns the confirmation file.

    Raises CryptoError for another roster code, ConfigError where nobody is named, PrivacyError where the policy
    refuses, its file is another by now, or the budget is too small.
    """
    bundle, study = asked.bundle, asked.study
    bundle.require_code(code)
    require_person(approved_by, "--approved-by")
    if asked.refusals:
        raise PrivacyError(
            f"this site's policy refuses the study: {asked.refusals[0]}",
            where=str(site.policy_file),
            fix="have the study changed, or decide on the policy first",
        )
    folder = site.path / STUDIES / study.study
    _require_goes_on(folder, bundle)
    if read_policy(site.policy_file).sha256 != asked.policy.sha256:
        raise PrivacyError(
            "this site's policy was edited since it was shown, and nobody has seen what it asks by now",
            where=str(site.policy_file),
            fix="look again: secure-triplay site join BUNDLE",
        )
    if changed_limits(site, asked.policy.rules) is not None:
        adopt(site.path, asked.policy, approved_by=approved_by)
    with Ledger.open(site.ledger, site.identity) as ledger:
        ledger.approve(study.sha256, study.study, study_releases(study), approved_by=approved_by)
        ledger.record(_decided(bundle, approved_by, f"confirmed roster code {bundle.code} out of band"))
    make_folder(folder)
    _pin(site, folder, bundle)
    later = (folder / BUNDLE).exists() and read_bundle(folder / BUNDLE).sha256 != bundle.sha256
    # The worker goes on to a later epoch once it has applied the rounds of the one before.
    write_public(folder / (NEXT if later else BUNDLE), asked.raw)
    write_public(folder / PATHS, asked.paths.model_dump_json(indent=1).encode())
    joined = Joined.model_validate(
        {
            **keys_of(site.signer),
            "site": site.name,
            "bundle_sha256": bundle.sha256.hex(),
            "approval": AppApproval.sign(site.approval_key, bundle.app_bytes),
        }
    )
    out = folder / f"{site.name}.joined"
    write_public(out, joined.signed(site.signer))
    return out


def require_followable(site: SiteFolder, joined: JoinedStudy, bundle: StudyBundle) -> bool:
    """Return whether a person here confirmed a later epoch of a joined study; False: it needs none.

    It needs one where it brings somebody new, or another study, server, app or coordinator, and where masks over its
    roster protect less than what was confirmed: a coordinator could otherwise remove sites until its helpers are
    enough. Raises ProtocolError then, and PrivacyError where the policy refuses what is left of the roster.
    """
    before = joined.bundle
    _require_later(before, bundle)
    confirmed = joined.folder / NEXT
    if confirmed.exists() and read_bundle(confirmed).sha256 == bundle.sha256:
        return True
    same = ("study_sha256", "ed25519", "mldsa65", "app", "ca_certificate", "server", "package_sha256")
    known = before.members
    if any(getattr(before, field) != getattr(bundle, field) for field in same) or any(
        known.get(name) != member for name, member in bundle.members.items()
    ):
        raise ProtocolError(
            "the study goes on with somebody or something new",
            where=f"epoch {bundle.epoch}",
            fix="a person here joins it: secure-triplay site join BUNDLE",
        )
    if site.name not in bundle.members:
        raise ProtocolError(
            "this site was removed from the study", where=f"epoch {bundle.epoch}", fix="ask the coordinator"
        )
    less = protects_less(joined.study, len(known), len(bundle.members))
    if less is not None:
        raise ProtocolError(
            f"the roster got smaller, and {less}",
            where=f"epoch {bundle.epoch}",
            fix="a person here decides whether that is enough: secure-triplay site join BUNDLE",
        )
    found = refusals(site.policy, joined.study, bundle)
    if found:
        raise PrivacyError(
            f"this site's policy refuses the study: {found[0]}", where=str(site.policy_file), fix=found[0].fix
        )
    return False


def succeed(site: SiteFolder, joined: JoinedStudy, bundle: StudyBundle, raw: bytes) -> JoinedStudy:
    """Take over a later epoch of a joined study. Raises as `require_followable` does."""
    if require_followable(site, joined, bundle):
        write_public(joined.folder / BUNDLE, raw)
        (joined.folder / NEXT).unlink()
        return JoinedStudy(joined.folder, bundle, joined.study)
    with Ledger.open(site.ledger, site.identity) as ledger:
        ledger.record(
            _decided(bundle, "rule: nobody new", f"follows epoch {joined.bundle.epoch} with nobody new in it")
        )
    write_public(joined.folder / BUNDLE, raw)
    return JoinedStudy(joined.folder, bundle, joined.study)


def _pin(site: SiteFolder, folder: Path, bundle: StudyBundle) -> None:
    write_trust_file(folder / TRUST, site.enrolment.approval_key)
    write_public(folder / SERVER_CA, bundle.ca_certificate.encode())
    if not (folder / LOCAL_KEY).exists():
        ca = make_ca(f"local interface of {site.name}")
        local = make_server_certificate(ca, ("127.0.0.1", "localhost"))
        write_public(folder / LOCAL_CA, ca.certificate)
        write_public(folder / LOCAL_CERTIFICATE, local.certificate)
        write_secret(folder / LOCAL_KEY, local.key)


def _require_goes_on(folder: Path, bundle: StudyBundle) -> None:
    if (folder / BUNDLE).exists():
        _require_later(read_bundle(folder / BUNDLE), bundle)


def _require_later(before: StudyBundle, bundle: StudyBundle) -> None:
    founding = before.founding or before.sha256.hex()
    if before.sha256 == bundle.sha256:
        return
    if (bundle.founding or bundle.sha256.hex()) != founding:
        raise ProtocolError(
            "this site has joined another study of this name",
            where=f"study {before.study['study']}",
            fix="ask for the study under a name of its own; or, if no round of the joined one was run here, move its "
            "folder away from studies/ and join again",
        )
    if bundle.epoch <= before.epoch:
        raise ProtocolError(
            "this site is in a later epoch of the study already",
            where=f"epoch {before.epoch}",
            fix="ask the coordinator for the newest bundle",
        )
    if bundle.basis != before.basis:
        raise ProtocolError(
            "the later epoch has another basis, on which what was trained so far means nothing",
            where=f"epoch {bundle.epoch}",
            fix="ask the coordinator for a bundle with the founding one's basis, or for a new study",
        )


def _decided(bundle: StudyBundle, by: str, what: str) -> Decided:
    return Decided(
        what=f"study bundle {bundle.sha256.hex()[:16]}, epoch {bundle.epoch}, app {bundle.app_sha256[:16]}: {what}",
        by=by,
        study=bundle.study_sha256,
    )
