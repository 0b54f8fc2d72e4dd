"""SECRET. All that the sites of a running federation hold and its server must not have, collected as needles.

Sites' workers tell of updates, adapters, images and counts in files that only the audit reads; keys and encoded
integers come from sites' own folders. The forms of each are those of `needles`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from secure_triplay.attacks.memory import Needle
from secure_triplay.attacks.needles import array_needles, bytes_needles, encoded_needles, key_forms
from secure_triplay.client.keys import load_keys
from secure_triplay.client.vault import Vault
from secure_triplay.config import Study
from secure_triplay.constants import choose_codec
from secure_triplay.crypto.codec import Codec
from secure_triplay.deploy.site.worker import STATE
from secure_triplay.federation.join import JoinedStudy
from secure_triplay.federation.sitefolder import SiteFolder
from secure_triplay.wire import Upload

_UPLOAD_HEAD_BYTES = 8


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
        found += _secret_needles(site, joined, codec)
    return tuple(found)


def _secret_needles(site: SiteFolder, joined: JoinedStudy, codec: Codec) -> list[Needle]:
    """The epoch's keys, and the integers of this site's last upload, which the auditor opens with them."""
    epoch = joined.bundle.epoch
    folder = joined.folder / STATE / f"epoch-{epoch}"
    vault = Vault(folder, site.storage_key, study=joined.study.sha256, epoch=epoch)
    keys, content = load_keys(codec.parameters, vault), vault.load("upload")
    if keys is None:
        return []
    found = [each for form, key in key_forms(keys).items() for each in bytes_needles("CKKS key", form, key)]
    if content is not None:
        upload = Upload.from_bytes(content[_UPLOAD_HEAD_BYTES:])
        found += encoded_needles(f"update of {site.name}", upload, keys, codec)
    return found


def _loaded(file: Path) -> Any:
    for _ in range(20):
        try:
            return np.load(file)
        except (ValueError, EOFError):
            time.sleep(0.1)  # it is being written
    return np.load(file)
