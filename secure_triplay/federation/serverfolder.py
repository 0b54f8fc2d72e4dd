"""The coordinator's folder: the study's CA and server certificate, its bundles, and who confirmed them.

It holds no key that opens anything of a site. Whoever has `ca.key` can pose as the server, and a server learns
what the README's table says a server learns.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from secure_triplay.config import Study, load_study
from secure_triplay.crypto.double import DoubleSigner
from secure_triplay.crypto.identity import SigningIdentity
from secure_triplay.crypto.keyfile import load_identity, save_identity
from secure_triplay.errors import ConfigError, RunError
from secure_triplay.federation.ca import Issued, make_ca, make_server_certificate
from secure_triplay.federation.enrolment import Enrolment
from secure_triplay.federation.files import (
    new_folder,
    read_public,
    read_secret,
    replace_secret,
    write_public,
    write_secret,
)
from secure_triplay.federation.join import read_bundle
from secure_triplay.federation.joined import Joined
from secure_triplay.federation.sitefolder import MLDSA_KEY
from secure_triplay.federation.studybundle import (
    Rules,
    StudyBundle,
    least_quorum,
    make_bundle,
    without_paths,
)
from secure_triplay.ledger.log import AuditLog
from secure_triplay.ledger.persons import require_person
from secure_triplay.loading import compute_basis

CA_CERTIFICATE, CA_KEY, CERTIFICATE, KEY = "ca.crt", "ca.key", "server.crt", "server.key"
EPOCHS, CONFIRMED, FLOWER, ROUNDS = "epochs", "confirmed", "flower", "rounds"
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_HOST = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")


@dataclass(frozen=True)
class ServerFolder:
    """A coordinator's folder; make it with `create`."""

    path: Path

    @classmethod
    def create(
        cls,
        path: Path,
        study_file: Path,
        enrolments: list[Path],
        *,
        server: str,
        rules: Rules | None = None,
        started_by: str = "coordinator",
    ) -> ServerFolder:
        """Make CA, server certificate, coordinator's keys and the founding bundle. Leaves nothing where it fails.

        `server` is host:port as sites reach it. A study with `adapter.basis: public` needs its backbone and public
        images here. Raises ConfigError, CryptoError or RunError.
        """
        path = path.absolute()
        if path.exists() and any(path.iterdir()):
            raise RunError("this folder is not empty", where=str(path), fix="name a new folder with --out")
        require_person(started_by, "--started-by")
        _require_address(server)
        study, members = load_study(study_file), read_enrolments(enrolments)
        study_bytes = read_public(study_file, "study", "name a study file")
        chosen = rules or Rules(quorum=least_quorum(study, len(members)), deadline_s=3600.0)
        signer, ca = DoubleSigner.generate(), make_ca(f"{study.study} study")
        certificate = make_server_certificate(ca, _hosts(server))
        without_paths(study)  # a study for simulations is refused before anything is computed
        bundle = make_bundle(
            study,
            members,
            signer,
            server=server,
            ca_certificate=ca.certificate,
            rules=chosen,
            basis=compute_basis(study),
        )
        with new_folder(path) as draft:
            save_identity(draft, signer.signer)
            write_secret(draft / MLDSA_KEY, signer.to_private_bytes())
            write_public(draft / CA_CERTIFICATE, ca.certificate)
            write_secret(draft / CA_KEY, ca.key)
            write_public(draft / CERTIFICATE, certificate.certificate)
            write_secret(draft / KEY, certificate.key)
            for name in (EPOCHS, CONFIRMED, ROUNDS):
                (draft / name).mkdir(mode=0o700)
            write_public(draft / "study.yaml", study_bytes)
            AuditLog.create(draft, signer.signer, party="coordinator", started_by=started_by).close()
            cls(draft).add_epoch(bundle)
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> ServerFolder:
        """The folder that `create` made. Raises ConfigError where it is none."""
        path = path.absolute()
        folder = cls(path)
        if not (path / CA_CERTIFICATE).exists() or not folder.epochs:
            raise ConfigError(
                "this is no coordinator's folder",
                where=str(path),
                fix="name the folder that `secure-triplay study create` made, with --dir",
            )
        return folder

    @property
    def epochs(self) -> list[int]:
        """The key epochs so far."""
        return sorted(int(file.stem) for file in (self.path / EPOCHS).glob("*.bundle"))

    @cached_property
    def signer(self) -> DoubleSigner:
        """The coordinator's signing keys."""
        return DoubleSigner.from_private_bytes(load_identity(self.path), read_secret(self.path / MLDSA_KEY))

    @property
    def identity(self) -> SigningIdentity:
        """The coordinator's Ed25519 key."""
        return self.signer.signer

    @property
    def bundle(self) -> StudyBundle:
        """The newest bundle, verified."""
        return read_bundle(self.path / EPOCHS / f"{self.epochs[-1]}.bundle")

    @property
    def study(self) -> Study:
        """The study as it stands in the bundle, without anybody's paths."""
        return self.bundle.parsed_study()

    def add_epoch(self, bundle: StudyBundle) -> None:
        """Sign a bundle and make it the newest; the public copy for the sites lies at the top of the folder."""
        content = bundle.signed(self.signer)
        write_public(self.path / EPOCHS / f"{bundle.epoch}.bundle", content)
        write_public(self.public_bundle, content)

    @property
    def public_bundle(self) -> Path:
        """The file to hand to the sites."""
        found = next(self.path.glob("*.bundle"), None)
        return found or self.path / f"{load_study(self.path / 'study.yaml').study}.bundle"

    def next_epoch(self, *, add: list[Path] | None = None, remove: list[str] | None = None) -> StudyBundle:
        """A new key epoch: the same study over a roster with some more or fewer sites. Raises ConfigError."""
        before = self.bundle
        members = {name: text.encode() for name, text in zip(before.members, before.enrolments, strict=True)}
        for name in remove or []:
            if members.pop(name, None) is None:
                raise ConfigError(
                    f"{name} is not on the roster", where="remove", fix=f"one of: {', '.join(members)}"
                )
        members |= read_enrolments(add or [])
        if not members:
            raise ConfigError("nobody would be left", where="remove", fix="stop the study instead")
        least = least_quorum(self.study, len(members))
        rules = Rules(
            quorum=min(max(before.rules.quorum, least), len(members)),
            deadline_s=before.rules.deadline_s,
        )
        bundle = make_bundle(
            self.study,
            members,
            self.signer,
            server=before.server,
            ca_certificate=before.ca_certificate.encode(),
            rules=rules,
            epoch=before.epoch + 1,
            founding=before.sha256 if before.founding is None else bytes.fromhex(before.founding),
            basis=before.basis_bytes,
        )
        self.add_epoch(bundle)
        return bundle

    def take_confirmation(self, file: Path) -> Joined:
        """Keep a site's confirmation of the newest bundle. Raises ConfigError or CryptoError."""
        raw = read_public(file, "confirmation", "ask the site for its .joined file")
        joined = Joined.read(raw, where=str(file))
        joined.require_for(self.bundle)
        write_public(self.path / CONFIRMED / f"{joined.site}.joined", raw)
        return joined

    def approvals(self) -> dict[str, Joined]:
        """Confirmations by site, of whoever is on the roster and approved the app of the newest bundle.

        One of an earlier epoch counts for the app; whether a site takes part in a later epoch it decides itself.
        """
        bundle = self.bundle
        found = {}
        for site, member in bundle.members.items():
            file = self.path / CONFIRMED / f"{site}.joined"
            if file.exists():
                joined = Joined.read(read_public(file, "confirmation", "ask the site again"), where=str(file))
                joined.approval.verify(member.approval_key, bundle.app_bytes)
                found[site] = joined
        return found

    @property
    def tls(self) -> tuple[Path, Path, Path]:
        """Files of CA certificate, server certificate and server key, for the SuperLink."""
        return self.path / CA_CERTIFICATE, self.path / CERTIFICATE, self.path / KEY

    def renew_certificate(self) -> None:
        """A new server certificate for the same host, under the same CA, so that no site has to do anything."""
        issued = make_server_certificate(
            Issued((self.path / CA_CERTIFICATE).read_bytes(), read_secret(self.path / CA_KEY)),
            _hosts(self.bundle.server),
        )
        replace_secret(self.path / KEY, issued.key)
        write_public(self.path / CERTIFICATE, issued.certificate)


def _require_address(server: str) -> None:
    """Return nothing if it is HOST:PORT. Raises ConfigError otherwise: sites would look for it in vain."""
    host, _, port = server.rpartition(":")
    host = host.strip("[]")
    try:
        address = bool(ipaddress.ip_address(host))
    except ValueError:
        address = len(host) <= 253 and _HOST.fullmatch(host) is not None
    if not (address and re.fullmatch(r"[0-9]{1,5}", port) and 1 <= int(port) <= 65_535):
        raise ConfigError(
            f"{server!r} is no address at which sites could reach a server",
            where="--server",
            fix="give HOST:PORT, such as fl.example.org:8443; the port is 1 to 65535, and a name with other letters "
            "than a-z stands in its xn-- form",
        )


def _hosts(server: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys((server.rpartition(":")[0].strip("[]"), "127.0.0.1", "localhost")))


def read_enrolments(paths: list[Path]) -> dict[str, bytes]:
    """Enrolment files by site, each verified. Raises ConfigError where two are of one name."""
    found: dict[str, bytes] = {}
    for path in paths:
        raw = read_public(path, "enrolment", "ask the site for its .enrol file")
        name = Enrolment.read(raw, where=str(path)).site
        if name in found:
            raise ConfigError(
                f"two enrolment files are of {name}",
                where=str(path),
                fix="ask the site which fingerprint is its own",
            )
        found[name] = raw
    return found
