"""SECRET. What the vault keeps of a round that a site trained in, until it closes and after.

    update   what was learned in the open round: integers that are sent, and the update that they were made of
    own      the sum of this site's own updates in all rounds that closed
    revealed the last round whose sum this site helped to take the masks off

Both halves of `update` are one file, so that the update that is counted is always the one that was sent. It is
counted when its round closes, while it still lies here, after the state of that round is on disk: the state decides.
A site that dies between the two finds both the state and the update of one round when it starts, and counts it then.
`own` knows its last round, so that no update is in it twice.
"""

from __future__ import annotations

import struct

import numpy as np

from secure_triplay.client.classes import carry_classes
from secure_triplay.client.optimiser import GlobalState
from secure_triplay.client.personal import OwnUpdates
from secure_triplay.client.round import Learned
from secure_triplay.client.vault import Vault
from secure_triplay.errors import CryptoError, ProtocolError

ROUND = struct.Struct(">Q")
_UPDATE, _OWN, _REVEALED = "update", "own", "revealed"
_HEAD = struct.Struct(">QQ?")


def keep_update(vault: Vault, number: int, learned: Learned) -> None:
    """Put what was learned in round `number` on disk, before anything of it leaves."""
    own = b"" if learned.update is None else learned.update.astype("<f4").tobytes()
    head = _HEAD.pack(number, len(learned.integers), learned.update is not None)
    vault.save(_UPDATE, head + learned.integers.astype("<i8").tobytes() + own)


def kept_update(vault: Vault, number: int | None = None) -> tuple[int, Learned] | None:
    """(round, what was learned), or None where nothing was kept, or only of another round than `number`.

    Raises CryptoError for anything that `keep_update` did not write.
    """
    content = vault.load(_UPDATE)
    if content is None:
        return None
    try:
        of, size, has_own = _HEAD.unpack_from(content)
        if len(content) != _HEAD.size + size * (12 if has_own else 8) or content[_HEAD.size - 1] > 1:
            raise ValueError
    except (struct.error, ValueError) as error:
        raise CryptoError(
            "what was learned in this round cannot be read: it is cut, or of an older version",
            where="vault",
            fix="restore the site's folder as a whole; an older version's study ends with that version",
        ) from error
    if number is not None and of != number:
        return None
    integers = np.frombuffer(content, "<i8", size, _HEAD.size).astype(np.int64)
    own = np.frombuffer(content, "<f4", size, _HEAD.size + 8 * size).astype(np.float32) if has_own else None
    return of, Learned(integers, update=own)


def count_own(vault: Vault, applied: int, n_params: int) -> OwnUpdates:
    """This site's own updates up to round `applied`, whose state is on disk; the kept one is taken in and forgotten.

    Raises CryptoError.
    """
    content, kept = vault.load(_OWN), kept_update(vault)
    own = OwnUpdates.none(n_params) if content is None else OwnUpdates.from_bytes(content, n_params)
    if kept is None or kept[0] > applied:
        return own
    number, learned = kept
    if learned.update is not None:
        own = own.add(learned.update, number)
        vault.save(_OWN, own.to_bytes())
    vault.destroy(_UPDATE)
    return own


def keep_revealed(vault: Vault, number: int) -> None:
    """Note, before any share leaves, that this site reveals what takes the masks off the sum of round `number`."""
    vault.save(_REVEALED, ROUND.pack(number))


def require_unopened(vault: Vault, number: int) -> None:
    """Return if no share left of the sum of round `number` or a later one, so that the next epoch may begin with it.

    Such a sum may have been opened, whether or not this site ever saw it. The same update in a second sum, over
    other sites and under the next epoch's masks, would stand alone in the difference of the two. Raises
    ProtocolError.
    """
    content = vault.load(_REVEALED)
    revealed = 0 if content is None else int(ROUND.unpack(content)[0])
    if revealed >= number:
        raise ProtocolError(
            f"the server would go on with round {number}, and this site revealed what takes the masks off the sum of "
            f"round {revealed}",
            where="server's message",
            fix="look into the server: it has lost closed rounds, or would have an update enter two sums",
        )


def forget_carried(later: Vault, *more: str) -> None:
    """Remove what an earlier attempt took into an epoch that this site is not in yet.

    The epoch before went on since then: an update that was carried may have been in a sum that this site opened.
    """
    for name in ("carried", _UPDATE, _OWN, *more):
        later.destroy(name)


def carry_own(vault: Vault, later: Vault, applied: int, n_params: int) -> None:
    """Take what is this site's own into the next epoch, which goes on after round `applied`.

    Where the study begins anew there, so does the sum of updates; what is known of the classes stays.
    """
    carry_classes(vault, later)
    own = count_own(vault, applied, n_params)
    if 0 < own.last <= applied:
        later.save(_OWN, own.to_bytes())


def carry_update(vault: Vault, later: Vault, state: GlobalState) -> None:
    """Take what was sent in a round that never closed into the next epoch, whose key encrypts it anew.

    The released values stay the same, so nothing is charged for it; without this the round could not go on here.
    """
    number = state.round + 1
    kept, again = kept_update(vault, number), ROUND.pack(number)
    sent = (vault.load("upload") or b"").startswith(again)
    # sent under a key before this one, and not yet under this one: an epoch may end before its first round
    if kept is not None and (sent or vault.load("carried") == again):
        keep_update(later, number, kept[1])
        later.save("carried", again)
