"""Recovery of the CKKS key from decryptions that still hold their noise (Li and Micciancio 2021, section 3).

A decrypted chunk is the polynomial p = c0 + c1 s modulo q, and p holds the noise of encryption. Whoever has the
ciphertext and p itself solves one linear equation: s = (p - c0) / c1. An unrounded sum gives p: its slots turned
back into coefficients are off by less than 1/2 each, and rounding them finds p exactly.

Exact integers give only the encoding of the true sum, which differs from p by the noise e, and then
(p - e - c0) / c1 is as far from s as anything: c0 and c1 are the samples (a, a s + e) whose hardness the
encryption rests on. Noise flooding adds Gaussian noise to p before it is released (Li, Micciancio, Schultz and
Sorrell 2022); too little of it averages out over repeated decryptions.

c1 does not travel, and that hides nothing: anybody expands it from the seeds that the sites sign.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np

from secure_triplay.attacks.attack import Attack, Observable, Setting
from secure_triplay.attacks.finding import Arm, Control, Finding, Outcome, Verdict
from secure_triplay.attacks.ring import (
    Polynomial,
    Real,
    Ternary,
    centred,
    from_ntt,
    inverse,
    polynomial_of,
    rounded,
    slots_of,
    to_ntt,
)
from secure_triplay.client.ckks import CkksSecretKey
from secure_triplay.config import Study
from secure_triplay.crypto.codec import Codec, Slots
from secure_triplay.crypto.expand import expand_c1
from secure_triplay.crypto.packing import Coefficients, add_mod, unpack60
from secure_triplay.crypto.parameters import DEGREE, ID_BYTES, MODULUS, CkksParameters
from secure_triplay.privacy.noise import NoiseSource

CHUNKS = 2
CHANCE = 1 / 3
"""A coefficient of the key is -1, 0 or 1 with equal chance."""
_ABOVE_CHANCE = 5 * math.sqrt(CHANCE * (1 - CHANCE) / DEGREE)


@dataclass(frozen=True)
class ReleasedSum:
    """What the attacker has of one round: c0 of the sum, every site's seed, and the decryption as it was released."""

    parameters: CkksParameters
    c0: Coefficients
    seeds: tuple[bytes, ...]
    slots: Slots

    def c1(self) -> Coefficients:
        """c1 (n_chunks, 4096) of the sum, from seeds alone."""
        total = np.zeros_like(self.c0)
        for each in self.seeds:
            add_mod(total, expand_c1(each, len(total)))
        return total


def recover_key(seen: ReleasedSum) -> tuple[Ternary, int]:
    """A guess (4096,) of the key's coefficients, and how many chunks it took.

    The attacker knows when it succeeded: the right solution has coefficients -1, 0 and 1 only.
    """
    guess: Ternary = np.zeros(DEGREE, np.int64)
    for used, (c0, c1, slots) in enumerate(zip(seen.c0, seen.c1(), seen.slots, strict=True), start=1):
        coefficients = polynomial_of(slots) * seen.parameters.scale
        solution = solve(c0.astype(object), c1.astype(object), coefficients)
        guess = as_ternary(solution)
        if max(abs(solution)) <= 1:
            return guess, used
    return guess, len(seen.c0)


def solve(c0: Polynomial, c1: Polynomial, coefficients: Real) -> Polynomial:
    """(p - c0) / c1, centred, for p the integers nearest to `coefficients` (4096,)."""
    values = (to_ntt(rounded(coefficients)) - c0) * inverse(c1) % MODULUS
    return centred(from_ntt(values))


def as_ternary(solution: Polynomial) -> Ternary:
    """Every coefficient as -1, 0 or 1: what is none of these is as good as a guess."""
    return np.array([(int(value) + 1) % 3 - 1 for value in solution], np.int64)


def key_coefficients(key: CkksSecretKey) -> Ternary:
    """SECRET. The truth (4096,), for the scorer alone."""
    values = unpack60(key.to_envelope_bytes()[ID_BYTES:], 1)[0].astype(object)
    return centred(from_ntt(values)).astype(np.int64)


def recovered_fraction(guess: Ternary, truth: Ternary) -> float:
    """How many of the key's coefficients are right; a third of them by guessing."""
    return float(np.mean(guess == truth))


@dataclass(frozen=True)
class Exchange:
    """One round at sites with the study's encoding: what travels, and (for the defences) what the sites hold."""

    codec: Codec
    key: CkksSecretKey
    c0: Coefficients
    seeds: tuple[bytes, ...]

    @classmethod
    def of(cls, study: Study, seed: int) -> Exchange:
        """Sites encrypt updates that fill whole chunks, as private updates do: noise well within the range."""
        bits, sites = study.codec.value_bits, len(study.sites)
        first = Codec.choose(n_sites=sites, value_bits=bits, n_params=1, limit=1.0)
        n_params = CHUNKS * first.values_per_chunk
        codec = Codec.choose(n_sites=sites, value_bits=bits, n_params=n_params, limit=1.0)
        key, rng = CkksSecretKey.generate(codec.parameters), np.random.default_rng(seed)
        std = 1 / study.codec.range_noise_stds
        total, seeds = np.zeros((codec.n_chunks, DEGREE), np.uint64), []
        for _ in range(sites):
            update = rng.normal(0, std, n_params).astype(np.float32)
            sealed = key.encrypt(codec.encode(update, NoiseSource()), codec.encode_tolerance)
            add_mod(total, sealed.c0)
            seeds.append(sealed.seed)
        return cls(codec, key, total, tuple(seeds))

    def released(self, slots: Slots) -> ReleasedSum:
        """The sum with some release of its decryption."""
        return ReleasedSum(self.codec.parameters, self.c0, self.seeds, slots)

    def unrounded(self) -> Slots:
        """The decryption as CKKS libraries give it out; ours never leaves `open_sum`."""
        return self.key.decrypt(self.c0, self.seeds)

    def rounded(self) -> Slots:
        """The sums that the real decoder gives out, as slots again: what sites open, in the attack's form."""
        codec, terms = self.codec, len(self.seeds)
        sums = codec.sum_from_slots(self.unrounded(), terms)
        centre = -codec.to_slots(np.zeros(codec.n_params, np.int64))[0, 0].real
        planes = sums.reshape(codec.n_chunks, codec.fields, 2, -1)
        weights = 2.0 ** (codec.field_bits * np.arange(codec.fields)).reshape(1, -1, 1, 1)
        # in extended precision: if the decoder left noise in, none of it may be lost here
        reals = (planes.astype(np.longdouble) * weights).sum(axis=1) - terms * centre
        slots: Slots = reals[:, 0].astype(np.float64) + 1j * reals[:, 1].astype(np.float64)
        return slots

    def flooded(self, std: float, rng: np.random.Generator, decryptions: int = 1) -> Slots:
        """The mean of so many decryptions, each with Gaussian noise of `std` on every coefficient of p."""
        out, scale = self.unrounded(), self.codec.parameters.scale
        for row in out:
            noise = np.zeros(DEGREE)
            for _ in range(decryptions):
                noise += rng.normal(0, std, DEGREE)
            row += slots_of(noise / decryptions) / scale
        return out


def run(setting: Setting) -> Outcome:
    """The control (rounding off), and the same attack under exact rounding and under noise flooding."""
    started = time.perf_counter()
    exchange, rng = Exchange.of(setting.study, setting.seed), np.random.default_rng(setting.seed)
    truth = key_coefficients(exchange.key)
    small, many = 4.0, 4000
    setting.tell(1, 5)
    guess, chunks = recover_key(exchange.released(exchange.unrounded()))
    fraction, seconds = recovered_fraction(guess, truth), time.perf_counter() - started
    control = Control(
        "key_recovery",
        fraction >= 0.99,
        "at least 99 % of the key's coefficients from the unrounded sum of one round",
        {"recovered_fraction": fraction, "chunks": chunks, "seconds": seconds},
    )
    setting.tell(2, 5)
    by_rounding = _score(exchange.released(exchange.rounded()), truth)
    setting.tell(3, 5)
    by_flooding = _score(exchange.released(exchange.flooded(2.0**30, rng)), truth)
    setting.tell(4, 5)
    averaged = _score(exchange.released(exchange.flooded(small, rng, many)), truth)
    setting.tell(5, 5)
    claims = (
        (by_rounding, "exact rounding", "what sites open: exact integer sums"),
        (
            by_flooding,
            "noise flooding of 2^30",
            "for systems that release raw decryptions; ours does not, and at this scale such noise "
            f"would drown the low {_drowned_bits(exchange.codec)} of {_real_bits(exchange.codec)} bits of a slot",
        ),
    )
    findings = [
        _finding(score, f"coefficients recovered above chance, {defence}", note, control.valid)
        for score, defence, note in claims
    ]
    findings.append(
        Finding(
            "key_recovery",
            Arm.ENCRYPTION,
            "none",
            f"coefficients recovered above chance, flooding of {small:.0f}, {many} decryptions averaged",
            averaged,
            Verdict.LEAKS_AS_STATED if averaged > 0.5 else Verdict.NOTHING_FOUND,
            note="flooding as small as the noise itself averages out when one ciphertext is opened often; "
            "nothing here rests on it",
        )
    )
    return Outcome(
        (control,),
        tuple(findings),
        (
            "lattice reduction on c0, c1 and exact sums: the encryption's own 128 bits (Albrecht et al. 2018)",
            "timing and power of decryption at a site",
        ),
    )


def _score(seen: ReleasedSum, truth: Ternary) -> float:
    """How far above guessing, rescaled so that the whole key is 1 and what chance explains is exactly 0."""
    fraction = recovered_fraction(recover_key(seen)[0], truth)
    return 0.0 if fraction <= CHANCE + _ABOVE_CHANCE else (fraction - CHANCE) / (1 - CHANCE)


def _finding(score: float, metric: str, note: str, control_valid: bool) -> Finding:
    verdict = Verdict.LEAKS if score > 0 else Verdict.NOTHING_FOUND
    return Finding(
        "key_recovery",
        Arm.ENCRYPTION,
        "none",
        metric,
        score,
        verdict if control_valid else Verdict.INVALID,
        bound=0.0,
        bound_is="guessing (a third of the coefficients, with five standard deviations)",
        note=note,
    )


def _real_bits(codec: Codec) -> int:
    return codec.fields * codec.field_bits


def _drowned_bits(codec: Codec) -> int:
    """Bits of a slot's real below the deviation that flooding of 2^30 a coefficient leaves in it."""
    return round(30 + math.log2(DEGREE / 2) / 2 - codec.scale_bits)


ATTACK = Attack(
    name="key-recovery",
    title="CKKS key from unrounded sums",
    source="Li and Micciancio 2021, On the Security of Homomorphic Encryption on Approximate Numbers",
    needs=frozenset({Observable.STUDY, Observable.SUMS, Observable.AGGREGATES, Observable.UNROUNDED_SUMS}),
    run=run,
)
