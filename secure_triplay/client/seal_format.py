"""SEAL's serialised form of ciphertexts, plaintexts and secret keys, read and written strictly, in memory only.

SEAL's bindings save and load by path alone. Paths here are those of anonymous memory files: nothing secret
touches a disk, and no other user can open them. What is read was saved by the SEAL of this process a moment
before; every byte that is not a coefficient is compared with what it must be all the same, so that another
version of SEAL is an error and never a wrong ciphertext.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import tenseal.sealapi as seal

from secure_triplay.crypto.packing import Coefficients
from secure_triplay.crypto.parameters import DEGREE, MODULUS, MODULUS_BITS, CkksParameters
from secure_triplay.errors import CryptoError

# SEAL's header (serialization.h): magic, own size, version major and minor, compression, 0, total bytes
_HEADER = struct.Struct("<HBBBBHQ")
_MAGIC, _MAJOR = 0xA15E, 4
_NONE, _ZSTD = 0, 2
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_COEFFICIENT_BYTES = 8 * DEGREE
_MAX_SAVED_BYTES = 1 << 17


def new_context(parameters: CkksParameters) -> seal.SEALContext:
    """SEAL's context of these parameters, at 128-bit security.

    Raises:
        CryptoError: if this SEAL creates another prime than ours or finds the parameters insecure.
    """
    asked = seal.EncryptionParameters(seal.SCHEME_TYPE.CKKS)
    asked.set_poly_modulus_degree(parameters.degree)
    asked.set_coeff_modulus(seal.CoeffModulus.Create(parameters.degree, [MODULUS_BITS]))
    context = seal.SEALContext(asked, True, seal.SEC_LEVEL_TYPE.TC128)
    if [prime.value() for prime in asked.coeff_modulus()] != [MODULUS] or not context.parameters_set():
        raise unknown_format()
    return context


@contextmanager
def memory_file() -> Iterator[int]:
    """Descriptor of an anonymous file in memory, mode 0600, closed with the process and never inherited."""
    descriptor = os.memfd_create("secure_triplay", os.MFD_CLOEXEC)
    try:
        os.fchmod(descriptor, 0o600)
        yield descriptor
    finally:
        os.close(descriptor)


def path_of(descriptor: int) -> str:
    """The path under which SEAL, in this process, opens a memory file."""
    return f"/proc/self/fd/{descriptor}"


def save_raw(thing: seal.SecretKey | seal.Plaintext, descriptor: int) -> bytes | None:
    """What SEAL saves of `thing` after its header, or None if zstd found something to compress in it.

    SEAL's bindings always ask zstd, which stores what it cannot compress as it is. Keys, and c0 of a
    ciphertext, look random in NTT form and are stored so (20,300 of 20,300 tried).

    Raises:
        CryptoError: if the bytes are not of the one format that is known here.
    """
    thing.save(path_of(descriptor))  # opens the file anew and empties it first
    saved = os.pread(descriptor, _MAX_SAVED_BYTES, 0)
    if len(saved) < _HEADER.size:
        raise unknown_format()
    magic, size, major, _minor, compression, reserved, total = _HEADER.unpack_from(saved)
    if (magic, size, major, reserved, total) != (_MAGIC, _HEADER.size, _MAJOR, 0, len(saved)):
        raise unknown_format()
    body = saved[_HEADER.size :]
    if compression == _NONE:
        return body
    if compression != _ZSTD or body[:4] != _ZSTD_MAGIC:
        raise unknown_format()
    return _stored_block(body)


def _stored_block(frame: bytes) -> bytes | None:
    """Content of a zstd frame (RFC 8878, 3.1.1) of one stored block, or None for any other frame."""
    descriptor = frame[4]
    single_segment, checksum, dictionary = descriptor >> 5 & 1, descriptor >> 2 & 1, descriptor & 3
    start = 5 + (1 - single_segment) + (single_segment, 2, 4, 8)[descriptor >> 6]
    block = int.from_bytes(frame[start : start + 3], "little")
    last, kind, size = block & 1, block >> 1 & 3, block >> 3
    if dictionary or not last or kind != 0 or len(frame) != start + 3 + size + 4 * checksum:
        return None
    return frame[start + 3 : start + 3 + size]


class CiphertextLoader:
    """Hands SEAL ciphertexts (c0, c1): one memory file, in which only the two polynomials ever change.

    The bytes around them follow from SEAL's sources (ciphertext.cpp, save_members); none is guessed.
    """

    def __init__(self, context: seal.SEALContext, parameters: CkksParameters, descriptor: int) -> None:
        self._context, self._descriptor, self._path = context, descriptor, path_of(descriptor)
        version = _seal_version(context)
        members = struct.pack("<4QBQQQdQ", *context.first_parms_id(), 1, 2, DEGREE, 1, parameters.scale, 1)
        before = members + _array_head(version, 2)
        whole = with_header(version, before + bytes(2 * _COEFFICIENT_BYTES))
        os.pwrite(descriptor, whole, 0)
        self._at = len(whole) - 2 * _COEFFICIENT_BYTES

    def load(self, c0: Coefficients, c1: Coefficients) -> seal.Ciphertext:
        """SEAL's ciphertext of c0 and c1, each (4096,) uint64 below q."""
        both = np.concatenate([c0, c1]).astype("<u8", copy=False)
        os.pwrite(self._descriptor, both.tobytes(), self._at)
        cipher = seal.Ciphertext(self._context)
        try:
            cipher.load(self._context, self._path)
        except (RuntimeError, ValueError) as error:
            raise unknown_format() from error
        return cipher


def with_header(version: tuple[int, int], body: bytes) -> bytes:
    """An uncompressed body with SEAL's header before it, as its `load` takes it."""
    return _HEADER.pack(_MAGIC, _HEADER.size, *version, _NONE, 0, _HEADER.size + len(body)) + body


class PlaintextFormat:
    """The fixed bytes before the coefficients of a plaintext (plaintext.h); SEAL saves a secret key alike."""

    def __init__(self, context: seal.SEALContext, scale: float) -> None:
        self.version = _seal_version(context)
        self.head = struct.pack("<4QQd", *context.first_parms_id(), DEGREE, scale) + _array_head(
            self.version, 1
        )

    def coefficients(self, thing: seal.SecretKey | seal.Plaintext, descriptor: int) -> Coefficients | None:
        """The coefficients (4096,) of `thing`, or None if zstd found something to compress in it.

        Raises:
            CryptoError: if any other byte is not what it must be.
        """
        body = save_raw(thing, descriptor)
        if body is None:
            return None
        if len(body) != len(self.head) + _COEFFICIENT_BYTES or not body.startswith(self.head):
            raise unknown_format()
        return np.frombuffer(body, "<u8", DEGREE, len(self.head)).astype(np.uint64, copy=False)

    def whole(self, coefficients: Coefficients) -> bytes:
        """What SEAL's `load` takes for these coefficients (4096,)."""
        return with_header(self.version, self.head + coefficients.astype("<u8", copy=False).tobytes())


def unknown_format() -> CryptoError:
    """One error for a SEAL that is not the one this was written against."""
    return CryptoError("SEAL does not behave as the locked version does", where="TenSEAL",
                       fix="install exactly the locked tenseal")  # fmt: skip


def _array_head(version: tuple[int, int], n_polynomials: int) -> bytes:
    total = _HEADER.size + 8 + n_polynomials * _COEFFICIENT_BYTES
    return _HEADER.pack(_MAGIC, _HEADER.size, *version, _NONE, 0, total) + struct.pack(
        "<Q", n_polynomials * DEGREE
    )


def _seal_version(context: seal.SEALContext) -> tuple[int, int]:
    """Major and minor version that SEAL writes into headers, read off an empty ciphertext."""
    with memory_file() as descriptor:
        seal.Ciphertext(context).save(path_of(descriptor))
        saved = os.pread(descriptor, _MAX_SAVED_BYTES, 0)
    if len(saved) < _HEADER.size:
        raise unknown_format()
    magic, size, major, minor, *_ = _HEADER.unpack_from(saved)
    if (magic, size, major) != (_MAGIC, _HEADER.size, _MAJOR):
        raise unknown_format()
    return major, minor
