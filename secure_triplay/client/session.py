"""One site's side of a study as a durable state machine: a request's bytes in, the reply's bytes out.

Everything that a worker needs to go on after `kill -9` is in the vault before the reply leaves:

    state     adapter and optimiser after the last applied round
    update    what was learned in the current round, until its sum is applied: nothing is trained twice
    own       the sum of this site's own updates, which never leaves (`kept`)
    classes   noised counts of this site's classes, which never leave (`classes`)
    revealed  the last round whose masks this site helped to take off (`kept`)
    upload    the update of the current round, masked and encrypted: a retry sends the same bytes
    sum       the sum that this site verified and signed, until a quorum allows to open it
    signed    which sum it signed in each round (one a round and epoch, for good), and how many checks failed
    mask-N    secrets of the masks of round N, from the report of the round before until its sum is applied

Any failed check of a sum has one reply, the constant `Declined`. After `MAX_FAILURES` of them in an epoch the
epoch's key is destroyed: whether a forged sum was accepted is an oracle on the key, and it is asked no more often.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import msgpack

from secure_triplay.client.kept import ROUND, count_own, keep_revealed, keep_update, kept_update
from secure_triplay.client.keys import destroy_keys
from secure_triplay.client.masks import masks_of
from secure_triplay.client.optimiser import GlobalState
from secure_triplay.client.round import (
    ApprovedSum,
    Learned,
    Member,
    VerifiedSum,
    approve,
    approved,
    learn,
    open_sum,
    seal,
    verify_sum,
)
from secure_triplay.client.vault import Vault
from secure_triplay.errors import CryptoError, PrivacyError, ProtocolError, RunError, SecureTriplayError
from secure_triplay.wire import (
    Approval,
    Behind,
    CatchUp,
    Declined,
    Done,
    HeldShares,
    MemberSeed,
    Report,
    SumMessage,
    Train,
    Unmask,
    Unmasked,
    Witness,
)
from secure_triplay.wireformat import Message, read

MAX_FAILURES = 3


@dataclass(frozen=True)
class Answer:
    """The reply, and for this site's operator alone why it is no more than `Declined`."""

    reply: bytes
    refused: SecureTriplayError | None = None


@dataclass
class _Signed:
    """Hash of the one sum that this site signed or opened, by round; and failed checks in this epoch."""

    sums: dict[int, bytes] = field(default_factory=dict)
    failures: int = 0

    def to_bytes(self) -> bytes:
        content: bytes = msgpack.packb([sorted(self.sums.items()), self.failures])
        return content

    @classmethod
    def from_bytes(cls, content: bytes) -> _Signed:
        sums, failures = msgpack.unpackb(content)
        return cls(dict(sums), failures)


class Session:
    """A member's study between its first request and its last sum; made anew from the vault it goes on there.

    `start` is the state before the first round of this epoch, for a vault that has none yet. `own` are this site's
    own updates in the rounds that were applied; no message holds anything of them.
    """

    def __init__(self, me: Member, vault: Vault, start: GlobalState) -> None:
        self._me: Member | None = me
        self._vault = vault
        kept, signed = vault.load("state"), vault.load("signed")
        self.state = start if kept is None else GlobalState.from_bytes(kept)
        self.own = count_own(vault, self.state.round, me.codec.n_params)
        self._signed = _Signed() if signed is None else _Signed.from_bytes(signed)
        self._asked: int | None = None
        self._masks = masks_of(me, vault, self.state.round)
        if self._signed.failures >= MAX_FAILURES:
            self._end_epoch()

    @property
    def finished(self) -> bool:
        """Whether the last sum was applied."""
        return self._me is not None and self.state.round >= self._me.rounds

    @property
    def ended(self) -> bool:
        """Whether this epoch's key was destroyed here, so that nothing more of it can be opened."""
        return self._me is None

    def answer(self, content: bytes) -> Answer:
        """The reply to one request, whatever it is; what it stands on is on disk when this returns."""
        try:
            me = self._member()
            return Answer(self._reply(me, self._request(me, content)).to_bytes())
        except SecureTriplayError as error:
            if self._me is not None:
                self._me.note("declined", what=error.what, where=error.where)
            return Answer(Declined().to_bytes(), error)

    def _request(self, me: Member, content: bytes) -> Message:
        request = read(content, Train, Witness, Unmask, CatchUp)
        if isinstance(request, Train | Witness | Unmask | CatchUp):
            of = request.study, request.epoch
            if of == (me.plan.study, me.plan.epoch):
                return request
        raise ProtocolError(
            "a message of another study or epoch", where="server's message", fix="look into the server"
        )

    def _reply(self, me: Member, request: Message) -> Message:
        if isinstance(request, Train):
            return self._train(me, request)
        if isinstance(request, Witness):
            return self._witness(me, request)
        if isinstance(request, Unmask):
            return self._unmask(me, request)
        assert isinstance(request, CatchUp)
        return self._catch_up(me, request)

    # E1: open the sum of the round before, then train

    def _train(self, me: Member, request: Train) -> Message:
        wanted = request.round - 1  # the round whose sum has to be applied
        first = request.round == me.base
        if not me.base <= request.round <= me.rounds + 1 or (not first and wanted < self.state.round):
            raise ProtocolError(
                f"round {request.round} was begun after round {self.state.round}",
                where="server's message",
                fix="look into the server",
            )
        if first and self.state.round > me.base:
            raise ProtocolError(
                f"the study was begun anew after round {self.state.round}",
                where="server's message",
                fix="look into the server: it has lost its closed rounds",
            )
        if not first and wanted > self.state.round:
            total = self._pending(me, wanted) if wanted == self.state.round + 1 else None
            if total is None:
                return Behind(me.plan.study, me.plan.epoch, self.state.round)
            with self._counted():
                may_open = approved(me, total, request.approvals)
            self._open(me, may_open, request.seeds)
        me.accounts.take_in(request.receipts, request.held)
        if request.round > me.rounds:
            return Done()
        upload = b"" if first else self._upload(me, request.round, request.members)
        self._reserve_next(me, request.round)
        keys = self._masks.advertise(request.round + 1) if request.round < me.rounds else None
        return Report(me.plan.study, me.plan.epoch, request.round, me.accounts.heads(), upload, keys)

    def _upload(self, me: Member, number: int, members: tuple[HeldShares, ...]) -> bytes:
        """The one upload of this round, trained now if it was not before; empty where peers have yet to countersign."""
        again, self._asked = self._asked == number, number
        reservation = me.accounts.reserved(number)
        kept = self._kept("upload", number)
        carried = self._vault.load("carried") == ROUND.pack(number)
        # an update that was carried may come from a stop between encryption and settling
        paid = carried and reservation is not None and reservation.released_sha256 is not None
        if kept is not None and reservation is not None:
            if not paid:
                me.accounts.settle(reservation, kept)
            return kept
        if not self._masks.joins(number, members):
            me.note("waiting", round=number, what="this site was not there when the round's masks were made")
            return b""
        if reservation is None and again:  # the round failed and is tried again: take part in it after all
            reservation = me.accounts.reserve(number)
        if reservation is None:
            me.note("waiting", round=number, what="nothing was reserved for this round yet")
            return b""
        if reservation.released_sha256 is not None and not carried:
            raise PrivacyError(
                f"round {number} was trained and sent, and what was sent is lost here",
                where="vault",
                fix="restore the site's folder as a whole; the round goes on without this site",
            )
        found = me.accounts.witnesses_of(reservation)
        if found < me.witnesses_due:
            me.note("waiting", round=number, what=f"{found} of {me.witnesses_due} peers countersigned")
            return b""
        reasons = tuple(me.allow(number))
        if reasons:
            raise PrivacyError(
                f"this site's policy refuses round {number}: {'; '.join(reasons)}",
                where="policy",
                fix="nothing was trained; the operator decides whether the policy or the study has to change",
            )
        learned = self._learned(me, number)
        started = time.perf_counter()
        masked, with_whom = self._masks.mask(number, members, learned.integers)
        sealed = replace(learned, integers=masked, mask_s=time.perf_counter() - started)
        upload = seal(me, number, sealed, with_whom)
        self._vault.save("upload", ROUND.pack(number) + upload)
        if paid:
            me.accounts.decided(
                f"update of round {number} encrypted anew for epoch {me.plan.epoch}: {_hash(upload)}"
            )
        else:
            me.accounts.settle(reservation, upload)  # on disk before anything leaves
        return upload

    def _learned(self, me: Member, number: int) -> Learned:
        """What is learned in this round: once, since two values under one mask would show their difference.

        Also where the round goes on under the next epoch's key.
        """
        kept = kept_update(self._vault, number)
        if kept is not None:
            return kept[1]
        learned = learn(me, self.state)
        keep_update(self._vault, number, learned)
        return learned

    def _reserve_next(self, me: Member, number: int) -> None:
        """Charge the next round, so that peers countersign it first. Without budget for it this round still counts."""
        if number >= me.rounds:
            return
        try:
            if me.accounts.reserved(number + 1) is None:
                me.accounts.reserve(number + 1)
        except PrivacyError as error:
            me.note("refused", round=number + 1, what=error.what)

    # E2: verify a sum and sign it, and countersign others' heads

    def _witness(self, me: Member, request: Witness) -> Message:
        signature = b"" if request.total is None else self._sign(me, request.total)
        receipts, held = me.accounts.countersign(
            request.heads, lambda error: me.note("not countersigned", what=error.what)
        )
        shares = self._masks.share(request.round + 1, request.mask_keys)
        of = me.plan.study, me.plan.epoch, request.round
        return Approval(*of, me.name, signature, receipts, held, shares)

    def _sign(self, me: Member, total: SumMessage) -> bytes:
        """This site's signature under a sum that it verified; none under a masked one that it is not in."""
        with self._counted():
            verified = self._checked(me, total, total.round)
            signs = self._masks.agree(total)
        if total.round == self.state.round + 1:
            self._vault.save("sum", ROUND.pack(total.round) + total.to_bytes())
        self._settle_on(total)  # on disk before the signature leaves
        return approve(me, verified).signature if signs else b""

    def _checked(self, me: Member, total: SumMessage, number: int) -> VerifiedSum:
        before = self._signed.sums.get(number)
        if before is not None and before != total.sha256:
            raise CryptoError(
                f"the server showed two sums of round {number}",
                where="server's message",
                fix="an update enters one sum; look into the server, and tell the other sites",
            )
        return verify_sum(me, total, number)

    # E3, where updates are masked: reveal shares

    def _unmask(self, me: Member, request: Unmask) -> Message:
        total = self._pending(me, request.round) if request.round == self.state.round + 1 else None
        if total is None:
            raise ProtocolError(
                f"shares of round {request.round} are asked for, and no sum of it waits here",
                where="server's message",
                fix="look into the server",
            )
        with self._counted():
            signed = approved(me, total, request.approvals)
        shares = self._masks.reveal(signed)
        keep_revealed(self._vault, request.round)  # on disk before they leave
        return Unmasked(me.plan.study, me.plan.epoch, request.round, shares)

    # a site that was away

    def _catch_up(self, me: Member, request: CatchUp) -> Message:
        for one in request.closed:
            if one.total.round <= self.state.round:
                continue
            with self._counted():
                verified = self._checked(me, one.total, self.state.round + 1)
                may_open = approved(me, verified, one.approvals)
            self._open(me, may_open, one.seeds)
        return Behind(me.plan.study, me.plan.epoch, self.state.round)

    # what is kept

    def _open(self, me: Member, total: ApprovedSum, seeds: tuple[MemberSeed, ...]) -> None:
        with self._counted():
            taken_off = self._masks.taken_off(
                total.verified.message, seeds
            )  # checked before anything is decrypted
            state = open_sum(me, self.state, total, taken_off)
        self._settle_on(total.verified.message)
        me.accounts.closed(total.verified.message)
        self._vault.save("state", state.to_bytes())
        self.own = count_own(self._vault, state.round, me.codec.n_params)
        self.state = state
        self._masks.close(state.round)

    def _pending(self, me: Member, number: int) -> VerifiedSum | None:
        kept = self._kept("sum", number)
        return None if kept is None else verify_sum(me, SumMessage.from_bytes(kept), number)

    def _kept(self, name: str, number: int) -> bytes | None:
        content = self._vault.load(name)
        if content is None or content[: ROUND.size] != ROUND.pack(number):
            return None
        return content[ROUND.size :]

    def _settle_on(self, total: SumMessage) -> None:
        if self._signed.sums.get(total.round) != total.sha256:
            signed = replace(self._signed, sums={**self._signed.sums, total.round: total.sha256})
            self._vault.save("signed", signed.to_bytes())  # a full disk raises, and then nothing is settled
            self._signed = signed

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """A check of a sum: its failure is on disk before it is answered, and the third one ends the epoch."""
        try:
            yield
        except (CryptoError, ProtocolError):
            self._signed.failures += 1
            self._vault.save("signed", self._signed.to_bytes())
            if self._signed.failures >= MAX_FAILURES:
                self._end_epoch()
            raise

    def _end_epoch(self) -> None:
        destroy_keys(self._vault)
        self._masks.forget()
        me, self._me = self._me, None
        if me is not None:
            me.note("epoch ended", what=f"{MAX_FAILURES} checks of sums failed; the epoch's key is destroyed")
            me.accounts.decided(f"key of epoch {me.plan.epoch} destroyed after {MAX_FAILURES} failed checks")

    def _member(self) -> Member:
        if self._me is None:
            raise RunError(
                f"{MAX_FAILURES} checks of sums failed, and this epoch's key was destroyed",
                where="site",
                fix="look into the server; the study goes on with a new key epoch",
            )
        return self._me


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
