"""The server's side of a study as a state machine: replies in, messages out; no clock, no network, no upload opened.

A round is `train`, then `witness`; where updates are masked also `unmask` (see `masks`).

    begin   the next exchange, to whoever is connected -> what to send to whom
    take    one reply                                  -> what to send back at once, if anything
    end     everybody answered, or time is up          -> the round closed, or declared failed

Whoever drives it (Flower's grid, a test) brings bytes and decides when time is up. What it sees is hashes,
signatures, counters and sizes; ciphertexts go on to `Sums` unopened. A sum is on disk before it is first sent, and
from then on that round has no other: a new machine on the same archive sends the same one again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Protocol

from secure_triplay.crypto.masking.parameters import MaskingParameters, require_threshold
from secure_triplay.errors import CryptoError, ProtocolError, RunError
from secure_triplay.server.archive import Archive
from secure_triplay.server.inbox import Admitted, Refusal
from secure_triplay.server.masks import Masked, Masks, SharedKey
from secure_triplay.server.relayed import Relayed
from secure_triplay.wire import (
    Approval,
    Behind,
    Declined,
    Done,
    Endorsement,
    Report,
    SessionPlan,
    SumMessage,
    Train,
    Unmask,
    Unmasked,
    Witness,
    require_quorum,
    verify_endorsement,
)
from secure_triplay.wireformat import MAX_MESSAGE_BYTES, MAX_REPLY_HEAD_BYTES, Message, read

ATTEMPTS = 5


Kind = Literal["train", "witness", "unmask"]


class Sums(Protocol):
    """Whatever verifies and adds uploads: the summing process."""

    def open(self, round_number: int, admitted: Admitted | None = None) -> None: ...

    def offer(self, content: bytes) -> Refusal | None: ...

    def close(self, *, last: bool, ready: bool = True) -> bytes: ...

    def note(self, event: str, **fields: str | int) -> None: ...


@dataclass(frozen=True)
class Exchange:
    """One exchange; `number` tells its replies from those to an earlier one."""

    kind: Kind
    round: int
    number: int = 1
    attempt: int = 1


class Rounds:
    """One study's rounds, from `base` (0, or the last round of the key epoch before) to `rounds`.

    A `patient` server counts no attempt in which so many sites declined that a quorum could not come: they may be
    outside their hours, which they do not say. Then it is `resting`, and whoever drives it begins again later.

    Updates are masked where there are parameters for it. Raises ConfigError for a quorum of half the roster or fewer,
    or below the masks' threshold.
    """

    def __init__(
        self,
        plan: SessionPlan,
        *,
        rounds: int,
        quorum: int,
        sums: Sums,
        archive: Archive,
        base: int = 0,
        attempts: int = ATTEMPTS,
        patient: bool = False,
        masking: MaskingParameters | None = None,
    ) -> None:
        require_quorum(quorum, len(plan.sites))
        require_threshold(masking, quorum, len(plan.sites))
        self._plan, self._rounds, self._quorum, self._base = plan, rounds, quorum, base
        self._sums, self._archive, self._attempts = sums, archive, attempts
        masked = masking and Masked(plan, masking, rounds, archive, sums.note)
        self._masks: Masks = masked or SharedKey()
        last = archive.last
        self._total: SumMessage | None = None if last is None else archive.total(last)
        self.exchange = Exchange("train", base) if last is None else Exchange("witness", last)
        self.finished = False
        self._waiting: set[int] = set()
        self._site_of: dict[int, str] = {}
        self._relayed = Relayed()
        self._approvals: dict[str, Endorsement] = {}
        self._done: set[int] = set()
        self._progress: dict[int, int] = {}
        self._patient, self._asked, self._declined = patient, 0, 0
        self.resting = False

    @property
    def declined(self) -> int:
        """How many sites declined in this exchange or, after its end, in the last one."""
        return self._declined

    @property
    def settled(self) -> bool:
        """Whether everybody who was asked in this exchange has answered."""
        return not self._waiting

    @property
    def ending(self) -> bool:
        """Whether every round is closed, and sites only have to open the last sum."""
        return self.exchange.kind == "train" and self.exchange.round > self._rounds

    def begin(self, nodes: Iterable[int]) -> dict[int, bytes]:
        """Start the current exchange with these nodes -> what to send to each."""
        self._waiting = set(nodes)
        self._asked, self._declined, self.resting = len(self._waiting), 0, False
        self._progress.clear()
        now = self.exchange
        self._sums.note(now.kind, round=now.round, attempt=now.attempt, sites=len(self._waiting))
        if now.kind == "witness":
            return {node: self._witness(node) for node in self._waiting}
        if now.kind == "unmask":
            return self._unmask()
        if self._base < now.round <= self._rounds:
            self._sums.open(now.round, self._masks.admitted(now.round))
        self._relayed.heads.clear()
        self._waiting -= self._done
        return {node: self._train(node) for node in self._waiting}

    def take(self, node: int, number: int, content: bytes) -> bytes | None:
        """A node's reply to exchange `number` -> what to send to it at once, as a part of this exchange."""
        if number != self.exchange.number or node not in self._waiting:
            self._sums.note("late", bytes=len(content))
            return None
        reply = _read(content, self._plan)
        if isinstance(reply, Behind) and self.exchange.kind == "train" and self._is_mine(reply):
            more = self._caught_up(node, reply.round)
            if more is not None:
                return more
        self._waiting.discard(node)
        if self.exchange.kind == "train":
            self._reported(node, reply, content)
        elif self.exchange.kind == "unmask":
            self._revealed(reply)
        elif isinstance(reply, Approval) and self._is_mine(reply):
            self._approved(node, reply)
        else:
            self._sums.note("no approval", round=self.exchange.round)
        return None

    def end(self) -> None:
        """End the exchange and go to the next one. Raises RunError after too many failed attempts."""
        self._waiting.clear()
        now = self.exchange
        if now.kind == "witness":
            self._end_of_witness(now)
        elif now.kind == "unmask":
            self._end_of_unmasking(now)
        elif now.round > self._rounds:
            self._end_of_study(now)
        elif now.round == self._base:
            ready = self._masks.fix_keys(now.round + 1)
            self._go_or_again("witness", now, ready, "sent the keys of their masks")
        else:
            self._end_of_training(now)

    def _end_of_training(self, now: Exchange) -> None:
        # Of all who are here; nobody has seen any yet. Keys come with updates: a round that was closed gets no more.
        ready = self._masks.fix_keys(now.round + 1, anew=True)
        try:
            content = self._sums.close(last=now.round == self._rounds, ready=ready)
        except RunError:
            if self._patient and self._declined > self._asked - self._quorum:
                self.resting = True
                self._go("train", now.round, now.attempt)
                return
            if now.attempt >= self._attempts:
                raise
            self._total = None
            self._go("witness", now.round, now.attempt)
            return
        total = SumMessage.from_bytes(content)
        self._archive.save_sum(total)  # on disk before anyone sees it
        self._total = total
        self._approvals.clear()
        self._go("witness", now.round)

    def _end_of_witness(self, now: Exchange) -> None:
        if (
            self._total is None and now.round > self._base
        ):  # a failed round: heads were countersigned, no more
            self._go("train", now.round, now.attempt + 1)
            return
        if self._total is not None and len(self._approvals) < self._quorum:
            said = f"signed the sum of round {now.round}, and {self._quorum} are needed"
            self._go_or_again("train", now, False, said, len(self._approvals))
            return
        if not self._masks.fix_members(now.round + 1):
            self._go_or_again("train", now, False, "shared the secrets of their masks")
            return
        if self._total is not None:
            self._archive.save_approvals(now.round, self._quorum_of_approvals())
        masked = self._total is not None and self._masks.unmasks and not self._masks.recover(self._total)
        self._go("unmask" if masked else "train", now.round if masked else now.round + 1)

    def _end_of_unmasking(self, now: Exchange) -> None:
        assert self._total is not None
        ready = self._masks.recover(self._total)
        self._go_or_again("train", now, ready, f"revealed what takes the masks off round {now.round}")

    def _go_or_again(
        self, kind: Kind, now: Exchange, ready: bool, said: str, sites: int | None = None
    ) -> None:
        """Go on where this exchange brought enough, or repeat it. Raises RunError after too many attempts."""
        if ready:
            self._go(kind, now.round if kind == "witness" else now.round + 1)
        elif now.attempt < self._attempts:
            self._go(now.kind, now.round, now.attempt + 1)
        else:
            raise RunError(
                f"{'too few' if sites is None else sites} sites {said}",
                where="server",
                fix="see why sites are missing, and start the server again: it goes on with this same sum",
            )

    def _end_of_study(self, now: Exchange) -> None:
        if len(self._done) >= len(self._plan.sites) or now.attempt >= self._attempts:
            self.finished = True
        else:
            self._go("train", now.round, now.attempt + 1)

    def _go(self, kind: Kind, round: int, attempt: int = 1) -> None:
        self.exchange = Exchange(kind, round, self.exchange.number + 1, attempt)

    # what goes out

    def _train(self, node: int) -> bytes:
        now = self.exchange
        receipts, held = self._relayed.due(self._key_of(node))
        opens = now.round - 1 > self._base
        closed = self._archive.closed(now.round - 1) if opens else None
        opened = () if closed is None else (closed.approvals, closed.seeds)
        approvals, seeds = opened or ((), ())
        # To a node that has not said who it is since this server started: nobody's shares, and so no mask without them.
        site = self._site_of.get(node)
        members = () if site is None else self._masks.members(now.round, site)
        of = self._plan.study, self._plan.epoch, now.round
        return Train(*of, approvals, receipts, held, seeds, members).to_bytes()

    def _witness(self, node: int) -> bytes:
        now, total = self.exchange, self._total
        heads = self._relayed.shown_to(self._site_of.get(node, ""))
        keys = self._masks.keys(now.round + 1) if total is not None or now.round == self._base else ()
        of = self._plan.study, self._plan.epoch, now.round
        return Witness(*of, heads, total, keys).to_bytes()

    def _unmask(self) -> dict[int, bytes]:
        """To those whose updates are in the sum; the others have nothing to reveal."""
        now, total = self.exchange, self._total
        assert total is not None
        self._waiting = {node for node in self._waiting if self._site_of.get(node) in total.names}
        approvals = self._quorum_of_approvals()
        message = Unmask(self._plan.study, self._plan.epoch, now.round, approvals).to_bytes()
        return dict.fromkeys(self._waiting, message)

    def _caught_up(self, node: int, applied: int) -> bytes | None:
        """The rounds that a node misses, or its `Train` again once it misses none; None where it makes no progress."""
        wanted = self.exchange.round - 1
        if not self._base <= applied <= wanted or applied <= self._progress.get(node, -1):
            return None
        self._progress[node] = applied
        if applied == wanted:
            return self._train(node)
        self._sums.note("catching up", round=applied)
        return self._archive.catch_up(applied, wanted).to_bytes()

    # what comes in

    def _reported(self, node: int, reply: Message | None, content: bytes) -> None:
        now = self.exchange
        summing = self._base < now.round <= self._rounds
        self._declined += isinstance(reply, Declined)
        if isinstance(reply, Done) and now.round > self._rounds:
            self._done.add(node)
        elif isinstance(reply, Report) and self._is_mine(reply):
            if name := self._relayed.take(self._plan, reply.heads):
                self._site_of[node] = name
            self._masks.advertised(now.round + 1, reply.mask_keys)
            if reply.upload and summing:
                self._sums.offer(reply.upload)
            elif summing:
                self._sums.note("no upload", round=now.round)
        elif summing and not isinstance(reply, Behind):
            self._sums.offer(content)  # the inbox says what it is, and counts it
        else:
            self._sums.note("no report", round=now.round)

    def _revealed(self, reply: Message | None) -> None:
        try:
            if isinstance(reply, Unmasked) and self._is_mine(reply) and self._total is not None:
                self._masks.revealed(self._total, reply.revealed)
                return
        except (CryptoError, ProtocolError):
            pass
        self._sums.note("no shares", round=self.exchange.round)

    def _approved(self, node: int, reply: Approval) -> None:
        if self._total is not None and reply.signature:
            one = Endorsement(reply.site, reply.signature)
            try:
                verify_endorsement(self._plan, self._total, one)
            except (CryptoError, ProtocolError):
                self._sums.note("bad approval", round=self.exchange.round)
                return
            self._approvals[reply.site] = one
            self._site_of[node] = reply.site
        self._masks.shared(self.exchange.round + 1, reply.shares)
        self._relayed.said(self._key_of(node), reply)

    def _quorum_of_approvals(self) -> tuple[Endorsement, ...]:
        ordered = sorted(self._approvals.values(), key=lambda one: one.site)
        return tuple(ordered[: self._quorum])

    def _key_of(self, node: int) -> bytes:
        site = self._site_of.get(node)
        return b"" if site is None else self._plan.identity_of(site).public_bytes

    def _is_mine(self, reply: Report | Approval | Behind | Unmasked) -> bool:
        mine = (reply.study, reply.epoch) == (self._plan.study, self._plan.epoch)
        return mine and (isinstance(reply, Behind) or reply.round == self.exchange.round)


def _read(content: bytes, plan: SessionPlan) -> Message | None:
    """A reply other than a bare upload, or None."""
    kinds, most = (Report, Approval, Unmasked, Behind, Declined, Done), _bound(plan)
    try:
        return read(content, *kinds, max_bytes=most, max_head_bytes=MAX_REPLY_HEAD_BYTES)
    except ProtocolError:
        return None


def _bound(plan: SessionPlan) -> int:
    return min(MAX_MESSAGE_BYTES, plan.max_upload_bytes + (1 << 20))
