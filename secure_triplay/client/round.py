"""One site's round, as it would stand on a blackboard.

    reserve    the privacy budget of the round, on disk, before the first gradient
    train      DP-SGD on the adapter
    encode     update -> integers in slots
    encrypt    slots -> ciphertexts, tagged and signed
    (the server verifies and adds)
    verify     every survivor's signature, then the tag of the sum, before anything is decrypted
    decrypt    the sum -> exact integers -> mean update
    apply      the server optimiser, the same step at every site

`GlobalState` is what all sites hold alike. What only this site has comes in as `Member`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from secure_triplay.client.accounts import Accounts
from secure_triplay.client.keys import EpochKeys
from secure_triplay.client.optimiser import GlobalState, step
from secure_triplay.config import ServerOptimiser
from secure_triplay.crypto.codec import Codec, Uniform
from secure_triplay.crypto.identity import SigningIdentity
from secure_triplay.crypto.packing import pack60, unpack60
from secure_triplay.errors import ProtocolError
from secure_triplay.wire import Begin, Done, SessionPlan, SumMessage, Upload, pack_tags, unpack_tags

Vector = NDArray[np.float32]


class Trains(Protocol):
    """Whatever turns a global adapter into a private update; it alone sees the site's records."""

    def update(self, adapter: Vector) -> Vector: ...


@dataclass(frozen=True)
class Member:
    """What one site works with in every round. `weights` are public constants of the study, by site."""

    name: str
    plan: SessionPlan
    codec: Codec
    weights: Mapping[str, float]
    quorum: int
    rounds: int
    optimiser: ServerOptimiser
    learner: Trains
    noise: Uniform
    identity: SigningIdentity
    keys: EpochKeys
    accounts: Accounts
    note: Callable[..., None]


def answer(me: Member, state: GlobalState, request: Begin | SumMessage) -> tuple[GlobalState, Upload | Done]:
    """The next state and the reply. Raises a SecureTriplayError, and then the state is what it was."""
    if (request.study, request.epoch) != (me.plan.study, me.plan.epoch):
        raise ProtocolError(
            "a message of another study or epoch", where="server's message", fix="look into the server"
        )
    if isinstance(request, SumMessage):
        if request.last != (request.round == me.rounds):
            raise ProtocolError(
                f"the study has {me.rounds} rounds, and the server would end it after {request.round}",
                where="server's message",
                fix="look into the server",
            )
        state = open_sum(me, state, request)
        if request.last:
            return state, Done()
    elif request.round != state.round + 1:
        raise ProtocolError(
            f"round {request.round} was begun after round {state.round}",
            where="server's message",
            fix="a round is begun once; look into the server",
        )
    return state, make_upload(me, state)


def make_upload(me: Member, state: GlobalState) -> Upload:
    """Train on this site's records, and encrypt what was learned."""
    round_number = state.round + 1
    reservation = me.accounts.reserve(round_number)
    started = time.perf_counter()
    update = me.learner.update(state.adapter.astype(np.float32))
    trained = time.perf_counter()
    share = me.weights[me.name] / max(me.weights.values())
    slots = me.codec.to_slots(me.codec.quantise(update * np.float32(share), me.noise))
    sealed = me.keys.ckks.encrypt(slots, me.codec.encode_tolerance)
    tags = me.keys.tag.tag(sealed.c0, epoch=me.plan.epoch, round_number=round_number, site=me.name)
    upload = Upload.signed(
        me.plan,
        me.identity,
        round=round_number,
        site=me.name,
        c0=pack60(sealed.c0),
        tags=pack_tags(tags),
        seeds=sealed.seeds.tobytes(),
    )
    content = upload.to_bytes()
    me.note(
        "uploaded",
        round=round_number,
        train_s=trained - started,
        encode_encrypt_s=time.perf_counter() - trained,
        upload_bytes=len(content),
    )
    me.accounts.settle(reservation, content)  # on disk before anything leaves
    return upload


def open_sum(me: Member, state: GlobalState, message: SumMessage) -> GlobalState:
    """Verify, decrypt and apply a sum. Raises CryptoError or ProtocolError before anything is decrypted."""
    started = time.perf_counter()
    round_number = state.round + 1
    message.verify(me.plan, round_number, fewest=me.quorum)
    survivors = [header.site for header in message.survivors]
    c0 = unpack60(message.c0, me.plan.n_chunks)
    me.keys.tag.verify_sum(
        c0, unpack_tags(message.tags), epoch=me.plan.epoch, round_number=round_number, sites=survivors
    )
    seeds = [
        np.frombuffer(header.seeds, np.uint8).reshape(me.plan.n_chunks, -1) for header in message.survivors
    ]
    levels = me.codec.sum_from_slots(me.keys.ckks.decrypt(c0, seeds), len(survivors))
    weight = sum(me.weights[name] for name in survivors) / max(me.weights.values())
    mean = me.codec.mean(levels, len(survivors)) * len(survivors) / weight
    state = step(state, mean, me.optimiser)
    me.accounts.closed(message)
    me.note(
        "applied",
        round=round_number,
        decrypt_apply_s=time.perf_counter() - started,
        download_bytes=len(message.to_bytes()),
    )
    return state
