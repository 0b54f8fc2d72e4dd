"""SECRET. A site's own folder: its keys, its policy, its ledger, and one folder for each study that it joined.

Every private key here was made here and leaves the folder in no file that this package writes. Key files have
mode 0600 and no passphrase, because the worker has to start by itself after a power cut: whoever runs as this
user, or takes an unencrypted disk, has them. The site's full-disk encryption is what protects a stolen disk.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from secure_triplay.crypto.double import DoubleSigner
from secure_triplay.crypto.identity import SigningIdentity
from secure_triplay.crypto.keyfile import load_identity, save_identity
from secure_triplay.errors import ConfigError, CryptoError, RunError
from secure_triplay.federation.approval import public_line
from secure_triplay.federation.documents import keys_of
from secure_triplay.federation.enrolment import Enrolment
from secure_triplay.federation.files import new_folder, read_public, read_secret, write_public, write_secret
from secure_triplay.ledger.start import LEDGER
from secure_triplay.ledger.study import policy_limits
from secure_triplay.policy import SitePolicy, load_policy

MLDSA_KEY, SUPERNODE_KEY, APPROVAL_KEY, STORAGE_KEY = (
    "mldsa.key",
    "supernode.key",
    "approval.key",
    "storage.key",
)
STORAGE_KEY_BYTES = 32
POLICY = "policy.yaml"
STUDIES = "studies"
_OPENSSH = serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()


@dataclass(frozen=True)
class SiteFolder:
    """One site's folder; open it with `open`, make it with `init`."""

    path: Path
    enrolment: Enrolment

    @classmethod
    def init(
        cls, path: Path, name: str, policy: Path | None = None, *, with_ledger: bool = False
    ) -> SiteFolder:
        """Make the folder, every key and the enrolment file: all of it, or nothing. Raises ConfigError or RunError.

        Without `policy` the site starts with the strict one of this package. `with_ledger`: the caller goes on
        to start the ledger under it, so a policy that gives no limits is an error before anything is made.
        """
        path = path.absolute()
        if path.exists() and any(path.iterdir()):
            raise RunError(
                "this folder is not empty, and no key is ever overwritten",
                where=str(path),
                fix="name a new folder with --dir, or use the site that is there",
            )
        source = Path(str(files("secure_triplay.federation") / "strict.yaml")) if policy is None else policy
        limits, policy_bytes = load_policy(source), read_public(source, "policy", "name a policy file")
        if with_ledger:
            policy_limits(limits)
        signer = DoubleSigner.generate()
        supernode, approval = ec.generate_private_key(ec.SECP384R1()), Ed25519PrivateKey.generate()
        try:
            enrolment = Enrolment.model_validate(
                {
                    **keys_of(signer),
                    "site": name,
                    "supernode_key": public_line(supernode),
                    "approval_key": public_line(approval),
                }
            )
        except ValueError as error:
            raise ConfigError(
                f"{name!r} is no name for a site",
                where="--name",
                fix="use a-z, 0-9 and -, at most 48 of them",
            ) from error
        with new_folder(path) as draft:
            save_identity(draft, signer.signer)
            write_secret(draft / MLDSA_KEY, signer.to_private_bytes())
            write_secret(draft / SUPERNODE_KEY, supernode.private_bytes(*_OPENSSH))
            write_secret(draft / APPROVAL_KEY, approval.private_bytes(*_OPENSSH))
            write_secret(draft / STORAGE_KEY, os.urandom(STORAGE_KEY_BYTES))
            write_public(draft / POLICY, policy_bytes)
            (draft / STUDIES).mkdir(mode=0o700)
            write_public(draft / f"{name}.enrol", enrolment.signed(signer))
        return cls(path, enrolment)

    @classmethod
    def open(cls, path: Path) -> SiteFolder:
        """The folder that `init` made. Raises ConfigError where it is none, CryptoError where keys do not fit."""
        path = path.absolute()
        found = sorted(path.glob("*.enrol"))
        fix = "name the folder with --site DIR; `secure-triplay site init --name NAME` makes one"
        if len(found) != 1:
            raise ConfigError("this is no site's folder", where=str(path), fix=fix)
        enrolment = Enrolment.read(read_public(found[0], "enrolment", fix), where=str(found[0]))
        folder = cls(path, enrolment)
        if folder.signer.identity != enrolment.signer:
            raise CryptoError(
                "the keys in this folder are not those of its enrolment file",
                where=str(path),
                fix="restore the folder as a whole from its backup",
            )
        return folder

    @property
    def name(self) -> str:
        """The site's name."""
        return self.enrolment.site

    @property
    def enrolment_file(self) -> Path:
        """The public file for the coordinator."""
        return self.path / f"{self.name}.enrol"

    @cached_property
    def signer(self) -> DoubleSigner:
        """Both signing keys."""
        return DoubleSigner.from_private_bytes(load_identity(self.path), read_secret(self.path / MLDSA_KEY))

    @property
    def identity(self) -> SigningIdentity:
        """The Ed25519 key, which signs uploads and the ledger."""
        return self.signer.signer

    @property
    def approval_key(self) -> Ed25519PrivateKey:
        """The key under which this site's SuperNode runs an app bundle."""
        key = self._openssh(APPROVAL_KEY)
        if not isinstance(key, Ed25519PrivateKey) or public_line(key) != self.enrolment.approval_key:
            raise _other_key(APPROVAL_KEY)
        return key

    @property
    def storage_key(self) -> bytes:
        """The key `(32,)` under which the worker keeps its state at rest."""
        key = read_secret(self.path / STORAGE_KEY)
        if len(key) != STORAGE_KEY_BYTES:
            raise CryptoError(
                "the storage key is damaged", where=STORAGE_KEY, fix="restore the folder's backup"
            )
        return key

    def require_keys(self) -> None:
        """Return nothing if each key of the folder can be used and is the enrolled one. Raises CryptoError."""
        _ = self.storage_key, self.approval_key
        supernode = self._openssh(SUPERNODE_KEY)
        if (
            not isinstance(supernode, ec.EllipticCurvePrivateKey)
            or public_line(supernode) != self.enrolment.supernode_key
        ):
            raise _other_key(SUPERNODE_KEY)

    def _openssh(self, name: str) -> object:
        try:
            return serialization.load_ssh_private_key(read_secret(self.path / name), None)
        except (ValueError, UnsupportedAlgorithm) as error:
            raise CryptoError(
                "a key of this folder is damaged",
                where=str(self.path / name),
                fix="restore the folder's backup",
            ) from error

    @property
    def policy_file(self) -> Path:
        """The policy that binds this site, which people at the site edit."""
        return self.path / POLICY

    @property
    def policy(self) -> SitePolicy:
        """The policy as it stands now. Raises ConfigError."""
        return load_policy(self.policy_file)

    @property
    def ledger(self) -> Path:
        """Folder of the privacy ledger."""
        return self.path / LEDGER

    def study(self, name: str | None = None) -> Path:
        """Folder of a joined study; without a name, of the only one. Raises RunError."""
        joined = sorted(folder.name for folder in (self.path / STUDIES).iterdir() if folder.is_dir())
        if name is None and len(joined) == 1:
            name = joined[0]
        if name is None or name not in joined:
            raise RunError(
                "say which study" if joined and name is None else "this site has joined no such study",
                where=str(self.path),
                fix=f"--study with one of: {', '.join(joined)}"
                if joined
                else "join one: secure-triplay site join BUNDLE",
            )
        return self.path / STUDIES / name


def _other_key(name: str) -> CryptoError:
    return CryptoError("this is not the key that was enrolled", where=name, fix="restore the folder's backup")
