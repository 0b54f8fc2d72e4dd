"""Sites of ours under attack: the real session of a site, with a key that counts what it is asked to decrypt.

Keys, ciphertexts, tags, signatures, vault and the site's state machine are the real ones; training is a fixed
vector and the ledger empty, since no trick depends on them. For every sum that it would like to see opened the
server does all that it can: it shows it to every site, collects what signatures it gets, and sends these to the
victim's peer both as the next round's beginning and as a round that was missed.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from secure_triplay.attacks.ring import polynomial_of, rounded, to_ntt
from secure_triplay.client.ckks import CkksSecretKey
from secure_triplay.client.keys import EpochKeys, Roster, make_keys, open_keys
from secure_triplay.client.optimiser import GlobalState
from secure_triplay.client.round import Member, make_upload
from secure_triplay.client.session import Session
from secure_triplay.client.vault import Vault, new_storage_key
from secure_triplay.config import ServerOptimiser, Study
from secure_triplay.crypto.codec import Codec, Slots
from secure_triplay.crypto.envelope import EnvelopeKey
from secure_triplay.crypto.identity import SigningIdentity
from secure_triplay.crypto.packing import Coefficients, SeededCiphertexts, pack60, unpack60
from secure_triplay.crypto.parameters import DEGREE, MODULUS, SLOTS, CkksParameters
from secure_triplay.errors import PrivacyError, SecureTriplayError
from secure_triplay.ledger.books import Reservation
from secure_triplay.privacy.noise import NoiseSource
from secure_triplay.wire import (
    Approval,
    CatchUp,
    Closed,
    Countersignature,
    Endorsement,
    HeldHead,
    LedgerHead,
    SessionPlan,
    SumMessage,
    Train,
    Upload,
    Witness,
    pack_tags,
    unpack_tags,
)
from secure_triplay.wireformat import read

N_PARAMS = 6_000
_ROUNDS = 2


@dataclass(frozen=True)
class Trial:
    """What became of a trick: sums offered, sums not opened, and decryptions of what should not be decrypted."""

    offered: int
    refused: int
    decryptions: int
    note: str = ""


class CountingKey:
    """The site's key; it does what it is asked and counts it."""

    def __init__(self, key: CkksSecretKey) -> None:
        self._key = key
        self.decryptions = 0

    @property
    def parameters(self) -> CkksParameters:
        """Those of the key."""
        return self._key.parameters

    def encrypt(self, slots: Slots, tolerance: float) -> SeededCiphertexts:
        """As the key does."""
        return self._key.encrypt(slots, tolerance)

    def decrypt(self, summed_c0: Coefficients, seeds: Sequence[bytes]) -> Slots:
        """As the key does, and one more."""
        self.decryptions += 1
        return self._key.decrypt(summed_c0, seeds)


class FixedUpdate:
    """A learner that learned this before."""

    def __init__(self, update: NDArray[np.float32]) -> None:
        self._update = update

    def update(self, adapter: NDArray[np.float32]) -> NDArray[np.float32]:
        """The same whatever the adapter."""
        return self._update


class EmptyLedger:
    """Accounts of a site that has no budget, and so trains nothing more; what it signs and opens is all that counts."""

    def reserve(self, round_number: int) -> Reservation:
        """Refused."""
        raise PrivacyError("there is no budget here", where="attack")

    def reserved(self, round_number: int) -> Reservation | None:
        """Nothing is."""
        return None

    def witnesses_of(self, reservation: Reservation) -> int:
        """Nobody."""
        return 0

    def settle(self, reservation: Reservation, content: bytes) -> None:
        """Nothing to settle."""

    def closed(self, message: SumMessage) -> None:
        """Nothing to note."""

    def decided(self, what: str) -> None:
        """Nothing to note."""

    def heads(self) -> tuple[LedgerHead, ...]:
        """None."""
        return ()

    def countersign(
        self, heads: Iterable[LedgerHead], note: Callable[[SecureTriplayError], None]
    ) -> tuple[tuple[Countersignature, ...], tuple[HeldHead, ...]]:
        """None."""
        return (), ()

    def take_in(self, receipts: Iterable[Countersignature], held: Iterable[HeldHead]) -> None:
        """Nothing to keep."""


@dataclass
class ProtectedSites:
    """A small federation of ours; the server's side is played by whoever calls.

    `plan`, `uploads` and what follows from them is what a server has; the rest is the sites' own. One site may be
    missing from a sum, as where a study allows for absence: the quorum is all but one.
    """

    study: Study
    plan: SessionPlan
    members: dict[str, Member]
    key: CountingKey
    start: GlobalState
    uploads: dict[str, Upload]
    disk: tempfile.TemporaryDirectory[str]
    sessions: dict[str, Session] = field(default_factory=dict)
    _made: int = 0
    _offered: int = 0
    _refused: int = 0

    @classmethod
    def of(cls, study: Study) -> ProtectedSites:
        """The study's sites (at least three) with fresh keys, each with its upload of round 1."""
        names = sorted(site.name for site in study.sites)
        names += [f"further-{i}" for i in range(3 - len(names))]
        codec = Codec.choose(
            n_sites=len(names), value_bits=study.codec.value_bits, n_params=N_PARAMS, limit=1.0
        )
        signers = {name: SigningIdentity.generate() for name in names}
        boxes = {name: EnvelopeKey.generate() for name in names}
        roster = Roster.of(
            study.sha256,
            1,
            {n: (signers[n].identity.public_bytes, boxes[n].recipient.public_bytes) for n in names},
        )
        name, envelopes = make_keys(codec.parameters, roster, names[0], signers[names[0]])
        plan, first = roster.plan(name, codec.n_chunks), names[0]
        keys = open_keys(
            envelopes[first], codec.parameters, roster, maker=first, site=first, name=name, key=boxes[first]
        )
        counting, rng = CountingKey(keys.ckks), np.random.default_rng(0)
        members = {
            each: Member(
                name=each,
                plan=plan,
                codec=codec,
                weights=dict.fromkeys(names, 1.0),
                quorum=len(names) - 1,
                rounds=_ROUNDS,
                optimiser=ServerOptimiser(),
                learner=FixedUpdate(rng.normal(0, 0.05, N_PARAMS).astype(np.float32)),
                noise=NoiseSource(),
                identity=signers[each],
                keys=EpochKeys(name, cast("CkksSecretKey", counting), keys.tag),
                accounts=EmptyLedger(),
                note=lambda event, **fields: None,
            )
            for each in names
        }
        start = GlobalState.start(np.zeros(N_PARAMS, np.float32))
        uploads = {each: Upload.from_bytes(make_upload(member, start)) for each, member in members.items()}
        disk = tempfile.TemporaryDirectory(prefix="secure-triplay-sites-")
        sites = cls(study, plan, members, counting, start, uploads, disk)
        sites.begin_again()
        return sites

    @property
    def names(self) -> list[str]:
        """Sites in order; the first is the victim, the last the one that is asked to open."""
        return list(self.members)

    @property
    def everybody(self) -> dict[str, int]:
        """Each upload once: the round's own sum."""
        return dict.fromkeys(self.names, 1)

    def begin_again(self) -> None:
        """Every site as it was before it was shown a sum of round 1."""
        for name, member in self.members.items():
            self._made += 1
            folder = Path(self.disk.name) / str(self._made)
            vault = Vault(folder, new_storage_key(), study=self.plan.study, epoch=self.plan.epoch)
            self.sessions[name] = Session(member, vault, self.start)

    def summed(self, counts: Mapping[str, int], listed: Sequence[str] | None = None) -> SumMessage:
        """A message over uploads, each as often as `counts` says; it lists those sites, or others.

        Tags are combined like the ciphertexts, as anybody can. With every count 1 it is what our server sends.
        """
        c0, tags = np.zeros((self.plan.n_chunks, DEGREE), object), np.zeros(self.plan.n_chunks, object)
        for name, times in counts.items():
            upload = self.uploads[name]
            c0 += times * unpack60(upload.c0, self.plan.n_chunks).astype(object)
            tags += times * unpack_tags(upload.tags).astype(object)
        headers = tuple(self.uploads[name].header for name in sorted(listed or counts))
        return SumMessage(
            self.plan.study,
            self.plan.epoch,
            1,
            headers,
            pack60((c0 % MODULUS).astype(np.uint64)),
            pack_tags((tags % MODULUS).astype(np.uint64)),
            "train",
        )

    def ask_for_signatures(self, total: SumMessage, names: Iterable[str]) -> tuple[Endorsement, ...]:
        """Show a sum to some sites; the signatures that they give."""
        request = Witness(total.study, total.epoch, total.round, (), total).to_bytes()
        signed = []
        for name in names:
            reply = _parsed(self.sessions[name].answer(request).reply)
            if reply is not None and reply.signature:
                signed.append(Endorsement(reply.site, reply.signature))
        return tuple(signed)

    def ask_to_open(self, total: SumMessage, signed: tuple[Endorsement, ...], name: str) -> None:
        """Send a site what it gets when a round is over, and what it gets when it was away."""
        following = Train(total.study, total.epoch, total.round + 1, signed)
        missed = CatchUp(total.study, total.epoch, (Closed(total, signed),))
        for request in (following, missed):
            self.sessions[name].answer(request.to_bytes())

    def offer(self, total: SumMessage) -> None:
        """Try everything to have the last site open this sum."""
        before = self.key.decryptions
        self.ask_to_open(total, self.ask_for_signatures(total, self.names), self.names[-1])
        self._offered += 1
        self._refused += self.key.decryptions == before

    def trial(self, note: str = "", legitimate: int = 0) -> Trial:
        """The figures so far; that many decryptions were of the round's own sum."""
        return Trial(self._offered, self._refused, self.key.decryptions - legitimate, note)

    def tried(self, totals: Iterable[SumMessage], note: str = "") -> Trial:
        """Each of these sums, offered to sites that have seen no other."""
        for total in totals:
            self.begin_again()
            self.offer(total)
        return self.trial(note)

    def single_out(self) -> Trial:
        """The victim's upload alone, listed as it is, and as if it were everybody's sum."""
        victim = self.names[0]
        return self.tried([self.summed({victim: 1}), self.summed({victim: 1}, self.names)])

    def replay(self) -> Trial:
        """The sum of round 1 once more, after it was opened; and renamed to round 2."""
        message = self.summed(self.everybody)
        self.ask_to_open(message, self.ask_for_signatures(message, self.names), self.names[-1])
        opened = self.key.decryptions
        self.offer(message)
        headers = tuple(replace(header, round=2) for header in message.survivors)
        self.offer(replace(message, round=2, survivors=headers, then="finish"))
        return self.trial("a sum is opened once" if opened == 1 else "the honest sum was not opened", 1)

    def scale(self) -> Trial:
        """Everything twice; and one upload twice in place of another."""
        first, second, *rest = self.names
        once = dict.fromkeys(rest, 1)
        return self.tried(
            [
                self.summed(dict.fromkeys(self.names, 2)),
                self.summed({first: 2, **once}, self.names),
                self.summed({first: 2, second: 0, **once}),
            ]
        )

    def drop(self) -> Trial:
        """A sum that lacks a site, listed as whole; and one of fewer sites than the quorum, listed as it is."""
        few = dict.fromkeys(self.names[2:], 1)
        return self.tried([self.summed(dict.fromkeys(self.names[1:], 1), self.names), self.summed(few)])

    def foreign(self) -> Trial:
        """Something of the server's own choice added to the true sum; and the sum of another federation."""
        whole = self.summed(self.everybody)
        c0 = unpack60(whole.c0, self.plan.n_chunks).astype(object)
        scale = self.members[self.names[0]].codec.parameters.scale
        c0[0] += to_ntt(rounded(polynomial_of(np.full(SLOTS, 5.0 + 0j)) * scale))
        others = ProtectedSites.of(self.study)
        return self.tried(
            [
                replace(whole, c0=pack60((c0 % MODULUS).astype(np.uint64))),
                others.summed(others.everybody),
            ]
        )

    def altered_backbone(self) -> Trial:
        """A round of a study that differs in the backbone's hash alone."""
        changed = self.study.backbone.model_copy(update={"sha256": "ff" * 32})
        other = self.study.model_copy(update={"backbone": changed}).sha256
        whole = self.summed(self.everybody)
        headers = tuple(replace(header, study=other) for header in whole.survivors)
        return self.tried(
            [replace(whole, study=other, survivors=headers)],
            "weights are named by hash in the study, and the study's hash is under every message",
        )

    def equivocation(self) -> Trial:
        """A sum of all to as many sites as it takes, and one without the victim to all: two opened sums, or one?

        Each site signs one sum a round, and more than half of them have to sign: the second finds too few.
        """
        whole, other = self.summed(self.everybody), self.summed(dict.fromkeys(self.names[1:], 1))
        enough = self.names[: len(self.names) - 1]
        self.ask_to_open(whole, self.ask_for_signatures(whole, enough), enough[0])
        legitimate = self.key.decryptions
        self.offer(other)
        return self.trial(
            "each site signs one sum a round" if legitimate else "nothing was opened", legitimate
        )

    def doctored_c1(self) -> Trial:
        """c1 does not travel; what a server can change of it is a seed: its own, or another site's."""
        whole = self.summed(self.everybody)
        first, second, *rest = whole.survivors
        own = replace(first, seed=os.urandom(len(first.seed)))
        swapped = replace(first, seed=second.seed), replace(second, seed=first.seed)
        return self.tried(
            [replace(whole, survivors=(own, second, *rest)), replace(whole, survivors=(*swapped, *rest))],
            "there is no c1 on the wire: sites expand it from seeds that the others signed",
        )


def _parsed(reply: bytes) -> Approval | None:
    try:
        return read(reply, Approval)
    except SecureTriplayError:
        return None
