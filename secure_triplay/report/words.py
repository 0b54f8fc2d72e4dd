"""How figures and guarantees are worded, the same in the page, the card and the closing table.

Figures are rounded so that they never flatter: epsilon is rounded up, and a gain smaller than the test
set can tell is called that.
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

from secure_triplay.privacy.shares import holds_against
from secure_triplay.report.summary import SharedNoiseMade, SitePrivacy, Summary

_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


PERSONAL = (
    "each site's own second adapter, made of its own updates. It costs no privacy beyond ε, "
    "lies in sites/NAME/personal and is never sent."
)
"""What a figure of a personal adapter is, after its name and a colon."""


class Limit(NamedTuple):
    """One thing that a run does not protect against: a short title, and why."""

    title: str
    text: str


def percent(value: float) -> str:
    """`74.6 %` of 0.746."""
    return f"{100 * value:.1f} %"


def points(change: float) -> str:
    """`+8.7` of 0.087: percentage points with their sign."""
    shown = f"{100 * change:+.1f}"
    return "0.0" if float(shown) == 0 else shown.replace("-", "−")


def size(count: float) -> str:
    """`69.2 KB` of 69,184 bytes (1 KB is 1,000 bytes)."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if count >= 0.9995 * scale:
            return f"{count / scale:.3g} {unit}" if count < 999.5 * scale else f"{count / scale:,.0f} {unit}"
    return f"{count:,.0f} bytes"


def duration(seconds: float) -> str:
    """`0.42 s`, `12.3 s`, `2 min 12 s`."""
    if seconds >= 99.95:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes} min {rest} s"
    if seconds >= 9.995:
        return f"{seconds:.1f} s"
    return f"{seconds:.2f} s" if seconds >= 0.0995 or seconds == 0 else f"{1000 * seconds:.2g} ms"


def epsilon(value: float | None) -> str:
    """Epsilon with two decimals, rounded up; `unbounded` where there is none."""
    return "unbounded" if value is None else f"{math.ceil(100 * value - 1e-6) / 100:.2f}"


def power(value: float | None) -> str:
    """`5×10⁻⁶` of 5e-6."""
    if value is None:
        return "none"
    mantissa, exponent = f"{value:.3e}".split("e")
    digits = mantissa.rstrip("0").rstrip(".")
    tail = "10" + str(int(exponent)).translate(_SUPERSCRIPT)
    return tail if digits == "1" else f"{digits}×{tail}"


def e_to(epsilon: float) -> str:
    """What e^epsilon is: `= 20.1` of 3, `= 2,981` of 8; from 10^15 on a bound for it, `< 10³⁴⁸` of 800."""
    tens = epsilon / math.log(10)
    if tens >= 15:
        return "< 10" + str(math.floor(tens) + 1).translate(_SUPERSCRIPT)
    return f"= {math.e**epsilon:,.3g}" if epsilon < 6.9 else f"= {math.e**epsilon:,.0f}"


def moment(text: str) -> str:
    """`2026-11-23 10:22 UTC` of an ISO time in UTC; any other text as it is."""
    return re.sub(r"^(\d{4}-\d\d-\d\d)T(\d\d:\d\d)\S*?(\+00:00|Z)$", r"\1 \2 UTC", text)


def standard_error(accuracy: float, records: int) -> float:
    """Standard error of an accuracy measured on `records` records, and not 0 where all, or none, are right.

    Four more records, half of them right, stand for what so few cannot show (Agresti and Coull 1998).
    """
    n = records + 4
    p = (accuracy * records + 2) / n
    return math.sqrt(p * (1 - p) / n)


def half_width(accuracy: float, records: int | None) -> float | None:
    """Half of the 95 % interval of an accuracy measured on `records` records (Agresti and Coull 1998)."""
    return None if records is None else 1.96 * standard_error(accuracy, records)


def spent(summary: Summary) -> SitePrivacy:
    """The entry of the site that spent most: what a statement about every site may claim."""
    return max(summary.privacy, key=lambda entry: (entry.epsilon is None, entry.epsilon or 0.0))


def guarantee(entry: SitePrivacy) -> str:
    """The privacy statement of one site's entry in exact words; epsilon and delta must be there.

    Differential privacy by Poisson-subsampled Gaussian steps under add/remove (Abadi 2016, section 3;
    Mironov, Talwar and Zhang 2019).
    """
    unit = entry.unit
    rest = f"clipped to an L2 norm of {entry.l2_clip_norm:g}" if entry.l2_clip_norm else "clipped in L2 norm"
    noise = f"Gaussian noise of {entry.noise_multiplier:.4g} times that norm"
    if (shared := entry.shared_noise) is not None:
        noise = (
            f"Skellam noise of {entry.noise_multiplier:.4g} times that norm (after rounding) in the sums of sites, "
            f"made of shares of which any {shared.honest_shares} are enough, against no more than {shared.colluders} "
            f"colluding site{'s' * (shared.colluders != 1)}; one share by itself gives epsilon "
            f"{epsilon(shared.epsilon_alone)}"
        )
    return (
        f"({epsilon(entry.epsilon)}, {power(entry.delta)})-differentially private for adding or removing one "
        f"{unit} of that site: {entry.steps} step{'s' * (entry.steps != 1)}, each on a Poisson "
        f"sample at rate {entry.sampling_rate:g}, per-{unit} gradients {rest}, {noise}; composed by {entry.accountant}"
    )


def headline(summary: Summary) -> tuple[str, ...]:
    """The result in a few sentences: accuracy, privacy, bytes."""
    accuracy, upload = summary.accuracy, summary.upload
    gain = accuracy.final - accuracy.baseline
    wide = half_width(accuracy.final, accuracy.test_records)
    verb = "rose" if gain > 0 else "fell" if gain < 0 else "stayed"
    on = (
        f" on {accuracy.test_records:,} public test images"
        if accuracy.test_records
        else " on the public test set"
    )
    sites = len(summary.federation.sites)
    first = (
        f"Accuracy{on} {verb} from {percent(accuracy.baseline)} to {percent(accuracy.final)} "
        f"({points(gain)} points) in {summary.rounds} round{'s' * (summary.rounds != 1)} "
        f"at {sites} site{'s' * (sites != 1)}."
    )
    lines = [first]
    if wide is not None and abs(gain) < wide:
        lines.append(f"That is less than this test set can tell apart (±{100 * wide:.1f} points).")
    most = spent(summary)
    if summary.dp == "off":
        lines.append("It ran without differential privacy: what the adapter reveals is not bounded.")
    else:
        lines.append(
            f"No site spent more than ε = {epsilon(most.epsilon)}"
            + (f" of {most.epsilon_budget:g}" if most.epsilon_budget else "")
            + f" (δ = {power(most.delta)}, per {most.unit} and site)."
        )
    ratio = upload.bytes_per_site_per_round / upload.plaintext_fp32_bytes
    lines.append(
        f"An encrypted update took {size(upload.bytes_per_site_per_round)}, "
        f"{ratio:.2f} times its size as plain fp32; the server held no key to open it."
    )
    if summary.federation.uploads_refused:
        refused = summary.federation.uploads_refused
        lines.append(f"The server refused {refused} upload{'s' * (refused != 1)}; the sums went on without.")
    return tuple(lines)


def limits(summary: Summary, *, figures_by_site: bool = True) -> tuple[Limit, ...]:
    """What the run does not protect against, most serious first.

    `figures_by_site` says whether the page that lists them shows figures of single sites.
    """
    on, unit = summary.dp == "on", spent(summary).unit
    has_figures = bool(summary.accuracy.per_site or summary.federation.records_per_site)
    found = [
        None if on else _NO_DP,
        _coalition(summary, on),
        _sharers(spent(summary).shared_noise),
        _peers(len(summary.federation.sites), on),
        _more_than_one(unit) if on else None,
        _OTHER_RUNS if on else None,
        _SOFTWARE if on else None,
        _MALICIOUS,
        _UPLOAD_TIME,
        _ONE_MACHINE,
        Limit("Figures of single sites", summary.harness_only.note)
        if figures_by_site and has_figures
        else None,
    ]
    return tuple(limit for limit in found if limit is not None)


_NO_DP = Limit(
    "Anything that the adapter or the sums reveal",
    "Differential privacy was off. Images and membership can be recovered from updates and adapters; "
    "encryption hides single updates from the server, and nothing more.",
)


def _coalition(summary: Summary, dp_on: bool) -> Limit:
    """Who together may read a single update."""
    sites, colluders = len(summary.federation.sites), summary.federation.colluders
    if colluders is None:
        return Limit("The server together with one site", _SHARED_KEY + _ONLY_DP[dp_on])
    more = f"{colluders + 1} site{'s' * (colluders != 0)}"
    return Limit(
        f"The server together with {more}",
        f"Updates were masked: the server and up to {colluders} of the {sites} sites together learn the sums of the "
        f"others, and no single update. With {colluders + 1} or more it may read every update. {_ONLY_DP_THEM[dp_on]}",
    )


_SHARED_KEY = (
    "All sites share one CKKS key. The server alone can open nothing, but with the key of any one site "
    "it can read every site's update. "
)
_ONLY_DP = {
    True: "Against that pair only differential privacy protects.",
    False: "Here nothing protects against that pair.",
}
_ONLY_DP_THEM = {
    True: "Against these only differential privacy protects.",
    False: "Here nothing protects against these.",
}
_OTHER_RUNS = Limit(
    "What other runs revealed",
    "ε counts this run alone. Earlier runs on the same records, trial runs and the choice of settings spend "
    "more, and are not counted here.",
)
_SOFTWARE = Limit(
    "A mistake in the software",
    "ε is computed from the settings that training ran with. It holds if the software does what it says; "
    "this run did not measure that.",
)
_MALICIOUS = Limit(
    "A malicious site",
    "A site can send a poisoned update, and one that cheats in encoding can disturb neighbouring values of "
    "the sum. Signatures say who sent an update, not that it is a good one.",
)
_UPLOAD_TIME = Limit(
    "What clocks tell",
    "Messages leave when they are ready. Whoever sees when they come, the server included, can guess how many "
    "records were sampled in a round, and roughly how many images a site measures.",
)
_ONE_MACHINE = Limit(
    "The machine that simulated it",
    "All sites and the server ran on one computer. Whoever controls it has seen everything; separation is "
    "real only in a real federation.",
)


def _sharers(shared: SharedNoiseMade | None) -> Limit | None:
    if shared is None:
        return None
    return Limit(
        "Sites that put their shares of the noise together",
        f"{holds_against(shared.honest_shares, shared.colluders)} Against more, a site's own share is left: "
        f"ε {epsilon(shared.epsilon_alone)} by itself.",
    )


def _more_than_one(unit: str) -> Limit:
    who = "A family" if unit == "patient" else "Somebody with several records there"
    return Limit(
        f"More than one {unit} at one site",
        f"ε bounds what is learnt about one {unit} at one site. {who}, or known to several sites, is "
        "protected less: the budgets add up.",
    )


def _peers(sites: int, dp_on: bool) -> Limit:
    left = " Differential privacy is what limits it." if dp_on else " Nothing limits it here."
    if sites == 1:
        return Limit("Whoever holds the key", "With one site, the sum is that site's update." + left)
    if sites == 2:
        return Limit(
            "The other site", "With two sites, each gets the other's update by subtracting its own." + left
        )
    return Limit(
        "A curious site",
        "Every site decrypts every sum, and can subtract its own update. With few sites, what is left says "
        "much about each of the others." + left,
    )
