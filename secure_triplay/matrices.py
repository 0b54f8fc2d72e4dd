"""Frozen A matrices as bytes: float16 in the safetensors format, of which each set of matrices has one spelling.

They stand in a signed file that other machines read, so nothing is read that would not be written the same way.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from secure_triplay.errors import ConfigError

Matrices = dict[str, NDArray[np.float16]]
"""By layer, its path inside the model: A (rank, inputs)."""

MAX_BYTES = 8 << 20
_WHERE = "adapter.basis"


def rounded(values: NDArray[np.floating]) -> NDArray[np.float16]:
    """The nearest float16 of each value. Raises ConfigError where one is not finite, or too large for that."""
    with np.errstate(over="ignore"):
        found = values.astype(np.float16, order="C")  # safetensors writes an array's memory as it lies there
    if not np.isfinite(found).all():
        raise ConfigError(
            "a basis of public images has values that float16 does not hold",
            where=_WHERE,
            fix="lower adapter.rank: the last directions hardly vary over the public images",
        )
    return found


def to_bytes(matrices: Matrices) -> bytes:
    """The one byte string of these matrices. Raises ConfigError for more than 8 MiB."""
    from safetensors.numpy import save

    content = save(matrices)
    if len(content) > MAX_BYTES:
        raise ConfigError(
            f"the basis would have {len(content):,} bytes, and a study bundle carries {MAX_BYTES:,}",
            where=_WHERE,
            fix="lower adapter.rank or adapter.last_blocks, or leave adapter.basis out",
        )
    return content


def from_bytes(content: bytes) -> Matrices:
    """The matrices in a byte string of `to_bytes`.

    Raises ConfigError for any other: another type or shape, values that are not finite, cut or longer bytes,
    another spelling of the same values.
    """
    from safetensors.numpy import load

    if len(content) > MAX_BYTES:
        raise _damaged("it is too large")
    try:
        found: Matrices = load(content)
    except Exception as error:  # on hostile input it raises more kinds than its own
        raise _damaged("it cannot be read") from error
    if not found or any(a.dtype != np.float16 or a.ndim != 2 or 0 in a.shape for a in found.values()):
        raise _damaged("it holds something else than float16 matrices")
    if not all(np.isfinite(a).all() for a in found.values()):
        raise _damaged("it has values that are not finite")
    if to_bytes(found) != content:
        raise _damaged("it has another encoding")
    return found


def _damaged(what: str) -> ConfigError:
    return ConfigError(
        f"these are no matrices of a basis: {what}",
        where=_WHERE,
        fix="ask the coordinator for the study bundle again, unchanged",
    )
