"""The server's round.

    open    an empty inbox and an empty sum
    offer   bytes -> verified upload -> added to the sum; or refused, and nothing has changed
    close   a quorum was met -> the sum and its survivors, for every site; or the round has failed

What an upload weighs is no business of the server: sites scale by public constants before they encrypt.
"""

from __future__ import annotations

from dataclasses import dataclass

from secure_triplay.errors import ConfigError, RunError
from secure_triplay.server.inbox import Admitted, Inbox, Refusal
from secure_triplay.server.sum import RunningSum
from secure_triplay.wire import SessionPlan, SumMessage, Then


@dataclass(frozen=True)
class Round:
    """One round as the server sees it; `quorum` is the fewest sites of which a sum is sent out."""

    quorum: int
    inbox: Inbox
    total: RunningSum

    @classmethod
    def open(cls, plan: SessionPlan, number: int, quorum: int, admitted: Admitted | None = None) -> Round:
        """A round in which nothing has arrived. Raises ConfigError if the roster cannot meet the quorum."""
        if not 1 <= quorum <= len(plan.sites):
            raise ConfigError(
                f"a quorum of {quorum} cannot be met by {len(plan.sites)} sites",
                where="round",
                fix="choose a quorum between 1 and the number of sites",
            )
        return cls(quorum, Inbox(plan, number, admitted=admitted), RunningSum.empty(plan.n_chunks))

    def offer(self, content: bytes) -> tuple[Round, Refusal | None]:
        """The round with the upload in `content` added, or the same round and why it was refused."""
        upload = self.inbox.receive(content)
        if isinstance(upload, Refusal):
            return self, upload
        return Round(self.quorum, self.inbox.after(upload), self.total.add(upload)), None

    def close(self, then: Then) -> SumMessage:
        """The sum over everything that was accepted. Raises RunError when that is less than the quorum."""
        n_accepted = len(self.total.headers)
        if n_accepted < self.quorum:
            raise RunError(
                f"round {self.inbox.round} failed: {n_accepted} uploads are valid, {self.quorum} are needed",
                where="server",
                fix="the server's event log says what was refused and why; repeat the round then",
            )
        return self.total.message(then)
