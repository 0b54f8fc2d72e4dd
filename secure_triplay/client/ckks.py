"""SECRET. The half of CKKS that holds the key: encrypts a site's slots and decrypts a verified sum.

Encryption is symmetric and seeded: what leaves the site is c0, and a seed from which everybody expands c1
(`crypto.expand`). c1 of the sum is made again here from the seeds that the sites signed: the server has no c1 to
choose, and the bytes that SEAL parses are built here from checked integers, never received.

SEAL draws the c1 of a ciphertext itself: it gives (b', a') with b' = -a's + m + e. What it decrypts of the
difference (b', a' - a) is c0 + c1 s = b' + a's - as = -as + m + e: c0 under the c1 that the seed stands for, with the
same noise. (b', a') never leaves the process.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NoReturn

import numpy as np
import tenseal.sealapi as seal

from secure_triplay.client.seal_format import (
    CiphertextLoader,
    PlaintextFormat,
    memory_file,
    new_context,
    path_of,
    unknown_format,
)
from secure_triplay.crypto.codec import Slots, undecodable
from secure_triplay.crypto.expand import C1Stream, sum_of_c1
from secure_triplay.crypto.packing import (
    Coefficients,
    SeededCiphertexts,
    pack60,
    require_reduced,
    unpack60,
)
from secure_triplay.crypto.parameters import (
    DEGREE,
    ID_BYTES,
    PACKED_BYTES,
    SEED_BYTES,
    SLOTS,
    CkksParameters,
)
from secure_triplay.errors import CryptoError

_ATTEMPTS = 8
_KEY_SCALE = 1.0  # as SEAL saves a key
_ZERO = np.zeros(DEGREE, np.uint64)


class CkksSecretKey:
    """The sites' shared decryption key of one epoch; it has no repr, pickle or JSON."""

    __slots__ = (
        "_context",
        "_decryptor",
        "_encoder",
        "_encryptor",
        "_evaluator",
        "_parameters",
        "_secret",
    )

    def __init__(self, parameters: CkksParameters, context: seal.SEALContext, secret: seal.SecretKey) -> None:
        self._parameters, self._context, self._secret = parameters, context, secret
        self._encoder, self._evaluator = seal.CKKSEncoder(context), seal.Evaluator(context)
        self._encryptor, self._decryptor = seal.Encryptor(context, secret), seal.Decryptor(context, secret)

    @classmethod
    def generate(cls, parameters: CkksParameters) -> CkksSecretKey:
        """A fresh ternary key from SEAL's generator, seeded by the operating system's."""
        context = new_context(parameters)
        return cls(parameters, context, seal.KeyGenerator(context).secret_key())

    @classmethod
    def from_envelope_bytes(cls, parameters: CkksParameters, content: bytes) -> CkksSecretKey:
        """The key that an opened envelope brought.

        Raises:
            CryptoError: if it is not exactly one key of these very parameters.
        """
        if len(content) != ID_BYTES + PACKED_BYTES or content[:ID_BYTES] != parameters.context_id:
            raise _bad_envelope()
        context, secret = new_context(parameters), seal.SecretKey()
        try:
            body = PlaintextFormat(context, _KEY_SCALE).whole(unpack60(content[ID_BYTES:], 1)[0])
            with memory_file() as memory:
                os.pwrite(memory, body, 0)
                secret.load(context, path_of(memory))
        except (RuntimeError, ValueError, CryptoError):
            # not chained: a parser's message has no business near a secret
            raise _bad_envelope() from None
        return cls(parameters, context, secret)

    def to_envelope_bytes(self) -> bytes:
        """The secret itself (30,752 bytes): to be sealed into a key envelope and for nothing else."""
        with memory_file() as memory:
            coefficients = PlaintextFormat(self._context, _KEY_SCALE).coefficients(self._secret, memory)
        if coefficients is None:
            raise unknown_format()
        return self._parameters.context_id + pack60(coefficients[None])

    @property
    def parameters(self) -> CkksParameters:
        """The public parameters of this key."""
        return self._parameters

    def encrypt(self, slots: Slots, tolerance: float) -> SeededCiphertexts:
        """Slots (n_chunks, 2048) complex128 -> c0 (n_chunks, 4096) uint64 below q, and a fresh seed of every c1.

        Every plaintext is decoded again before it is encrypted; `tolerance` is `Codec.encode_tolerance`.

        Raises:
            CryptoError: if a slot decodes farther than `tolerance` from what was put in, or does not encode.
        """
        if slots.ndim != 2 or slots.shape[1] != SLOTS:
            raise CryptoError(
                f"slots have shape {slots.shape}",
                where="encryption",
                fix="encrypt what Codec.to_slots returned",
            )
        seed = os.urandom(SEED_BYTES)
        c0, c1 = np.empty((len(slots), DEGREE), np.uint64), C1Stream(seed)
        plain, layout = seal.Plaintext(), PlaintextFormat(self._context, self._parameters.scale)
        with memory_file() as loaded, memory_file() as saved:
            loader = CiphertextLoader(self._context, self._parameters, loaded)
            for chunk, row in enumerate(slots):
                self._encode(row, tolerance, plain)
                c0[chunk] = self._encrypt_under(loader.load(_ZERO, c1.next()), plain, layout, saved)
        return SeededCiphertexts(c0, seed)

    def decrypt(self, summed_c0: Coefficients, seeds: Sequence[bytes]) -> Slots:
        """Summed c0 (n_chunks, 4096) and every site's seed of 16 bytes -> slots (n_chunks, 2048).

        Only for sums whose tags and signatures were verified: decrypting anything else helps whoever made it.

        Raises:
            CryptoError: if shapes, dtypes or coefficients are impossible, a seed occurs twice, or c1 is zero.
        """
        if not len(summed_c0) or summed_c0.shape[1:] != (DEGREE,) or not seeds:
            raise undecodable()
        if any(type(seed) is not bytes or len(seed) != SEED_BYTES for seed in seeds):
            raise undecodable()
        require_reduced(summed_c0)
        # an honest seed is 16 random bytes: one that occurs twice is a replay
        if len(set(seeds)) != len(seeds):
            raise undecodable()
        streams = [C1Stream(seed) for seed in seeds]
        slots, plain = np.empty((len(summed_c0), SLOTS), np.complex128), seal.Plaintext()
        with memory_file() as memory:
            loader = CiphertextLoader(self._context, self._parameters, memory)
            for chunk, c0 in enumerate(summed_c0):
                total = loader.load(c0, sum_of_c1(streams))
                if total.size() != 2 or total.is_transparent():
                    raise undecodable()
                self._decryptor.decrypt(total, plain)
                slots[chunk] = np.fromiter(self._encoder.decode_complex(plain), np.complex128, SLOTS)
        return slots

    def _encode(self, row: Slots, tolerance: float, plain: seal.Plaintext) -> None:
        try:
            self._encoder.encode(row.tolist(), self._parameters.scale, plain)
            error = np.fromiter(self._encoder.decode_complex(plain), np.complex128, SLOTS)
        except (RuntimeError, ValueError):
            raise _unfaithful() from None
        error -= row
        # written so that NaN fails
        if not np.abs(error.view(np.float64)).max() <= tolerance:
            raise _unfaithful()

    def _encrypt_under(
        self, a: seal.Ciphertext, plain: seal.Plaintext, layout: PlaintextFormat, memory: int
    ) -> Coefficients:
        """c0 (4096,) of a plaintext under the c1 of `a`, a ciphertext (0, c1)."""
        fresh, c0 = seal.Ciphertext(self._context), seal.Plaintext()
        for _ in range(_ATTEMPTS):
            self._encryptor.encrypt_symmetric(plain, fresh)
            self._evaluator.sub_inplace(fresh, a)
            self._decryptor.decrypt(fresh, c0)
            coefficients = layout.coefficients(c0, memory)
            if coefficients is not None:
                return coefficients
            # zstd found something to compress: encrypt afresh. This one has not left the site, so its c1 is unused
        raise unknown_format()

    def __repr__(self) -> str:
        return "<CkksSecretKey>"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise CryptoError("a secret key cannot be copied or pickled", where="CkksSecretKey",
                          fix="seal it into an envelope")  # fmt: skip


def _bad_envelope() -> CryptoError:
    return CryptoError("the envelope holds no key of this study's parameters", where="key envelope",
                       fix="repeat the key ceremony")  # fmt: skip


def _unfaithful() -> CryptoError:
    return CryptoError("an update does not survive its encoding; nothing was encrypted", where="encoder",
                       fix="check that key and codec come from one study")  # fmt: skip
