"""What masks cost: our round unmasked and masked, and Flower's SecAgg+, on the same updates, in one run.

*Unmasked* is the round of `bench.crypto`: quantise, encrypt, tag, add, verify, decrypt. *Masked* is the same round on
the codec of masked words, with every step of `crypto.masking`: keys, shares, masks, recovery, masks off, and the
signatures under them, verified by sites and server. Signatures under uploads and sums are as many in both, and are in
neither. *Flower* runs its own SecAgg+ client functions, and its server's arithmetic as in its workflow: no
ciphertexts, no signatures, at its default modulus of 2^32. It draws masks from a generator seeded with 32 bits.

Times are processor seconds of the whole round: every site's upload, the server, and one opening at each site (four are
measured and counted for all). The three ways are run one after the other, `repeats` times; a row has the medians, and
a ratio is the median of the ratios of one repeat each.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich import box
from rich.table import Table

from secure_triplay.bench.crypto import (
    DEFAULT_BITS,
    RANGE_STDS,
    UPDATE_STD,
    EncryptedRound,
    machine,
    update_of,
)
from secure_triplay.client.masking import MaskingSite
from secure_triplay.crypto.codec import Codec, Integers
from secure_triplay.crypto.identity import SIGNATURE_BYTES, SigningIdentity
from secure_triplay.crypto.masking import (
    MaskContext,
    MaskingParameters,
    MaskKeys,
    SealedShares,
    masked_codec,
    recover,
    remove_masks,
)
from secure_triplay.privacy.noise import NoiseSource

UNMASKED, MASKED, FLOWER = "unmasked", "masked", "Flower SecAgg+"
GRID = ((100_000, 8), (100_000, 32), (1_000_000, 32))
QUICK_GRID = ((5_000, 4),)
REPEATS = 3
OPENINGS = 4
"""How many of the sites' openings are measured, for all."""
GOALS = {"times_unmasked": 1.3, "upload_bytes_per_param": 4.2}
"""At 32 sites and 100,000 parameters or more, set before anything was measured."""
STEPS = ("encrypt", "add", "decrypt", "share", "mask", "agree", "recover", "unmask")
COLLUDING = DROPPING = 0.25

Result = TypeVar("Result")


class _Memory(dict[str, bytes]):
    """A store without a disk: what the vault costs is not part of the comparison."""

    def save(self, name: str, content: bytes) -> None:
        self[name] = content

    def load(self, name: str) -> bytes | None:
        return self.get(name)


class _Clock:
    """Processor seconds by step."""

    def __init__(self) -> None:
        self.cpu: dict[str, float] = {}

    def time(self, step: str, work: Callable[[], Result], times: int = 1) -> Result:
        """Do it a few times at most, and count what each took on average `times`."""
        done = min(times, OPENINGS)
        started = time.process_time()
        for _ in range(done):
            result = work()
        self.cpu[step] = self.cpu.get(step, 0.0) + times * (time.process_time() - started) / done
        return result

    def row(self) -> dict[str, Any]:
        steps = {f"{step}_cpu_s": round(seconds, 4) for step, seconds in self.cpu.items()}
        return {**steps, "round_cpu_s": round(sum(self.cpu.values()), 4)}


def run_masking_bench(
    *,
    grid: tuple[tuple[int, int], ...] | None = None,
    value_bits: int = DEFAULT_BITS,
    seed: int = 0,
    quick: bool = False,
) -> dict[str, Any]:
    """Measure the three ways for every (n_params, n_sites) of the grid; some minutes on one core, `quick` seconds.

    Raises:
        ConfigError: if `value_bits` do not fit the number of sites.
    """
    before = os.getloadavg()[0]
    rows: list[dict[str, Any]] = []
    repeats = 1 if quick else REPEATS
    for n_params, n_sites in grid or (QUICK_GRID if quick else GRID):
        updates = [update_of(site, n_params, seed) for site in range(n_sites)]
        limit = RANGE_STDS * UPDATE_STD
        plain = Codec.choose(n_sites=n_sites, value_bits=value_bits, n_params=n_params, limit=limit)
        masked = masked_codec(n_sites=n_sites, value_bits=value_bits, n_params=n_params, limit=limit)
        runs = [
            (_ours(plain, updates, None), _ours(masked, updates, _sites(n_sites)), _flower(plain, updates))
            for _ in range(repeats)
        ]
        unmasked = [run[0]["round_cpu_s"] for run in runs]
        for of_way in zip(*runs, strict=True):
            ratios = sorted(row["round_cpu_s"] / base for row, base in zip(of_way, unmasked, strict=True))
            times = {
                "times_unmasked": round(median(ratios), 3),
                "times_unmasked_range": [round(ratios[0], 3), round(ratios[-1], 3)],
            }
            rows.append({"n_params": n_params, "n_sites": n_sites, **_medians(of_way), **times})
    return {
        "suite": "masking",
        "quick": quick,
        "settings": {"value_bits": value_bits, "seed": seed, "colluding": COLLUDING, "dropping": DROPPING,
                     "repeats": repeats},
        "rows": rows,
        "goals": _goals(rows),
        "machine": machine(before),
    }  # fmt: skip


def _medians(rows: tuple[dict[str, Any], ...]) -> dict[str, Any]:
    """One row for several of one way: median times, the worst error, exact only where all are."""
    found = dict(rows[0])
    for name in found:
        if name.endswith("_cpu_s"):
            found[name] = round(median(row[name] for row in rows), 4)
    found["largest_error"] = max(row["largest_error"] for row in rows)
    if "integer_sums_exact" in found:
        found["integer_sums_exact"] = all(row["integer_sums_exact"] for row in rows)
    return found


def _goals(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Whether masked rows of 32 sites and 100,000 parameters or more meet what was asked; None without such rows."""
    asked = [
        row for row in rows if row["way"] == MASKED and row["n_sites"] >= 32 and row["n_params"] >= 100_000
    ]
    return {
        name: {"goal": goal, "worst": max(row[name] for row in asked) if asked else None,
               "met": all(row[name] <= goal for row in asked) if asked else None}
        for name, goal in GOALS.items()
    }  # fmt: skip


def plot_masking_bench(result: dict[str, Any], path: str | Path) -> None:
    """Processor time by step, as a multiple of the unmasked round's, and bytes up; SVG or PNG by suffix."""
    sizes = sorted({(row["n_params"], row["n_sites"]) for row in result["rows"]})
    figure = Figure(figsize=(12, 3.8), layout="constrained")
    panels = figure.subplots(1, len(sizes) + 1, squeeze=False)[0]
    names = {UNMASKED: "unmasked", MASKED: "masked", FLOWER: "Flower\nSecAgg+"}
    colours = dict(zip(STEPS, ("#0b6e4f", "#7fb69c", "#2f9e78", "#b04a3a", "#d98f4e", "#e3c565", "#8d6aa8",
                               "#5b7db1"), strict=True))  # fmt: skip
    for axes, size in zip(panels, sizes, strict=False):
        rows = [row for row in result["rows"] if (row["n_params"], row["n_sites"]) == size]
        base = rows[0]["round_cpu_s"]
        for place, row in enumerate(rows):
            bottom = 0.0
            for step in STEPS:
                height = row.get(f"{step}_cpu_s", 0.0) / base
                label = step if axes is panels[0] and place == 1 else None
                axes.bar(place, height, 0.7, bottom, color=colours[step], label=label)
                bottom += height
            axes.text(place, bottom, f"{row['times_unmasked']:.2f}x", ha="center", va="bottom", fontsize=9)
        axes.set_xticks(range(len(rows)), [names[row["way"]] for row in rows], fontsize=8)
        axes.set_title(f"{size[0]:,} parameters, {size[1]} sites", fontsize=10)
        axes.margins(y=0.12)
    last = [row for row in result["rows"] if (row["n_params"], row["n_sites"]) == sizes[-1]]
    bars = panels[-1].bar([names[row["way"]] for row in last], [row["upload_bytes_per_param"] for row in last],
                          0.7, color="#555555")  # fmt: skip
    panels[-1].bar_label(bars, fmt="{:.2f}", fontsize=9)
    panels[-1].set_title("bytes a parameter up", fontsize=10)
    panels[-1].tick_params(axis="x", labelsize=8)
    panels[0].set_ylabel("processor time, unmasked round = 1")
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, fontsize=8, ncols=len(STEPS), loc="outside lower center")
    figure.savefig(path)


def masking_table(result: dict[str, Any]) -> Table:
    """The rows of a result as a table for a terminal of 80 columns."""
    table = Table(
        title="What masks cost: bytes a parameter up, processor seconds of a whole round",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    for heading in ("way", "params", "sites", "up", "round", "times unmasked", "exact"):
        table.add_column(heading, justify="left" if heading == "way" else "right", no_wrap=True)
    for row in result["rows"]:
        exact = {True: "yes", False: "NO", None: "-"}[row.get("integer_sums_exact")]
        table.add_row(
            row["way"], f"{row['n_params'] / 1e6:g} M", str(row["n_sites"]),
            f"{row['upload_bytes_per_param']:.2f}", f"{row['round_cpu_s']:.2f} s",
            f"{row['times_unmasked']:.2f}", exact, end_section=row["way"] == FLOWER,
        )  # fmt: skip
    table.caption = "Flower SecAgg+ adds plain masked integers: no encryption, no signatures"
    return table


def _sites(n_sites: int) -> dict[str, MaskingSite]:
    signers = {f"site-{i:04d}": SigningIdentity.generate() for i in range(n_sites)}
    parameters = MaskingParameters.choose(
        n_sites, colluders=min(int(COLLUDING * n_sites), n_sites - 2), dropouts=int(DROPPING * n_sites)
    )
    roster = {name: signer.identity for name, signer in signers.items()}
    context = MaskContext("00" * 32, 0, 1, roster, parameters, bytes(32))
    return {name: MaskingSite(context, name, signer, _Memory()) for name, signer in signers.items()}


def _ours(
    codec: Codec, updates: list[NDArray[np.float32]], masking: dict[str, MaskingSite] | None
) -> dict[str, Any]:
    """One round of ours; with masks where there are sites to mask."""
    clock, noise, n = _Clock(), NoiseSource(), codec.n_sites
    names = tuple(f"site-{i:04d}" for i in range(n))
    ours = EncryptedRound(codec, names)
    sites = masking or {}
    keys = [clock.time("share", site.advertise) for site in sites.values()]
    sealed = [clock.time("share", lambda site=site: site.share(keys)) for site in sites.values()]  # type: ignore[misc]
    if masking is not None:
        clock.time("share", lambda: _server_checks(sites[names[0]].context, keys, sealed))
    masked_with, upload_bytes, exact = {}, 0, np.zeros(codec.n_params, np.int64)
    for name, update in zip(names, updates, strict=True):
        integers: Integers = clock.time("encrypt", lambda update=update: codec.quantise(update, noise))  # type: ignore[misc]
        exact += integers
        if masking is not None:
            to_me = {one.site: one.sealed[name] for one in sealed if name in one.sealed}
            integers, masked_with[name] = clock.time(
                "mask", lambda s=sites[name], to_me=to_me, own=integers: s.mask(codec, names, to_me, own)  # type: ignore[misc]
            )  # fmt: skip
        sent = clock.time("encrypt", partial(ours.send, integers, name))
        upload_bytes = sent.n_bytes
        clock.time("add", partial(ours.add, sent))
    sums = clock.time("decrypt", ours.receive, times=n)
    more = 0
    if masking is not None:
        for site in sites.values():
            clock.time("agree", lambda s=site: s.agree(names, masked_with))  # type: ignore[misc]
        revealed = [clock.time("agree", lambda s=s: s.reveal(names, names)) for s in sites.values()]  # type: ignore[misc]
        context = sites[names[0]].context
        by_site = {one.site: one for one in keys}
        recovered = clock.time("recover", lambda: recover(context, by_site, names, names, revealed))
        masked_sums = sums
        sums = clock.time(
            "unmask",
            lambda: remove_masks(context, codec, by_site, names, names, recovered, masked_sums),
            times=n,
        )
        shares = sum(len(one) for one in sealed[0].sealed.values()) + sum(
            map(len, revealed[0].shares.values())
        )
        more = shares + 3 * 32 + 32 + 3 * SIGNATURE_BYTES  # keys, the hash of members, signatures
    decoded = clock.time("decrypt", lambda: codec.mean(sums, n), times=n)
    mean = np.mean(updates, axis=0, dtype=np.float64)
    return {
        "way": UNMASKED if masking is None else MASKED,
        "fields": codec.fields, "field_bits": codec.field_bits,
        "upload_bytes_per_param": round((upload_bytes + more) / codec.n_params, 4), "masking_bytes": more,
        "more_messages_a_site": 0 if masking is None else 3,  # keys, shares, what is revealed
        "integer_sums_exact": bool(np.array_equal(sums, exact)),
        "largest_error": float(np.abs(decoded - mean).max()), **clock.row(),
    }  # fmt: skip


def _server_checks(context: MaskContext, keys: list[MaskKeys], sealed: list[SealedShares]) -> None:
    """What a server verifies before it passes keys and shares on."""
    for one in keys:
        one.verify(context)
        one.require_usable()
    for shares in sealed:
        shares.verify(context, context.names)


def _flower(codec: Codec, updates: list[NDArray[np.float32]]) -> dict[str, Any]:
    """SecAgg+ as flwr 1.41 runs it, on a complete graph as ours up to 50 sites."""
    from flwr.common import bytes_to_ndarray, ndarrays_to_parameters
    from flwr.common.secure_aggregation.crypto.shamir import combine_shares
    from flwr.common.secure_aggregation.ndarrays_arithmetic import (
        factor_extract,
        get_parameters_shape,
        parameters_addition,
        parameters_mod,
        parameters_subtraction,
    )
    from flwr.common.secure_aggregation.quantization import dequantize
    from flwr.common.secure_aggregation.secaggplus_constants import Key
    from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen

    # the package exports a function of the module's name
    client = import_module("flwr.client.mod.secure_aggregation.secaggplus_mod")
    clock, n = _Clock(), len(updates)
    levels, modulus = 2 * codec.levels, 2**32
    threshold = (n + min(int(COLLUDING * n), n - 2)) // 2 + 1
    settings = {
        Key.SAMPLE_NUMBER: n, Key.SHARE_NUMBER: n, Key.THRESHOLD: threshold, Key.CLIPPING_RANGE: codec.limit,
        Key.TARGET_RANGE: levels, Key.MOD_RANGE: modulus, Key.MAX_WEIGHT: 1.0,
    }  # fmt: skip
    states = {i: client.SecAggPlusState() for i in range(1, n + 1)}
    public: dict[str, Any] = {}
    for nid, state in states.items():
        state.nid = nid
        sent = clock.time("share", lambda state=state: client._setup(state, settings))  # type: ignore[misc]
        public[str(nid)] = (sent[Key.PUBLIC_KEY_1], sent[Key.PUBLIC_KEY_2])
    inbox: dict[int, dict[str, list[Any]]] = {nid: {"from": [], "what": []} for nid in states}
    share_bytes = 0
    for nid, state in states.items():
        sent = clock.time("share", lambda state=state: client._share_keys(state, public))  # type: ignore[misc]
        share_bytes = sum(map(len, sent[Key.CIPHERTEXT_LIST]))
        for to, what in zip(sent[Key.DESTINATION_LIST], sent[Key.CIPHERTEXT_LIST], strict=True):
            inbox[to]["from"].append(nid)
            inbox[to]["what"].append(what)
    total: list[NDArray[Any]] | None = None
    upload_bytes = 0
    for (nid, state), update in zip(states.items(), updates, strict=True):
        record = {Key.CIPHERTEXT_LIST: inbox[nid]["what"], Key.SOURCE_LIST: inbox[nid]["from"]}
        parameters = ndarrays_to_parameters([update])
        sent = clock.time(
            "mask", lambda s=state, r=record, p=parameters: client._collect_masked_vectors(s, r, 1, p)  # type: ignore[misc]
        )  # fmt: skip
        upload_bytes = sum(map(len, sent[Key.MASKED_PARAMETERS]))

        def add(sent: Any = sent, so_far: list[NDArray[Any]] | None = total) -> list[NDArray[Any]]:
            arrived = [bytes_to_ndarray(content) for content in sent[Key.MASKED_PARAMETERS]]
            return arrived if so_far is None else parameters_addition(so_far, arrived)

        total = clock.time("add", add)
    request = {Key.ACTIVE_NODE_ID_LIST: list(states), Key.DEAD_NODE_ID_LIST: []}
    answers = [clock.time("agree", lambda s=s: client._unmask(s, request)) for s in states.values()]  # type: ignore[misc]
    shares: dict[int, list[bytes]] = {nid: [] for nid in states}
    for answer in answers:
        for nid, share in zip(answer[Key.NODE_ID_LIST], answer[Key.SHARE_LIST], strict=True):
            shares[nid].append(share)
    more = share_bytes + sum(map(len, answers[0][Key.SHARE_LIST])) + sum(map(len, public["1"]))
    recovered = clock.time("recover", lambda: [combine_shares(shares[nid]) for nid in states])

    def unmask() -> NDArray[np.float64]:
        rest = total
        for seed in recovered:
            mask = pseudo_rand_gen(seed, modulus, get_parameters_shape(rest))
            rest = parameters_subtraction(rest, mask)
        factor, rest = factor_extract(parameters_mod(rest, modulus))
        mean = dequantize(rest, codec.limit, levels)[0] - (n - 1) * codec.limit
        result: NDArray[np.float64] = mean * (levels / factor)
        return result

    decoded = clock.time("unmask", unmask)
    mean = np.mean(updates, axis=0, dtype=np.float64)
    return {
        "way": FLOWER, "upload_bytes_per_param": round((upload_bytes + more) / codec.n_params, 4),
        "masking_bytes": more, "largest_error": float(np.abs(decoded - mean).max()), **clock.row(),
    }  # fmt: skip
