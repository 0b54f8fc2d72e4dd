"""What a server must not have, in every form in which it could lie in memory or on disk: keys, updates, images, counts.

Sites' workers tell of it in files that only the audit reads; keys and encoded integers come from sites' own folders.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from secure_triplay.attacks.memory import Needle
from secure_triplay.attacks.telling import key_forms
from secure_triplay.client.keys import load_keys
from secure_triplay.client.vault import Vault
from secure_triplay.config import Study
from secure_triplay.constants import choose_codec
from secure_triplay.crypto.codec import Codec
from secure_triplay.crypto.packing import unpack60
from secure_triplay.crypto.parameters import SEED_BYTES
from secure_triplay.deploy.site.worker import STATE
from secure_triplay.errors import RunError
from secure_triplay.federation.join import JoinedStudy
from secure_triplay.federation.sitefolder import SiteFolder
from secure_triplay.wire import Upload

_UPLOAD_HEAD_BYTES = 8
_LONG_WINDOW_BYTES = 256


def needles_of(study: Study, sites: Mapping[str, SiteFolder], folder: Path) -> tuple[Needle, ...]:
    """What sites hold by now, in every form; `folder` is where their workers tell of it, in `told-SITE`."""
    found: list[Needle] = []
    for name, site in sites.items():
        joined, told = JoinedStudy.open(site), folder / f"told-{name}"
        if not (told / "update-1.npy").exists():
            continue
        for file in sorted(told.glob("*.npy")):
            kind = {
                "update": "update",
                "local": "adapter",
                "global": "adapter",
                "images": "training image",
            }[file.stem.partition("-")[0]]
            found += array_needles(f"{kind} of {name}", _loaded(file), file.stem)
        count = int((told / "records.json").read_text())
        found.append(Needle.text(f"record count of {name}", "text", f'"records": {count}'))
        codec = choose_codec(study, len(np.load(told / "update-1.npy")))
        found += _key_needles(site, joined, codec)
        found += _encoded_needles(site, joined, codec)
    return tuple(found)


def _key_needles(site: SiteFolder, joined: JoinedStudy, codec: Codec) -> list[Needle]:
    found = []
    for form, content in key_forms(site, joined, codec).items():
        found.append(Needle.of("CKKS key", form, content))
        part = content[: len(content) // 24 * 24][-48:]  # base64 of a whole has this part's base64 in it
        found.append(Needle.text("CKKS key", f"{form}, hexadecimal", part.hex()))
        found.append(Needle.text("CKKS key", f"{form}, base64", base64.b64encode(part).decode()[:-4]))
    return found


def _encoded_needles(site: SiteFolder, joined: JoinedStudy, codec: Codec) -> list[Needle]:
    """The integers of this site's last upload, which the auditor opens with the site's own key."""
    epoch = joined.bundle.epoch
    folder = joined.folder / STATE / f"epoch-{epoch}"
    vault = Vault(folder, site.storage_key, study=joined.study.sha256, epoch=epoch)
    keys, content = load_keys(codec.parameters, vault), vault.load("upload")
    if keys is None or content is None:
        return []
    upload = Upload.from_bytes(content[_UPLOAD_HEAD_BYTES:])
    seeds = np.frombuffer(upload.header.seeds, np.uint8).reshape(-1, SEED_BYTES)
    slots = keys.ckks.decrypt(unpack60(upload.c0, codec.n_chunks), [seeds])
    integers = codec.sum_from_slots(slots, 1)
    rounded = np.rint(slots.view(np.float64))
    return [
        Needle(f"update of {site.name}", "encoded integers", long_windows(integers.tobytes())),
        Needle.of(f"update of {site.name}", "encoded slots", rounded),
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


def long_windows(raw: bytes) -> tuple[bytes, ...]:
    """Windows of small integers in 64 bits: longer than others, because most of their bytes are zero."""
    starts = range(0, len(raw) - _LONG_WINDOW_BYTES, max(8, len(raw) // 8 // 8 * 8))
    return tuple(raw[start : start + _LONG_WINDOW_BYTES] for start in starts)


def _loaded(file: Path) -> Any:
    for _ in range(20):
        try:
            return np.load(file)
        except (ValueError, EOFError):
            time.sleep(0.1)  # it is being written
    return np.load(file)
