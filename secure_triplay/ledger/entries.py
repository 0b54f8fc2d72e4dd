"""The closed set of ledger entries, and the chain that holds them: one entry a decision.

An entry's head is a hash over its place, time, nonce, content and the head before it; the party signs place and
head. So nobody without the key can edit, insert, reorder or drop an entry and leave a chain that verifies.
What the chain alone cannot show is a missing end, or an owner who writes all of it anew: see `anchor`.

Other parties and auditors read entries. So a time is that of the hour: entries stand right before and right after
training, and the time between two would tell how long it took, and with that how many records took part. Each entry
has a nonce, so that two copies of a ledger which go on with the same words in the same hour have different heads.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, ValidationError

from secure_triplay.crypto.identity import Identity, Purpose, SigningIdentity, transcript
from secure_triplay.errors import CryptoError, PrivacyError
from secure_triplay.schema import Frozen

MAX_BODY_BYTES = 1 << 20
NONCE_BYTES = 16
TIME_FORMAT = "%Y-%m-%dT%H:00:00Z"
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:00:00Z")
MAX_NAME = 200
CHAIN = "ledger chain"
"""Where an entry is broken, until whoever reads the chain says which one it is."""

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Text = Annotated[str, Field(min_length=1, max_length=2000)]
Count = Annotated[int, Field(ge=1, le=2**31)]
Round = Annotated[int, Field(ge=0, le=2**31)]
Positive = Annotated[float, Field(gt=0)]
ChargeFields = dict[str, str | int | float]
"""A charge as plain public numbers; `budget` turns it into a `Charge` and back."""


class Body(Frozen):
    """What one entry says."""

    kind: ClassVar[str]

    def to_bytes(self) -> bytes:
        """The one byte string of this content."""
        return canonical(self.model_dump(mode="json"))


class Opened(Body):
    """The chain begins: whose it is, who began it, and what it replaces."""

    kind: ClassVar[str] = "opened"
    party: Text
    public_key: Sha256
    nonce: Sha256
    started_by: Text
    replaces: str = ""


class PolicyAdopted(Body):
    """From here on these limits bind; `source_sha256` names the policy file that a person read."""

    kind: ClassVar[str] = "policy adopted"
    name: Text
    source_sha256: Sha256 | None = None
    approved_by: Text
    unit: Literal["record", "patient"]
    delta: Positive
    max_units: Count
    epsilon_per_study: Positive
    epsilon_per_year: Positive
    epsilon_overall: Positive | None
    unsafe_unlimited: bool = False


class PlannedRelease(Body):
    """One kind of release of a study: what it costs each time, and how often it happens."""

    kind: ClassVar[str] = "planned release"
    what: Text
    charge: ChargeFields
    times: Count


class StudyApproved(Body):
    """A person approved a study with everything it will release: fixed before the first release."""

    kind: ClassVar[str] = "study approved"
    study: Sha256
    name: Text
    approved_by: Text
    releases: tuple[PlannedRelease, ...]


class Reserved(Body):
    """Charged, from the moment that this entry is on disk; nothing ever takes it back."""

    kind: ClassVar[str] = "reserved"
    study: Sha256
    round: Round
    what: Text
    attempt: Count
    charge: ChargeFields


class Settled(Body):
    """What a reservation paid for is about to leave: its hash. One reservation pays for one release."""

    kind: ClassVar[str] = "settled"
    reservation: Count
    released_sha256: Sha256


class Refused(Body):
    """A release that was asked for and refused, with the reason that was given."""

    kind: ClassVar[str] = "refused"
    study: Sha256
    round: Round
    what: Text
    reason: Text


class KeyEpoch(Body):
    """A key of a study came into use, among these members."""

    kind: ClassVar[str] = "key epoch"
    study: Sha256
    epoch: Round
    key_id: Text
    members: tuple[Text, ...]


class RoundClosed(Body):
    """A sum was formed (server) or opened (site): who took part, and the hash of the sum."""

    kind: ClassVar[str] = "round closed"
    study: Sha256
    epoch: Round
    round: Round
    took_part: tuple[Text, ...]
    sum_sha256: Sha256


class Decided(Body):
    """Any other decision of a party, in words: an approval, a refusal, a member who left."""

    kind: ClassVar[str] = "decided"
    what: Text
    by: Text
    study: Sha256 | None = None


class Exported(Body):
    """Evidence was whole, and about to be handed out for a stated purpose."""

    kind: ClassVar[str] = "exported"
    purpose: Text


class Anchored(Body):
    """Others countersigned this chain's head at an earlier counter; their receipts."""

    kind: ClassVar[str] = "anchored"
    counter: Count
    head: Sha256
    time: Text
    receipts: dict[Sha256, str]


class Countersigned(Body):
    """This party countersigned the head of another; `signature` is that party's own over counter and head."""

    kind: ClassVar[str] = "countersigned"
    party_key: Sha256
    counter: Count
    head: Sha256
    time: Text
    signature: Text


KINDS: dict[str, type[Body]] = {
    body.kind: body
    for body in (
        Opened,
        PolicyAdopted,
        StudyApproved,
        Reserved,
        Settled,
        Refused,
        KeyEpoch,
        RoundClosed,
        Decided,
        Exported,
        Anchored,
        Countersigned,
    )
}


@dataclass(frozen=True)
class Entry:
    """One link: `counter` from 1, hour in UTC; bytes: `nonce` (16,), `previous`, `head` (32,), `signature` (64,)."""

    counter: int
    time: str
    nonce: bytes
    kind: str
    content: bytes
    previous: bytes
    signature: bytes

    @cached_property
    def head(self) -> bytes:
        """Hash over everything that this entry says and everything before it `(32,)`."""
        fields = (
            self.counter.to_bytes(8),
            self.time.encode(),
            self.nonce,
            self.kind.encode(),
            self.content,
            self.previous,
        )
        return hashlib.sha256(transcript(b"ledger head 2", *fields)).digest()

    @cached_property
    def body(self) -> Body:
        """What the entry says. Raises CryptoError where it is none of the closed set."""
        try:
            body = KINDS[self.kind].model_validate_json(self.content)
        except (KeyError, ValidationError) as error:
            raise broken(self.counter, "does not say what an entry can say") from error
        if body.to_bytes() != self.content:
            raise broken(self.counter, "is spelled in another way than this program writes it")
        return body

    @classmethod
    def signed(cls, signer: SigningIdentity, previous: Entry | None, time: str, body: Body) -> Self:
        """The link that follows `previous`, with a nonce of its own, signed."""
        counter = previous.counter + 1 if previous else 1
        before = previous.head if previous else genesis(signer.identity)
        entry = cls(counter, time, secrets.token_bytes(NONCE_BYTES), body.kind, body.to_bytes(), before, b"")
        return replace(entry, signature=signer.sign(Purpose.LEDGER, counter.to_bytes(8), entry.head))

    def verify(self, previous: Entry | None, identity: Identity) -> None:
        """Return nothing if this is the link after `previous`, signed by `identity`. Raises CryptoError."""
        if self.counter != (previous.counter + 1 if previous else 1):
            raise broken(self.counter, "stands in the wrong place, or one before it is missing")
        sizes = len(self.nonce) == NONCE_BYTES and len(self.content) <= MAX_BODY_BYTES
        if not sizes or not TIME.fullmatch(self.time):
            raise broken(self.counter, "is not in the form of an entry")
        if self.previous != (previous.head if previous else genesis(identity)):
            raise broken(self.counter, "does not follow from the one before it")
        if previous is not None and self.time < previous.time:
            raise broken(self.counter, "is dated before the one in front of it")
        try:
            identity.verify(self.signature, Purpose.LEDGER, self.counter.to_bytes(8), self.head)
        except CryptoError as error:
            raise broken(self.counter, f"is not signed by {identity.fingerprint}") from error
        if isinstance(self.body, Opened) != (previous is None):
            raise broken(self.counter, "opens a chain in its middle, or the chain has no opening")

    def to_json(self) -> dict[str, Any]:
        """The entry for an evidence bundle, its content as plain values."""
        return {
            "counter": self.counter,
            "time": self.time,
            "nonce": self.nonce.hex(),
            "kind": self.kind,
            "body": json.loads(self.content),
            "previous": self.previous.hex(),
            "head": self.head.hex(),
            "signature": self.signature.hex(),
        }

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """The entry that `to_json` gave, its stated head compared. Raises CryptoError for anything else."""
        counter = value.get("counter") if isinstance(value, dict) else None
        try:
            if type(counter) is not int or not 1 <= counter < 1 << 63:
                raise ValueError("no counter")
            entry = cls(
                counter,
                str(value["time"]),
                bytes.fromhex(value["nonce"]),
                str(value["kind"]),
                canonical(value["body"]),
                bytes.fromhex(value["previous"]),
                bytes.fromhex(value["signature"]),
            )
            stated = bytes.fromhex(value["head"])
            known = len(value) == 8
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise broken(counter if isinstance(counter, int) else 0, "cannot be read") from error
        if stated != entry.head or not known:
            raise broken(counter, "was changed: its hash is another one than stated")
        return entry


def verify_chain(entries: Iterable[Entry], identity: Identity) -> None:
    """Return nothing if these entries, from the first, are one unbroken chain of `identity`.

    Raises:
        CryptoError: naming the first entry that was edited, inserted, moved or dropped. An empty chain fails.
    """
    previous: Entry | None = None
    for entry in entries:
        entry.verify(previous, identity)
        previous = entry
    if previous is None:
        raise CryptoError("the chain has no entry at all", where="ledger", fix="restore it from a backup")


@contextmanager
def in_words() -> Iterator[None]:
    """What a person asked to record, and cannot be, as a PrivacyError that names the field."""
    try:
        yield
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise PrivacyError(
            f"{name} {first.get('input')!r} cannot be recorded: {first['msg']}",
            where=error.title,
            fix="state it as the message says",
        ) from error


def genesis(identity: Identity) -> bytes:
    """What the first entry follows: a constant of the party's key `(32,)`."""
    return hashlib.sha256(transcript(b"ledger start 1", identity.public_bytes)).digest()


def canonical(value: Any) -> bytes:
    """JSON with sorted keys and no spaces: equal values give equal bytes. Raises ValueError for NaN."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def read_json(content: bytes | str) -> Any:
    """JSON that says one thing to every reader: no key twice, and no word for what is no number. Raises ValueError."""
    return json.loads(content, object_pairs_hook=_each_once, parse_constant=_no_number)


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice, and readers differ on which of them holds")
    return found


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no figure")


def broken(counter: int, how: str) -> CryptoError:
    """The error for an entry that does not verify."""
    return CryptoError(
        f"entry {counter} {how}",
        where=CHAIN,
        fix="stop releasing anything, keep this file as it is, and compare it with a backup and with "
        "the heads that other parties countersigned",
    )
