"""A federation of light members: real keys, ciphertexts, signatures and server round; training is a fixed vector."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from secure_triplay.client.keys import Roster, make_keys, open_keys
from secure_triplay.client.optimiser import GlobalState
from secure_triplay.client.round import Member, approve, approved, make_upload, open_sum, verify_sum
from secure_triplay.config import ServerOptimiser
from secure_triplay.crypto.codec import Codec
from secure_triplay.crypto.envelope import EnvelopeKey
from secure_triplay.crypto.identity import SigningIdentity
from secure_triplay.privacy.noise import NoiseSource
from secure_triplay.server.round import Round
from secure_triplay.wire import SumMessage, Upload

STUDY = "ab" * 32
EPOCH = 1


class FixedUpdate:
    """A learner whose update does not depend on anything."""

    def __init__(self, update: np.ndarray) -> None:
        self._update = update

    def update(self, adapter: np.ndarray) -> np.ndarray:
        return self._update


class Federation:
    """`updates[i]` is what site i always learns."""

    def __init__(
        self,
        updates: Sequence[np.ndarray],
        *,
        limit: float = 1.0,
        value_bits: int = 12,
        weights: Sequence[float] | None = None,
        quorum: int | None = None,
        rounds: int = 1,
        optimiser: ServerOptimiser | None = None,
    ) -> None:
        names = [f"site-{i}" for i in range(len(updates))]
        self.updates = dict(zip(names, updates, strict=True))
        self.weights = dict(zip(names, weights or [1.0] * len(names), strict=True))
        self.codec = Codec.choose(
            n_sites=len(names), n_params=len(updates[0]), value_bits=value_bits, limit=limit
        )
        signers = {name: SigningIdentity.generate() for name in names}
        envelope_keys = {name: EnvelopeKey.generate() for name in names}
        roster = Roster.of(
            STUDY,
            EPOCH,
            {
                name: (signers[name].identity.public_bytes, envelope_keys[name].recipient.public_bytes)
                for name in names
            },
        )
        key_id, envelopes = make_keys(self.codec.parameters, roster, names[0], signers[names[0]])
        self.plan = roster.plan(key_id, self.codec.n_chunks)
        self.notes: list[tuple[str, dict[str, object]]] = []
        self.members = {
            name: Member(
                name=name,
                plan=self.plan,
                codec=self.codec,
                weights=self.weights,
                quorum=quorum or len(names),
                rounds=rounds,
                optimiser=optimiser or ServerOptimiser(),
                learner=FixedUpdate(self.updates[name]),
                noise=NoiseSource(),
                identity=signers[name],
                keys=open_keys(
                    envelopes[name],
                    self.codec.parameters,
                    roster,
                    maker=names[0],
                    site=name,
                    name=key_id,
                    key=envelope_keys[name],
                ),
                accounts=None,  # rounds are looked at here, sessions with a ledger in tests/protocol
                note=lambda event, **fields: self.notes.append((event, fields)),
            )
            for name in names
        }
        self.start = GlobalState.start(np.zeros(len(updates[0]), np.float32))

    def uploads(self) -> dict[str, Upload]:
        made = {name: make_upload(member, self.start) for name, member in self.members.items()}
        return {name: Upload.from_bytes(content) for name, content in made.items()}

    def opened(self, name: str, state: GlobalState, message: SumMessage) -> GlobalState:
        """The state after a sum that every site verified and signed."""
        number = state.round + 1
        signed = [approve(each, verify_sum(each, message, number)) for each in self.members.values()]
        me = self.members[name]
        return open_sum(me, state, approved(me, verify_sum(me, message, number), signed))

    def summed(self, uploads: Sequence[Upload], *, last: bool = True, round_number: int = 1) -> SumMessage:
        current = Round.open(self.plan, round_number, len(uploads))
        for upload in uploads:
            current, refusal = current.offer(upload.to_bytes())
            assert refusal is None
        return current.close("finish" if last else "train")


@pytest.fixture(scope="session")
def updates() -> list[np.ndarray]:
    return [np.random.default_rng(seed).normal(0, 0.2, 20_000).astype(np.float32) for seed in range(3)]


@pytest.fixture
def federation_of() -> type[Federation]:
    return Federation
