"""The sum so far: one ciphertext batch, and who is in it.

CKKS addition is addition of coefficients modulo q, so the server needs numpy and no cryptographic library.
Memory is one batch whatever the number of sites; of each site only its signed header stays, a few hundred bytes,
because the others verify the sum against it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from secure_triplay.crypto.packing import Coefficients, add_mod, pack60
from secure_triplay.crypto.parameters import DEGREE
from secure_triplay.errors import ProtocolError
from secure_triplay.server.inbox import BLOCK_CHUNKS, VerifiedUpload
from secure_triplay.wire import SignedHeader, SumMessage, Then, pack_tags


@dataclass(frozen=True)
class RunningSum:
    """Sum of the uploads of `headers`: c0 (n_chunks, 4096) and tags (n_chunks,), both below q."""

    headers: tuple[SignedHeader, ...]
    c0: Coefficients
    tags: NDArray[np.uint64]

    @classmethod
    def empty(cls, n_chunks: int) -> RunningSum:
        """The sum of no upload."""
        return cls((), np.zeros((n_chunks, DEGREE), np.uint64), np.zeros(n_chunks, np.uint64))

    def add(self, upload: VerifiedUpload) -> RunningSum:
        """The sum with one more upload in it; it takes over this one's memory, which is of no more use.

        Raises:
            ProtocolError: if the site is in the sum already or the upload has another size.
        """
        if upload.c0.shape != self.c0.shape or upload.tags.shape != self.tags.shape:
            raise _unfit("an upload of another size cannot be added")
        if any(header.site == upload.header.site for header in self.headers):
            raise _unfit("a site cannot be added twice")
        add_mod(self.c0, upload.c0)
        add_mod(self.tags, upload.tags)
        return RunningSum((*self.headers, upload.header), self.c0, self.tags)

    def message(self, then: Then) -> SumMessage:
        """What goes to every site. Raises ProtocolError for a sum of nothing."""
        if not self.headers:
            raise _unfit("there is nothing to send")
        survivors = tuple(sorted(self.headers, key=lambda header: header.site))
        first = survivors[0]
        c0 = b"".join(pack60(self.c0[i : i + BLOCK_CHUNKS]) for i in range(0, len(self.c0), BLOCK_CHUNKS))
        return SumMessage(first.study, first.epoch, first.round, survivors, c0, pack_tags(self.tags), then)


def _unfit(what: str) -> ProtocolError:
    return ProtocolError(what, where="running sum", fix="offer uploads through the round's inbox")
