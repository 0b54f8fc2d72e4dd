"""Our encoding and the usual one, on the same updates, in one run.

*Ours*: packed integers in complex slots of seeded ciphertexts, tagged; timed from the float update to the
bytes that are sent, and back from the bytes that come to the mean update. *Usual*: `ts.ckks_vector`, one
value a slot, N=8192, [60, 40, 40], scale 2^40 (the default of NVFlare's CKKS example), serialised tensor by
tensor, once alone and once with the public context beside each tensor, as examples often send it. Tensors
have 12,288 values and fill the ciphertexts of both ways: only the last one of an update may be padded.

The usual way is slow, so it is timed on the first `usual_params` values of each update, and every row says on
how many it was measured. Rates are given by the clock and by processor time; on a busy machine the second is
the rate of one core.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import tenseal as ts
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich import box
from rich.table import Table

from secure_triplay.client.ckks import CkksSecretKey
from secure_triplay.client.tag import TagKey
from secure_triplay.config import Codec as CodecSettings
from secure_triplay.crypto.codec import Codec, Integers
from secure_triplay.crypto.packing import add_mod, pack60, unpack60
from secure_triplay.privacy.noise import NoiseSource
from secure_triplay.wire import sum_bytes

TENSOR_VALUES = 12_288
UPDATE_STD = 0.01
RANGE_STDS = 5.0
DEFAULT_BITS = CodecSettings().value_bits
"""What a study sends a value in where it names no number (`codec.value_bits`)."""

MORE_BITS = 9
"""What the demo sends: its adapter fills no ciphertext, so that the ninth bit costs nothing."""

FEWER_BITS = (6, 5)
"""At epsilon 8 their rounding is lost in the noise (`audits/quantization`); more values then share a ciphertext."""

FULL_GRID = (
    *((100_000, n_sites, DEFAULT_BITS) for n_sites in (2, 8, 32, 64)),
    *(
        (1_000_000, n_sites, bits)
        for bits in (MORE_BITS, DEFAULT_BITS, *FEWER_BITS)
        for n_sites in (2, 8, 32, 64)
    ),
    *((10_000_000, n_sites, DEFAULT_BITS) for n_sites in (2, 32, 64)),
)
QUICK_GRID = ((20_000, 2, DEFAULT_BITS), (20_000, 3, DEFAULT_BITS), (20_000, 3, FEWER_BITS[0]))
OURS, USUAL = "secure_triplay", "ckks_vector"
_DECRYPTIONS = 3
"""Every site's update is encrypted and added, but only one sum is decrypted: it is timed as often."""

Delta = NDArray[np.float32]
Result = TypeVar("Result")


@dataclass
class _Clock:
    """Wall and processor seconds by step."""

    wall: dict[str, float] = field(default_factory=dict)
    cpu: dict[str, float] = field(default_factory=dict)

    def time(self, step: str, work: Callable[[], Result], repeats: int = 1) -> Result:
        """The result of `work`, whose mean time over `repeats` is added to that of the step."""
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(repeats):
            result = work()
        self.wall[step] = self.wall.get(step, 0.0) + (time.perf_counter() - wall) / repeats
        self.cpu[step] = self.cpu.get(step, 0.0) + (time.process_time() - cpu) / repeats
        return result

    def rates(self, n_params: int, n_sites: int) -> dict[str, float]:
        """Million parameters a second: of all sites' uploads for encrypt and add, of one sum for decrypt."""
        work = {"encrypt": n_params * n_sites, "add": n_params * n_sites, "decrypt": n_params}
        clocks = {"m_params_per_s": self.wall, "m_params_per_cpu_s": self.cpu}
        return {
            f"{step}_{unit}": round(amount / seconds[step] / 1e6, 4)
            for unit, seconds in clocks.items()
            for step, amount in work.items()
        }


def run_crypto_bench(
    *,
    grid: tuple[tuple[int, int, int], ...] | None = None,
    usual_params: int = 4 * TENSOR_VALUES,
    seed: int = 0,
    quick: bool = False,
) -> dict[str, Any]:
    """Measure both ways for every (n_params, n_sites, value_bits) of the grid, paired on the same updates.

    The full grid takes some minutes on one core; `quick` takes seconds and is for tests.

    Raises:
        ConfigError: if the bits of a value do not fit the number of sites.
    """
    grid = grid or (QUICK_GRID if quick else FULL_GRID)
    before, started = os.getloadavg()[0], time.perf_counter()
    rows: list[dict[str, Any]] = []
    for n_params, n_sites, value_bits in grid:
        codec = Codec.choose(
            n_sites=n_sites, value_bits=value_bits, n_params=n_params, limit=RANGE_STDS * UPDATE_STD
        )
        rows.append(_measure_ours(codec, seed))
        rows.append(_measure_usual(n_params, n_sites, min(n_params, usual_params), seed))
    return {
        "suite": "crypto",
        "quick": quick,
        "settings": {"usual_params": usual_params, "tensor_values": TENSOR_VALUES,
                     "update_std": UPDATE_STD, "range": RANGE_STDS * UPDATE_STD, "seed": seed},
        "rows": rows,
        "ratios": [_ratio(ours, usual) for ours, usual in zip(rows[::2], rows[1::2], strict=True)],
        "machine": machine(before),
        "versions": {"python": platform.python_version(), "numpy": np.__version__,
                     "tenseal": version("tenseal")},
        "wall_s": round(time.perf_counter() - started, 1),
    }  # fmt: skip


def machine(load_before: float) -> dict[str, Any]:
    """On what it was measured, and how busy that was."""
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "system": platform.system(),
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
        "load_before": round(load_before, 2),
        "load_after": round(os.getloadavg()[0], 2),
    }


def update_of(site: int, n_params: int, seed: int) -> Delta:
    """A site's update (n_params,) float32 within the range; its first values do not depend on n_params."""
    values = np.random.default_rng((seed, site)).standard_normal(n_params, np.float32) * np.float32(
        UPDATE_STD
    )
    # inside the range also after rounding to float32, so that the error is not clipping's
    bound = np.float32(RANGE_STDS * UPDATE_STD * (1 - 1e-6))
    clipped: Delta = np.clip(values, -bound, bound)
    return clipped


@dataclass(frozen=True)
class Sent:
    """What a site sends of a round: packed c0, its seed, and tags (n_chunks,)."""

    c0: bytes
    seed: bytes
    tags: NDArray[np.uint64]

    @property
    def n_bytes(self) -> int:
        """Bytes on the line, without names and signatures."""
        return len(self.c0) + len(self.seed) + self.tags.nbytes


class EncryptedRound:
    """The encrypted half of one round of ours, step by step: each site sends, the server adds, a site opens the sum."""

    def __init__(self, codec: Codec, names: Sequence[str]) -> None:
        self._codec, self._names = codec, tuple(names)
        self._key, self._tag_key = CkksSecretKey.generate(codec.parameters), TagKey.generate()
        self._total = np.zeros((codec.n_chunks, codec.parameters.degree), np.uint64)
        self._tags = np.zeros(codec.n_chunks, np.uint64)
        self._seeds: list[bytes] = []

    def send(self, integers: Integers, name: str) -> Sent:
        """A site's integers (n_params,), encrypted and tagged."""
        sealed = self._key.encrypt(self._codec.to_slots(integers), self._codec.encode_tolerance)
        tags = self._tag_key.tag(sealed.c0, epoch=0, round_number=1, site=name)
        return Sent(pack60(sealed.c0), sealed.seed, tags)

    def add(self, sent: Sent) -> None:
        """Take what a site sent into the sum."""
        add_mod(self._total, unpack60(sent.c0, self._codec.n_chunks))
        add_mod(self._tags, sent.tags)
        self._seeds.append(sent.seed)

    def receive(self) -> Integers:
        """The sum (n_params,) of all integers, verified and opened."""
        self._tag_key.verify_sum(self._total, self._tags, epoch=0, round_number=1, sites=self._names)
        return self._codec.sum_from_slots(self._key.decrypt(self._total, self._seeds), len(self._names))


def _measure_ours(codec: Codec, seed: int) -> dict[str, Any]:
    names = [str(site) for site in range(codec.n_sites)]
    ours, noise, clock = EncryptedRound(codec, names), NoiseSource(), _Clock()
    upload_bytes, mean, exact_sum = 0, np.zeros(codec.n_params), np.zeros(codec.n_params, np.int64)
    for site, name in enumerate(names):
        delta = update_of(site, codec.n_params, seed)
        mean += delta.astype(np.float64) / codec.n_sites
        integers = clock.time("encrypt", partial(codec.quantise, delta, noise))
        exact_sum += integers
        sent = clock.time("encrypt", partial(ours.send, integers, name))
        upload_bytes = sent.n_bytes
        clock.time("add", partial(ours.add, sent))
    sums = clock.time("decrypt", ours.receive, _DECRYPTIONS)
    decoded = clock.time("decrypt", lambda: codec.mean(sums, codec.n_sites), _DECRYPTIONS)
    download_bytes = sum_bytes(codec.n_chunks, codec.n_sites)
    error = float(np.abs(decoded - mean).max())
    return {
        "way": OURS, "n_params": codec.n_params, "n_sites": codec.n_sites, "measured_params": codec.n_params,
        "value_bits": codec.value_bits,
        "fields": codec.fields, "field_bits": codec.field_bits, "scale_bits": codec.scale_bits,
        "upload_bytes_per_param": round(upload_bytes / codec.n_params, 4),
        "download_bytes_per_param": round(download_bytes / codec.n_params, 4),
        "largest_error": error, "largest_error_in_steps": round(error / codec.step, 4),
        "integer_sums_exact": bool(np.array_equal(sums, exact_sum)),
        **clock.rates(codec.n_params, codec.n_sites),
    }  # fmt: skip


def _measure_usual(n_params: int, n_sites: int, measured: int, seed: int) -> dict[str, Any]:
    private = ts.context(ts.SCHEME_TYPE.CKKS, 8192, coeff_mod_bit_sizes=[60, 40, 40])
    private.global_scale = 2**40
    public, clock = private.copy(), _Clock()
    public.make_context_public()
    context_bytes = len(public.serialize())
    starts = range(0, measured, TENSOR_VALUES)
    totals: list[Any] = []
    mean, upload_bytes = np.zeros(measured), 0
    with _quiet_stdout():
        for site in range(n_sites):
            delta = update_of(site, measured, seed)
            mean += delta.astype(np.float64) / n_sites
            tensors = [delta[start : start + TENSOR_VALUES].tolist() for start in starts]

            def send(tensors: Any = tensors) -> list[bytes]:
                return [ts.ckks_vector(private, tensor).serialize() for tensor in tensors]

            blobs = clock.time("encrypt", send)
            upload_bytes = sum(map(len, blobs))

            def add(blobs: list[bytes] = blobs) -> None:
                vectors = [ts.ckks_vector_from(public, blob) for blob in blobs]
                if not totals:
                    totals.extend(vectors)
                    return
                for here, there in zip(totals, vectors, strict=True):
                    here.add_(there)

            clock.time("add", add)
        returned = [vector.serialize() for vector in totals]

        def receive() -> NDArray[np.float64]:
            vectors = [ts.ckks_vector_from(private, blob) for blob in returned]
            return np.concatenate([np.array(vector.decrypt()) for vector in vectors]) / n_sites

        decoded = clock.time("decrypt", receive, _DECRYPTIONS)
    with_context = upload_bytes + len(starts) * context_bytes
    return {
        "way": USUAL, "n_params": n_params, "n_sites": n_sites, "measured_params": measured,
        "upload_bytes_per_param": round(upload_bytes / measured, 4),
        "upload_with_context_bytes_per_param": round(with_context / measured, 4),
        "download_bytes_per_param": round(sum(map(len, returned)) / measured, 4),
        "context_bytes": context_bytes,
        "largest_error": float(np.abs(decoded - mean).max()), **clock.rates(measured, n_sites),
    }  # fmt: skip


def _ratio(ours: dict[str, Any], usual: dict[str, Any]) -> dict[str, Any]:
    """How many times smaller and faster (processor time) ours is."""
    up, rate = "upload_bytes_per_param", "m_params_per_cpu_s"

    def waits(row: dict[str, Any]) -> float:
        """Seconds a million parameters that a round waits for: one site's encryption, the sum, its opening."""
        added = row["n_sites"] / row[f"add_{rate}"]
        return float(1 / row[f"encrypt_{rate}"] + added + 1 / row[f"decrypt_{rate}"])

    def bytes_both_ways(row: dict[str, Any]) -> float:
        return float(row[up] + row["download_bytes_per_param"])

    return {
        "n_params": ours["n_params"],
        "n_sites": ours["n_sites"],
        "value_bits": ours["value_bits"],
        "upload_smaller": round(usual[up] / ours[up], 2),
        "upload_smaller_with_context": round(usual["upload_with_context_bytes_per_param"] / ours[up], 2),
        "upload_of_plain_fp32": round(ours[up] / 4, 4),
        "usual_upload_of_plain_fp32": round(usual[up] / 4, 4),
        "round_smaller": round(bytes_both_ways(usual) / bytes_both_ways(ours), 2),
        "round_faster": round(waits(usual) / waits(ours), 2),
        **{
            f"{s}_faster": round(ours[f"{s}_{rate}"] / usual[f"{s}_{rate}"], 2)
            for s in ("encrypt", "add", "decrypt")
        },
    }


def bench_table(result: dict[str, Any]) -> Table:
    """The rows of a result as a table for a terminal of 80 columns."""
    table = Table(
        title="Encrypted updates: bytes a parameter, M parameters/s of processor time",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    for heading in ("way", "params", "sites", "up", "down", "encrypt", "add", "decrypt"):
        table.add_column(heading, justify="left" if heading == "way" else "right", no_wrap=True)
    for row in result["rows"]:
        rates = [f"{row[f'{step}_m_params_per_cpu_s']:.1f}" for step in ("encrypt", "add", "decrypt")]
        sizes = [f"{row[f'{way}_bytes_per_param']:.2f}" for way in ("upload", "download")]
        name = f"ours, {row['value_bits']} bits" if row["way"] == OURS else "usual"
        name += "" if row["measured_params"] == row["n_params"] else " *"
        table.add_row(
            name, f"{row['n_params'] / 1e6:g} M", str(row["n_sites"]), *sizes, *rates,
            end_section=row["way"] == USUAL,
        )  # fmt: skip
    table.caption = (
        f"usual: {USUAL}. * timed on the first {result['settings']['usual_params']:,} values. "
        f"{result['machine']['cpu']}"
    )
    return table


def plot_crypto_bench(result: dict[str, Any], path: str | Path) -> None:
    """Bytes and rates for the largest number of parameters, by number of sites; SVG or PNG by suffix."""
    largest = max(row["n_params"] for row in result["rows"])
    ways = {
        way: [r for r in result["rows"] if r["way"] == way and r["n_params"] == largest]
        for way in (OURS, USUAL)
    }
    sites, width = [row["n_sites"] for row in ways[OURS]], 0.38
    colours = {OURS: "#0b6e4f", USUAL: "#b04a3a"}
    panels = (
        ("Upload, bytes a parameter", "upload_bytes_per_param"),
        ("Encrypt, M parameters/s", "encrypt_m_params_per_cpu_s"),
        ("Add, M parameters/s", "add_m_params_per_cpu_s"),
        ("Decrypt, M parameters/s", "decrypt_m_params_per_cpu_s"),
    )
    figure = Figure(figsize=(12, 3.8), layout="constrained")
    for axes, (title, column) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        for shift, (way, rows) in zip((-width / 2, width / 2), ways.items(), strict=True):
            places = np.arange(len(rows)) + shift
            bars = axes.bar(places, [row[column] for row in rows], width, label=way, color=colours[way])
            axes.bar_label(bars, fmt="{:.3g}", fontsize=7, padding=1)
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")
        axes.margins(y=0.15)
        if column.startswith("upload"):
            axes.axhline(4, color="#555555", linewidth=1, linestyle="--", label="plain fp32", zorder=0)
        axes.set_xticks(range(len(sites)), [str(n) for n in sites])
        axes.set_xlabel("sites")
        axes.set_title(title, fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, fontsize=8, ncols=3, loc="outside lower center")
    figure.suptitle(f"{largest:,} parameters, one core, {result['machine']['cpu']}", fontsize=10)
    figure.savefig(path)


@contextmanager
def _quiet_stdout() -> Iterator[None]:
    """Keep TenSEAL's native warning about vectors of several ciphertexts, which are meant here, away."""
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")
