"""The two exchanges of a round, and what a site that was away catches up with.

    server -> site   Train, Witness, CatchUp      site -> server   Report, Approval, Behind, Declined, Done

    Train(t)     the quorum's signatures under the sum of t-1, and receipts for this site's ledger
    Report(t)    the update of round t, and the site's ledger head with round t+1 charged
    Witness(t)   the sum of t, and other sites' heads to countersign
    Approval(t)  this site's signature under that sum, and its countersignatures

`Train` of the round after the last only opens the last sum, and is answered by `Done`. What they carry besides where
updates are masked is in `masks`; it is empty where they are not.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from secure_triplay.crypto.identity import (
    SIGNATURE_BYTES,
    Purpose,
    SigningIdentity,
    transcript,
)
from secure_triplay.crypto.masking.messages import MaskKeys, SealedShares
from secure_triplay.errors import CryptoError
from secure_triplay.wire.heads import Countersignature, HeldHead, LedgerHead
from secure_triplay.wire.masks import (
    HeldShares,
    MemberSeed,
    require_keys,
    require_members,
    require_seeds,
    shares_from_list,
    shares_to_list,
)
from secure_triplay.wire.plan import SessionPlan
from secure_triplay.wire.records import as_lists, from_lists, require_records
from secure_triplay.wire.upload import SumMessage
from secure_triplay.wireformat import (
    MAX_SITES,
    NAME,
    Message,
    fields_of,
    is_bytes,
    is_number,
    is_text,
    list_of,
    require,
    require_study,
)

MAX_HEADS = 64
"""Most ledger heads, receipts or countersignatures in one message."""
MAX_CATCH_UP_BYTES = 64 << 20
"""About what one `CatchUp` carries; who is further behind asks again."""


@dataclass(frozen=True)
class Endorsement:
    """One site's signature under one sum; `verify_quorum` says what it is over."""

    site: str
    signature: bytes

    def __post_init__(self) -> None:
        require(is_text(self.site, NAME), "a site's name is a-z, 0-9 and -", Endorsement)
        require(is_bytes(self.signature, SIGNATURE_BYTES), "a signature has 64 bytes", Endorsement)


@dataclass(frozen=True)
class Train(Message):
    """Server to site: open the sum of the round before, which this quorum signed, and train `round`.

    Round 0 (or the round that a key epoch starts after) asks for no update: it has the first charge reserved.
    `receipts` and `held` are what peers said of the head that this site showed last. `seeds` take the masks off the
    sum; `members` are those who mask in `round`.
    """

    study: str
    epoch: int
    round: int
    approvals: tuple[Endorsement, ...] = ()
    receipts: tuple[Countersignature, ...] = ()
    held: tuple[HeldHead, ...] = ()
    seeds: tuple[MemberSeed, ...] = ()
    members: tuple[HeldShares, ...] = ()

    kind: ClassVar[int] = 7

    def __post_init__(self) -> None:
        require_study(self.study, self.epoch, Train)
        require(is_number(self.round), "a round is a number", Train)
        require_records(self.approvals, Endorsement, MAX_SITES, Train)
        require_records(self.receipts, Countersignature, MAX_HEADS, Train)
        require_records(self.held, HeldHead, MAX_HEADS, Train)
        require_seeds(self.seeds, Train)
        require_members(self.members, Train)

    def _head(self) -> list[Any]:
        parts = (self.approvals, self.receipts, self.held, self.seeds, self.members)
        return [self.study, self.epoch, self.round, *map(as_lists, parts)]

    @classmethod
    def _from_parts(cls, head: list[Any], body: memoryview) -> Self:
        require(not body, "it has no body", cls)
        study, epoch, round, approvals, receipts, held, seeds, members = fields_of(head, 8, cls)
        return cls(
            study,
            epoch,
            round,
            from_lists(approvals, Endorsement, cls),
            from_lists(receipts, Countersignature, cls),
            from_lists(held, HeldHead, cls),
            from_lists(seeds, MemberSeed, cls),
            from_lists(members, HeldShares, cls),
        )


@dataclass(frozen=True)
class Report(Message):
    """Site to server: the bytes of its `Upload` of `round`, or none, and its ledger's head for others to sign.

    Several heads differ only in what they name as held by others. The upload is for the inbox to judge. `mask_keys`
    are this site's of the next round.
    """

    study: str
    epoch: int
    round: int
    heads: tuple[LedgerHead, ...]
    upload: bytes = b""
    mask_keys: MaskKeys | None = None

    kind: ClassVar[int] = 8

    def __post_init__(self) -> None:
        require_study(self.study, self.epoch, Report)
        require(is_number(self.round), "a round is a number", Report)
        require_records(self.heads, LedgerHead, MAX_HEADS, Report)
        require(len({head.party_key for head in self.heads}) <= 1, "the heads are of several ledgers", Report)
        require(type(self.upload) is bytes, "an upload is bytes", Report)
        require_keys(self._mask_keys, 1, Report)

    @property
    def _mask_keys(self) -> tuple[MaskKeys, ...]:
        return () if self.mask_keys is None else (self.mask_keys,)

    def _head(self) -> list[Any]:
        size, keys = len(self.upload), as_lists(self._mask_keys)
        return [self.study, self.epoch, self.round, as_lists(self.heads), size, keys]

    def _body(self) -> tuple[bytes, ...]:
        return (self.upload,)

    @classmethod
    def _from_parts(cls, head: list[Any], body: memoryview) -> Self:
        study, epoch, round, heads, size, keys = fields_of(head, 6, cls)
        require(size == len(body), "its upload is cut short, or something stands behind it", cls)
        own = from_lists(keys, MaskKeys, cls)
        require(len(own) <= 1, "a site has one set of keys", cls)
        heads = from_lists(heads, LedgerHead, cls)
        return cls(study, epoch, round, heads, bytes(body), own[0] if own else None)


@dataclass(frozen=True)
class Witness(Message):
    """Server to site: sign this sum of `round`, if there is one, and countersign these heads.

    `mask_keys` are those of all who may be members of the next round: share with them.
    """

    study: str
    epoch: int
    round: int
    heads: tuple[LedgerHead, ...]
    total: SumMessage | None = None
    mask_keys: tuple[MaskKeys, ...] = ()

    kind: ClassVar[int] = 9

    def __post_init__(self) -> None:
        require_study(self.study, self.epoch, Witness)
        require(is_number(self.round), "a round is a number", Witness)
        require_records(self.heads, LedgerHead, MAX_HEADS, Witness)
        require_keys(self.mask_keys, MAX_SITES, Witness)
        if self.total is not None:
            require(type(self.total) is SumMessage, "a sum is due", Witness)
            of = self.total.study, self.total.epoch, self.total.round
            require(of == (self.study, self.epoch, self.round), "the sum is of another round", Witness)

    def _head(self) -> list[Any]:
        has_sum, keys = self.total is not None, as_lists(self.mask_keys)
        return [self.study, self.epoch, self.round, as_lists(self.heads), has_sum, keys]

    def _body(self) -> tuple[bytes, ...]:
        return () if self.total is None else (self.total.to_bytes(),)

    @classmethod
    def _from_parts(cls, head: list[Any], body: memoryview) -> Self:
        study, epoch, round, heads, has_sum, keys = fields_of(head, 6, cls)
        require(has_sum is (len(body) > 0), "its sum is missing, or something stands behind it", cls)
        total = SumMessage.from_bytes(bytes(body)) if has_sum else None
        heads, keys = from_lists(heads, LedgerHead, cls), from_lists(keys, MaskKeys, cls)
        return cls(study, epoch, round, heads, total, keys)


@dataclass(frozen=True)
class Approval(Message):
    """Site to server: `site` signed the sum of `round` (empty where there was none), and these heads.

    `shares` are of its secrets of the next round.
    """

    study: str
    epoch: int
    round: int
    site: str
    signature: bytes
    receipts: tuple[Countersignature, ...] = ()
    held: tuple[HeldHead, ...] = ()
    shares: SealedShares | None = None

    kind: ClassVar[int] = 10

    def __post_init__(self) -> None:
        require_study(self.study, self.epoch, Approval)
        require(is_number(self.round), "a round is a number", Approval)
        require(is_text(self.site, NAME), "a site's name is a-z, 0-9 and -", Approval)
        signed = self.signature == b"" or is_bytes(self.signature, SIGNATURE_BYTES)
        require(signed and type(self.signature) is bytes, "a signature has 64 bytes", Approval)
        require_records(self.receipts, Countersignature, MAX_HEADS, Approval)
        require_records(self.held, HeldHead, MAX_HEADS, Approval)
        of = None if self.shares is None else (type(self.shares), self.shares.site)
        require(of in (None, (SealedShares, self.site)), "the shares are another site's", Approval)

    def _head(self) -> list[Any]:
        records = as_lists(self.receipts), as_lists(self.held)
        shares = [] if self.shares is None else shares_to_list(self.shares)
        return [self.study, self.epoch, self.round, self.site, self.signature, *records, shares]

    @classmethod
    def _from_parts(cls, head: list[Any], body: memoryview) -> Self:
        require(not body, "it has no body", cls)
        study, epoch, round, site, signature, receipts, held, shares = fields_of(head, 8, cls)
        return cls(
            study,
            epoch,
            round,
            site,
            signature,
            from_lists(receipts, Countersignature, cls),
            from_lists(held, HeldHead, cls),
            SealedShares(*shares_from_list(shares, cls)) if list_of(shares, cls) else None,
        )


@dataclass(frozen=True)
class Closed:
    """One closed round: its sum, the quorum's signatures under it, and where it is masked its members' seeds."""

    total: SumMessage
    approvals: tuple[Endorsement, ...]
    seeds: tuple[MemberSeed, ...] = ()


@dataclass(frozen=True)
class CatchUp(Message):
    """Server to site: closed rounds, one after the other, for a site that was away."""

    study: str
    epoch: int
    closed: tuple[Closed, ...]

    kind: ClassVar[int] = 11

    def __post_init__(self) -> None:
        require_study(self.study, self.epoch, CatchUp)
        require(type(self.closed) is tuple and 1 <= len(self.closed) <= MAX_SITES, "rounds are due", CatchUp)
        for one in self.closed:
            require(type(one) is Closed and type(one.total) is SumMessage, "a closed round is due", CatchUp)
            require_records(one.approvals, Endorsement, MAX_SITES, CatchUp)
            require_seeds(one.seeds, CatchUp)

    def _head(self) -> list[Any]:
        rounds = [
            [len(one.total.to_bytes()), as_lists(one.approvals), as_lists(one.seeds)] for one in self.closed
        ]
        return [self.study, self.epoch, rounds]

    def _body(self) -> tuple[bytes, ...]:
        return tuple(one.total.to_bytes() for one in self.closed)

    @classmethod
    def _from_parts(cls, head: list[Any], body: memoryview) -> Self:
        study, epoch, rounds = fields_of(head, 3, cls)
        closed, start = [], 0
        for one in list_of(rounds, cls):
            size, approvals, seeds = fields_of(one, 3, cls)
            require(is_number(size, 1) and start + size <= len(body), "a sum is cut short", cls)
            total = SumMessage.from_bytes(bytes(body[start : start + size]))
            signed, opened = from_lists(approvals, Endorsement, cls), from_lists(seeds, MemberSeed, cls)
            closed.append(Closed(total, signed, opened))
            start += size
        require(start == len(body), "something stands behind the last sum", cls)
        return cls(study, epoch, tuple(closed))


@dataclass(frozen=True)
class Behind(Message):
    """Site to server: `round` is the last one whose sum I have applied; send me what came after it."""

    study: str
    epoch: int
    round: int

    kind: ClassVar[int] = 2

    def __post_init__(self) -> None:
        require_study(self.study, self.epoch, Behind)
        require(is_number(self.round), "a round is a number", Behind)

    def _head(self) -> list[Any]:
        return [self.study, self.epoch, self.round]

    @classmethod
    def _from_parts(cls, head: list[Any], body: memoryview) -> Self:
        require(not body, "it has no body", cls)
        return cls(*fields_of(head, 3, cls))


class _Constant(Message):
    """A message that is always the same ten bytes and one empty list."""

    def _head(self) -> list[Any]:
        return []

    @classmethod
    def _from_parts(cls, head: list[Any], body: memoryview) -> Self:
        require(not head and not body, "it carries nothing", cls)
        return cls()


@dataclass(frozen=True)
class Declined(_Constant):
    """Site to server: no. The same bytes whatever the reason, which stays at the site."""

    kind: ClassVar[int] = 5


@dataclass(frozen=True)
class Done(_Constant):
    """Site to server: the last sum was applied."""

    kind: ClassVar[int] = 6


def endorse(plan: SessionPlan, signer: SigningIdentity, site: str, total: SumMessage) -> Endorsement:
    """A site's signature under a sum that it verified; it gives one a round, for one sum."""
    return Endorsement(site, signer.sign(Purpose.APPROVAL, *_approved_fields(plan, total)))


def verify_endorsement(plan: SessionPlan, total: SumMessage, one: Endorsement) -> None:
    """Return nothing if this site of the roster signed this very sum. Raises ProtocolError or CryptoError."""
    plan.identity_of(one.site).verify(one.signature, Purpose.APPROVAL, *_approved_fields(plan, total))


def verify_quorum(
    plan: SessionPlan, total: SumMessage, approvals: Iterable[Endorsement], quorum: int
) -> None:
    """Return nothing if at least `quorum` distinct sites of the roster signed this very sum, and nobody else did.

    A signature is over study, plan, round, the survivors' names and the hash of the whole sum.
    Raises ProtocolError for a name that is not listed, CryptoError for too few or for any that does not verify.
    """
    names = set()
    for one in approvals:
        verify_endorsement(plan, total, one)
        names.add(one.site)
    if len(names) < quorum:
        raise CryptoError(
            f"{len(names)} sites signed this sum, and {quorum} are needed before it is opened",
            where=f"sum of round {total.round}",
            fix="look into the server; nothing was decrypted",
        )


def _approved_fields(plan: SessionPlan, total: SumMessage) -> tuple[bytes, ...]:
    survivors = transcript(b"survivors 1", *(header.site.encode() for header in total.survivors))
    return plan.study.encode(), plan.sha256, str(total.round).encode(), survivors, total.sha256
