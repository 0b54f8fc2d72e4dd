"""What a person sees while a study runs: one line a site, one bar of rounds."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from secure_triplay.config import Study

STEPS = {
    "starting": "starting",
    "loaded": "model loaded",
    "keys": "has the key",
    "uploaded": "update sent",
    "applied": "sum opened",
    "measured": "measured",
    "finished": "finished",
}


class Progress:
    """Turns a run's events into bars; a context manager."""

    def __init__(self, study: Study, console: Console) -> None:
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[now]}"),
            console=console,
            refresh_per_second=4,
        )
        self._rounds = self._bars.add_task(
            "rounds", total=study.training.rounds, now="fetching weights and data"
        )
        self._sites = {
            site.name: self._bars.add_task(f"  {site.name}", total=study.training.rounds, now="waiting")
            for site in study.sites
        }
        self._applied = dict.fromkeys(self._sites, 0)

    def __enter__(self) -> Progress:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def notify(self, site: str, event: dict[str, Any]) -> None:
        """Show one event of a site, or of the study as a whole."""
        name = event["event"]
        if site not in self._sites:
            self._bars.update(self._rounds, now=event.get("text", name))
            return
        task = self._sites[site]
        if name == "encoding":
            self._bars.update(task, now=f"frozen blocks: {event['done']:,} of {event['total']:,} images")
        elif name == "applied":
            self._applied[site] = event["round"]
            self._bars.update(task, completed=event["round"])
            self._bars.update(self._rounds, completed=min(self._applied.values()), now="")
        if name in STEPS:
            accuracy = (
                f", {event['public_correct'] / event['public_total']:.1%}"
                if event.get("public_total")
                else ""
            )
            self._bars.update(task, now=STEPS[name] + accuracy)
