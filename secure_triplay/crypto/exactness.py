r"""Why a sum of packed integers decodes exactly, and which numbers that needs. `codec` does what is proved here.

The real part of a decrypted slot of the sum is z + X + E for the true integer z.

*Noise X.* A fresh noise coefficient of SEAL is centred binomial (rlwe.cpp, sample_poly_cbd; a test measures
its variance, 10.5): half the sum of 42 signs, hence sub-Gaussian with proxy 42/4 = 10.5. In the real part of
a slot, coefficient j has weight cos(j t) for an odd multiple t of pi/N, and

    sum_j cos(j t)^2 = N/2 + Re(sum_j exp(2 i j t)) / 2 = N/2,

because exp(2 i t) is an N-th root of unity other than 1; likewise with sines for the imaginary part. The sum
of n sites at scale D = 2^scale_bits has n independent noises, so X is sub-Gaussian with proxy
v = 10.5 n (N/2) / D^2, and

    P(|X| > x) <= 2 exp(-x^2 / (2 v)).                                                              (1)

*Everything else, E.* Encoding rounds coefficients to integers: an error of variance N/24 in the slot, in
units of 1/D. Double precision errs by u |z| c with u = 2^-53 (measured: c <= 8.5 over random, constant and
alternating slots of full range; c = 32 is allowed). So the encoder demands of its own plaintext, decoded
again before it is encrypted, an error of at most

    T = (128 + 32 u sqrt(2) A D / n) / D                                                            (2)

where A is the largest real of the sum and A / n that of a site; 128 is 9.8 standard deviations of the
rounding, so an honest update is never turned away. Decoding the sum is allowed 32 u sqrt(2) A more:

    |E| <= n T + 32 u sqrt(2) A.                                                                    (3)

*Choice of scale.* A real that is off by 1/2 would round wrongly; a residual above r = 3/8 is refused already.
With R reals in a key epoch (4,096 a chunk, `ROUNDS_PER_EPOCH` rounds), `Codec.choose` takes the smallest
scale at which, with (1), (3) and the union bound,

    R P(|X| > 1/2 - |E|) <= 2^-128   no sum of honest uploads ever decodes to a wrong integer,
    R P(|X| > r - |E|) <= 2^-64      nor is one refused.

So what an epoch releases is a function of the exact integer sums alone, but for one refusal of probability
2^-64: nothing for the attack of Li and Micciancio (2021) to work on. This holds for *honestly formed* sums;
others are kept from the decryptor by tags and signatures.

**Why it fits.** A coefficient of the encoded polynomial is a mean of slots turned by units, so at most
sqrt(2) A D; with rounding and noise (21 + 1/2 a site at most) it must stay below q/2. SEAL encodes up to
2^58 besides.

**Masked words.** There a real holds a whole word y = (x + masks) mod 2^W, W = fields * field_bits, and the sum
of n words needs W + log2 n bits, not the W that plain sums need. By worst cases that costs a field. But a mask is
uniform, and so is y, whatever x is; words of different reals and sites are independent. (Each site adds the output
of a ChaCha20 key of its own. Were ChaCha20 told from random bits, the bounds below would be off by that advantage.)
A uniform word is a sum of W fair bits 2^i; each, centred, is sub-Gaussian with its variance as proxy
(cosh t <= exp(t^2 / 2)), so y - 2^(W-1) + 1/2 is, with proxy 4^W / 12. A coefficient of the sum's polynomial is
(2 / N) sum_k (a_k cos(j t_k) + b_k sin(j t_k)) over the N/2 slots a_k + i b_k, so its proxy is
(4 / N^2) (N / 2) n 4^W / 12 = n 4^W / (6 N), in units of D, around at most n from the halves. Thus

    R P(|coefficient| > q/2 - 22 n) <= 2 R exp(-((q/2 - 22 n) / D - n)^2 / (n 4^W / (3 N))) <= 2^-128,     (4)

and the same for one site against SEAL's 2^58, takes the place of the worst case above. Padding is masked as well:
a constant would not average out. Likewise double precision errs on random words by a Gaussian-like error of
standard deviation k u 2^(W-1), encoding and decoding again (measured: k <= 1.9; k = 2.5 is allowed), the sum's by
sqrt(n) as much; with 9.8 standard deviations again, and rounding and floating point independent,

    T = 9.8 sqrt(N/24 + (k u 2^(W-1) D)^2) / D,     |E| <= n T + 9.8 k u sqrt(n) 2^(W-1).                  (5)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from secure_triplay.crypto.parameters import DEGREE, MODULUS, NOISE_MAX, NOISE_VARIANCE

ROUNDS_PER_EPOCH = 2**16
WRONG_BITS, REFUSED_BITS = 128, 64
MAX_RESIDUAL = 0.375
"""A sum with a real farther than this from an integer is refused."""
REAL_BITS = 52

_U = 2.0**-53
_ROUNDING_UNITS, _DEVIATIONS = 128.0, 9.8
_FLOAT_UNITS = 32.0 * math.sqrt(2) * _U
_MASKED_FLOAT = 2.5 * _U
_SEAL_MAX = 2.0**58


@dataclass(frozen=True)
class Numbers:
    """The numbers of an encoding, which the module's docstring is about; `misfit` says whether they do."""

    n_sites: int
    n_params: int
    value_bits: int
    field_bits: int
    fields: int
    scale_bits: int
    masked: bool

    @property
    def word_bits(self) -> int:
        """Bits of the fields of a real together: W."""
        return self.fields * self.field_bits

    @property
    def max_integer(self) -> int:
        """The largest value that one site puts into a field."""
        return (1 << self.value_bits) - 2

    @property
    def max_word(self) -> int:
        """The largest that one site puts into a real."""
        if self.masked:
            return (1 << self.word_bits) - 1
        return self.max_integer * sum(1 << (self.field_bits * j) for j in range(self.fields))

    @property
    def centre(self) -> int:
        """What is taken off a site's real so that it lies around zero: half its largest, rounded up."""
        return (self.max_word + 1) // 2

    @property
    def n_chunks(self) -> int:
        """Ciphertexts of one update."""
        return -(-self.n_params // (DEGREE * self.fields))

    @property
    def tolerance(self) -> float:
        """T of (2) or (5): the largest error of an encoded real."""
        scale = 2.0**self.scale_bits
        if self.masked:
            float_units = _MASKED_FLOAT * self.centre * scale
            return _DEVIATIONS * math.hypot(math.sqrt(DEGREE / 24), float_units) / scale
        return _ROUNDING_UNITS / scale + _FLOAT_UNITS * self.centre

    def off_log2(self, distance: float) -> float:
        """log2 of R P(|X| > distance - |E|), by (1) and (3) or (5); infinite where |E| leaves no room."""
        if self.masked:
            decoding = _DEVIATIONS * _MASKED_FLOAT * math.sqrt(self.n_sites) * self.centre
        else:
            decoding = _FLOAT_UNITS * self.centre * self.n_sites
        margin = distance - self.n_sites * self.tolerance - decoding
        return self._tail_log2(margin, noise_std(self.n_sites, self.scale_bits))

    def wrapped_log2(self) -> float:
        """log2 of the bound (4) on a coefficient of masked words that leaves its range, anywhere in a key epoch."""
        found = []
        for n, largest in ((1, _SEAL_MAX), (self.n_sites, MODULUS / 2 - self.n_sites * (NOISE_MAX + 1))):
            std = math.sqrt(n / (6 * DEGREE)) * 2.0**self.word_bits
            found.append(self._tail_log2(largest / 2.0**self.scale_bits - n, std))
        return max(found)

    def misfit(self) -> str | None:
        """Why sums with these numbers would not be exact, or None where they are."""
        if self.fields < 1 or self.word_bits > REAL_BITS:
            return f"{self.fields} fields of {self.field_bits} bits do not fit a real"
        if self.n_sites * self.max_integer >= 1 << self.field_bits:
            return f"the sum of {self.n_sites} sites does not fit {self.field_bits} bits"
        if not self._in_range():
            return (
                f"{self.fields} x {self.field_bits} bits at scale 2^{self.scale_bits} do not stay below q/2"
            )
        if self.off_log2(0.5) > -WRONG_BITS:
            return f"noise could round a sum wrongly at scale 2^{self.scale_bits}"
        if self.off_log2(MAX_RESIDUAL) > -REFUSED_BITS:
            return f"noise could have an honest sum refused at scale 2^{self.scale_bits}"
        return None

    def _in_range(self) -> bool:
        if self.masked:
            # a double, and the decoder's integers, hold the sum of words too
            return self.n_sites * self.max_word < 1 << REAL_BITS and self.wrapped_log2() <= -WRONG_BITS
        largest = math.sqrt(2) * self.centre * 2.0**self.scale_bits
        return largest < _SEAL_MAX and self.n_sites * (largest + NOISE_MAX + 0.5) < MODULUS / 2

    def _tail_log2(self, distance: float, std: float) -> float:
        """log2 of the union bound over R reals on a sub-Gaussian farther than `distance` from zero."""
        if distance <= 0:
            return math.inf
        reals = math.log2(DEGREE) + math.log2(self.n_chunks) + math.log2(ROUNDS_PER_EPOCH)
        return reals + 1 - distance**2 / (2 * std**2) / math.log(2)


def noise_std(n_terms: int, scale_bits: int) -> float:
    """Standard deviation of the noise in a decoded real of a sum, sqrt(v) of equation (1)."""
    return math.sqrt(n_terms * NOISE_VARIANCE * DEGREE / 2) / 2.0**scale_bits
