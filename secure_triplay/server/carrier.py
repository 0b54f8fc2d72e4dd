"""Bytes to and from nodes over Flower's grid, on which a message may be lost and an answer may come in parts.

A SuperNode fetches a message once: what breaks on the way is gone. So a question without an answer is sent again, the
first time after `retry_s` or after twice as long as that node took for such a question before, then ever later. Sites
answer the same question with the same bytes, and of several answers to one question the first counts.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from flwr.app import Message, MessageType
from flwr.serverapp import Grid

from secure_triplay import parcel

_KIND_BYTES = 6
"""So many bytes of a question say of what kind it is."""
_LOOK_S, _MOST_LOOKS = 1.0, 64
_MOST_ERRORS, _MOST_WAITS = 5, 3


@dataclass
class _Question:
    node: int
    number: int
    content: bytes
    due: float
    wait_s: float
    errors: int = 0
    answered: bool = False


class Carrier:
    """One open question a node; `retry_s` None sends nothing twice, for a grid that loses nothing.

    `ttl_s` is how long a message may wait in the SuperLink. `again` is told the size of an answer that came twice.
    """

    def __init__(
        self,
        grid: Grid,
        ttl_s: float,
        retry_s: float | None = None,
        again: Callable[[int], None] = lambda size: None,
    ) -> None:
        self._grid, self._ttl_s, self._retry_s, self._again = grid, ttl_s, retry_s, again
        self._open: dict[int, _Question] = {}
        self._sent: dict[str, tuple[_Question, float]] = {}
        self._took_s: dict[tuple[int, bytes], float] = {}
        self._looks: list[threading.Thread] = []
        self._claimed: dict[str, list[threading.Thread]] = {}
        self._arrived: queue.SimpleQueue[Message | Exception] = queue.SimpleQueue()

    def begin(self) -> None:
        """Give up what is still open; answers to it come with their old number."""
        self._open.clear()

    def has_asked(self, node: int) -> bool:
        """Whether this node was asked anything since `begin`."""
        return node in self._open

    def ask(self, node: int, number: int, content: bytes, *, after_s: float = 0.0) -> None:
        """Ask a node, in place of what it was asked before; `number` comes back with the answer."""
        due, wait_s = time.monotonic() + after_s, self._first_wait_s(node, content)
        question = _Question(node, number, content, due, wait_s)
        self._open[node] = question
        if after_s == 0.0:
            self._send(question)

    def answers(self) -> Iterator[tuple[int, int, bytes]]:
        """What came since the last look: node, number, and the answer's bytes, one after the other.

        What is no byte string is empty bytes, which whoever asked refuses and counts; so is what a node does not
        answer because it is gone. Raises what Flower raises where the run is over.
        """
        now = time.monotonic()
        for question in list(self._open.values()):
            if not question.answered and question.due <= now:
                self._send(question)
        for sent, reply in self._look():
            known = self._sent.pop(sent, None)
            if known is None:
                continue
            question, sent_at = known
            content = b"" if reply is None or reply.has_error() else _bytes_of(reply)
            if not content and (reply is None or reply.has_error()) and self._try_again(question):
                continue
            if question.answered:
                self._again(len(content))
                continue
            question.answered = True
            self._took_s[question.node, question.content[:_KIND_BYTES]] = time.monotonic() - sent_at
            yield question.node, question.number, content

    def _first_wait_s(self, node: int, content: bytes) -> float:
        if self._retry_s is None:
            return self._ttl_s
        return max(self._retry_s, 2 * self._took_s.get((node, content[:_KIND_BYTES]), 0.0))

    def _send(self, question: _Question) -> None:
        now = time.monotonic()
        question.due = now + question.wait_s
        question.wait_s = min(2 * question.wait_s, max(question.wait_s, _MOST_WAITS * (self._retry_s or 0.0)))
        message = Message(
            content=parcel.pack(question.content),
            message_type=MessageType.TRAIN,
            dst_node_id=question.node,
            ttl=self._ttl_s,
        )
        for sent in self._grid.push_messages([message]):
            if sent is not None:  # Flower's word for a message to a node that is not there any more
                self._sent[sent] = question, now

    def _try_again(self, question: _Question) -> bool:
        """Whether a node that gave an error is asked again: not if it is gone, or gave too many."""
        question.errors += 1
        if question.answered or self._open.get(question.node) is not question:
            return True  # nobody waits for it
        if self._retry_s is None or question.errors > _MOST_ERRORS:
            return False
        if question.node not in set(self._grid.get_node_ids()):
            return False
        question.due = min(question.due, time.monotonic() + self._retry_s)
        return True

    def _look(self) -> Iterator[tuple[str, Message | None]]:
        """What was sent and its answer, where it is whole; None for one that never will be.

        Flower waits, for minutes where it must, for an answer that came in part. Such a look goes on in its own
        thread, and the next one finds what others sent. Of what an earlier look has taken Flower then says that it is
        not there: that is no answer while the earlier look goes on.
        """
        going_on = [look for look in self._looks if look.is_alive()]
        wanted = [sent for sent in self._sent if sent not in self._claimed]
        self._looks = going_on
        if wanted and len(going_on) < _MOST_LOOKS:
            look = threading.Thread(target=self._pull, args=(wanted,), daemon=True)
            self._looks = [*going_on, look]
            look.start()
            look.join(_LOOK_S)
        ended = [sent for sent, looks in self._claimed.items() if not any(look.is_alive() for look in looks)]
        while not self._arrived.empty():
            found = self._arrived.get()
            if isinstance(found, Exception):
                raise found
            sent = str(found.metadata.reply_to_message_id)
            if found.has_error() and going_on and sent not in self._claimed:
                self._claimed[sent] = going_on
                continue
            self._claimed.pop(sent, None)
            yield sent, found
        for sent in ended:
            if self._claimed.pop(sent, None) is not None:
                yield sent, None

    def _pull(self, sent: list[str]) -> None:
        try:
            for reply in self._grid.pull_messages(sent):
                self._arrived.put(reply)
        except Exception as error:
            self._arrived.put(error)


def _bytes_of(reply: Message) -> bytes:
    try:
        return parcel.unpack(reply.content)
    except ValueError:
        return b""
