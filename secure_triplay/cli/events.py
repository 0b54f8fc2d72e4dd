"""Events of a running federation as lines for a person."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.text import Text

_QUIET = frozenset(
    {"encoding", "received", "train", "witness", "unmask", "members", "stopped", "started", "waiting"}
)


def say(out: Console, event: dict[str, Any]) -> None:
    """One line for an event that tells a person something."""
    kind = event["event"]
    if kind in _QUIET:
        return
    words: dict[str, Callable[[], str]] = {
        "operator": lambda: str(event["text"]),
        "fetching": lambda: str(event["text"]),
        "starting": lambda: "the worker starts",
        "loaded": lambda: "data and model are loaded",
        "ready": lambda: "ready; waiting for the server",
        "epoch": lambda: f"key epoch {event['epoch']} with {event['sites']} sites",
        "keys": lambda: f"key {event['key_id'][:16]} is here",
        "offer": lambda: f"{event['site']} offered a key",
        "sealed": lambda: f"{event['site']} made the epoch's key and sealed it to every site",
        "uploaded": lambda: f"round {event['round']}: update sent",
        "applied": lambda: f"round {event['round']}: sum verified, opened and applied",
        "measured": lambda: f"round {event['round']}: {_percent(event)} of the public test set",
        "declined": lambda: (
            f"DECLINED: {event['what']} ({event['where']})"
            if "what" in event  # a site's own; the server learns no reason, and notes what it did not accept
            else f"an answer in the key ceremony was not accepted, and is asked for again: {event['reason']}"
        ),
        "closed": lambda: f"round {event['round']} closed over {', '.join(event['survivors'])}",
        "failed": lambda: (
            f"round {event['round']} failed: "
            + (f"only {', '.join(event['survivors'])} came" if event["survivors"] else "nobody came")
        ),
        "refused": lambda: (
            f"round {event['round']} is refused: {event['what']}"
            if "what" in event
            else f"refused from {event['client']}: {event['reason']} ({event['bytes']} bytes)"
        ),
        "resting": lambda: (
            f"round {event['round']}: {event['declined']} sites declined, and are asked again in {event['again_s']} s"
        ),
        "missing": lambda: (
            f"waiting for {', '.join(event['sites'])}: see whether they run, or `study remove` them"
        ),
        "opened": lambda: f"{event['site']} holds the epoch's key" if "site" in event else "",
        "saved": lambda: "the study has ended; the adapter is written",
        "finished": lambda: "finished",
    }
    if kind not in words:
        return
    text = words[kind]()
    if not text:
        return
    clock = time.strftime("%H:%M:%S", time.localtime(event.get("time", time.time())))
    out.print(Text(f"{clock}  {text}"))


def _percent(event: dict[str, Any]) -> str:
    return f"{100 * event['public_correct'] / max(1, event['public_total']):.1f} %"
