"""Somebody with a copy of the server's disk searches it for keys and for plain updates.

The server's own code takes real uploads, keeps every byte that it may keep, and closes the round; then everything
below its folder is searched for each secret in every form in which a program could hold it. The control leaves
secrets there, as careless debugging lines would, and the same search must find them.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from secure_triplay.attacks.attack import Attack, Observable, Setting
from secure_triplay.attacks.finding import Arm, Control, Finding, Outcome, Verdict
from secure_triplay.attacks.key_recovery import key_coefficients
from secure_triplay.attacks.memory import Needle, search_folder
from secure_triplay.attacks.needles import (
    TAG_KEY,
    array_needles,
    bytes_needles,
    encoded_needles,
    key_forms,
    opened,
)
from secure_triplay.attacks.scene import Sites, key_ceremony
from secure_triplay.privacy.noise import NoiseSource
from secure_triplay.server.service import Events, Service
from secure_triplay.wire import Upload

N_PARAMS = 24_576
_ROUND = 2
Vector = NDArray[np.float32]


def needles_of(
    sites: Sites, updates: Mapping[str, Vector], uploads: Mapping[str, Upload]
) -> tuple[Needle, ...]:
    """SECRET. The shared keys, each site's update, and the integers that its upload carries, in every form."""
    found: list[Needle] = []
    for form, content in key_forms(sites.keys).items():
        found += bytes_needles("the tag key" if form == TAG_KEY else "the CKKS key", form, content)
    coefficients = key_coefficients(sites.keys.ckks)[:64].tolist()
    found.append(Needle.text("the CKKS key", "a list of coefficients", str(coefficients)[1:-1]))
    for site, update in updates.items():
        what = f"the update of {site}"
        found += array_needles(what, update, "as trained")
        found.append(Needle.text(what, "printed", repr(update[:4].tolist())[1:-1]))
        found += encoded_needles(what, uploads[site], sites.keys, sites.codec)
    return tuple(found)


def uploads_of(sites: Sites, updates: Mapping[str, Vector]) -> dict[str, Upload]:
    """What each site sends."""
    return {
        site: sites.upload(update, NoiseSource(), site=site, round_number=_ROUND)
        for site, update in updates.items()
    }


def serve_a_round(sites: Sites, uploads: Mapping[str, Upload], folder: Path) -> None:
    """One round by the server's own code, which keeps every received byte, and the sum that it sent out."""
    service = Service(sites.plan, len(uploads), Events(folder, keep_received=True))
    service.open(_ROUND)
    for upload in uploads.values():
        content = upload.to_bytes()
        service.offer([content], len(content))
    (folder / "sum.bin").write_bytes(service.close(last=True))
    service.stop()


def leave_secrets(
    sites: Sites, updates: Mapping[str, Vector], uploads: Mapping[str, Upload], folder: Path
) -> set[str]:
    """For the control: a key, and one site's update in three forms, as debugging lines leave them -> their names."""
    site, update = next(iter(updates.items()))
    carried = opened(uploads[site], sites.keys, sites.codec)
    left = {
        "debug.npy": update.tobytes(),
        "integers.npy": carried["integers"].tobytes(),
        "slots.npy": carried["slots"].tobytes(),
        "context.bin": sites.keys.ckks.to_envelope_bytes(),
    }
    for name, content in left.items():
        (folder / name).write_bytes(content)
    return {f"server/{name}" for name in left}


def run(setting: Setting) -> Outcome:
    """Search the disk of an honest server, and of one on which a debugging line left an update."""
    started = time.perf_counter()
    sites = key_ceremony(setting.study, N_PARAMS)
    rng, limit = np.random.default_rng(setting.seed), sites.codec.limit
    updates = {site: rng.normal(0, limit / 16, N_PARAMS).astype(np.float32) for site in sites.signers}
    uploads = uploads_of(sites, updates)
    needles = needles_of(sites, updates, uploads)
    with tempfile.TemporaryDirectory(prefix="secure-triplay-disk-") as name:
        folder = Path(name) / "server"
        serve_a_round(sites, uploads, folder)
        setting.tell(1, 3)
        honest = search_folder(folder, needles)
        setting.tell(2, 3)
        left = leave_secrets(sites, updates, uploads, folder)
        careless = search_folder(folder, needles)
        setting.tell(3, 3)
    found = {hit.where for hit in careless.hits}
    control = Control(
        "disk_search",
        found == left,
        "finds a key and an update, also as encoded, that were left on the disk, and nothing beside them",
        {"found": len(found), "left": len(left), "seconds": time.perf_counter() - started},
    )
    finding = Finding(
        "disk",
        Arm.ENCRYPTION,
        "none",
        "secrets found on the server's disk",
        float(len(honest.hits)),
        Verdict.LEAKS if honest.hits else Verdict.NOTHING_FOUND,
        bound=0.0,
        bound_is="the server has ciphertexts, signatures and counts, and no key",
        note="; ".join(f"{hit.what} as {hit.form} in {hit.where}" for hit in honest.hits)
        or "every received byte and the sum were kept, and searched with the event log",
        figures={"needles": len(needles)},
    )
    return Outcome((control,), (finding,), ("swap space and core dumps of the server",))


ATTACK = Attack(
    name="disk",
    title="A copy of the server's disk",
    source="the usual insider; secrets are searched for byte by byte",
    needs=frozenset({Observable.STUDY, Observable.SERVER_DISK}),
    run=run,
)
