"""Somebody with a copy of the server's disk searches it for keys and for plain updates.

The server's own code takes real uploads, keeps every byte that it may keep, and closes the round; then everything
below its folder is searched for each secret in every form in which a program could hold it. The control leaves
one secret there, as a careless debugging line would, and the same search must find it.
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
from secure_triplay.attacks.memory import Needle, Searched, search_folder
from secure_triplay.attacks.scene import Sites, key_ceremony
from secure_triplay.client.keys import EpochKeys
from secure_triplay.crypto.packing import unpack60
from secure_triplay.crypto.parameters import ID_BYTES
from secure_triplay.privacy.noise import NoiseSource
from secure_triplay.server.service import Events, Service

N_PARAMS = 24_576
_ROUND = 2
Vector = NDArray[np.float32]


def key_needles(keys: EpochKeys) -> tuple[Needle, ...]:
    """SECRET. The shared keys as they travel in an envelope, as SEAL holds them, and as small integers."""
    envelope = keys.ckks.to_envelope_bytes()
    coefficients = key_coefficients(keys.ckks)
    return (
        Needle.of("the CKKS key", "envelope bytes", envelope[ID_BYTES:]),
        Needle.of("the CKKS key", "SEAL's 64-bit words", unpack60(envelope[ID_BYTES:], 1)),
        Needle.text("the CKKS key", "a list of coefficients", str(coefficients[:64].tolist())[1:-1]),
        Needle.of("the tag key", "its 32 bytes", keys.tag.to_envelope_bytes()),
        Needle.text("the tag key", "hex", keys.tag.to_envelope_bytes().hex()),
    )


def update_needles(updates: Mapping[str, Vector]) -> tuple[Needle, ...]:
    """SECRET. Each site's update as float32, as float64, and its first values as they are printed."""
    found: list[Needle] = []
    for site, update in updates.items():
        what = f"the update of {site}"
        found.append(Needle.of(what, "float32", update))
        found.append(Needle.of(what, "float64", update.astype(np.float64)))
        found.append(Needle.text(what, "printed", repr(update[:4].tolist())[1:-1]))
    return tuple(found)


def search_server_folder(folder: Path, keys: EpochKeys, updates: Mapping[str, Vector]) -> Searched:
    """What a server's folder, such as `server/` of a run, holds of the sites' secrets."""
    return search_folder(folder, (*key_needles(keys), *update_needles(updates)), "server")


def serve_a_round(sites: Sites, updates: Mapping[str, Vector], folder: Path) -> None:
    """One round by the server's own code, which keeps every received byte, and the sum that it sent out."""
    service = Service(sites.plan, len(updates), Events(folder, keep_received=True))
    service.open(_ROUND)
    for site, update in updates.items():
        content = sites.upload(update, NoiseSource(), site=site, round_number=_ROUND).to_bytes()
        service.offer([content], len(content))
    (folder / "sum.bin").write_bytes(service.close(last=True))
    service.stop()


def run(setting: Setting) -> Outcome:
    """Search the disk of an honest server, and of one on which a debugging line left an update."""
    started = time.perf_counter()
    sites = key_ceremony(setting.study, N_PARAMS)
    rng, limit = np.random.default_rng(setting.seed), sites.codec.limit
    updates = {site: rng.normal(0, limit / 16, N_PARAMS).astype(np.float32) for site in sites.signers}
    with tempfile.TemporaryDirectory(prefix="secure-triplay-disk-") as name:
        folder = Path(name) / "server"
        serve_a_round(sites, updates, folder)
        setting.tell(1, 3)
        honest = search_server_folder(folder, sites.keys, updates)
        setting.tell(2, 3)
        (folder / "debug.npy").write_bytes(next(iter(updates.values())).tobytes())
        (folder / "context.bin").write_bytes(sites.keys.ckks.to_envelope_bytes())
        careless = search_server_folder(folder, sites.keys, updates)
        setting.tell(3, 3)
    found = {hit.where for hit in careless.hits}
    control = Control(
        "disk_search",
        found == {"server/debug.npy", "server/context.bin"},
        "finds a key and an update that were left on the disk, and nothing beside them",
        {"found": len(found), "left": 2, "seconds": time.perf_counter() - started},
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
        figures={"needles": len(key_needles(sites.keys)) + len(update_needles(updates))},
    )
    return Outcome((control,), (finding,), ("swap space and core dumps of the server",))


ATTACK = Attack(
    name="disk",
    title="A copy of the server's disk",
    source="the usual insider; secrets are searched for byte by byte",
    needs=frozenset({Observable.STUDY, Observable.SERVER_DISK}),
    run=run,
)
