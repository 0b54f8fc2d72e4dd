"""How one round grows with the number of sites: light clients, but everything else is real.

A light client has no CLIP: its update is random. It encrypts, tags and signs like any site, and what it sends goes
through the real inbox of a real summing process. Uploads are made one after the other, so this measures the
parties, not the network: the server's time for each upload, its memory, the size of the sum, and what one site
needs to open it.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich import box
from rich.table import Table

from secure_triplay.client.ckks import CkksSecretKey
from secure_triplay.client.tag import TagKey
from secure_triplay.crypto.codec import Codec
from secure_triplay.crypto.identity import SigningIdentity
from secure_triplay.crypto.packing import pack60, unpack60
from secure_triplay.crypto.parameters import key_id
from secure_triplay.errors import RunError
from secure_triplay.privacy.noise import NoiseSource
from secure_triplay.server.process import SummingProcess
from secure_triplay.wire import SessionPlan, Site, SumMessage, Upload, pack_tags, unpack_tags

N_PARAMS = 24_576
SIZES = (10, 100, 1000)
_STUDY, _EPOCH, _ROUND, _LIMIT = "0" * 64, 1, 1, 0.05


def run_load_bench(*, sizes: tuple[int, ...] | None = None) -> dict[str, Any]:
    """One round for each number of sites. Raises RunError where a decrypted sum is not the integers' own sum."""
    sizes = sizes or SIZES
    started = time.perf_counter()
    rows = [_round(n_sites) for n_sites in sizes]
    return {
        "suite": "load",
        "n_params": N_PARAMS,
        "rows": rows,
        "machine": {"cores": os.cpu_count(), "load": round(os.getloadavg()[0], 2)},
        "wall_s": round(time.perf_counter() - started, 1),
    }


def _round(n_sites: int) -> dict[str, Any]:
    """One round over `n_sites`: the server in a process of its own, all clients and one opening here."""
    codec = Codec.choose(n_sites=n_sites, value_bits=9, n_params=N_PARAMS, limit=_LIMIT)
    key, tag = CkksSecretKey.generate(codec.parameters), TagKey.generate()
    signers = {f"site-{i:04d}": SigningIdentity.generate() for i in range(n_sites)}
    plan = SessionPlan(
        _STUDY,
        key_id(codec.parameters.context_id, bytes(32)),
        _EPOCH,
        codec.n_chunks,
        tuple(Site(name, signer.identity) for name, signer in signers.items()),
    )
    noise, draw = NoiseSource(), np.random.default_rng(0)
    total = np.zeros(codec.n_params, np.int64)
    client_s = server_s = 0.0
    with SummingProcess(plan, quorum=n_sites) as server:
        server.open(_ROUND)
        idle_bytes = server.stats().peak_rss_bytes
        for name, signer in signers.items():
            begun = time.perf_counter()
            levels = codec.quantise(draw.normal(0, _LIMIT / 4, N_PARAMS).astype(np.float32), noise)
            sealed = key.encrypt(codec.to_slots(levels), codec.encode_tolerance)
            upload = Upload.signed(
                plan,
                signer,
                round=_ROUND,
                site=name,
                c0=pack60(sealed.c0),
                tags=pack_tags(tag.tag(sealed.c0, epoch=_EPOCH, round_number=_ROUND, site=name)),
                seed=sealed.seed,
            ).to_bytes()
            client_s += time.perf_counter() - begun
            total += levels
            begun = time.perf_counter()
            refusal = server.offer(upload)
            server_s += time.perf_counter() - begun
            if refusal is not None:
                raise RunError(
                    f"the upload of {name} was refused: {refusal.reason.value}", where="load bench"
                )
        begun = time.perf_counter()
        content = server.close(last=True)
        close_s = time.perf_counter() - begun
        peak_bytes = server.stats().peak_rss_bytes
    begun = time.perf_counter()
    message = SumMessage.from_bytes(content)
    message.verify(plan, _ROUND, fewest=n_sites)
    c0 = unpack60(message.c0, plan.n_chunks)
    tag.verify_sum(c0, unpack_tags(message.tags), epoch=_EPOCH, round_number=_ROUND, sites=sorted(signers))
    verified_s = time.perf_counter() - begun
    seeds = [one.seed for one in message.survivors]
    opened = codec.sum_from_slots(key.decrypt(c0, seeds), n_sites)
    if not np.array_equal(opened, total):
        raise RunError("the opened sum is not the sum of the integers", where="load bench", fix="report this")
    return {
        "n_sites": n_sites,
        "n_chunks": codec.n_chunks,
        "upload_bytes": len(upload),
        "sum_bytes": len(content),
        "client_ms": round(1e3 * client_s / n_sites, 2),
        "server_ms_per_upload": round(1e3 * server_s / n_sites, 2),
        "server_s_per_round": round(server_s + close_s, 3),
        "server_idle_bytes": idle_bytes,
        "server_peak_bytes": peak_bytes,
        "site_verify_s": round(verified_s, 3),
        "site_open_s": round(time.perf_counter() - begun, 3),
        "sum_exact": True,
    }


def load_table(result: dict[str, Any]) -> Table:
    """A line for each number of sites; fits 80 columns."""
    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        title=f"one round, {result['n_params']:,} parameters, light clients",
        title_justify="left",
        caption="client: encode, encrypt, tag and sign. add: verify and add, at the server; its memory at most.\n"
        "open: verify and decrypt the sum, at a site. Without network and training. Every sum was exact.",
        caption_justify="left",
    )
    for title in ("sites", "upload", "sum", "client", "add one", "add all", "server", "open"):
        table.add_column(title, justify="right")
    for row in result["rows"]:
        table.add_row(
            f"{row['n_sites']:,}",
            f"{row['upload_bytes'] / 1e3:.0f} KB",
            f"{row['sum_bytes'] / 1e3:.0f} KB",
            f"{row['client_ms']:.0f} ms",
            f"{row['server_ms_per_upload']:.1f} ms",
            f"{row['server_s_per_round']:.2f} s",
            f"{row['server_peak_bytes'] / 2**20:.0f} MiB",
            f"{row['site_open_s']:.2f} s",
        )
    return table


def plot_load_bench(result: dict[str, Any], path: Path) -> None:
    """Server time, memory and opening time over the number of sites, log axes, as SVG."""
    figure = Figure(figsize=(9, 3), layout="constrained")
    x = [row["n_sites"] for row in result["rows"]]
    panels = (
        ("server, a round [s]", [row["server_s_per_round"] for row in result["rows"]]),
        ("server, memory [MiB]", [row["server_peak_bytes"] / 2**20 for row in result["rows"]]),
        ("a site opens the sum [s]", [row["site_open_s"] for row in result["rows"]]),
    )
    for axes, (title, y) in zip(figure.subplots(1, 3), panels, strict=True):
        axes.plot(x, y, marker="o")
        axes.set(title=title, xscale="log", xlabel="sites", ylim=(0, None))
    figure.savefig(path)
