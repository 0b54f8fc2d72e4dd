"""SECRET. One secret as needles, in every form in which a program could hold it: bytes, an array, an upload, keys.

The audit of server blindness and the attack on the server's disk look for the same forms.
"""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secure_triplay.attacks.memory import Needle
from secure_triplay.client.keys import EpochKeys
from secure_triplay.crypto.codec import Codec
from secure_triplay.crypto.packing import unpack60
from secure_triplay.crypto.parameters import ID_BYTES
from secure_triplay.errors import RunError
from secure_triplay.wire import Upload

TAG_KEY = "tag key"
_LONG_WINDOW_BYTES = 256


def key_forms(keys: EpochKeys) -> dict[str, bytes]:
    """The epoch's keys as the library holds them in memory, and as they stand in an opened envelope."""
    packed = keys.ckks.to_envelope_bytes()[ID_BYTES:]
    return {
        "SEAL's 64-bit words": unpack60(packed, 1).astype("<u8").tobytes(),
        "packed at 60 bits": packed,
        TAG_KEY: keys.tag.to_envelope_bytes(),
    }


def bytes_needles(what: str, form: str, content: bytes) -> list[Needle]:
    """Bytes as they are, and a part of them as hexadecimal and base64."""
    part = content[: len(content) // 24 * 24][-48:]  # base64 of a whole has this part's base64 in it
    return [
        Needle.of(what, form, content),
        Needle.text(what, f"{form}, hexadecimal", part.hex()),
        Needle.text(what, f"{form}, base64", base64.b64encode(part).decode()[:-4]),
    ]


def array_needles(what: str, content: Any, stem: str) -> list[Needle]:
    """An array in the forms that a program would hold; one that is constant (a fresh adapter) tells nothing."""
    forms = {"uint8": content} if content.dtype == np.uint8 else {
        "float32": content.astype(np.float32),
        "float64": content.astype(np.float64),
    }  # fmt: skip
    found = []
    for form, array in forms.items():
        try:
            found.append(Needle.of(what, f"{form} ({stem})", array))
        except RunError:
            continue
    return found


def opened(upload: Upload, keys: EpochKeys, codec: Codec) -> dict[str, NDArray[Any]]:
    """What an upload carries: the integers (n_params,) int64, and several of them a real (n_chunks, 4096) float64."""
    slots = keys.ckks.decrypt(unpack60(upload.c0, codec.n_chunks), [upload.header.seed])
    return {"integers": codec.sum_from_slots(slots, 1), "slots": np.rint(slots.view(np.float64))}


def encoded_needles(what: str, upload: Upload, keys: EpochKeys, codec: Codec) -> list[Needle]:
    """The integers that an upload carries, by themselves and several a slot; the searcher opens it with the key."""
    carried = opened(upload, keys, codec)
    return [
        Needle(what, "encoded integers", long_windows(carried["integers"].tobytes())),
        Needle.of(what, "encoded slots", carried["slots"]),
    ]


def long_windows(raw: bytes) -> tuple[bytes, ...]:
    """Windows of small integers in 64 bits: longer than others, because most of their bytes are zero."""
    starts = range(0, len(raw) - _LONG_WINDOW_BYTES, max(8, len(raw) // 8 // 8 * 8))
    return tuple(raw[start : start + _LONG_WINDOW_BYTES] for start in starts)
