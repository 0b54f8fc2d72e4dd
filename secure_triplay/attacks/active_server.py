"""What a server does that forms sums as it likes: each trick works on an unprotected client, and is refused by ours.

Every trick has two halves. Against the unprotected client (`unprotected`) it must reach its end, or it proves
nothing. Against a site of ours it is played with real uploads, keys and signatures through the site's own code,
and counts as refused only if the site's key decrypted nothing.

The key is recovered so: add to c1 a polynomial g that is large in the payload's slots and zero in the check
value's. The client's slots then hold p + g s, so that s = ((p + g s) - p) / g in each of them, with p small
beside it; the missing slots cost a fraction of a percent of the key's coefficients.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from secure_triplay.attacks import ring
from secure_triplay.attacks.attack import Attack, Observable, Setting
from secure_triplay.attacks.finding import Arm, Control, Finding, Outcome, Verdict
from secure_triplay.attacks.key_recovery import key_coefficients, recovered_fraction
from secure_triplay.attacks.protected import ProtectedSites, Trial
from secure_triplay.attacks.unprotected import PAYLOAD, Pair, Reals, UnprotectedClient, zero_pair
from secure_triplay.config import Study
from secure_triplay.crypto.codec import Codec, Integers
from secure_triplay.crypto.parameters import MODULUS
from secure_triplay.privacy.noise import NoiseSource

_MASK_LOG2 = 56
_KEY_GOAL = 0.99


@dataclass(frozen=True)
class Clients:
    """Unprotected clients with their plain updates (for the scorer) and their uploads (for the server)."""

    client: UnprotectedClient
    plain: tuple[Integers, ...]
    uploads: tuple[Pair, ...]

    @classmethod
    def of(cls, study: Study, seed: int) -> Clients:
        """As many clients as the study has sites, at least three; updates as in a private study."""
        n, bits = max(3, len(study.sites)), study.codec.value_bits
        first = Codec.choose(n_sites=n, value_bits=bits, n_params=1, limit=1.0)
        codec = Codec.choose(n_sites=n, value_bits=bits, n_params=first.values_per_chunk, limit=1.0)
        client, rng = UnprotectedClient.fresh(codec), np.random.default_rng(seed)
        std = 1 / study.codec.range_noise_stds
        plain = tuple(
            codec.quantise(rng.normal(0, std, codec.n_params).astype(np.float32), NoiseSource())
            for _ in range(n)
        )
        return cls(client, plain, tuple(client.upload(integers) for integers in plain))

    def sum_of(self, chosen: tuple[int, ...]) -> Pair:
        """The sum of some uploads; one that is named twice is in it twice."""
        total = zero_pair()
        for index in chosen:
            total += self.uploads[index]
        return total

    def truth(self, index: int) -> Reals:
        """The payload of one client, for the scorer."""
        return self.client.plain_of(self.plain[index])

    @property
    def everybody(self) -> tuple[int, ...]:
        """All clients, once each."""
        return tuple(range(len(self.uploads)))


def _single_out(clients: Clients) -> bool:
    opened = clients.client.open(clients.sum_of((0,)))
    return opened is not None and bool((opened == clients.truth(0)).all())


def _replay(clients: Clients) -> bool:
    once = clients.sum_of(clients.everybody)
    first, second = clients.client.open(once), clients.client.open(once)
    return first is not None and second is not None


def _scale(clients: Clients) -> bool:
    """One update counts twice in place of another; beside the honest sum the difference of the two is open."""
    honest = clients.client.open(clients.sum_of(clients.everybody))
    scaled = clients.client.open(clients.sum_of((0, 0, *clients.everybody[2:])))
    if honest is None or scaled is None:
        return False
    return bool((scaled - honest == clients.truth(0) - clients.truth(1)).all())


def _drop(clients: Clients) -> bool:
    opened = clients.client.open(clients.sum_of(clients.everybody[1:]))
    return opened is not None


def _foreign(clients: Clients) -> bool:
    """An encoding of the server's own choice is added to c0: no key is needed for that."""
    sent = clients.sum_of(clients.everybody)
    slots = np.zeros(2048, np.complex128)
    slots[:PAYLOAD] = 5.0
    chosen = ring.to_ntt(ring.rounded(ring.polynomial_of(slots) * clients.client.codec.parameters.scale))
    c0 = ((sent.c0.astype(object) + chosen) % MODULUS).astype(np.uint64)
    opened, honest = clients.client.open(replace(sent, c0=c0)), clients.client.open(sent)
    return opened is not None and honest is not None and bool((opened - honest == [[5.0], [0.0]]).all())


def _altered_backbone(clients: Clients) -> bool:
    return clients.client.weights_for_training("ff" * 32) == "ff" * 32


def _equivocation(clients: Clients) -> bool:
    """Two clients open two sums of one round; their difference is the update of the one who is in one only."""
    one = clients.client.open(clients.sum_of(clients.everybody))
    other = clients.client.open(clients.sum_of(clients.everybody[1:]))
    if one is None or other is None:
        return False
    return bool((one - other == clients.truth(0)).all())


def key_by_masking(clients: Clients, rng: np.random.Generator) -> float:
    """Fraction of the key's coefficients that one answer to a doctored c1 gives away; 0 if it is refused."""
    sent, client = clients.sum_of(clients.everybody), clients.client
    slots = np.zeros(2048, np.complex128)
    slots[:PAYLOAD] = 2.0**_MASK_LOG2 * np.exp(2j * np.pi * rng.random(PAYLOAD))
    mask = np.rint(ring.polynomial_of(slots))
    c1 = ((sent.c1.astype(object) + ring.to_ntt(ring.rounded(mask))) % MODULUS).astype(np.uint64)
    opened = client.open(replace(sent, c1=c1))
    if opened is None:
        return 0.0
    quotients = np.zeros(2048, np.complex128)
    product = (opened[0] + 1j * opened[1]) * client.codec.parameters.scale
    quotients[:PAYLOAD] = product / ring.slots_of(mask)[:PAYLOAD]
    guess = np.rint(ring.polynomial_of(quotients)).astype(np.int64)
    return recovered_fraction(guess, key_coefficients(client.key))


def _key(clients: Clients) -> bool:
    return key_by_masking(clients, np.random.default_rng(0)) >= _KEY_GOAL


@dataclass(frozen=True)
class Trick:
    """One thing that an active server does: against the unprotected client, and against a site of ours."""

    title: str
    works: Callable[[Clients], bool]
    against_ours: Callable[[ProtectedSites], Trial]


TRICKS: Mapping[str, Trick] = {
    "single-out": Trick("one site's upload as the sum", _single_out, ProtectedSites.single_out),
    "replay": Trick("the same sum in two rounds", _replay, ProtectedSites.replay),
    "scale": Trick("one upload twice in place of another", _scale, ProtectedSites.scale),
    "drop": Trick("a sum that lacks a site", _drop, ProtectedSites.drop),
    "foreign-ciphertext": Trick("something added that no site sent", _foreign, ProtectedSites.foreign),
    "altered-backbone": Trick("other frozen weights", _altered_backbone, ProtectedSites.altered_backbone),
    "equivocation": Trick("two survivor lists for one round", _equivocation, ProtectedSites.equivocation),
    "doctored-c1": Trick("the key, by a polynomial added to c1", _key, ProtectedSites.doctored_c1),
}


def run(setting: Setting) -> Outcome:
    """Each trick against both kinds of clients."""
    started = time.perf_counter()
    clients = Clients.of(setting.study, setting.seed)
    worked = {}
    for done, (name, trick) in enumerate(TRICKS.items()):
        setting.tell(done, 2 * len(TRICKS))
        worked[name] = trick.works(clients)
    control = Control(
        "active_server",
        all(worked.values()),
        "every trick works on a client without our checks",
        {"worked": sum(worked.values()), "tricks": len(worked), "seconds": time.perf_counter() - started},
    )
    findings = []
    for done, (name, trick) in enumerate(TRICKS.items(), start=len(TRICKS)):
        setting.tell(done, 2 * len(TRICKS))
        findings.append(
            _finding(name, trick, trick.against_ours(ProtectedSites.of(setting.study)), worked[name])
        )
    setting.tell(2 * len(TRICKS), 2 * len(TRICKS))
    return Outcome(
        (control,),
        tuple(findings),
        (
            "a server that only makes rounds fail: it can, and costs sites time and budget",
            "forging a tag by chance: below 2^-59 a try by the MAC's theorem",
        ),
    )


def _finding(name: str, trick: Trick, trial: Trial, control_worked: bool) -> Finding:
    safe = Verdict.NOTHING_FOUND if control_worked else Verdict.INVALID
    return Finding(
        "active_server",
        Arm.ENCRYPTION,
        "none",
        f"{name}: sums decrypted that are not the round's one",
        float(trial.decryptions),
        Verdict.LEAKS if trial.decryptions else safe,
        bound=0.0,
        bound_is="nothing is decrypted before it is verified",
        note=f"{trick.title}; {trial.note}",
        figures={"refused": trial.refused, "offered": trial.offered},
    )


ATTACK = Attack(
    name="active-server",
    title="A server that forms sums as it likes",
    source="Boenisch et al. 2023 and Fowl et al. 2022 (what a malicious server gains); the c1 trick is ours",
    needs=frozenset({Observable.STUDY, Observable.UPLOADS, Observable.SUMS, Observable.DECISIONS}),
    run=run,
)
