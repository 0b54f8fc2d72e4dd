"""One site's round, as it would stand on a blackboard.

    reserve    the privacy budget of the round, on disk, and countersigned by peers, before the first gradient
    train      DP-SGD on the adapter
    encode     update -> integers
    mask       integers -> integers that tell nothing alone (`masks`; where a study has a shared key, the same)
    encrypt    integers in slots -> ciphertexts, tagged and signed
    (the server verifies and adds)
    verify     every survivor's signature, then the tag of the sum
    approve    sign that very sum, and no other of this round; wait for a quorum that did the same
    unmask     reveal one kind of share of each member; check the seeds that come of it
    decrypt    the sum -> exact integers -> masks off -> mean update
    apply      the server optimiser, the same step at every site

What is decrypted has the type `ApprovedSum`, and the only way to one is through both checks. `GlobalState` is what
all sites hold alike; what only this site has comes in as `Member`. What is kept between the steps, and in which
order, is `session`'s business.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from secure_triplay.client.accounts import Accounts
from secure_triplay.client.keys import EpochKeys
from secure_triplay.client.optimiser import GlobalState, step
from secure_triplay.client.published import Published
from secure_triplay.config import ServerOptimiser
from secure_triplay.crypto.codec import Codec, Integers, Uniform
from secure_triplay.crypto.identity import SigningIdentity
from secure_triplay.crypto.masking.parameters import MaskingParameters, require_threshold
from secure_triplay.crypto.packing import pack60, unpack60
from secure_triplay.crypto.wrapping import WrappingCodec
from secure_triplay.errors import ProtocolError
from secure_triplay.model.ranks import Ranks
from secure_triplay.wire import (
    Endorsement,
    SessionPlan,
    SumMessage,
    Upload,
    endorse,
    pack_tags,
    require_quorum,
    unpack_tags,
    verify_quorum,
)

Vector = NDArray[np.float32]


class Trains(Protocol):
    """Whatever turns a global adapter into a private update; it alone sees the site's records."""

    def update(self, adapter: Vector) -> Vector: ...


@runtime_checkable
class SharesNoise(Protocol):
    """Whatever turns a global adapter into integers with a share of noise in them: private in their sum alone."""

    def noised_sum(self, adapter: Vector) -> Integers: ...


def _allow_everything(round_number: int) -> tuple[str, ...]:
    return ()


@dataclass(frozen=True)
class Member:
    """What one site works with in every round.

    `weights` are public constants of the study, by site. `quorum` is the fewest sites of a sum and of signatures
    under it. `allow` is the site's own policy: the reasons for which it refuses to train a round, none to go on. `base`
    is the last round of the key epoch before this one.
    Where sites train different `ranks`, each column's mean is over those that train it.
    Where an accuracy is `published`, the last of the `rounds` counts and trains nothing. `masking` are the masks'
    parameters; None is a shared key. With `keeps_own` the site remembers its own updates, for a personal adapter.

    Raises ConfigError for a quorum of half the roster or fewer, or below the masks' threshold.
    """

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
    allow: Callable[[int], Iterable[str]] = _allow_everything
    base: int = 0
    published: Published | None = None
    masking: MaskingParameters | None = None
    ranks: Ranks | None = None
    keeps_own: bool = False

    def __post_init__(self) -> None:
        require_quorum(self.quorum, len(self.plan.sites))
        require_threshold(self.masking, self.quorum, len(self.plan.sites))

    @property
    def witnesses_due(self) -> int:
        """How many peers have to countersign a charge before it is spent: one, where there is another site."""
        return min(1, len(self.plan.sites) - 1)

    def counts_in(self, round_number: int) -> Published | None:
        """What is released in the count round; None in a round that trains."""
        return self.published if round_number == self.rounds else None


@dataclass(frozen=True)
class VerifiedSum:
    """A sum whose survivors and tags this site verified; not yet one that may be opened."""

    message: SumMessage
    c0: NDArray[np.uint64]


@dataclass(frozen=True)
class ApprovedSum:
    """A verified sum that a quorum of sites signed, by name: this may be decrypted, once."""

    verified: VerifiedSum
    signers: frozenset[str]


@dataclass(frozen=True)
class Learned:
    """What this site learned in a round, as the codec's integers, and how long training and masking it took.

    `update` (n_params,) is what training gave, noise included; None where nobody keeps it. It never leaves.
    """

    integers: Integers
    train_s: float = 0.0
    mask_s: float = 0.0
    update: Vector | None = None


def learn(me: Member, state: GlobalState) -> Learned:
    """Train on this site's records, or count in the count round, and round to integers.

    The charge was reserved and countersigned.
    """
    started = time.perf_counter()
    counts, own = me.counts_in(state.round + 1), None
    if isinstance(me.codec, WrappingCodec):  # noise is shared: integers already, and all sites weigh the same
        assert isinstance(me.learner, SharesNoise)
        integers = me.learner.noised_sum(state.adapter.astype(np.float32))
        return Learned(integers, time.perf_counter() - started)
    if counts is None:
        share = me.weights[me.name] / max(me.weights.values())
        trained = me.learner.update(state.adapter.astype(np.float32))
        own, update = trained if me.keeps_own else None, trained * np.float32(share)
    else:
        update = counts.as_update(state.published, me.codec)
    trained_s = time.perf_counter() - started
    return Learned(me.codec.quantise(update, me.noise), trained_s, update=own)


def seal(me: Member, round_number: int, learned: Learned, members: bytes = b"") -> bytes:
    """Encrypt, tag and sign what was learned -> the bytes of the round's `Upload`.

    `members` is the hash of those with whom the integers are masked. Nothing leaves before the charge is settled with
    these very bytes.
    """
    started = time.perf_counter()
    slots = me.codec.to_slots(learned.integers)
    sealed = me.keys.ckks.encrypt(slots, me.codec.encode_tolerance)
    tags = me.keys.tag.tag(sealed.c0, epoch=me.plan.epoch, round_number=round_number, site=me.name)
    upload = Upload.signed(
        me.plan,
        me.identity,
        round=round_number,
        site=me.name,
        c0=pack60(sealed.c0),
        tags=pack_tags(tags),
        seed=sealed.seed,
        members=members,
    )
    content = upload.to_bytes()
    me.note(
        "uploaded" if me.counts_in(round_number) is None else "counted",
        round=round_number,
        train_s=learned.train_s,
        encode_encrypt_s=time.perf_counter() - started + learned.mask_s,
        upload_bytes=len(content),
    )
    return content


def make_upload(me: Member, state: GlobalState) -> bytes:
    """`seal` of `learn`, without masks: the bytes of the `Upload` of the next round."""
    return seal(me, state.round + 1, learn(me, state))


def weighted(
    mean: NDArray[np.float64], survivors: Sequence[str], weights: Mapping[str, float], ranks: Ranks | None
) -> NDArray[np.float64]:
    """The plain mean (n_params,) of what survivors sent -> the mean by public weights, and by who trains what."""
    if ranks is not None:
        return ranks.mean(mean, survivors)
    weight = sum(weights[name] for name in survivors) / max(weights.values())
    return mean * len(survivors) / weight


def verify_sum(me: Member, message: SumMessage, round_number: int) -> VerifiedSum:
    """Check a round's sum as far as it can be checked without opening it. Raises CryptoError or ProtocolError."""
    if message.last != (round_number == me.rounds):
        raise ProtocolError(
            f"the study has {me.rounds} rounds, and the server would end it after {message.round}",
            where="server's message",
            fix="look into the server",
        )
    message.verify(me.plan, round_number, fewest=me.quorum)
    c0 = unpack60(message.c0, me.plan.n_chunks)
    me.keys.tag.verify_sum(
        c0,
        unpack_tags(message.tags),
        epoch=me.plan.epoch,
        round_number=round_number,
        sites=[header.site for header in message.survivors],
    )
    return VerifiedSum(message, c0)


def approve(me: Member, verified: VerifiedSum) -> Endorsement:
    """This site's signature under a sum; the caller sees to it that a round gets one."""
    return endorse(me.plan, me.identity, me.name, verified.message)


def approved(me: Member, verified: VerifiedSum, approvals: Iterable[Endorsement]) -> ApprovedSum:
    """The sum, once a quorum signed exactly it. Raises CryptoError or ProtocolError."""
    signed = tuple(approvals)
    verify_quorum(me.plan, verified.message, signed, me.quorum)
    return ApprovedSum(verified, frozenset(one.site for one in signed))


def open_sum(
    me: Member,
    state: GlobalState,
    approved: ApprovedSum,
    taken_off: Callable[[Integers], Integers] = lambda sums: sums,
) -> GlobalState:
    """Decrypt and apply a sum -> the next state; `taken_off` takes the masks off the decoded integers.

    Raises CryptoError where it does not decode, or masks are left on it.
    """
    started = time.perf_counter()
    message, c0 = approved.verified.message, approved.verified.c0
    survivors = [header.site for header in message.survivors]
    seeds = [header.seed for header in message.survivors]
    levels = me.codec.sum_from_slots(me.keys.ckks.decrypt(c0, seeds), len(survivors))
    mean = me.codec.mean(taken_off(levels), len(survivors))
    counts = me.counts_in(state.round + 1)
    if counts is not None:
        correct, total = counts.read(mean, len(survivors), me.codec)
        me.note("published", correct=correct, total=total, sites=len(survivors))
        return replace(state, round=state.round + 1)
    state = step(state, weighted(mean, survivors, me.weights, me.ranks), me.optimiser)
    me.note(
        "applied",
        round=state.round,
        decrypt_apply_s=time.perf_counter() - started,
        download_bytes=len(message.to_bytes()),
    )
    return state
