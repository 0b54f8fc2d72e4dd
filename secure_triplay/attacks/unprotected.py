"""A client as federations with CKKS usually have it, so that attacks on it prove that they would work.

It takes c0 and c1 from the server, decrypts whatever comes, and hands out what it decoded. Its one defence is a
check value inside the payload: all sites put a secret number into some slots, and a sum of n terms must show
n times that number there. It keeps no memory of rounds, and trains on the weights that the server names.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from secure_triplay.attacks.ring import Polynomial, centred, from_ntt, slots_of
from secure_triplay.client.ckks import CkksSecretKey
from secure_triplay.crypto.codec import Codec, Integers
from secure_triplay.crypto.expand import expand_c1
from secure_triplay.crypto.packing import Coefficients, add_mod, unpack60
from secure_triplay.crypto.parameters import DEGREE, ID_BYTES, MODULUS, SLOTS
from secure_triplay.privacy.noise import NoiseSource

CHECK_SLOTS = 64
PAYLOAD = SLOTS - CHECK_SLOTS
Reals = NDArray[np.float64]
"""Rounded reals (2, 2048) of one chunk: real and imaginary parts of its slots."""


@dataclass(frozen=True)
class Pair:
    """A ciphertext as such servers hold it, c0 and c1 (4096,) uint64, and how many terms it claims to sum."""

    c0: Coefficients
    c1: Coefficients
    terms: int = 1

    def __add__(self, other: Pair) -> Pair:
        c0, c1 = self.c0.copy(), self.c1.copy()
        add_mod(c0, other.c0)
        add_mod(c1, other.c1)
        return Pair(c0, c1, self.terms + other.terms)


@dataclass(frozen=True)
class UnprotectedClient:
    """SECRET. One of several clients that share a key and a check value."""

    key: CkksSecretKey
    codec: Codec
    check: int

    @classmethod
    def fresh(cls, codec: Codec) -> UnprotectedClient:
        """A client with a new key; `codec` must fill exactly one chunk."""
        largest = 2 ** (codec.fields * codec.field_bits - 4)
        check = int(NoiseSource().uniform(1)[0] * largest)
        return cls(CkksSecretKey.generate(codec.parameters), codec, check)

    def upload(self, integers: Integers) -> Pair:
        """The ciphertext of a quantised update (n_params,), with the check value in its last slots."""
        slots = self.codec.to_slots(integers)
        slots[0, PAYLOAD:] = self.check
        sealed = self.key.encrypt(slots, self.codec.encode_tolerance)
        return Pair(sealed.c0[0], expand_c1(sealed.seed, 1)[0])

    def plain_of(self, integers: Integers) -> Reals:
        """What `open` gives for one honest upload of these integers; for the scorer."""
        return _parts(self.codec.to_slots(integers)[0])[:, :PAYLOAD]

    def open(self, pair: Pair) -> Reals | None:
        """The rounded payload (2, 1984), or None where the check values are wrong. It decrypts first."""
        s = unpack60(self.key.to_envelope_bytes()[ID_BYTES:], 1)[0].astype(object)
        p: Polynomial = (pair.c0.astype(object) + pair.c1.astype(object) * s) % MODULUS
        seen = _parts(slots_of(centred(from_ntt(p))) / self.codec.parameters.scale)
        expected = np.array([[pair.terms * self.check], [0]], np.float64)
        if not (seen[:, PAYLOAD:] == expected).all():
            return None
        return seen[:, :PAYLOAD]

    def weights_for_training(self, sha256_from_server: str) -> str:
        """Hash of the frozen weights that it trains on: those that the server sent."""
        return sha256_from_server


def _parts(slots: NDArray[np.complex128]) -> Reals:
    both: Reals = np.rint(np.stack([slots.real, slots.imag]))
    return both


def zero_pair() -> Pair:
    """The empty sum."""
    return Pair(np.zeros(DEGREE, np.uint64), np.zeros(DEGREE, np.uint64), 0)
