"""What somebody sees who reads only the outside of the traffic: who sends, when, and how many bytes.

TLS hides content and not length. So every upload of a study has one length, whatever the update holds, however
many records a site has, and however well they compress. The control looks at the usual way, compressed arrays,
where length alone tells who lacks data.
"""

from __future__ import annotations

import io
import time
from collections.abc import Mapping
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from secure_triplay.attacks.attack import Attack, Observable, Setting
from secure_triplay.attacks.finding import Arm, Control, Finding, Outcome, Verdict
from secure_triplay.attacks.scene import Sites, key_ceremony
from secure_triplay.crypto.codec import Codec
from secure_triplay.privacy.noise import NoiseSource

N_PARAMS = 24_576
_TLS_RECORD_BYTES = 64
"""Differences below a record's own padding would not be seen; the control asks for more."""
Vector = NDArray[np.float32]


def updates(codec: Codec, seed: int) -> Mapping[str, Vector]:
    """Updates as different as they can be: from many records, from few classes, from none at all, at the limit."""
    rng = np.random.default_rng(seed)
    dense = rng.normal(0, codec.limit / 16, codec.n_params).astype(np.float32)
    sparse = np.where(rng.random(codec.n_params) < 0.05, dense, 0).astype(np.float32)
    return {
        "many records": dense,
        "few classes": sparse,
        "no record drawn": np.zeros(codec.n_params, np.float32),
        "at the limit": np.full(codec.n_params, codec.limit, np.float32),
    }


def sizes_of_ours(sites: Sites, content: Mapping[str, Vector]) -> dict[tuple[str, str], int]:
    """Bytes of the real upload of every site with every content."""
    return {
        (site, what): len(sites.upload(update, NoiseSource(), site=site).to_bytes())
        for site in sites.signers
        for what, update in content.items()
    }


def sizes_compressed(content: Mapping[str, Vector]) -> dict[str, int]:
    """Bytes of the same updates as compressed float32 arrays."""
    sizes = {}
    for what, update in content.items():
        file = io.BytesIO()
        np.savez_compressed(file, update=update)
        sizes[what] = len(file.getvalue())
    return sizes


def beyond_names(sizes: Mapping[tuple[str, str], int]) -> int:
    """Different lengths that remain when the site's name, which its connection tells anyway, is taken off."""
    return len({size - len(site.encode()) for (site, _), size in sizes.items()})


def run(setting: Setting) -> Outcome:
    """Lengths of real uploads, and of compressed arrays as the control."""
    started = time.perf_counter()
    sites = key_ceremony(setting.study, N_PARAMS)
    content = updates(sites.codec, setting.seed)
    by_training = {what: update for what, update in content.items() if what != "at the limit"}
    usual = sorted(sizes_compressed(by_training).values())
    gaps = [larger - smaller for smaller, larger in pairwise(usual)]
    control = Control(
        "message_sizes",
        min(gaps) > _TLS_RECORD_BYTES,
        "lengths of compressed arrays tell apart who had many records, few classes, or none",
        {"told_apart": len(set(usual)), "of": len(usual), "seconds": time.perf_counter() - started},
    )
    setting.tell(1, 2)
    sizes = sizes_of_ours(sites, content)
    different = beyond_names(sizes)
    setting.tell(2, 2)
    finding = Finding(
        "network",
        Arm.ENCRYPTION,
        "none",
        "kinds of updates that the length of an upload tells apart",
        float(different - 1),
        Verdict.NOTHING_FOUND if different == 1 else Verdict.LEAKS,
        bound=0.0,
        bound_is="one length for every site and update, but for the letters of the site's name",
        note="that a site declines is shorter and is seen; it is public",
        figures={"upload_bytes": max(sizes.values()), "uploads": len(sizes)},
    )
    return Outcome(
        (control,),
        (finding,),
        (
            "times: when an upload arrives tells how long training took, and so something of how many "
            "records were drawn; nothing hides that",
            "TLS itself",
        ),
    )


ATTACK = Attack(
    name="network",
    title="Lengths of messages",
    source="traffic analysis; the same for every network protocol",
    needs=frozenset({Observable.STUDY, Observable.UPLOADS}),
    run=run,
)
