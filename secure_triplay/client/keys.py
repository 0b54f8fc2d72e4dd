"""SECRET. The sites' shared keys of one epoch, and how they reach each site.

One site makes them; every other opens an envelope that only it can open, signed by the maker and bound to
study, roster, epoch and key id. The server, or a simulation's harness, relays envelopes and can read none.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from secure_triplay.client.ckks import CkksSecretKey
from secure_triplay.client.tag import TAG_SEED_BYTES, TagKey
from secure_triplay.client.vault import Vault
from secure_triplay.crypto.envelope import EnvelopeContext, EnvelopeKey, EnvelopeRecipient, seal
from secure_triplay.crypto.identity import Identity, SigningIdentity, transcript
from secure_triplay.crypto.parameters import ID_BYTES, NONCE_BYTES, CkksParameters, key_id
from secure_triplay.errors import CryptoError
from secure_triplay.wire import SessionPlan, Site

VAULT_NAME = "keys"

_HEAD = struct.Struct(f">{NONCE_BYTES}s{TAG_SEED_BYTES}s")


@dataclass(frozen=True)
class Roster:
    """PUBLIC. Who takes part in a key epoch: identities and envelope keys by site name, in the study's order."""

    study: str
    epoch: int
    identities: Mapping[str, Identity]
    recipients: Mapping[str, EnvelopeRecipient]

    @classmethod
    def of(cls, study: str, epoch: int, members: Mapping[str, tuple[bytes, bytes]]) -> Roster:
        """The roster of (identity bytes, envelope key bytes) by site name. Raises CryptoError for what is no key."""
        return cls(
            study,
            epoch,
            {name: Identity(keys[0]) for name, keys in members.items()},
            {name: EnvelopeRecipient(keys[1]) for name, keys in members.items()},
        )

    def plan(self, key: bytes, n_chunks: int) -> SessionPlan:
        """What server and sites agree on in this epoch, once its key has a name."""
        sites = tuple(Site(name, identity) for name, identity in self.identities.items())
        return SessionPlan(self.study, key, self.epoch, n_chunks, sites)

    @property
    def sha256(self) -> bytes:
        """Hash over the study and every member with both keys: what an envelope is bound to."""
        members = [
            part
            for site, identity in self.identities.items()
            for part in (site.encode(), identity.public_bytes, self.recipients[site].public_bytes)
        ]
        return hashlib.sha256(transcript(b"roster 1", self.study.encode(), *members)).digest()

    @property
    def adapter_seed(self) -> bytes:
        """Seed of the frozen A matrices: follows from study and roster, so that nobody chooses it."""
        return hashlib.sha256(transcript(b"adapter seed 1", self.sha256)).digest()

    def context(self, maker: str, recipient: str, key: bytes) -> EnvelopeContext:
        """What the envelope from `maker` to `recipient` is bound to."""
        return EnvelopeContext(self.study, self.sha256, self.epoch, key, self.identities[maker], recipient)


@dataclass(frozen=True)
class EpochKeys:
    """What all sites share in one epoch; `ckks` decrypts and `tag` authenticates sums."""

    key_id: bytes
    ckks: CkksSecretKey
    tag: TagKey

    def __repr__(self) -> str:
        return "<EpochKeys>"


def make_keys(
    parameters: CkksParameters, roster: Roster, maker: str, signer: SigningIdentity
) -> tuple[bytes, dict[str, bytes]]:
    """Fresh keys, sealed to every site of the roster -> (key id, envelope by site name).

    The maker opens an envelope like everybody else, so there is one way in which keys come to a site.
    """
    nonce = os.urandom(NONCE_BYTES)
    name = key_id(parameters.context_id, nonce)
    secret = (
        _HEAD.pack(nonce, TagKey.generate().to_envelope_bytes())
        + CkksSecretKey.generate(parameters).to_envelope_bytes()
    )
    envelopes = {
        site: seal(secret, roster.context(maker, site, name), recipient, signer)
        for site, recipient in roster.recipients.items()
    }
    return name, envelopes


def open_keys(
    envelope: bytes,
    parameters: CkksParameters,
    roster: Roster,
    *,
    maker: str,
    site: str,
    name: bytes,
    key: EnvelopeKey,
) -> EpochKeys:
    """The epoch's keys from this site's envelope.

    Raises CryptoError when it was not sealed to this site by `maker` for this roster, epoch and key id.
    """
    secret = key.open(envelope, roster.context(maker, site, name))
    if len(secret) <= _HEAD.size:
        raise CryptoError(
            "the envelope is too short to hold keys", where="key envelope", fix="repeat the key ceremony"
        )
    nonce, tag_secret = _HEAD.unpack_from(secret)
    if key_id(parameters.context_id, nonce) != name:
        raise CryptoError(
            "the envelope holds another key than its key id says",
            where="key envelope",
            fix="repeat the key ceremony",
        )
    return EpochKeys(
        name,
        CkksSecretKey.from_envelope_bytes(parameters, secret[_HEAD.size :]),
        TagKey.from_envelope_bytes(tag_secret),
    )


def save_keys(keys: EpochKeys, vault: Vault) -> None:
    """Keep the epoch's keys, so that a restarted worker goes on."""
    vault.save(VAULT_NAME, keys.key_id + keys.tag.to_envelope_bytes() + keys.ckks.to_envelope_bytes())


def load_keys(parameters: CkksParameters, vault: Vault) -> EpochKeys | None:
    """The epoch's keys, or None where they were never here or were destroyed. Raises CryptoError."""
    content = vault.load(VAULT_NAME)
    if content is None:
        return None
    start = ID_BYTES + TAG_SEED_BYTES
    return EpochKeys(
        content[:ID_BYTES],
        CkksSecretKey.from_envelope_bytes(parameters, content[start:]),
        TagKey.from_envelope_bytes(content[ID_BYTES:start]),
    )


def destroy_keys(vault: Vault) -> None:
    """Remove the epoch's keys from the disk; what the epoch's sums hold is closed to this site from then on."""
    vault.destroy(VAULT_NAME)
