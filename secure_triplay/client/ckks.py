"""SECRET. The half of CKKS that holds the key: encrypts a site's slots and decrypts a verified sum.

Symmetric encryption gives SEAL's seeded form: (c0, seed), with c1 expanded from the seed. Only c0 and the
seed leave the site; c1 of a sum is made here again, by SEAL, from the seeds that the sites signed. So the
server has no c1 to choose, and nothing that came over the wire reaches SEAL's parser: the bytes that SEAL
loads are built here from validated integers.

Secrets pass through anonymous memory files only: SEAL's bindings can save and load by path alone, and a
file would be readable by others.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import tenseal.sealapi as seal
import zstandard
from numpy.typing import NDArray

from secure_triplay.crypto.codec import Slots
from secure_triplay.crypto.packing import Coefficients, require_reduced
from secure_triplay.crypto.parameters import DEGREE, MODULUS, MODULUS_BITS, SEED_BYTES, SLOTS, CkksParameters
from secure_triplay.errors import CryptoError

Seeds = NDArray[np.uint8]

_HEADER = struct.Struct("<HBBBBHQ")  # SEAL's header: magic, its size, version major and minor, compression, 0, bytes
_MAGIC = 0xA15E
_PLAIN, _ZSTD = 0, 2
_C0_BYTES = 8 * DEGREE
_ARRAY_HEAD = _HEADER.size + 8  # the coefficient array's own header and its length
_GENERATOR_HEAD = _HEADER.size + 1  # the seed's own header and the kind of its generator
_MAX_SAVED_BYTES = 1 << 20


@dataclass(frozen=True)
class SeededCiphertexts:
    """Ciphertexts as they travel: c0 (n_chunks, 4096) uint64 below q, seeds (n_chunks, 64) uint8 of c1."""

    c0: Coefficients
    seeds: Seeds


class CkksSecretKey:
    """The sites' shared decryption key of one epoch."""

    __slots__ = ("_context", "_decryptor", "_encoder", "_encryptor", "_evaluator", "_key", "_memory", "_prefix", "_scale")

    def __init__(self, parameters: CkksParameters, key: seal.SecretKey, context: seal.SEALContext) -> None:
        self._context, self._key, self._scale = context, key, 2.0**parameters.scale_bits
        self._memory = _MemoryFile()
        self._encoder = seal.CKKSEncoder(context)
        self._encryptor = seal.Encryptor(context, key)
        self._decryptor = seal.Decryptor(context, key)
        self._evaluator = seal.Evaluator(context)
        self._prefix = self._seeded_prefix()

    @classmethod
    def generate(cls, parameters: CkksParameters) -> CkksSecretKey:
        """A fresh key from SEAL's generator, which draws from the operating system."""
        context = _context()
        return cls(parameters, seal.KeyGenerator(context).secret_key(), context)

    @classmethod
    def from_envelope_bytes(cls, parameters: CkksParameters, content: bytes) -> CkksSecretKey:
        """The key that an opened envelope brought. Raises CryptoError when it is not one of these parameters."""
        context, key, memory = _context(), seal.SecretKey(), _MemoryFile()
        try:
            key.load(context, memory.filled(content))
        except (RuntimeError, ValueError) as error:
            raise CryptoError("the envelope holds no key of this study's parameters", where="key envelope",
                              fix="repeat the key ceremony") from error
        return cls(parameters, key, context)

    def to_envelope_bytes(self) -> bytes:
        """The key itself, for sealing into an envelope and for nothing else."""
        return self._memory.saved(self._key)

    def __reduce__(self) -> str:
        raise CryptoError("a secret key cannot be pickled", where="CkksSecretKey", fix="seal it into an envelope")

    def __repr__(self) -> str:
        return "<CkksSecretKey>"

    def encrypt(self, slots: Slots, tolerance: float) -> SeededCiphertexts:
        """Slots (n_chunks, 2048) of integers -> ciphertexts.

        Raises CryptoError when an encoded slot decodes farther than `tolerance` from what was put in.
        """
        c0 = np.empty((len(slots), DEGREE), np.uint64)
        seeds = np.empty((len(slots), SEED_BYTES), np.uint8)
        plain = seal.Plaintext()
        for chunk, row in enumerate(slots):
            self._encoder.encode(row.tolist(), self._scale, plain)
            error = np.array(self._encoder.decode_complex(plain)) - row
            if not max(np.abs(error.real).max(), np.abs(error.imag).max()) <= tolerance:
                raise CryptoError("an update does not survive encoding; nothing was encrypted", where="encoder",
                                  fix="lower codec.value_bits")
            c0[chunk], seeds[chunk] = _take_apart(self._memory.saved(self._encryptor.encrypt_symmetric(plain)))
        return SeededCiphertexts(c0, seeds)

    def decrypt(self, c0: Coefficients, seeds: Sequence[Seeds]) -> Slots:
        """Summed c0 (n_chunks, 4096) and every site's seeds, each (n_chunks, 64) -> slots (n_chunks, 2048).

        Only for sums that were verified: a decryption of anything else helps whoever made it.
        """
        require_reduced(c0)
        if not seeds or any(each.shape != (len(c0), SEED_BYTES) for each in seeds):
            raise CryptoError("the seeds do not belong to this sum", where="decryption", fix="discard the round")
        zeros = np.zeros(DEGREE, np.uint64)
        slots = np.empty((len(c0), SLOTS), np.complex128)
        plain = seal.Plaintext()
        for chunk in range(len(c0)):
            total = self._load(c0[chunk], seeds[0][chunk])
            for each in seeds[1:]:
                self._evaluator.add_inplace(total, self._load(zeros, each[chunk]))
            self._decryptor.decrypt(total, plain)
            slots[chunk] = self._encoder.decode_complex(plain)
        return slots

    def _load(self, c0: Coefficients, seed: Seeds) -> seal.Ciphertext:
        """SEAL's ciphertext (c0, c1) with c1 expanded by SEAL from the seed."""
        before, between = self._prefix
        body = before + c0.astype("<u8").tobytes() + between + seed.tobytes()
        head = _HEADER.pack(_MAGIC, _HEADER.size, *_SEAL_VERSION, _PLAIN, 0, _HEADER.size + len(body))
        cipher = seal.Ciphertext(self._context)
        cipher.load(self._context, self._memory.filled(head + body))
        return cipher

    def _seeded_prefix(self) -> tuple[bytes, bytes]:
        """What SEAL writes before and after the coefficients of a seeded ciphertext of this context."""
        plain = seal.Plaintext()
        self._encoder.encode([0j] * SLOTS, self._scale, plain)
        body = _body(self._memory.saved(self._encryptor.encrypt_symmetric(plain)))
        start = len(body) - SEED_BYTES - _GENERATOR_HEAD - _C0_BYTES
        return body[:start], body[start + _C0_BYTES : -SEED_BYTES]


class _MemoryFile:
    """An anonymous file in memory that only this process can open, emptied after each use."""

    __slots__ = ("_descriptor", "_path")

    def __init__(self) -> None:
        self._descriptor = os.memfd_create("secure-triplay", os.MFD_CLOEXEC)
        os.fchmod(self._descriptor, 0o600)
        self._path = f"/proc/self/fd/{self._descriptor}"

    def saved(self, thing: seal.SecretKey | seal.Ciphertext) -> bytes:
        os.ftruncate(self._descriptor, 0)
        thing.save(self._path)
        content = os.pread(self._descriptor, _MAX_SAVED_BYTES, 0)
        os.ftruncate(self._descriptor, 0)
        return content

    def filled(self, content: bytes) -> str:
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, content, 0)
        return self._path

    def __del__(self) -> None:
        os.close(self._descriptor)


def _context() -> seal.SEALContext:
    parameters = seal.EncryptionParameters(seal.SCHEME_TYPE.CKKS)
    parameters.set_poly_modulus_degree(DEGREE)
    primes = seal.CoeffModulus.Create(DEGREE, [MODULUS_BITS])
    if [prime.value() for prime in primes] != [MODULUS]:
        raise CryptoError("this SEAL chooses another prime", where="TenSEAL", fix="install the locked version")
    parameters.set_coeff_modulus(primes)
    return seal.SEALContext(parameters, True, seal.SEC_LEVEL_TYPE.TC128)


def _body(saved: bytes) -> bytes:
    """What follows SEAL's header, decompressed."""
    magic, size, *_, compression, _zero, total = _HEADER.unpack_from(saved)
    if magic != _MAGIC or size != _HEADER.size or total != len(saved):
        raise CryptoError("SEAL saved in an unknown format", where="TenSEAL", fix="install the locked version")
    if compression == _PLAIN:
        return saved[_HEADER.size :]
    if compression != _ZSTD:
        raise CryptoError("SEAL saved with an unknown compression", where="TenSEAL", fix="install the locked version")
    return zstandard.ZstdDecompressor().decompressobj().decompress(saved[_HEADER.size :])


def _take_apart(saved: bytes) -> tuple[Coefficients, Seeds]:
    """c0 (4096,) and the seed (64,) of a seeded ciphertext as SEAL saved it."""
    body = _body(saved)
    end = len(body) - SEED_BYTES - _GENERATOR_HEAD
    start = end - _C0_BYTES
    (length,) = struct.unpack_from("<Q", body, start - 8)
    generator = _HEADER.unpack_from(body, end)
    if length != DEGREE or generator[0] != _MAGIC or generator[-1] != _GENERATOR_HEAD + SEED_BYTES:
        raise CryptoError("SEAL saved in an unknown format", where="TenSEAL", fix="install the locked version")
    return np.frombuffer(body, "<u8", DEGREE, start), np.frombuffer(body, np.uint8, SEED_BYTES, len(body) - SEED_BYTES)


_SEAL_VERSION = (4, 3)
