"""What the messages of a round carry for masks; the exchange that only masked rounds have is `wire.unmask`.

    Report(t)     this site's mask keys of round t+1
    Witness(t)    every site's mask keys of round t+1
    Approval(t)   shares of this site's secrets of round t+1, sealed to its peers
    Train(t+1)    the members of round t+1, with what they sealed to this site
    Train(t+1)    the seeds of round t, with which each site takes the masks off the sum that it opens

In a study with a shared key all of these are empty. Between Approval and Train each site reveals the shares of which
the seeds are put together. The protocol, with its papers, is in `crypto.masking`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from secure_triplay.crypto.identity import SIGNATURE_BYTES
from secure_triplay.crypto.masking.context import MaskContext
from secure_triplay.crypto.masking.expand import SEED_BYTES
from secure_triplay.crypto.masking.messages import SEALED_BYTES, MaskKeys, Revealed, SealedShares
from secure_triplay.crypto.masking.parameters import MAX_SITES, MaskingParameters
from secure_triplay.wire.plan import SessionPlan
from secure_triplay.wire.records import require_records
from secure_triplay.wireformat import NAME, fields_of, is_bytes, is_text, list_of, require


@dataclass(frozen=True)
class HeldShares:
    """A member of a round, and what it sealed to the reader: nothing where the reader is no peer of it."""

    site: str
    sealed: bytes = b""

    def __post_init__(self) -> None:
        require(is_text(self.site, NAME), "a site's name is a-z, 0-9 and -", HeldShares)
        due = self.sealed == b"" or is_bytes(self.sealed, SEALED_BYTES)
        require(due and type(self.sealed) is bytes, f"shares have {SEALED_BYTES} bytes", HeldShares)


@dataclass(frozen=True)
class MemberSeed:
    """A member of a closed round: the keys that it signed, and its seed. b where it survived, s where it was lost."""

    site: str
    seal_key: bytes
    mask_key: bytes
    self_mask_check: bytes
    signature: bytes
    seed: bytes

    def __post_init__(self) -> None:
        require(is_text(self.site, NAME), "a site's name is a-z, 0-9 and -", MemberSeed)
        require(is_bytes(self.seed, SEED_BYTES), f"a seed has {SEED_BYTES} bytes", MemberSeed)
        _ = self.keys  # which checks the rest

    @classmethod
    def of(cls, keys: MaskKeys, seed: bytes) -> MemberSeed:
        """A member's keys with its seed."""
        return cls(keys.site, keys.seal_key, keys.mask_key, keys.self_mask_check, keys.signature, seed)

    @property
    def keys(self) -> MaskKeys:
        """The keys alone."""
        return MaskKeys(self.site, self.seal_key, self.mask_key, self.self_mask_check, self.signature)


def mask_context(plan: SessionPlan, parameters: MaskingParameters, round: int) -> MaskContext:
    """What every signature, key and seal of a masked round is bound to.

    The order on a sparse graph's ring follows from the whole plan, key id included. Whoever makes the key and the
    coordinator could together try many keys for an order that suits them; up to 50 sites the order decides nothing.
    """
    roster = {site.name: site.identity for site in plan.sites}
    return MaskContext(plan.study, plan.epoch, round, roster, parameters, plan.sha256)


def require_keys(keys: object, most: int, message: type) -> None:
    """Raise ProtocolError unless these are at most `most` sites' keys, in the order of names, each once."""
    require_records(keys, MaskKeys, most, message)
    _require_order(keys, message)


def require_members(members: object, message: type) -> None:
    """Raise ProtocolError unless these are members in the order of names, each once."""
    require_records(members, HeldShares, MAX_SITES, message)
    _require_order(members, message)


def require_seeds(seeds: object, message: type) -> None:
    """Raise ProtocolError unless these are seeds in the order of names, each once."""
    require_records(seeds, MemberSeed, MAX_SITES, message)
    _require_order(seeds, message)


def shares_to_list(shares: SealedShares | Revealed) -> list[Any]:
    """Site, signature, and a pair for each peer, in the order of names."""
    held = shares.sealed if isinstance(shares, SealedShares) else shares.shares
    return [shares.site, shares.signature, [[peer, held[peer]] for peer in sorted(held)]]


def shares_from_list(value: object, message: type) -> tuple[str, dict[str, bytes], bytes]:
    """Site, bytes by peer and signature. Raises ProtocolError for what is none."""
    site, signature, pairs = fields_of(value, 3, message)
    listed = [fields_of(pair, 2, message) for pair in list_of(pairs, message)]
    require(
        is_text(site, NAME) and all(is_text(peer, NAME) for peer, _ in listed),
        "a site's name is a-z, 0-9 and -",
        message,
    )
    require(len(listed) <= MAX_SITES and len(dict(listed)) == len(listed), "a peer stands twice", message)
    require(is_bytes(signature, SIGNATURE_BYTES), "a signature has 64 bytes", message)
    return site, dict(listed), signature


def _require_order(records: Any, message: type) -> None:
    names = [record.site for record in records]
    require(all(is_text(name, NAME) for name in names), "a site's name is a-z, 0-9 and -", message)
    require(all(a < b for a, b in pairwise(names)), "sites are in order, each once", message)


def names_of(records: Iterable[HeldShares | MemberSeed | MaskKeys | SealedShares]) -> tuple[str, ...]:
    """The sites of records, in their order."""
    return tuple(record.site for record in records)
