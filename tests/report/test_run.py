from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from secure_triplay.errors import RunError
from secure_triplay.report.html import environment
from secure_triplay.report.plots import run_plots
from secure_triplay.report.run import write_run_report
from secure_triplay.report.summary import Summary

CHROMIUM = shutil.which("chromium")
FLAGS = [
    "--no-sandbox",
    "--headless=new",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
ATTACK = "<script>document.title='owned'</script><img src=x onerror=alert(1)>\"'--></style></svg>"


class _Page(HTMLParser):
    """Elements, attributes and ids of a page, as an HTML parser sees them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs


def _page(summary: Summary, folder: Path) -> str:
    return write_run_report(summary, folder / "report.html").read_text(encoding="utf-8")


def test_the_page_asks_for_nothing_and_runs_nothing(summary: Summary, tmp_path: Path) -> None:
    text = _page(summary, tmp_path)
    page = _Page(text)
    assert not {"script", "iframe", "object", "embed", "base", "form"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    addresses = [value for name, value in page.attributes if name in ("src", "href", "xlink:href", "action")]
    assert all(value is not None and value.startswith(("#", "data:")) for value in addresses)
    assert "//" not in re.sub(r"/\*.*?\*/", "", text)
    assert "@import" not in text
    assert "default-src 'none'" in text


def test_no_two_elements_share_an_id(summary: Summary, tmp_path: Path) -> None:
    ids = [value for name, value in _Page(_page(summary, tmp_path)).attributes if name == "id"]
    assert len(ids) == len(set(ids))


def test_the_page_says_result_privacy_limits_and_provenance_in_this_order(
    summary: Summary, tmp_path: Path
) -> None:
    text = _page(summary, tmp_path)
    order = [
        "Accuracy on 2,000 public test images rose",
        "Accuracy by round",
        "ε spent by round",
        "Bytes on the wire",
        "Where the time went",
        "The guarantee in words",
        "What this run does not protect against",
        summary.config_sha256,
        "2.14.1",
    ]
    assert sorted(order, key=text.index) == order
    assert "The server together with one site" in text
    assert "UNSAFE" not in text


def test_without_dp_the_page_begins_with_the_warning_and_claims_nothing(
    unsafe: Summary, tmp_path: Path
) -> None:
    text = _page(unsafe, tmp_path)
    assert text.index("UNSAFE: differential privacy was off") < text.index("Accuracy on")
    assert "differentially private" not in text
    assert "ε spent by round" not in text


def test_no_name_becomes_markup(summary: Summary, content: dict[str, Any], tmp_path: Path) -> None:
    text = json.dumps(content)
    for name in ("north", "demo", "Apache-2.0", "2.14.1", "dp-accounting PLD", content["federation"]["data"]):
        text = text.replace(json.dumps(name), json.dumps(ATTACK + name))
    clean, attacked = _page(summary, tmp_path), _page(Summary.model_validate_json(text), tmp_path)
    assert "<script" not in attacked
    assert attacked.count("&lt;script") > 8
    assert _Page(attacked).tags == _Page(clean).tags
    assert [name for name, _ in _Page(attacked).attributes] == [name for name, _ in _Page(clean).attributes]


def test_escaping_cannot_be_forgotten_in_a_template() -> None:
    made = environment()
    assert made.autoescape is True
    assert made.from_string("{{ name }}").render(name="<b>") == "&lt;b&gt;"
    for template in ("base.html.j2", "parts.html.j2", "run.html.j2", "card.md.j2"):
        source = made.loader.get_source(made, template)[0]  # type: ignore[union-attr]
        assert not re.search(r"\|\s*safe\b|autoescape", source)


def test_the_same_summary_makes_the_same_page(summary: Summary, tmp_path: Path) -> None:
    assert _page(summary, tmp_path) == _page(summary, tmp_path)


def test_plots_take_their_colours_from_the_page_and_hold_no_names(summary: Summary) -> None:
    for plot in run_plots(summary):
        assert not re.search(r"#[0-9a-f]{6}\b", plot.svg), plot.title
        assert "var(--ink)" in plot.svg or "var(--muted)" in plot.svg
        assert "DejaVu" not in plot.svg
        assert not any(f">{site}<" in plot.svg for site in summary.federation.sites)
        assert 'role="img" aria-label="' in plot.svg


def test_a_summary_without_series_still_makes_a_page(content: dict[str, Any], tmp_path: Path) -> None:
    content["accuracy"] |= {"per_round": [], "per_site": {}, "per_site_per_round": {}, "worst_site": None}
    content["timing"] |= {"by_round": [], "setup_s": 0.0, "train_s": 0.0}
    content["federation"] |= {"records_per_site": {}, "encryption": {}}
    for entry in content["privacy"]:
        entry |= {
            "epsilon_by_round": [],
            "epsilon_check_prv": None,
            "epsilon_budget": None,
            "l2_clip_norm": None,
        }
    text = _page(Summary.model_validate_json(json.dumps(content)), tmp_path)
    assert "None" not in re.sub(r"<style>.*?</style>", "", text, flags=re.DOTALL)
    assert text.count("<figure>") == 2


def test_a_page_that_cannot_be_written_is_a_clear_error(summary: Summary, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="cannot be written"):
        write_run_report(summary, tmp_path / "none" / "report.html")


@dataclass
class _Seen:
    """What the browser did while it showed a page."""

    requests: list[str] = field(default_factory=list)
    console: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def show(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Summary], tuple[Any, _Seen]]]:
    """Open a summary's page in the browser, 1280 px wide and light; equal summaries share one page."""
    if CHROMIUM is None:
        pytest.skip("there is no chromium on this machine (Debian: apt install chromium)")
    api = pytest.importorskip("playwright.sync_api", reason="playwright is missing: pip install playwright")
    shown: dict[str, tuple[Any, _Seen]] = {}
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)

        def opened(summary: Summary) -> tuple[Any, _Seen]:
            key = summary.to_json()
            if key not in shown:
                path = write_run_report(summary, tmp_path_factory.mktemp("page") / "report.html")
                page, seen = browser.new_page(), _Seen()
                page.on("request", lambda request: seen.requests.append(request.url))
                page.on("console", lambda message: seen.console.append(message.text))
                page.on("pageerror", lambda error: seen.console.append(str(error)))
                page.goto(path.as_uri(), wait_until="load")
                page.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
                shown[key] = page, seen
            page, seen = shown[key]
            page.set_viewport_size({"width": 1280, "height": 800})
            page.emulate_media(color_scheme="light")
            return page, seen

        yield opened
        browser.close()


@pytest.mark.parametrize("which", ["summary", "unsafe", "large"])
def test_the_page_renders_without_error_request_or_sideways_scrolling(
    show: Callable[[Summary], tuple[Any, _Seen]], request: pytest.FixtureRequest, which: str
) -> None:
    page, seen = show(request.getfixturevalue(which))
    for width in (1280, 390, 320):
        page.set_viewport_size({"width": width, "height": 844})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        boxes = page.evaluate(
            "[...document.querySelectorAll('svg.plot')].map(plot => plot.getBoundingClientRect().toJSON())"
        )
        assert len(boxes) == (3 if which == "unsafe" else 4)
        assert all(box["width"] > 0.7 * min(width, 480) and box["height"] > 90 for box in boxes)
    assert seen.console == []
    assert len(seen.requests) == 1
    assert seen.requests[0].startswith("file:")


def test_a_name_with_a_script_runs_nothing(
    show: Callable[[Summary], tuple[Any, _Seen]], renamed: Callable[[str, str], Summary]
) -> None:
    page, seen = show(renamed("north", ATTACK))
    assert page.title() == "demo: run report"
    assert ATTACK in page.inner_text("tbody")
    assert seen.console == []
    assert len(seen.requests) == 1


# Contrast as WCAG 2.2 defines it, of every piece of text against the first opaque background behind it.
_CONTRAST = """
() => {
  const parse = text => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(c => c / 255)
    .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = node => {
    for (let at = node; at; at = at.parentElement) {
      const colour = parse(getComputedStyle(at).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const node of document.querySelectorAll('body *')) {
    if (![...node.childNodes].some(child => child.nodeType === 3 && child.data.trim())) continue;
    const style = getComputedStyle(node);
    const front = parse(node.namespaceURI.endsWith('svg') ? style.fill : style.color);
    const [high, low] = [light(front), light(behind(node))].sort((a, b) => b - a);
    found.push([(high + 0.05) / (low + 0.05), node.tagName + ': ' + node.textContent.trim().slice(0, 40)]);
  }
  return found.sort((a, b) => a[0] - b[0]);
}
"""

# The same for the strokes of lines and the fills of bars, which need 3:1; the grid is decoration.
_DRAWN = """
() => ['accent', 'danger', 'muted', 's1', 's2', 's3', 's4', 's5', 's6', 's7', 's8', 'soft'].map(name => {
  const probe = document.body.appendChild(document.createElement('i'));
  const parse = text => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(c => c / 255)
    .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  probe.style.color = `var(--${name})`;
  const front = light(parse(getComputedStyle(probe).color));
  const back = light(parse(getComputedStyle(document.querySelector('figure')).backgroundColor));
  probe.remove();
  return [(Math.max(front, back) + 0.05) / (Math.min(front, back) + 0.05), name];
}).sort((a, b) => a[0] - b[0])
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("which", ["summary", "unsafe"])
def test_every_text_and_line_is_readable_in_light_and_dark(
    show: Callable[[Summary], tuple[Any, _Seen]], request: pytest.FixtureRequest, scheme: str, which: str
) -> None:
    page, _ = show(request.getfixturevalue(which))
    page.emulate_media(color_scheme=scheme)
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    brightness = sum(int(part) for part in re.findall(r"\d+", background)[:3]) / 3
    assert (brightness > 200) == (scheme == "light")
    texts = page.evaluate(_CONTRAST)
    assert len(texts) > 100
    assert texts[0][0] >= 4.5, texts[:3]
    assert page.evaluate(_DRAWN)[0][0] >= 3, page.evaluate(_DRAWN)[:3]


def test_text_in_plots_stays_legible_on_a_phone(
    show: Callable[[Summary], tuple[Any, _Seen]], summary: Summary
) -> None:
    page, _ = show(summary)
    page.set_viewport_size({"width": 390, "height": 844})
    heights = page.evaluate(
        "[...document.querySelectorAll('svg.plot text')].map(text => text.getBoundingClientRect().height)"
    )
    assert len(heights) > 20
    assert min(heights) >= 9
