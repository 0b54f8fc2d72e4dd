"""The end of a masked round: seeds back from revealed shares, and the masks off the sum.

Both are public arithmetic on what honest sites revealed. The server recovers and passes the seeds on; a site checks
them against what their owners signed and takes the masks off the sum that it decrypted.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from secure_triplay.crypto.codec import Codec, Integers
from secure_triplay.crypto.masking.arithmetic import require_masked, residues, zero_words
from secure_triplay.crypto.masking.context import MaskContext
from secure_triplay.crypto.masking.expand import (
    add_masks,
    mask_private_key,
    pair_mask_key,
    self_mask_check,
    self_mask_key,
    subtracts,
)
from secure_triplay.crypto.masking.messages import MaskKeys, Revealed, by_site, lists_hash
from secure_triplay.crypto.masking.sharing import combine
from secure_triplay.errors import CryptoError, ProtocolError

_Check = Callable[[MaskContext, MaskKeys, bytes], bool]


@dataclass(frozen=True)
class Recovered:
    """Seeds `(16,)`: b of each survivor and s of each member that was lost; never both of one site."""

    survivors: Mapping[str, bytes]
    lost: Mapping[str, bytes]

    def verify(
        self,
        context: MaskContext,
        keys: Mapping[str, MaskKeys],
        members: tuple[str, ...],
        survivors: tuple[str, ...],
    ) -> None:
        """Return nothing if these are the very secrets that the sites committed to in round 0.

        Raises ProtocolError if one is missing or too many, CryptoError if one is another.
        """
        if set(self.survivors) != set(survivors) or set(self.lost) != set(members) - set(survivors):
            raise _incomplete()
        right = all(_is_self_mask(context, keys[name], seed) for name, seed in self.survivors.items())
        if not right or not all(_is_mask_key(context, keys[name], seed) for name, seed in self.lost.items()):
            raise CryptoError(
                "a recovered seed is not the one that its site committed to",
                where="masking", fix="look into the server; nothing was unmasked",
            )  # fmt: skip


def recover(
    context: MaskContext,
    keys: Mapping[str, MaskKeys],
    members: tuple[str, ...],
    survivors: tuple[str, ...],
    revealed: Iterable[Revealed],
) -> Recovered:
    """The seeds, from at least `share_threshold` right shares of each; a few wrong ones are found out and left out.

    Raises:
        ProtocolError: if a message is false, or shares are too few or too wrong: the round failed.
        CryptoError: if a signature does not verify.
    """
    lists = lists_hash(context, members, survivors)
    answers = by_site(revealed)
    for site, answer in answers.items():
        if site not in survivors:
            raise _incomplete()
        answer.verify(context, lists)
    threshold = context.parameters.share_threshold
    seeds: dict[str, bytes] = {}
    for name in members:
        holders = context.holders(name)
        shares = {
            index: answers[holder].shares[name]
            for index, holder in enumerate(holders, start=1)
            if holder in answers and name in answers[holder].shares
        }
        known = _is_self_mask if name in survivors else _is_mask_key

        def right(seed: bytes, name: str = name, known: _Check = known) -> bool:
            return known(context, keys[name], seed)

        seed = combine(shares, threshold, right) if len(shares) >= threshold else None
        if seed is None:
            raise _incomplete()
        seeds[name] = seed
    return Recovered(
        {name: seeds[name] for name in survivors},
        {name: seeds[name] for name in members if name not in survivors},
    )


def remove_masks(
    context: MaskContext,
    codec: Codec,
    keys: Mapping[str, MaskKeys],
    members: tuple[str, ...],
    survivors: tuple[str, ...],
    recovered: Recovered,
    sums: Integers,
) -> Integers:
    """Decoded sums (n_words,) of the survivors' words -> the plain sums (n_params,) of their values.

    Raises:
        ProtocolError, CryptoError: if the seeds are not the right ones, the codec cannot hold masked sums, or what is
            left is out of reach of honest values.
    """
    require_masked(codec)
    recovered.verify(context, keys, members, survivors)
    masks = [(self_mask_key(context, name, seed), False) for name, seed in recovered.survivors.items()]
    for lost, seed in recovered.lost.items():
        private = mask_private_key(context, lost, seed)
        for peer in context.peers(lost):
            if peer in recovered.survivors:
                key = pair_mask_key(context, private, keys[peer].mask_key, lost, peer)
                masks.append((key, subtracts(peer, lost)))
    total = zero_words(codec)
    add_masks(total, masks)
    left = (sums - residues(codec, total)) & ((1 << codec.word_bits) - 1)
    return codec.unpack(left, len(survivors))


def _is_self_mask(context: MaskContext, keys: MaskKeys, seed: bytes) -> bool:
    return hmac.compare_digest(self_mask_check(context, keys.site, seed), keys.self_mask_check)


def _is_mask_key(context: MaskContext, keys: MaskKeys, seed: bytes) -> bool:
    public = mask_private_key(context, keys.site, seed).public_key().public_bytes_raw()
    return hmac.compare_digest(public, keys.mask_key)


def _incomplete() -> ProtocolError:
    return ProtocolError(
        "the masks of this round cannot be taken off: shares are missing, wrong, or not of these survivors",
        where="masking", fix="the round failed, and nothing of it was opened; the study goes on with the next",
    )  # fmt: skip
