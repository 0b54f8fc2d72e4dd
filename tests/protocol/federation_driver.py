"""A federation in one process, without Flower and without a model, whose every part can be killed and started again.

The state machines, keys, ciphertexts, signatures, tags, inbox, vaults and ledgers are the real ones; a site's
training is a function of the adapter, and rounding is to the nearest, so that the same round gives the same bits.
Each party is rebuilt from its folder alone. Messages cross a `wire` function that may drop, copy, keep or alter them.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from secure_triplay.client.accounts import LedgerAccounts
from secure_triplay.client.keys import Roster, load_keys, make_keys, open_keys, save_keys
from secure_triplay.client.optimiser import GlobalState, step
from secure_triplay.client.published import Published
from secure_triplay.client.round import Member
from secure_triplay.client.session import Answer, Session
from secure_triplay.client.vault import Vault, new_storage_key
from secure_triplay.config import ServerOptimiser
from secure_triplay.crypto.codec import Codec
from secure_triplay.crypto.envelope import EnvelopeKey
from secure_triplay.crypto.identity import SigningIdentity
from secure_triplay.crypto.masking import MaskingParameters, masked_codec
from secure_triplay.errors import RunError
from secure_triplay.ledger.books import Release
from secure_triplay.ledger.budget import Limits, Unprotected
from secure_triplay.ledger.ledger import TRAINING, Ledger
from secure_triplay.ledger.study import PUBLISHED
from secure_triplay.server.archive import Archive
from secure_triplay.server.rounds import Rounds
from secure_triplay.server.service import Events, Service
from secure_triplay.wire import Approval, Report, Train, Unmasked
from secure_triplay.wireformat import read

STUDY = "ab" * 32
EPOCH = 1
N_PARAMS = 500
LIMITS = Limits(1.0, 1.0, delta=1e-6, max_units=1000, unit="record", unsafe_unlimited=True)
OPTIMISER = ServerOptimiser(kind="fedadam", learning_rate=0.01, average_last=2)

Wire = Callable[[str, int, bytes], Iterable[bytes]]
"""(direction "down" or "up", node, content) -> what arrives now."""


class KilledError(BaseException):
    """`kill -9`: nothing catches it, and only what is on disk is left."""


@dataclass
class Fuse:
    """Kills whoever takes the step at which it burns down."""

    left: int | None = None

    def step(self) -> None:
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                self.left = None
                raise KilledError


class FusedVault(Vault):
    fuse: Fuse

    def save(self, name: str, content: bytes) -> None:
        self.fuse.step()
        super().save(name, content)
        self.fuse.step()


class FusedArchive(Archive):
    fuse: Fuse

    def save_sum(self, total) -> None:
        self.fuse.step()
        super().save_sum(total)
        self.fuse.step()

    def save_approvals(self, round, approvals) -> None:
        self.fuse.step()
        super().save_approvals(round, approvals)
        self.fuse.step()

    def save_mask_keys(self, round, keys) -> None:
        self.fuse.step()
        super().save_mask_keys(round, keys)
        self.fuse.step()

    def save_mask_members(self, round, members) -> None:
        self.fuse.step()
        super().save_mask_members(round, members)
        self.fuse.step()

    def save_mask_seeds(self, round, seeds) -> None:
        self.fuse.step()
        super().save_mask_seeds(round, seeds)
        self.fuse.step()


class LocalSums:
    """The summing process' service, without the process."""

    def __init__(self, plan, quorum: int, last_closed: int) -> None:
        self.events: list[tuple[str, dict]] = []
        self.service = Service(plan, quorum, Events(None, False), last_closed=last_closed)
        self.open, self.close = self.service.open, self.service.close

    def offer(self, content: bytes):
        return self.service.offer([content], len(content))

    def note(self, event: str, **fields) -> None:
        self.events.append((event, fields))
        self.service.note(event, **fields)


class Nearest:
    """Rounds to the nearest instead of at random."""

    def uniform(self, shape):
        return np.full(shape, 0.5)


def learned(index: int, adapter: np.ndarray) -> np.ndarray:
    """What site `index` learns from an adapter: no matter how often it is asked, the same."""
    return (0.3 * np.sin(np.arange(len(adapter)) * (index + 1) + 3 * adapter)).astype(np.float32)


@dataclass
class Site:
    """One site's folder and what runs on it; `session` is None while it is down."""

    index: int
    name: str
    folder: Path
    identity: SigningIdentity
    storage_key: bytes
    fuse: Fuse = field(default_factory=Fuse)
    session: Session | None = None
    ledger: Ledger | None = None
    trained: list[int] = field(default_factory=list)
    notes: list[tuple[str, dict]] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)


class Federation:
    """`n_sites` sites and a server in `folder`; `boot` and `boot_server` start them, also after a kill."""

    def __init__(
        self,
        folder: Path,
        n_sites: int = 4,
        *,
        rounds: int = 3,
        quorum: int | None = None,
        attempts: int = 5,
        patient: bool = False,
        counted: Callable[[int], Published] | None = None,
        masking: MaskingParameters | None = None,
        codec: Codec | None = None,
        learner: Callable[[Site, LedgerAccounts], object] | None = None,
        keeps_own: bool = True,
    ) -> None:
        """With a `learner` of another kind all sites weigh the same."""
        self.keeps_own = keeps_own
        self.folder, self.rounds, self.attempts, self.masking = folder, rounds, attempts, masking
        self.quorum, self.patient = quorum or (n_sites if masking is None else masking.threshold), patient
        self.releases: tuple[Release, ...] = (Release(TRAINING, Unprotected(), rounds),)
        if counted is not None:
            self.rounds += 1
            self.releases += (Release(PUBLISHED, Unprotected(), 1),)
        self.counted = counted
        names = [f"site-{i}" for i in range(n_sites)]
        choose = Codec.choose if masking is None else masked_codec
        self.codec = codec or choose(n_sites=n_sites, n_params=N_PARAMS, value_bits=12, limit=0.5)
        self.learner = learner or Learner
        self.weights = {name: 1.0 if learner else 1.0 + i for i, name in enumerate(names)}
        self.sites = {
            i: Site(i, name, folder / name, SigningIdentity.generate(), new_storage_key())
            for i, name in enumerate(names)
        }
        envelope_keys = {name: EnvelopeKey.generate() for name in names}
        members = {
            site.name: (site.identity.identity.public_bytes, envelope_keys[site.name].recipient.public_bytes)
            for site in self.sites.values()
        }
        roster = Roster.of(STUDY, EPOCH, members)
        parameters = self.codec.parameters
        key_id, envelopes = make_keys(parameters, roster, names[0], self.sites[0].identity)
        self.plan = roster.plan(key_id, self.codec.n_chunks)
        self.start = GlobalState.start(np.zeros(N_PARAMS, np.float32))
        for site in self.sites.values():
            keys = open_keys(
                envelopes[site.name],
                parameters,
                roster,
                maker=names[0],
                site=site.name,
                name=key_id,
                key=envelope_keys[site.name],
            )
            save_keys(keys, self.vault(site))
            with Ledger.create(
                site.folder / "ledger", site.identity, site=site.name, limits=LIMITS, approved_by="A"
            ) as ledger:
                ledger.approve(STUDY, "s", self.releases, approved_by="A")
            self.boot(site.index)
        self.server_fuse = Fuse()
        self.boot_server()

    def vault(self, site: Site) -> FusedVault:
        vault = FusedVault(site.folder / "state", site.storage_key, study=STUDY, epoch=EPOCH)
        vault.fuse = site.fuse
        return vault

    def boot(self, index: int) -> None:
        """Start a site from its folder."""
        site = self.sites[index]
        if site.ledger is not None:
            site.ledger.close()
        vault = self.vault(site)
        keys = load_keys(self.codec.parameters, vault)
        assert keys is not None
        site.ledger = Ledger.open(site.folder / "ledger", site.identity)
        accounts = FusedAccounts(site.ledger, site.identity, self.plan, self.releases)
        accounts.fuse = site.fuse
        me = Member(
            name=site.name,
            plan=self.plan,
            codec=self.codec,
            weights=self.weights,
            quorum=self.quorum,
            rounds=self.rounds,
            optimiser=OPTIMISER,
            learner=self.learner(site, accounts),
            noise=Nearest(),
            identity=site.identity,
            keys=keys,
            accounts=accounts,
            note=lambda event, **fields: site.notes.append((event, fields)),
            allow=lambda number: site.reasons,
            published=None if self.counted is None else self.counted(index),
            masking=self.masking,
            keeps_own=self.keeps_own,
        )
        site.session = Session(me, vault, self.start)

    def boot_server(self) -> None:
        """Start the server from its folder."""
        archive = FusedArchive(self.folder / "closed", self.plan)
        archive.fuse = self.server_fuse
        self.archive = archive
        self.sums = LocalSums(self.plan, self.quorum, archive.last or 0)
        self.server = Rounds(
            self.plan,
            rounds=self.rounds,
            quorum=self.quorum,
            sums=self.sums,
            archive=archive,
            attempts=self.attempts,
            patient=self.patient,
            masking=self.masking,
        )

    def ask(self, index: int, content: bytes) -> Answer | None:
        """A site's answer; None where it is down, or was killed on the way and stays down."""
        session = self.sites[index].session
        if session is None:
            return None
        try:
            return session.answer(content)
        except KilledError:
            self.sites[index].session = None
            return None

    def exchange(self, wire: Wire = lambda direction, node, content: [content]) -> None:
        """One exchange with all that are up. Raises RunError where the server gives up, KilledError where it dies."""
        nodes = [index for index, site in self.sites.items() if site.session is not None]
        number = self.server.exchange.number
        outbox = list(self.server.begin(nodes).items())
        while outbox:
            node, content = outbox.pop(0)
            for arrived in wire("down", node, content):
                answer = self.ask(node, arrived)
                if answer is None:
                    continue
                for reply in wire("up", node, answer.reply):
                    self.server_fuse.step()
                    more = self.server.take(node, number, reply)
                    if more is not None:
                        outbox.append((node, more))
        self.server.end()

    def run(self, wire: Wire = lambda direction, node, content: [content]) -> None:
        """Exchanges until the study is over."""
        while not self.server.finished:
            self.exchange(wire)

    def states(self) -> dict[int, GlobalState]:
        """What each site that is up holds."""
        return {index: site.session.state for index, site in self.sites.items() if site.session is not None}

    def oracle(self) -> list[GlobalState]:
        """State after each closed round, from plain updates of the survivors that the server's archive lists."""
        states = [self.start]
        weights = {site.name: 1.0 + site.index for site in self.sites.values()}
        for number in range(1, (self.archive.last or 0) + 1):
            survivors = [header.site for header in self.archive.total(number).survivors]
            sums = np.zeros(N_PARAMS, np.int64)
            for site in self.sites.values():
                if site.name in survivors:
                    update = learned(site.index, states[-1].adapter.astype(np.float32))
                    share = np.float32(weights[site.name] / max(weights.values()))
                    sums += self.codec.quantise(update * share, Nearest())
            weight = sum(weights[name] for name in survivors) / max(weights.values())
            mean = self.codec.mean(sums, len(survivors)) * len(survivors) / weight
            states.append(step(states[-1], mean, OPTIMISER))
        return states

    def oracle_until(self, last: int) -> GlobalState:
        """State after round `last`, in which all that took part trained."""
        return self.oracle()[last]

    def close(self) -> None:
        for site in self.sites.values():
            if site.ledger is not None:
                site.ledger.close()


class FusedAccounts(LedgerAccounts):
    fuse: Fuse

    def reserve(self, round_number):
        self.fuse.step()
        made = super().reserve(round_number)
        self.fuse.step()
        return made

    def settle(self, reservation, content):
        self.fuse.step()
        super().settle(reservation, content)
        self.fuse.step()

    def closed(self, message):
        self.fuse.step()
        super().closed(message)
        self.fuse.step()

    def take_in(self, receipts, held):
        self.fuse.step()
        super().take_in(receipts, held)
        self.fuse.step()

    def countersign(self, heads, note):
        self.fuse.step()
        made = super().countersign(heads, note)
        self.fuse.step()
        return made


@dataclass
class Learner:
    """Notes in which state of the ledger it was asked to train."""

    site: Site
    accounts: LedgerAccounts

    def update(self, adapter):
        number = self.site.session.state.round + 1
        reservation = self.accounts.reserved(number)
        assert reservation is not None, "trained without a reservation"
        assert reservation.released_sha256 is None, "trained again after it was settled"
        assert self.accounts.witnesses_of(reservation) >= 1, "trained without a countersignature"
        self.site.trained.append(number)
        return learned(self.site.index, adapter)


@dataclass
class BadWire:
    """Drops, copies, keeps and alters messages by a seed, and remembers what was signed and uploaded."""

    random: random.Random
    drop: float = 0.0
    copy: float = 0.0
    keep: float = 0.0
    alter: float = 0.0
    kept: dict[tuple[str, int], list[bytes]] = field(default_factory=dict)
    uploads: dict[tuple[int, int], set[bytes]] = field(default_factory=dict)
    signatures: dict[tuple[int, int], set[bytes]] = field(default_factory=dict)
    shares: dict[tuple[int, int], set[bytes]] = field(default_factory=dict)

    def __call__(self, direction: str, node: int, content: bytes) -> list[bytes]:
        if direction == "up":
            self._note(node, content)
        if self.random.random() < self.drop:
            return []
        if self.random.random() < self.keep:
            self.kept.setdefault((direction, node), []).append(content)
            return []
        out = [content, *self.kept.pop((direction, node), [])]
        if self.random.random() < self.copy:
            out.append(content)
        if self.random.random() < self.alter:
            altered = bytearray(out[0])
            altered[self.random.randrange(len(altered))] ^= 1 << self.random.randrange(8)
            out[0] = bytes(altered)
        return out

    def _note(self, node: int, content: bytes) -> None:
        with suppress(Exception):
            reply = read(content, Report, Approval, Unmasked)
            if isinstance(reply, Report) and reply.upload:
                self.uploads.setdefault((node, reply.round), set()).add(reply.upload)
            elif isinstance(reply, Approval) and reply.signature:
                self.signatures.setdefault((node, reply.round), set()).add(reply.signature)
            elif isinstance(reply, Unmasked):
                self.shares.setdefault((node, reply.round), set()).add(content)


def survive(federation: Federation, schedule: random.Random, wire: BadWire, kills: int) -> str:
    """Run a study to its end while `kills` parties die at random steps; "finished", or why it was declared failed."""
    down: dict[int, int] = {}
    for _ in range(200):
        if federation.server.finished:
            return "finished"
        if kills and schedule.random() < 0.4:
            kills -= 1
            victim = schedule.choice([*federation.sites, None])
            fuse = federation.server_fuse if victim is None else federation.sites[victim].fuse
            fuse.left = schedule.randrange(12)
        try:
            federation.exchange(wire)
        except KilledError:
            federation.boot_server()
        except RunError as error:
            return error.what
        for index, site in federation.sites.items():
            if site.session is None:
                down.setdefault(index, schedule.randrange(3))
                down[index] -= 1
                if down[index] < 0:
                    down.pop(index)
                    site.fuse.left = None
                    federation.boot(index)
    return "never ended"


@contextmanager
def closing(federation: Federation):
    try:
        yield federation
    finally:
        federation.close()


__all__ = [
    "BadWire",
    "Federation",
    "Fuse",
    "KilledError",
    "RunError",
    "Train",
    "closing",
    "learned",
    "survive",
]
