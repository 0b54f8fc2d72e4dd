"""The closing table of a run for a terminal of 80 columns."""

from __future__ import annotations

from rich import box
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from secure_triplay.report import words
from secure_triplay.report.summary import SiteAccuracy, SitePrivacy, Summary

MOST_SITES = 10
NAME_WIDTH = 27
_PERSONAL_WIDTH = 11
"""Of a further column with its margin: names are cut for it, figures never are."""


def closing_table(summary: Summary) -> Group:
    """Accuracy before and after, epsilon and bytes by site, and where the time went; 80 columns wide at most.

    Names are shown as they are: markup in them does nothing.
    """
    parts: list[RenderableType] = []
    if summary.dp == "off":
        parts.append(
            Panel(
                Text(
                    "UNSAFE: differential privacy was off. "
                    "This adapter may reveal the images it was trained on."
                ),
                style="bold red",
                box=box.HEAVY,
                expand=False,
            )
        )
    parts += [_sites(summary), _below(summary), Text(), _time(summary)]
    return Group(*parts)


def _sites(summary: Summary) -> Table:
    sites = len(summary.federation.sites)
    heading = f"{summary.study}: {summary.rounds} rounds, {sites} sites, seed {summary.seed}"
    table = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, title=Text(heading, style="bold"), title_justify="left"
    )
    accuracy, own = summary.accuracy, summary.accuracy.has_personal
    width = NAME_WIDTH - _PERSONAL_WIDTH * own
    table.add_column("", max_width=width, min_width=14, no_wrap=True, overflow="ellipsis")
    titles = ("personal", "ε spent", "up/round") if own else ("ε spent", "upload/round")
    for title in ("before", "after", "change", *titles):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_row(
        Text("public test set", style="bold"),
        *_accuracy(accuracy.baseline, accuracy.final),
        *[""] * (2 + own),
        end_section=True,
    )
    for entry in _shown(summary):
        site = accuracy.per_site.get(entry.site)
        worst = accuracy.worst_site is not None and entry.site == accuracy.worst_site.name
        name = Text("worst: " if worst else "", style="bold").append(entry.site, style="not bold")
        spent = Text(words.epsilon(entry.epsilon), style="bold red" if entry.epsilon is None else "")
        figures: tuple[Text, ...] = _accuracy(site.baseline, site.final) if site else (Text("–"),) * 3
        if own:
            figures += (_personal(site),)
        table.add_row(name, *figures, spent, words.size(summary.upload.bytes_per_site_per_round))
    return table


def _below(summary: Summary) -> Text:
    most, upload = words.spent(summary), summary.upload
    lines = []
    if len(summary.privacy) > MOST_SITES:
        lines.append(f"And {len(summary.privacy) - MOST_SITES} more sites in summary.json.")
    if summary.accuracy.per_site:
        lines.append("By site: on records kept back there, read by the simulation; they never travelled.")
    if summary.accuracy.has_personal:
        lines.append(f"Personal: {words.PERSONAL}")
    if summary.dp == "on":
        budget = f" of {most.epsilon_budget:g}" if most.epsilon_budget else ""
        lines.append(
            f"ε: at most {words.epsilon(most.epsilon)}{budget}, δ = {words.power(most.delta)}, "
            f"per {most.unit} and site, "
            f"{most.neighbouring}, {most.accountant}."
        )
    of_plain = upload.bytes_per_site_per_round / upload.plaintext_fp32_bytes
    lines.append(
        f"Upload: {upload.bytes_per_param:.2f} bytes a parameter, {of_plain:.2f} of plain fp32; "
        f"download: {upload.download_bytes_per_param:.2f}."
        + (" A ciphertext is no smaller for carrying few values." if of_plain > 1 else "")
    )
    published = summary.accuracy.published
    if published is not None:
        lines.append(
            f"Published: {published.correct:.0f} of {published.records:.0f} held-back records right, "
            f"each ± {published.noise_std:.0f} (one standard deviation of noise)."
        )
    return Text("\n".join(lines), style="dim")


def _time(summary: Summary) -> Table:
    timing = summary.timing
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("where the time went")
    table.add_column("seconds", justify="right", no_wrap=True)
    table.add_column("of training", justify="right", no_wrap=True)
    work = {
        "training, all sites": timing.train_s,
        "encode and encrypt, all sites": timing.encode_encrypt_s,
        "server's sum": timing.server_sum_s,
        "decrypt and apply, all sites": timing.decrypt_apply_s,
    }
    for label, seconds in work.items():
        share = words.percent(seconds / timing.train_s) if timing.train_s else "–"
        table.add_row(label, f"{seconds:.2f}", share)
    table.add_section()
    table.add_row("whole run, elapsed", f"{timing.wall_s:.2f}", "")
    if timing.setup_s:
        table.add_row("of it before round 1", f"{timing.setup_s:.2f}", "")
    return table


def _accuracy(before: float, after: float) -> tuple[Text, Text, Text]:
    style = "green" if after > before else "red" if after < before else ""
    return (
        Text(words.percent(before)),
        Text(words.percent(after), style="bold"),
        Text(words.points(after - before), style=style),
    )


def _personal(site: SiteAccuracy | None) -> Text:
    if site is None or site.personal is None:
        return Text("–")
    return Text(words.percent(site.personal), style="bold" if site.personal > site.final else "")


def _shown(summary: Summary) -> list[SitePrivacy]:
    """Every site of a small federation; of a large one the first few, and the worst."""
    entries = list(summary.privacy)
    if len(entries) <= MOST_SITES:
        return entries
    worst = summary.accuracy.worst_site
    named = [entry for entry in entries if worst is not None and entry.site == worst.name]
    return named + [entry for entry in entries if entry not in named][: MOST_SITES - len(named)]
