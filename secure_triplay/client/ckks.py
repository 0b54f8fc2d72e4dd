"""SECRET. The half of CKKS that holds the key: encrypts a site's slots and decrypts a verified sum.

Symmetric encryption gives SEAL's seeded form: c0, and a seed from which c1 is expanded. Only these leave
the site. c1 of the sum is made again here, by SEAL, from the seeds that the sites signed: the server has no
c1 to choose, and the bytes that SEAL parses are built here from checked integers, never received.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NoReturn

import numpy as np
import tenseal.sealapi as seal

from secure_triplay.client.seal_format import (
    SeededFormat,
    SeededLoader,
    memory_file,
    new_context,
    path_of,
    save_raw,
    secret_head,
    unknown_format,
    with_header,
)
from secure_triplay.crypto.codec import Slots
from secure_triplay.crypto.packing import (
    Coefficients,
    SeededCiphertexts,
    Seeds,
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


class CkksSecretKey:
    """The sites' shared decryption key of one epoch; it has no repr, pickle or JSON."""

    __slots__ = (
        "_context",
        "_decryptor",
        "_encoder",
        "_encryptor",
        "_evaluator",
        "_format",
        "_parameters",
        "_secret",
    )

    def __init__(self, parameters: CkksParameters, context: seal.SEALContext, secret: seal.SecretKey) -> None:
        self._parameters, self._context, self._secret = parameters, context, secret
        self._encoder, self._evaluator = seal.CKKSEncoder(context), seal.Evaluator(context)
        self._encryptor, self._decryptor = seal.Encryptor(context, secret), seal.Decryptor(context, secret)
        self._format = SeededFormat.of(context, parameters)

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
        version, head = secret_head(context)
        try:
            body = head + unpack60(content[ID_BYTES:], 1).astype("<u8").tobytes()
            with memory_file() as memory:
                os.pwrite(memory, with_header(version, body), 0)
                secret.load(context, path_of(memory))
        except (RuntimeError, ValueError, CryptoError):
            # not chained: a parser's message has no business near a secret
            raise _bad_envelope() from None
        return cls(parameters, context, secret)

    def to_envelope_bytes(self) -> bytes:
        """The secret itself (30,752 bytes): to be sealed into a key envelope and for nothing else."""
        with memory_file() as memory:
            body = save_raw(self._secret, memory)
        _, head = secret_head(self._context)
        if body is None or len(body) != len(head) + 8 * DEGREE or not body.startswith(head):
            raise unknown_format()
        coefficients = np.frombuffer(body, "<u8", DEGREE, len(head)).astype(np.uint64)
        return self._parameters.context_id + pack60(coefficients[None])

    @property
    def parameters(self) -> CkksParameters:
        """The public parameters of this key."""
        return self._parameters

    def encrypt(self, slots: Slots, tolerance: float) -> SeededCiphertexts:
        """Slots (n_chunks, 2048) complex128 -> c0 (n_chunks, 4096) uint64 below q and seeds (n_chunks, 64).

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
        c0 = np.empty((len(slots), DEGREE), np.uint64)
        seeds = np.empty((len(slots), SEED_BYTES), np.uint8)
        plain = seal.Plaintext()
        with memory_file() as memory:
            for chunk, row in enumerate(slots):
                self._encode(row, tolerance, plain)
                self._encrypt_one(plain, memory, c0[chunk], seeds[chunk])
        return SeededCiphertexts(c0, seeds)

    def decrypt(self, summed_c0: Coefficients, seeds: Sequence[Seeds]) -> Slots:
        """Summed c0 (n_chunks, 4096), seeds (n_chunks, 64) of every site -> slots (n_chunks, 2048).

        Only for sums whose tags and signatures were verified: decrypting anything else helps whoever made it.

        Raises:
            CryptoError: if shapes, dtypes or coefficients are impossible, a seed occurs twice, or c1 is zero.
        """
        n_chunks = len(summed_c0)
        wanted = ((n_chunks, SEED_BYTES), np.dtype(np.uint8))
        if not n_chunks or summed_c0.shape != (n_chunks, DEGREE) or not len(seeds):
            raise _bad_sum()
        if any((each.shape, each.dtype) != wanted for each in seeds):
            raise _bad_sum()
        require_reduced(summed_c0)
        # an honest seed is 64 random bytes: one that occurs twice is a replay
        if len({seed.tobytes() for each in seeds for seed in each}) != len(seeds) * n_chunks:
            raise _bad_sum()
        slots, plain = np.empty((n_chunks, SLOTS), np.complex128), seal.Plaintext()
        with memory_file() as memory:
            loader = SeededLoader(self._context, self._format, memory)
            for chunk in range(n_chunks):
                total = loader.load(seeds[0][chunk], summed_c0[chunk])
                for each in seeds[1:]:
                    self._evaluator.add_inplace(total, loader.load(each[chunk]))
                if total.size() != 2 or total.is_transparent():
                    raise _bad_sum()
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

    def _encrypt_one(self, plain: seal.Plaintext, memory: int, c0: Coefficients, seed: Seeds) -> None:
        for _ in range(_ATTEMPTS):
            body = save_raw(self._encryptor.encrypt_symmetric(plain), memory)
            if body is not None:
                return self._format.take_apart(body, c0, seed)
            # zstd found something to compress: encrypt afresh. One more independent encryption gives nothing
            # away, and this one has not left the site
        raise unknown_format()

    def __repr__(self) -> str:
        return "<CkksSecretKey>"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise CryptoError("a secret key cannot be copied or pickled", where="CkksSecretKey",
                          fix="seal it into an envelope")  # fmt: skip


def expand_c1(parameters: CkksParameters, seeds: Seeds) -> Coefficients:
    """c1 (n_chunks, 4096) uint64 as SEAL expands it from public seeds (n_chunks, 64); slow, for audits."""
    context = new_context(parameters)
    out = np.empty((len(seeds), DEGREE), np.uint64)
    with memory_file() as memory:
        loader = SeededLoader(context, SeededFormat.of(context, parameters), memory)
        for row, seed in zip(out, seeds, strict=True):
            both = loader.load(seed).dyn_array()
            row[:] = [both[DEGREE + i] for i in range(DEGREE)]
    return out


def _bad_envelope() -> CryptoError:
    return CryptoError("the envelope holds no key of this study's parameters", where="key envelope",
                       fix="repeat the key ceremony")  # fmt: skip


def _bad_sum() -> CryptoError:
    return CryptoError(
        "the sum does not decode", where="decoder", fix="discard the round and tell the operator"
    )


def _unfaithful() -> CryptoError:
    return CryptoError("an update does not survive its encoding; nothing was encrypted", where="encoder",
                       fix="check that key and codec come from one study")  # fmt: skip
