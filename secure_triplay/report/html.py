"""Pages that stand alone: one HTML file, no script, nothing fetched, every value escaped.

`base.html.j2` is the frame of every report (run, attack, compliance export). A page extends it and fills
the blocks `title`, `heading`, `notice` and `content`; `page.css` styles plain HTML.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import BaseLoader, Environment, StrictUndefined, TemplateNotFound
from markupsafe import Markup

from secure_triplay.report import words
from secure_triplay.report.summary import write_text

_TEMPLATES = resources.files("secure_triplay.report") / "templates"


@dataclass(frozen=True)
class Key:
    """One entry of a plot's legend; `colour` is a CSS variable's name, `dash` an SVG dash pattern."""

    label: str
    colour: str
    dash: str = ""


@dataclass(frozen=True)
class Plot:
    """A drawing on a page, and in words what it shows."""

    title: str
    caption: str
    svg: Markup
    legend: tuple[Key, ...] = ()


class _Packaged(BaseLoader):
    """Templates out of the package, however it is installed."""

    def get_source(self, environment: Environment, template: str) -> tuple[str, str | None, None]:
        try:
            return (_TEMPLATES / template).read_text(encoding="utf-8"), template, None
        except OSError as error:
            raise TemplateNotFound(template) from error


def environment() -> Environment:
    """Jinja with escaping always on: site, class and study names are text that users chose."""
    made = Environment(
        loader=_Packaged(),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters |= {
        "percent": words.percent,
        "points": words.points,
        "size": words.size,
        "duration": words.duration,
        "epsilon": words.epsilon,
        "e_to": words.e_to,
        "power": words.power,
        "moment": words.moment,
        "md": markdown_text,
        "code": code_text,
        "whole": figures_whole,
    }
    # Only the package's own stylesheet is marked safe, and it never holds a user's text.
    made.globals["stylesheet"] = Markup((_TEMPLATES / "page.css").read_text(encoding="utf-8"))  # noqa: S704
    return made


def render(template: str, **values: Any) -> str:
    """The text of a packaged template filled with `values`, each escaped unless it is Markup."""
    return environment().get_template(template).render(**values)


def write_page(path: str | Path, template: str, **values: Any) -> Path:
    """Render a page and write it whole or not at all. Raises RunError."""
    return write_text(Path(path), render(template, **values))


def figures_whole(text: str) -> str:
    """The text with each figure held together with its sign or unit where lines break."""
    return re.sub(
        r"(?<=\d) (?=%|[KMG]B\b|bytes\b|s\b|min\b)|(?<=[εδ]) (?== )|(?<==) ", "\N{NO-BREAK SPACE}", text
    )


def markdown_text(value: object) -> Markup:
    """A user's text for Markdown: no markup of HTML or Markdown in it works, and it stays on one line."""
    flat = " ".join(str(value).split())
    marked = "".join("\\" + sign if sign in r"\`*_[]#|~$!" else sign for sign in flat)
    # Markdown needs no quotes escaped, and readers of the plain file are spared `&#39;`.
    return Markup(marked.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;"))  # noqa: S704


def code_text(text: str) -> Markup:
    """Lines for a fenced block of Markdown, where nothing is decoded; a fence inside cannot close it."""
    return Markup(text.replace("```", "` ` `"))  # noqa: S704  (between fences, Markdown shows it as it is)
