"""What server and sites agree on before a round: the study, the key by its name, and who takes part."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Self

from secure_triplay.crypto.identity import Identity, transcript
from secure_triplay.crypto.parameters import ID_BYTES, PACKED_BYTES, SEED_BYTES
from secure_triplay.errors import ConfigError
from secure_triplay.wireformat import (
    MAX_CHUNKS,
    MAX_SITES,
    NAME,
    PREFIX_BYTES,
    Message,
    fields_of,
    is_bytes,
    is_number,
    is_text,
    is_tuple,
    list_of,
    require,
    require_study,
)

TAG_BYTES = 8
HEAD_BYTES = 512
"""No signed header is larger."""


def upload_bytes(n_chunks: int) -> int:
    """Bytes of one upload: c0, tags and seed; without signatures and frame."""
    return n_chunks * (PACKED_BYTES + TAG_BYTES) + SEED_BYTES


def sum_bytes(n_chunks: int, n_sites: int) -> int:
    """Bytes of one sum: c0, tags, and the seed of every site in it; without signatures and frame."""
    return n_chunks * (PACKED_BYTES + TAG_BYTES) + n_sites * SEED_BYTES


def require_quorum(quorum: int, n_sites: int) -> None:
    """Return nothing if two sums of one round cannot both find a quorum: more than half of the roster is needed.

    Each site signs one sum a round, so with half or fewer a server could have two different sums signed, and
    open both. Raises ConfigError.
    """
    if not n_sites < 2 * quorum <= 2 * n_sites:
        raise ConfigError(
            f"a quorum of {quorum} does not do for {n_sites} sites: with half of them or fewer, a server could "
            "have two different sums of one round opened",
            where="quorum",
            fix=f"choose {n_sites // 2 + 1} to {n_sites}",
        )


@dataclass(frozen=True)
class Site:
    """One member of the roster: its name and the identity under which it signs."""

    name: str
    identity: Identity

    def __post_init__(self) -> None:
        require(is_text(self.name, NAME), "a site's name is a-z, 0-9 and -, at most 48 of them", Site)
        require(type(self.identity) is Identity, "an identity is missing", Site)


@dataclass(frozen=True)
class SessionPlan(Message):
    """PUBLIC. What server and sites agree on before a round: study, key, roster, size of an upload.

    `study` is the study's SHA-256 in hex, `key_id` `(32,)` bytes (which bind the CKKS parameters), `n_chunks`
    the ciphertexts of one upload. A change of membership is a new plan with a new epoch and a new key.
    """

    study: str
    key_id: bytes
    epoch: int
    n_chunks: int
    sites: tuple[Site, ...]

    kind: ClassVar[int] = 1

    def __post_init__(self) -> None:
        require_study(self.study, self.epoch, SessionPlan)
        require(is_bytes(self.key_id, ID_BYTES), "a key id has 32 bytes", SessionPlan)
        require(is_number(self.n_chunks, 1, MAX_CHUNKS), f"n_chunks is 1 to {MAX_CHUNKS}", SessionPlan)
        require(is_tuple(self.sites, Site, MAX_SITES), f"a roster has 1 to {MAX_SITES} sites", SessionPlan)
        # One identity under two names would let one site count twice.
        distinct = len({site.name for site in self.sites}), len({site.identity for site in self.sites})
        require(distinct == (len(self.sites),) * 2, "a name or an identity is listed twice", SessionPlan)

    def _head(self) -> list[Any]:
        roster = [[site.name, site.identity.public_bytes] for site in self.sites]
        return [self.study, self.key_id, self.epoch, self.n_chunks, roster]

    @classmethod
    def _from_parts(cls, head: list[Any], body: memoryview) -> Self:
        require(not body, "a plan has no body", cls)
        study, key_id, epoch, n_chunks, roster = fields_of(head, 5, cls)
        entries = [fields_of(entry, 2, cls) for entry in list_of(roster, cls)]
        return cls(study, key_id, epoch, n_chunks, tuple(Site(name, Identity(key)) for name, key in entries))

    @cached_property
    def sha256(self) -> bytes:
        """Hash `(32,)` of the whole plan; it is under every signature of the plan's rounds."""
        return hashlib.sha256(transcript(b"session plan 1", self.to_bytes())).digest()

    @cached_property
    def _identities(self) -> dict[str, Identity]:
        return {site.name: site.identity for site in self.sites}

    def has_site(self, name: str) -> bool:
        """Whether the roster lists a site of this name."""
        return name in self._identities

    def identity_of(self, site: str) -> Identity:
        """The identity that the roster lists under a name. Raises ProtocolError if it lists none."""
        require(self.has_site(site), "a site is not on the roster", SessionPlan)
        return self._identities[site]

    @property
    def max_upload_bytes(self) -> int:
        """No upload of this plan is larger."""
        return PREFIX_BYTES + HEAD_BYTES + upload_bytes(self.n_chunks)

    @property
    def max_sum_bytes(self) -> int:
        """No sum of this plan is larger."""
        return PREFIX_BYTES + (len(self.sites) + 1) * HEAD_BYTES + self.n_chunks * (PACKED_BYTES + TAG_BYTES)
