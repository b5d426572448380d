"""The page of a report: one HTML file without external files."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib
from jinja2 import Environment
from matplotlib.figure import Figure
from PIL import Image

from .._utils.files import replacing

QUALITY = 80  # of a JPEG


@dataclass(frozen=True)
class Bar:
    """A row of a chart: ``value`` in 0..1, None where it is not defined; ``note`` stands behind it."""

    name: str
    value: float | None
    note: str = ""


@dataclass(frozen=True)
class Shown:
    """A picture, as a data URI, and what stands below it."""

    source: str
    caption: str = ""


@dataclass(frozen=True)
class Section:
    """A part of the page; one without bars, rows and pictures is left out.

    Attributes:
        title: its heading.
        text: a paragraph above the rest.
        bars: a chart, in per cent.
        rows: a table, its first row the headings.
        pictures: below each other.
        key: colours ("#1a9850") and what they mean, above the pictures.
    """

    title: str
    text: str = ""
    bars: Sequence[Bar] = ()
    rows: Sequence[Sequence[str]] = ()
    pictures: Sequence[Shown] = ()
    key: Mapping[str, str] = field(default_factory=dict)


def write_page(
    path: str | Path,
    title: str,
    facts: Mapping[str, str],
    numbers: Mapping[str, str],
    sections: Sequence[Section],
) -> None:
    """Write a page, completely or not at all.

    Args:
        path: of the HTML file.
        title: of the page.
        facts: name -> value, in small print.
        numbers: name -> value, in large print.
        sections: from top to bottom.

    Raises:
        OSError: ``path`` cannot be written.
    """
    shown = [one for one in sections if one.bars or one.rows or one.pictures]
    html = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(PAGE)
    text = html.render(title=title, facts=facts, numbers=numbers, sections=shown)
    with replacing(path, "report") as temporary:
        temporary.write_text(text, encoding="utf-8")


def photograph(picture: Image.Image, most: int, caption: str = "") -> Shown:
    """A picture of at most ``most`` pixels a side as a JPEG."""
    picture = picture.convert("RGB")
    picture.thumbnail((most, most))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=QUALITY, optimize=True)
    return Shown(_uri("image/jpeg", buffer.getvalue()), caption)


def plot(figure: Figure, caption: str = "") -> Shown:
    """A plot as SVG, its text as text."""
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "font.family": "sans-serif"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    return Shown(_uri("image/svg+xml", buffer.getvalue()), caption)


def per_cent(value: float | None) -> str:
    """ "12.3", and a dash for what is not defined."""
    return "–" if value is None or value < 0 else f"{100 * value:.1f}"


def counted(count: int, what: str) -> str:
    """ "1 object", "2 objects"."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


STYLE = """
:root { --ink: #1f2933; --soft: #5f6c7b; --line: #e3e8ee; --accent: #2f6f8f; }
* { box-sizing: border-box; }
body { margin: 0; background: #f6f8fa; color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 64rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .4rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 0 0 .6rem; }
p, .facts { color: var(--soft); margin: 0 0 1rem; max-width: 46rem; }
.facts { font-size: .875rem; display: flex; flex-wrap: wrap; gap: .1rem 1.4rem; max-width: none; }
.facts span { overflow-wrap: anywhere; } .facts b { font-weight: 500; color: var(--ink); }
.numbers { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr)); gap: .75rem;
  margin: 1.5rem 0; }
.numbers div, section { background: #fff; border: 1px solid var(--line); border-radius: .6rem; }
.numbers div { padding: .7rem 1rem; }
.numbers strong { display: block; font-size: 1.6rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.numbers span { color: var(--soft); font-size: .85rem; }
section { padding: 1.25rem 1.25rem 1rem; margin: 0 0 1rem; }
.bars { display: grid; grid-template-columns: minmax(4rem, max-content) 1fr max-content; gap: .35rem .8rem;
  align-items: center; margin: 0 0 1rem; font-size: .925rem; }
.bars .track { background: #edf1f5; border-radius: .25rem; height: .8rem; overflow: hidden; }
.bars i { display: block; background: var(--accent); height: 100%; }
.bars .name { overflow-wrap: anywhere; }
.bars .value { text-align: right; font-variant-numeric: tabular-nums; }
.bars small { color: var(--soft); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .925rem; margin: 0 0 1rem; width: 100%; }
th, td { text-align: right; padding: .3rem .6rem; border-bottom: 1px solid var(--line);
  font-variant-numeric: tabular-nums; }
th { font-weight: 500; color: var(--soft); } th:first-child, td:first-child { text-align: left; }
figure { margin: 0 0 1.25rem; }
figure img { display: block; max-width: 100%; min-width: min(100%, 26rem); height: auto;
  border-radius: .3rem; }
section > :last-child, .wide > :last-child { margin-bottom: .25rem; }
figcaption { color: var(--soft); font-size: .875rem; margin-top: .35rem; overflow-wrap: anywhere; }
.key { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; font-size: .875rem; margin: 0 0 1rem; }
.key i { display: inline-block; width: .8rem; height: .8rem; border-radius: .2rem; margin-right: .4rem;
  vertical-align: -.05rem; }
"""

PAGE = (
    """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{{ title }}</title>
<style>"""
    + STYLE
    + """</style>
</head>
<body>
<main>
<h1>{{ title }}</h1>
<div class="facts">
{% for name, value in facts.items() %}
<span>{{ name }} <b>{{ value }}</b></span>
{% endfor %}
</div>
<div class="numbers">
{% for name, value in numbers.items() %}
<div><strong>{{ value }}</strong><span>{{ name }}</span></div>
{% endfor %}
</div>
{% for section in sections %}
<section>
<h2>{{ section.title }}</h2>
{% if section.text %}
<p>{{ section.text }}</p>
{% endif %}
{% if section.bars %}
<div class="bars">
{% for bar in section.bars %}
<span class="name">{{ bar.name }}</span>
<span class="track"><i style="width: {{ "%.2f" | format(100 * (bar.value or 0)) }}%"></i></span>
<span class="value">{{ "–" if bar.value is none else "%.1f" | format(100 * bar.value) }}
<small>{{ bar.note }}</small></span>
{% endfor %}
</div>
{% endif %}
{% if section.rows %}
<div class="wide"><table>
<tr>{% for cell in section.rows[0] %}<th>{{ cell }}</th>{% endfor %}</tr>
{% for row in section.rows[1:] %}
<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</table></div>
{% endif %}
{% if section.key %}
<div class="key">
{% for colour, meaning in section.key.items() %}
<span><i style="background: {{ colour }}"></i>{{ meaning }}</span>
{% endfor %}
</div>
{% endif %}
{% for picture in section.pictures %}
<figure><img src="{{ picture.source }}" alt="{{ picture.caption or section.title }}">
{% if picture.caption %}
<figcaption>{{ picture.caption }}</figcaption>
{% endif %}
</figure>
{% endfor %}
</section>
{% endfor %}
</main>
</body>
</html>
"""
)
