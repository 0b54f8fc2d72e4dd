"""The ring of our CKKS encryption for somebody without SEAL: its NTT order, and slots as polynomials and back.

An attacker has public parameters and bytes, and everything here follows from them. Coefficients of c0, c1 and
of the key travel in SEAL's NTT form: entry i is the polynomial's value at psi^(2 bitrev(i) + 1), for psi the
smallest primitive 8192nd root of unity modulo q (ntt.cpp). Slot j is its value at exp(i pi 3^j / 4096).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from secure_triplay.crypto.codec import Slots
from secure_triplay.crypto.parameters import DEGREE, MODULUS, SLOTS

Polynomial = NDArray[Any]
"""Python integers (4096,), dtype object: exact products modulo q need 120 bits."""
Real = NDArray[np.longdouble]
Ternary = NDArray[np.int64]

_GENERATOR = 3


def to_ntt(coefficients: Polynomial) -> Polynomial:
    """Coefficients (4096,) -> values modulo q in SEAL's order."""
    twisted, _, order = _tables()
    values = _transform(coefficients * twisted % MODULUS, _powers(pow(_root(), 2, MODULUS)))
    return values[order]


def from_ntt(values: Polynomial) -> Polynomial:
    """Values in SEAL's order -> coefficients (4096,) in [0, q)."""
    _, untwisted, order = _tables()
    natural = np.empty(DEGREE, object)
    natural[order] = values
    return _transform(natural, _powers(pow(_root(), -2, MODULUS))) * untwisted % MODULUS


def multiply(a: Polynomial, b: Polynomial) -> Polynomial:
    """The product of two polynomials in coefficients, modulo x^4096 + 1 and q."""
    return from_ntt(to_ntt(a) * to_ntt(b) % MODULUS)


def centred(coefficients: Polynomial) -> Polynomial:
    """The same residues in (-q/2, q/2)."""
    return np.where(coefficients > MODULUS // 2, coefficients - MODULUS, coefficients)


def inverse(values: Polynomial) -> Polynomial:
    """1 / values modulo q, entry by entry; a value of zero has none, and stays zero."""
    return np.array([pow(int(value), -1, MODULUS) if value else 0 for value in values], object)


def polynomial_of(slots: Slots) -> Real:
    """Slots (2048,) -> the real coefficients (4096,) of the polynomial with these values, in extended precision."""
    values = np.zeros(2 * DEGREE, np.clongdouble)
    at = _exponents()
    values[at], values[2 * DEGREE - at] = slots, np.conj(slots)
    spectrum: Real = scipy.fft.fft(values)[:DEGREE].real / DEGREE
    return spectrum


def slots_of(coefficients: NDArray[Any]) -> Slots:
    """Real coefficients (4096,) -> the polynomial's values (2048,) in the slots."""
    padded = np.zeros(2 * DEGREE, np.clongdouble)
    padded[:DEGREE] = coefficients
    values: Slots = (scipy.fft.ifft(padded) * (2 * DEGREE))[_exponents()].astype(np.complex128)
    return values


def rounded(coefficients: Real) -> Polynomial:
    """The nearest integers, modulo q."""
    return np.array([int(value) % MODULUS for value in np.rint(coefficients)], object)


@lru_cache(maxsize=1)
def _exponents() -> NDArray[np.int64]:
    return np.array([pow(_GENERATOR, j, 2 * DEGREE) for j in range(SLOTS)], np.int64)


@lru_cache(maxsize=1)
def _root() -> int:
    """The smallest primitive 8192nd root of unity modulo q, as SEAL takes it."""
    candidates = (pow(base, (MODULUS - 1) // (2 * DEGREE), MODULUS) for base in range(2, 100))
    found = next(root for root in candidates if pow(root, DEGREE, MODULUS) == MODULUS - 1)
    return int(min(_powers(pow(found, 2, MODULUS)) * found % MODULUS))


@lru_cache(maxsize=4)
def _powers(base: int) -> Polynomial:
    out = [1]
    for _ in range(DEGREE - 1):
        out.append(out[-1] * base % MODULUS)
    return np.array(out, object)


@lru_cache(maxsize=1)
def _tables() -> tuple[Polynomial, Polynomial, NDArray[np.int64]]:
    """Powers of psi, powers of 1 / psi over 4096, and the bit-reversed order."""
    bits = DEGREE.bit_length() - 1
    order = np.array([int(f"{i:0{bits}b}"[::-1], 2) for i in range(DEGREE)], np.int64)
    back = _powers(pow(_root(), -1, MODULUS)) * pow(DEGREE, -1, MODULUS) % MODULUS
    return _powers(_root()), back, order


def _transform(values: Polynomial, powers: Polynomial) -> Polynomial:
    """Cyclic transform (Cooley and Tukey 1965) with the root whose powers are given; natural order."""
    if len(values) == 1:
        return values
    even, odd = _transform(values[::2], powers[::2]), _transform(values[1::2], powers[::2])
    turned = odd * powers[: len(odd)] % MODULUS
    return np.concatenate([(even + turned) % MODULUS, (even - turned) % MODULUS])
