"""One update on its way up, and the sum on its way down; both are ciphertexts, signed and tagged.

Everything that is signed is bound to the plan. Structure is checked when a message is made, whether from bytes or
by hand; the truth of a sum by `verify` (signatures) and by the tags, and a site does both before it decrypts.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray

from secure_triplay.crypto.identity import SIGNATURE_BYTES, Purpose, SigningIdentity, transcript
from secure_triplay.crypto.parameters import ID_BYTES, MODULUS, PACKED_BYTES, SEED_BYTES
from secure_triplay.errors import CryptoError
from secure_triplay.wire.plan import TAG_BYTES, SessionPlan
from secure_triplay.wireformat import (
    MAX_CHUNKS,
    MAX_SITES,
    NAME,
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

Then = Literal["train", "finish"]

_SHA256_BYTES = 32
_THEN = re.compile("train|finish")


@dataclass(frozen=True)
class SignedHeader:
    """What a site says of its upload, so that every other site can check it without the upload itself.

    `n_chunks` counts its ciphertexts, `seed` (16 bytes) is that of their c1, `body_sha256` the hash of c0 and tags,
    `members` the hash of those with whom the site masked (empty where a study does not mask), `signature` the site's
    own over round, site, seed, both hashes, and over the plan, which fixes the rest.
    """

    study: str
    epoch: int
    key_id: bytes
    round: int
    site: str
    n_chunks: int
    seed: bytes
    body_sha256: bytes
    members: bytes
    signature: bytes

    def __post_init__(self) -> None:
        require_study(self.study, self.epoch, SignedHeader)
        require(is_bytes(self.key_id, ID_BYTES), "a key id has 32 bytes", SignedHeader)
        require(is_number(self.round, 1), "rounds count from 1", SignedHeader)
        require(is_text(self.site, NAME), "a site's name is a-z, 0-9 and -", SignedHeader)
        require(is_number(self.n_chunks, 1, MAX_CHUNKS), f"n_chunks is 1 to {MAX_CHUNKS}", SignedHeader)
        require(is_bytes(self.seed, SEED_BYTES), f"a seed has {SEED_BYTES} bytes", SignedHeader)
        require(is_bytes(self.body_sha256, _SHA256_BYTES), "a SHA-256 has 32 bytes", SignedHeader)
        masked = self.members == b"" or is_bytes(self.members, _SHA256_BYTES)
        require(masked and type(self.members) is bytes, "a SHA-256 has 32 bytes", SignedHeader)
        require(is_bytes(self.signature, SIGNATURE_BYTES), "a signature has 64 bytes", SignedHeader)

    def verify(self, plan: SessionPlan) -> None:
        """Return nothing if the site of the roster that it names signed this header for this plan.

        Raises:
            ProtocolError: if it is of another study, epoch, key or size, or of a site that is not listed.
            CryptoError: if the signature does not verify.
        """
        own = self.study, self.epoch, self.key_id, self.n_chunks
        due = plan.study, plan.epoch, plan.key_id, plan.n_chunks
        require(own == due, "it is of another plan", SignedHeader)
        fields = _signed_fields(plan, self.round, self.site, self.seed, self.body_sha256, self.members)
        plan.identity_of(self.site).verify(self.signature, Purpose.UPLOAD, *fields)

    def _as_list(self) -> list[Any]:
        return [
            self.study,
            self.epoch,
            self.key_id,
            self.round,
            self.site,
            self.n_chunks,
            self.seed,
            self.body_sha256,
            self.members,
            self.signature,
        ]


@dataclass(frozen=True)
class Upload(Message):
    """Site to server: one update, as packed c0 `(n_chunks * 30720,)` and tags `(n_chunks * 8,)` bytes."""

    header: SignedHeader
    c0: bytes
    tags: bytes

    kind: ClassVar[int] = 3

    def __post_init__(self) -> None:
        require(type(self.header) is SignedHeader, "a signed header is due", Upload)
        _require_body(self.c0, self.tags, self.header.n_chunks, Upload)

    @classmethod
    def signed(
        cls,
        plan: SessionPlan,
        signer: SigningIdentity,
        *,
        round: int,
        site: str,
        c0: bytes,
        tags: bytes,
        seed: bytes,
        members: bytes = b"",
    ) -> Self:
        """The upload of `site` in `round`, signed; `c0` and `tags` are packed.

        Raises:
            ProtocolError: if sizes do not fit the plan, or the roster lists another identity as `site`.
        """
        require(plan.identity_of(site) == signer.identity, "the roster lists another identity", cls)
        body_sha256 = _body_sha256(c0, tags)
        fields = _signed_fields(plan, round, site, seed, body_sha256, members)
        of = plan.study, plan.epoch, plan.key_id
        signature = signer.sign(Purpose.UPLOAD, *fields)
        header = SignedHeader(*of, round, site, plan.n_chunks, seed, body_sha256, members, signature)
        return cls(header, c0, tags)

    def check_body(self) -> None:
        """Return nothing if c0 and tags are those that were signed for. Raises CryptoError otherwise."""
        if _body_sha256(self.c0, self.tags) != self.header.body_sha256:
            raise CryptoError(
                "the ciphertexts are not those that were signed",
                where="Upload",
                fix="the site must send the same upload again",
            )

    def _head(self) -> list[Any]:
        return self.header._as_list()

    def _body(self) -> tuple[bytes, ...]:
        return self.c0, self.tags

    @classmethod
    def _from_parts(cls, head: list[Any], body: memoryview) -> Self:
        header = SignedHeader(*fields_of(head, 10, cls))
        return cls(header, *_split_body(body, header.n_chunks))


@dataclass(frozen=True)
class SumMessage(Message):
    """The sum of `round` over exactly these survivors; `then` says whether the study goes on after it.

    A server forms one a round, keeps it on disk before it sends it, and sends the same one to every site.
    """

    study: str
    epoch: int
    round: int
    survivors: tuple[SignedHeader, ...]
    c0: bytes
    tags: bytes
    then: Then

    kind: ClassVar[int] = 4

    def __post_init__(self) -> None:
        require_study(self.study, self.epoch, SumMessage)
        require(is_number(self.round, 1), "rounds count from 1", SumMessage)
        require(is_tuple(self.survivors, SignedHeader, MAX_SITES), "survivors are due", SumMessage)
        # In one order, so that a sum over the same sites has one encoding, and nobody is listed twice.
        names = [header.site for header in self.survivors]
        require(all(a < b for a, b in pairwise(names)), "survivors are sorted by name, each once", SumMessage)
        common = {
            (one.study, one.epoch, one.round, one.key_id, one.n_chunks, one.members) for one in self.survivors
        }
        require(
            len(common) == 1 and common.pop()[:3] == (self.study, self.epoch, self.round),
            "the survivors are not of one round",
            SumMessage,
        )
        _require_body(self.c0, self.tags, self.n_chunks, SumMessage)
        require(is_text(self.then, _THEN), "what comes then is train or finish", SumMessage)

    @property
    def n_chunks(self) -> int:
        """Ciphertexts in the sum."""
        return self.survivors[0].n_chunks

    @property
    def names(self) -> tuple[str, ...]:
        """The sites whose updates are in it, in order."""
        return tuple(header.site for header in self.survivors)

    @property
    def members(self) -> bytes:
        """With whom all of its survivors masked: `members_hash`, or nothing where the study does not mask."""
        return self.survivors[0].members

    @property
    def last(self) -> bool:
        """Whether the study ends with this sum."""
        return self.then == "finish"

    def verify(self, plan: SessionPlan, round: int, *, fewest: int = 1) -> None:
        """Return nothing if this lists at least `fewest` sites of the roster, each by its own signature.

        Raises:
            ProtocolError: if it is of another plan or round, or over too few sites.
            CryptoError: if a signature does not verify.
        """
        require(self.round == round, f"the sum of round {round} is due", SumMessage)
        require(len(self.survivors) >= fewest, f"it is over fewer than {fewest} sites", SumMessage)
        for header in self.survivors:
            header.verify(plan)

    @cached_property
    def sha256(self) -> bytes:
        """Hash `(32,)` of everything in it: what a quorum of sites can sign before anyone decrypts."""
        digest = hashlib.sha256(transcript(b"sum 1"))
        digest.update(self.to_bytes())
        return digest.digest()

    def _head(self) -> list[Any]:
        survivors = [header._as_list() for header in self.survivors]
        return [self.study, self.epoch, self.round, self.then, survivors]

    def _body(self) -> tuple[bytes, ...]:
        return self.c0, self.tags

    @classmethod
    def _from_parts(cls, head: list[Any], body: memoryview) -> Self:
        study, epoch, round, then, listed = fields_of(head, 5, cls)
        survivors = tuple(SignedHeader(*fields_of(entry, 10, cls)) for entry in list_of(listed, cls))
        require(len(survivors) > 0, "survivors are due", cls)
        c0, tags = _split_body(body, survivors[0].n_chunks)
        return cls(study, epoch, round, survivors, c0, tags, then)


def pack_tags(tags: NDArray[np.uint64]) -> bytes:
    """Tags (n_chunks,) as little-endian bytes."""
    return tags.astype("<u8").tobytes()


def unpack_tags(content: bytes) -> NDArray[np.uint64]:
    """The tags (n_chunks,) that `pack_tags` made into bytes. Raises CryptoError when one is not below q."""
    tags = np.frombuffer(content, "<u8").astype(np.uint64)
    if (tags >= MODULUS).any():
        raise CryptoError("a tag is not below the modulus", where="tags", fix="the sender must send it again")
    return tags


def _signed_fields(
    plan: SessionPlan, round: int, site: str, seed: bytes, body: bytes, members: bytes
) -> tuple[bytes, ...]:
    return plan.sha256, str(round).encode(), site.encode(), seed, body, members


def _body_sha256(c0: bytes, tags: bytes) -> bytes:
    digest = hashlib.sha256(b"secure_triplay upload body 1" + len(c0).to_bytes(8))
    digest.update(c0)
    digest.update(tags)
    return digest.digest()


def _split_body(body: memoryview, n_chunks: int) -> tuple[bytes, bytes]:
    return bytes(body[: n_chunks * PACKED_BYTES]), bytes(body[n_chunks * PACKED_BYTES :])


def _require_body(c0: object, tags: object, n_chunks: int, message: type) -> None:
    require(is_bytes(c0, n_chunks * PACKED_BYTES), f"c0 of {n_chunks} chunks is due", message)
    require(is_bytes(tags, n_chunks * TAG_BYTES), f"tags of {n_chunks} chunks are due", message)
