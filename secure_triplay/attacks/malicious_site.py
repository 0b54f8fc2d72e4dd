"""What a site can do to the others with messages that are all in order: it signs, and it is on the roster.

Nobody sees its integers. Beyond the public range they carry into the neighbouring field of the same slot, so
that one site moves parameters by more than its share, and the decoder cannot tell. Within the range it may send
the largest update there is. Neither shows anybody's data; both can spoil the model. Not protected, and said so.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from secure_triplay.attacks.attack import Attack, Observable, Setting
from secure_triplay.attacks.finding import Arm, Control, Finding, Outcome, Verdict
from secure_triplay.attacks.scene import Sites, key_ceremony, open_scene, study_data
from secure_triplay.client.optimiser import GlobalState, step
from secure_triplay.constants import choose_codec
from secure_triplay.crypto.codec import Codec, Integers, Slots
from secure_triplay.crypto.packing import SeededCiphertexts, add_mod
from secure_triplay.errors import CryptoError
from secure_triplay.privacy.noise import NoiseSource

N_CHUNKS = 2
_FEW = 40
Vector = NDArray[np.float64]


def carrying_slots(codec: Codec) -> Slots:
    """Slots whose lowest fields hold 2^field_bits more than the zero update: one more in the field above."""
    slots = zero_slots(codec)
    slots += (1 + 1j) * 2**codec.field_bits
    return slots


def overflowing_slots(codec: Codec) -> Slots:
    """Slots of which a few hold more in their highest field than all sites together could fill."""
    slots = zero_slots(codec)
    slots[:, :_FEW] += codec.n_sites * codec.max_integer * 2 ** (codec.field_bits * (codec.fields - 1))
    return slots


def zero_slots(codec: Codec) -> Slots:
    """The honest encoding of an update of zeros."""
    return codec.to_slots(np.full(codec.n_params, codec.levels, np.int64))


@dataclass(frozen=True)
class Opened:
    """The mean that sites get, and the one that honest encodings would give; None where it was refused."""

    mean: Vector | None
    honest: Vector


def round_with(sites: Sites, others: list[Integers], wanted: Integers, evil: Slots) -> Opened:
    """Encrypt, add and decode one round in which the first site sends `evil` slots."""
    codec, key = sites.codec, sites.keys.ckks
    sent: list[SeededCiphertexts] = [key.encrypt(evil, math.inf)]  # it skips the check
    sent += [key.encrypt(codec.to_slots(each), codec.encode_tolerance) for each in others]
    total = sent[0].c0.copy()
    for each in sent[1:]:
        add_mod(total, each.c0)
    honest = codec.mean(sum(others, wanted), len(sent))
    try:
        return Opened(codec.decode(key.decrypt(total, [each.seed for each in sent]), len(sent)), honest)
    except CryptoError:
        return Opened(None, honest)


def run(setting: Setting) -> Outcome:
    """What goes through unseen, what does not, and what the accuracy loses to it."""
    integers = try_encodings(setting)
    setting.tell(3, 4)
    harm = accuracy_lost(setting)
    setting.tell(4, 4)
    return Outcome(integers.controls, (*integers.findings, harm), integers.not_tested)


def accuracy_lost(setting: Setting) -> Finding:
    """One site sends the public limit in every round, against the noise of the others; nobody trains."""
    study = setting.study
    scene, test = open_scene(study, study.adapter.kind), study_data(study).test
    codec, sites = choose_codec(study, len(scene.start), masked=False), len(study.sites)
    std = codec.limit / study.codec.range_noise_stds
    tokens, labels = scene.tokens(test, np.arange(min(200 if setting.quick else 800, len(test))))

    def accuracy(pull: float) -> float:
        state, rng = GlobalState.start(scene.start), np.random.default_rng(setting.seed)
        for _ in range(study.training.rounds):
            noise = rng.normal(0, std * (sites - 1) ** 0.5, len(scene.start))
            state = step(state, (noise + pull) / sites, study.server_optimiser)
        scene.model.adapter.load_vector(state.published)
        with torch.no_grad():
            return float((scene.model.classifier(tokens).argmax(-1) == labels).double().mean())

    quiet, poisoned = accuracy(0.0), accuracy(codec.limit)
    return Finding(
        "malicious_site",
        Arm.BOTH if study.dp is not None else Arm.ENCRYPTION,
        study.adapter.kind,
        "accuracy lost to one site at the public limit in every round, where nobody else learns",
        round(quiet - poisoned, 4),
        Verdict.LEAKS_AS_STATED,
        note="a fixed direction that nobody chose well; a cleverer one costs more. All sites together measure "
        "the accuracy, so that the loss is seen, though not who caused it",
        figures={"before": round(quiet, 4), "after": round(poisoned, 4), "images": len(labels)},
    )


def try_encodings(setting: Setting) -> Outcome:
    """Out of range, unseen; at the end of the range, unseen; and far out of range, which is refused."""
    started, study = time.perf_counter(), setting.study
    # whole chunks: padding that is not empty would be refused, and a real attacker leaves it empty
    n_params = N_CHUNKS * choose_codec(study, 1, masked=False).values_per_chunk
    sites = key_ceremony(study, n_params)
    codec, rng = sites.codec, np.random.default_rng(setting.seed)
    std = codec.limit / study.codec.range_noise_stds

    def honest_integers() -> Integers:
        return codec.quantise(rng.normal(0, std, n_params).astype(np.float32), NoiseSource())

    others = [honest_integers() for _ in range(len(sites.signers) - 1)]
    nothing, most = np.full(codec.n_params, codec.levels), np.full(codec.n_params, 2 * codec.levels)
    carry = round_with(sites, others, nothing, carrying_slots(codec))
    setting.tell(1, 4)
    moved = 0.0 if carry.mean is None else float(np.mean(np.abs(carry.mean - carry.honest) > codec.step / 8))
    limit = round_with(sites, others, most, codec.to_slots(most))
    pull = 0.0 if limit.mean is None else float(np.mean(limit.mean)) / (std / len(sites.signers) ** 0.5)
    setting.tell(2, 4)
    far = round_with(sites, others, nothing, overflowing_slots(codec))
    control = Control(
        "malicious_site",
        moved > 0 and pull > 1,
        "an update out of range moves parameters of other fields, and one at the limit moves the mean, both unseen",
        {
            "moved_share": round(moved, 3),
            "pull_stds": round(pull, 1),
            "seconds": time.perf_counter() - started,
        },
    )
    findings = (
        _finding(
            "share of parameters that an overfull field moves in its neighbour, unseen",
            round(moved, 3),
            "the decoder sees sums in range; a proof of range for every upload would prevent it",
        ),
        _finding(
            "how far one site at the public limit pulls every parameter of the mean, in its noise's deviations",
            round(pull, 1),
            "within the range and so in order; clipping bounds it, and a server optimiser that normalises "
            "(fedadam) turns it into one step of ordinary size",
        ),
        Finding(
            "malicious_site",
            Arm.ENCRYPTION,
            "none",
            "rounds that open although a sum is out of reach of honest sites",
            0.0 if far.mean is None else 1.0,
            Verdict.NOTHING_FOUND if far.mean is None else Verdict.LEAKS,
            bound=0.0,
            bound_is="the decoder refuses a field above what all sites together could fill",
            note="the round is lost then, and with it a round's budget",
        ),
    )
    return Outcome(
        (control,),
        findings,
        (
            "a backdoor that is made to stay unseen",
            "several malicious sites",
            "the accuracy that poison costs",
        ),
    )


def _finding(metric: str, value: float, note: str) -> Finding:
    return Finding(
        "malicious_site", Arm.ENCRYPTION, "none", metric, value, Verdict.LEAKS_AS_STATED, note=note
    )


ATTACK = Attack(
    name="malicious-site",
    title="A site that sends what it likes",
    source="Bagdasaryan et al. 2020 (model replacement); the carry between fields is this encoding's own",
    needs=frozenset({Observable.STUDY, Observable.SHARED_KEY, Observable.OWN_UPDATES}),
    run=run,
)
