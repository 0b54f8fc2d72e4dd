"""What a server and some sites can do together about one other site's upload: `opened` is all of it.

They follow the protocol, and pool what they hold afterwards: the shared CKKS key, every message that crossed the
server, and the memory of the sites that collude, shares included. `opened` decrypts the upload and takes off every mask
whose seed can be had:

    b of the victim        from shares: those that were revealed (it survived), and the coalition's own
    s of the victim        from shares: the coalition's own alone, since nobody reveals one of a survivor
    s of a colluder        from its memory: it gives that pair's mask from the other side

With the victim's s, or that of every peer, no mask is left. Else what is read is the update plus uniform words.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray

from secure_triplay.client.ckks import CkksSecretKey
from secure_triplay.crypto.codec import Codec, Integers
from secure_triplay.crypto.masking import MaskContext, MaskKeys, Recovered, Revealed, remove_masks, residues
from secure_triplay.crypto.masking.expand import (
    SEED_BYTES,
    add_masks,
    mask_private_key,
    pair_mask_key,
    self_mask_check,
    self_mask_key,
    subtracts,
)
from secure_triplay.crypto.masking.sharing import combine
from secure_triplay.crypto.packing import SeededCiphertexts, add_mod
from secure_triplay.crypto.parameters import DEGREE

Vector = NDArray[np.float32]


@dataclass(frozen=True, repr=False)
class Coalition:
    """Server and sites: the key, the public half, every message, and by colluding site its memory and its input."""

    key: CkksSecretKey
    codec: Codec
    context: MaskContext
    keys: Mapping[str, MaskKeys]
    members: tuple[str, ...]
    survivors: tuple[str, ...]
    uploads: Mapping[str, SeededCiphertexts]
    revealed: tuple[Revealed, ...]
    recovered: Recovered
    memories: Mapping[str, bytes]
    inputs: Mapping[str, Integers]


@dataclass(frozen=True)
class Opened:
    """What the coalition reads, and how many of the victim's masks it did not get off."""

    update: Vector
    masks_left: int


def opened(held: Coalition, victim: str) -> Opened:
    """The victim's update (n_params,), as far as the coalition gets."""
    words = decrypted(held.key, held.codec, held.uploads[victim])
    masks, left = _masks(held, victim)
    total = words.astype("<u8")
    add_masks(total, [(key, not subtracted) for key, subtracted in masks])
    return Opened(update_of(held.codec, residues(held.codec, total)), left)


def decrypted(key: CkksSecretKey, codec: Codec, sealed: SeededCiphertexts) -> Integers:
    """Words (n_words,) or, of an encoding without masks, integers (n_params,) of one upload."""
    return codec.sum_from_slots(key.decrypt(sealed.c0, [sealed.seed]), 1)


def sum_of_the_others(held: Coalition) -> tuple[Vector, int]:
    """What the protocol does tell them: the sum (n_params,) of the honest survivors' updates, and of how many."""
    total = None
    for name in held.survivors:
        c0 = held.uploads[name].c0
        if total is None:
            total = c0.copy()
        else:
            add_mod(total, c0)
    assert total is not None
    slots = held.key.decrypt(total, [held.uploads[name].seed for name in held.survivors])
    words = held.codec.sum_from_slots(slots, len(held.survivors))
    context, found = held.context, held.recovered
    sums = remove_masks(context, held.codec, held.keys, held.members, held.survivors, found, words)
    for own in held.inputs.values():
        sums = sums - own
    honest = len(held.survivors) - len(held.inputs)
    return (held.codec.mean(sums, honest) * honest).astype(np.float32), honest


def update_of(codec: Codec, words: Integers) -> Vector:
    """The update (n_params,) that the fields of words are taken for, whatever stands in them."""
    chunks = words.reshape(codec.n_chunks, 1, DEGREE)
    shifts = codec.field_bits * np.arange(codec.fields).reshape(1, -1, 1)
    fields = (chunks >> shifts) & ((1 << codec.field_bits) - 1)
    values = fields.reshape(-1)[: codec.n_params].astype(np.float64)
    update: Vector = ((values - codec.levels) * codec.step).astype(np.float32)
    return update


def _masks(held: Coalition, victim: str) -> tuple[list[tuple[bytes, bool]], int]:
    """Keys of the masks on the victim's words that can be had, each with whether it was subtracted; and the rest."""
    context, memories = held.context, {site: _memory(content) for site, content in held.memories.items()}
    place = {name: index for index, name in enumerate(context.holders(victim), start=1)}
    both = {name: memory["held"][victim] for name, memory in memories.items() if victim in memory["held"]}
    of_s = {place[name]: shares[:SEED_BYTES] for name, shares in both.items()}
    of_b = {place[name]: shares[SEED_BYTES:] for name, shares in both.items()}
    of_b |= {place[one.site]: one.shares[victim] for one in held.revealed if victim in one.shares}
    masks, left = [], 0
    own = held.keys[victim]
    b = _combined(held, of_b, lambda seed: self_mask_check(context, victim, seed) == own.self_mask_check)
    if b is None:
        left += 1
    else:
        masks.append((self_mask_key(context, victim, b), False))
    s = _combined(held, of_s, lambda seed: _public(context, victim, seed) == own.mask_key)
    for peer in context.peers(victim):
        if peer not in held.members:
            continue
        if s is not None:
            private, public = mask_private_key(context, victim, s), held.keys[peer].mask_key
        elif peer in memories:
            private = mask_private_key(context, peer, memories[peer]["mask_seed"])
            public = own.mask_key
        else:
            left += 1
            continue
        masks.append((pair_mask_key(context, private, public, victim, peer), subtracts(victim, peer)))
    return masks, left


def _combined(held: Coalition, shares: Mapping[int, bytes], right: Any) -> bytes | None:
    """The secret, also tried from fewer shares than the threshold: nothing is left out because it ought to fail."""
    threshold = min(held.context.parameters.share_threshold, len(shares))
    return combine(shares, threshold, right) if threshold else None


def _public(context: MaskContext, site: str, seed: bytes) -> bytes:
    return mask_private_key(context, site, seed).public_key().public_bytes_raw()


def _memory(content: bytes) -> dict[str, Any]:
    found: dict[str, Any] = msgpack.unpackb(content, strict_map_key=False)
    return found
