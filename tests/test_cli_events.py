"""Whatever a site or a server notes of itself while it runs can be said to a person: no note ends the command."""

from __future__ import annotations

import ast
import io

import pytest
from rich.console import Console

from secure_triplay.cli.events import say

SAMPLES = {
    "round": 3, "epoch": 2, "bytes": 10, "declined": 2, "again_s": 600, "public_correct": 1, "public_total": 2,
    "survivors": ["north", "east"], "key_id": 32 * "ab",
}  # fmt: skip
"""Values of what is no text."""


def noted(root) -> set[tuple[str, tuple[str, ...]]]:
    """(kind, names of its fields) of everything that parties note, by the calls that do."""
    found = set()
    for part in ("client", "deploy", "server"):
        for path in (root / "secure_triplay" / part).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if (
                    not isinstance(node, ast.Call)
                    or not node.args
                    or not isinstance(node.args[0], ast.Constant)
                ):
                    continue
                name = getattr(node.func, "attr", getattr(node.func, "id", ""))
                if name in ("note", "_note", "write") and isinstance(node.args[0].value, str):
                    fields = tuple(sorted(keyword.arg for keyword in node.keywords if keyword.arg))
                    found.add((node.args[0].value, fields))
    return found


def said(event: dict) -> str:
    out = io.StringIO()
    say(Console(file=out, width=200), event)
    return out.getvalue()


def test_everything_that_a_party_notes_can_be_said(root):
    kinds = noted(root)
    assert {"declined", "refused", "missing", "failed"} <= {kind for kind, _ in kinds}
    for kind, fields in kinds:
        values = {name: SAMPLES.get(name, "north") for name in fields if name != "sites"}
        for sites in (["north"], 3) if "sites" in fields and kind != "missing" else (["north"],):
            said({"event": kind, "time": 0.0, **values, **({"sites": sites} if "sites" in fields else {})})


@pytest.mark.parametrize(
    ("event", "words"),
    [
        (
            {"event": "declined", "what": "not this hour", "where": "policy"},
            "DECLINED: not this hour (policy)",
        ),
        ({"event": "declined", "bytes": 9, "reason": "another study"}, "asked for again: another study"),
        (
            {"event": "refused", "client": "node 7", "reason": "replay", "bytes": 9},
            "refused from node 7: replay (9",
        ),
        (
            {"event": "refused", "round": 4, "what": "the budget is spent"},
            "round 4 is refused: the budget is spent",
        ),
    ],
)
def test_one_word_of_site_and_server_is_told_apart(event, words):
    assert words in said(event)
