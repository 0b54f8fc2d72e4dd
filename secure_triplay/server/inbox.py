"""The one entrance of the server: untrusted bytes become a verified upload, or a refusal with its reason.

Whose upload it is, the signature says; the transport's node id is not asked. Checks run from cheap to dear:
size before parsing, parsing before the plan, the plan before the signature, the signature before the body.
A refusal changes nothing, so nobody can take a place in the sum from a site by sending rubbish in its name.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from secure_triplay.crypto.packing import Coefficients, unpack60
from secure_triplay.crypto.parameters import DEGREE, PACKED_BYTES
from secure_triplay.errors import CryptoError, ProtocolError
from secure_triplay.wire import (
    Approval,
    Behind,
    CatchUp,
    Declined,
    Done,
    Report,
    SessionPlan,
    SignedHeader,
    SumMessage,
    Train,
    Unmask,
    Unmasked,
    Upload,
    Witness,
    unpack_tags,
)
from secure_triplay.wireformat import MAX_REPLY_HEAD_BYTES, Message, read

BLOCK_CHUNKS = 16
"""Chunks that are unpacked at a time: half a megabyte, which stays in the processor's cache."""
_SAMPLE_STRIDE = 7
_CHI_SQUARE_LIMIT = 800.0


class Reason(Enum):
    """Why an upload was refused; the values go into logs and counts."""

    OVERSIZED = "oversized"
    NOT_A_MESSAGE = "not-a-message"
    NOT_AN_UPLOAD = "not-an-upload"
    DECLINED = "declined"
    WRONG_STUDY = "wrong-study"
    WRONG_EPOCH = "wrong-epoch"
    WRONG_KEY = "wrong-key"
    WRONG_ROUND = "wrong-round"
    WRONG_SIZE = "wrong-size"
    WRONG_MEMBERS = "wrong-members"
    UNKNOWN_SITE = "unknown-site"
    BAD_SIGNATURE = "bad-signature"
    DUPLICATE = "duplicate"
    BAD_DIGEST = "bad-digest"
    COEFFICIENT_OUT_OF_RANGE = "coefficient-out-of-range"
    NOT_A_CIPHERTEXT = "not-a-ciphertext"
    NO_OPEN_ROUND = "no-open-round"


@dataclass(frozen=True)
class Refusal:
    """Why bytes were refused, and which site of the roster they *claim* to be from, if any."""

    reason: Reason
    claimed_site: str | None = None


@dataclass(frozen=True)
class VerifiedUpload:
    """An upload that passed every check: c0 (n_chunks, 4096) and tags (n_chunks,), all below q."""

    header: SignedHeader
    c0: Coefficients
    tags: NDArray[np.uint64]


@dataclass(frozen=True)
class Admitted:
    """A masked round's members, and the hash of them that each of their headers must carry."""

    names: frozenset[str]
    sha256: bytes


@dataclass(frozen=True)
class Inbox:
    """Takes the uploads of one round of one plan; `accepted` are the sites that it has one of.

    Of a masked round only those who are `admitted`: who masked with others would spoil the sum.
    """

    plan: SessionPlan
    round: int
    accepted: frozenset[str] = frozenset()
    admitted: Admitted | None = None

    def receive(self, content: bytes) -> VerifiedUpload | Refusal:
        """The verified upload in `content`, at most one a site, or why there is none. Never raises."""
        most = self.plan.max_upload_bytes
        if len(content) > most:
            return Refusal(Reason.OVERSIZED)
        try:
            upload = read(content, Upload, max_bytes=most, max_head_bytes=MAX_REPLY_HEAD_BYTES)
        except ProtocolError:
            return Refusal(_other_kind(content))
        header = upload.header
        claimed_site = header.site if self.plan.has_site(header.site) else None
        reason = self._against_plan(header) or self._against_signature(upload) or _against_body(upload)
        if reason is not None:
            return Refusal(reason, claimed_site)
        try:
            return VerifiedUpload(header, unpack_blocks(upload.c0, header.n_chunks), unpack_tags(upload.tags))
        except CryptoError:
            return Refusal(Reason.COEFFICIENT_OUT_OF_RANGE, claimed_site)

    def after(self, upload: VerifiedUpload) -> Inbox:
        """The inbox that takes no second upload of this one's site."""
        return replace(self, accepted=self.accepted | {upload.header.site})

    def _against_plan(self, header: SignedHeader) -> Reason | None:
        checks = (
            (header.study == self.plan.study, Reason.WRONG_STUDY),
            (header.epoch == self.plan.epoch, Reason.WRONG_EPOCH),
            (header.key_id == self.plan.key_id, Reason.WRONG_KEY),
            (header.round == self.round, Reason.WRONG_ROUND),
            (header.n_chunks == self.plan.n_chunks, Reason.WRONG_SIZE),
            (self.plan.has_site(header.site), Reason.UNKNOWN_SITE),
            (self._masked_right(header), Reason.WRONG_MEMBERS),
        )
        return next((reason for passed, reason in checks if not passed), None)

    def _masked_right(self, header: SignedHeader) -> bool:
        if self.admitted is None:
            return header.members == b""
        return header.site in self.admitted.names and header.members == self.admitted.sha256

    def _against_signature(self, upload: Upload) -> Reason | None:
        try:
            upload.header.verify(self.plan)
        except (CryptoError, ProtocolError):
            return Reason.BAD_SIGNATURE
        # Only now is it known whose it is, and a second one is a retry or a replay of the same site.
        return Reason.DUPLICATE if upload.header.site in self.accepted else None


def _against_body(upload: Upload) -> Reason | None:
    try:
        upload.check_body()
    except CryptoError:
        return Reason.BAD_DIGEST
    return None if looks_encrypted(upload.c0, upload.header.n_chunks) else Reason.NOT_A_CIPHERTEXT


def unpack_blocks(c0: bytes, n_chunks: int) -> Coefficients:
    """Packed c0 -> coefficients (n_chunks, 4096), a few chunks at a time to need no second copy of it all.

    Raises:
        CryptoError: if a coefficient is not below q or the length is wrong.
    """
    if len(c0) != n_chunks * PACKED_BYTES:
        return unpack60(c0, n_chunks)  # which says what is wrong
    coefficients = np.empty((n_chunks, DEGREE), np.uint64)
    for start in range(0, n_chunks, BLOCK_CHUNKS):
        stop = min(start + BLOCK_CHUNKS, n_chunks)
        coefficients[start:stop] = unpack60(c0[start * PACKED_BYTES : stop * PACKED_BYTES], stop - start)
    return coefficients


def looks_encrypted(c0: bytes, n_chunks: int) -> bool:
    """Whether the bytes of every chunk are spread as evenly as a ciphertext's.

    This catches a site's mistake (floats, an image, zeros in a well-signed upload), not malice: whoever holds
    a site's identity can sign random bytes. c0 of a real ciphertext is uniform below q, so that Pearson's
    statistic over its 256 byte values is near 255 +- 23; it passes 800 about once in 2^160 chunks (a single
    byte value 113 times where 17 are due, the likeliest way). Floats score some ten thousand.
    """
    rows = np.frombuffer(c0, np.uint8).reshape(n_chunks, PACKED_BYTES)[:, ::_SAMPLE_STRIDE]
    expected = rows.shape[1] / 256
    for row in rows:
        counts = np.bincount(row, minlength=256)
        if float(((counts - expected) ** 2).sum()) / expected > _CHI_SQUARE_LIMIT:
            return False
    return True


def _other_kind(content: bytes) -> Reason:
    """What bytes are that are no upload; a decline is a site's good right and counted as such."""
    for message, reason in _OTHERS:
        try:
            message.from_bytes(content, max_bytes=MAX_REPLY_HEAD_BYTES)
        except ProtocolError:
            continue
        return reason
    return Reason.NOT_A_MESSAGE


_OTHERS: tuple[tuple[type[Message], Reason], ...] = (
    (Declined, Reason.DECLINED),
    *(
        (message, Reason.NOT_AN_UPLOAD)
        for message in (
            *(Done, Behind, Report, Approval, Unmasked, Train, Witness, Unmask, CatchUp),
            *(SessionPlan, SumMessage),
        )
    ),
)
