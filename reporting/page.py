"""A report as one HTML page that needs nothing beside it: style, script and curves are inside.

Whatever comes from results is escaped, and the page's policy lets no script run but its own, which it knows
by its digest.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from reporting.blocks import Block, Cell, Chart, Section, Series, Table, Texts, Walk
from reporting.svg import draw, swatch

_BUTTONS = (
    ("first", "«", "to the start"),
    ("back", "‹", "one step back"),
    ("play", "Play", "play or pause"),
    ("next", "›", "one step on"),
    ("last", "»", "to the end"),
)
_COPY = (
    '<button type="button" data-copy="csv">copy as csv</button>'
    '<button type="button" data-copy="latex">copy as LaTeX</button>'
)
_KEY = (
    '<span><span class="mask m0">mm</span> mask</span>'
    '<span><span class="mask m1 reset">mm</span> mask reset in this step (colour: how often so far)</span>'
    '<span><span class="fresh">new</span> written in this step</span>'
    '<span><span class="given">given</span> there from the start</span>'
)


def page(title: str, sections: Sequence[Section], problems: Sequence[str]) -> str:
    """The whole page; ``problems`` are lines about files that could not be read."""
    here = Path(__file__)
    style = here.with_name("page.css").read_text("utf-8")
    script = "\n".join(here.with_name(name).read_text("utf-8") for name in ("page.js", "tables.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    links = "".join(f'<a href="#{one.name}">{escape(one.title)}</a>' for one in sections)
    walks = [w for one in sections for block in one.blocks if _is(block, Walk) for w in block]
    parts = [
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>",
        f'<header><h1>{escape(title)}</h1><nav aria-label="Sections">{links}</nav></header>\n<main>',
        *map(_section, sections),
        _problems(problems),
        "</main>",
    ]
    if walks:
        parts.append(f'<script type="application/json" id="walks">{_payload(walks)}</script>')
    parts.append(f"<script>{script}</script>")
    return "\n".join([*parts, "</body>\n</html>\n"])


def _section(section: Section) -> str:
    blocks = "\n".join(map(_block, section.blocks))
    note = f'<p class="note">{escape(section.note)}</p>' if section.note else ""
    heading = f'<h2 id="{section.name}">{escape(section.title)}</h2>'
    return f'<section aria-labelledby="{section.name}">{heading}{note}\n{blocks}</section>'


def _block(block: Block) -> str:
    if isinstance(block, Table):
        return _table(block)
    if isinstance(block, Texts):
        return _texts(block)
    return _viewer(block) if _is(block, Walk) else _charts(block)


def _is(block: Block, kind: type) -> bool:
    return isinstance(block, tuple) and all(isinstance(one, kind) for one in block)


def _table(table: Table) -> str:
    head = "".join(
        f'<th scope="col"><button type="button">{escape(name)}</button></th>' for name in table.head
    )
    rows = "\n".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in table.rows)
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    # A region that scrolls can be reached by keyboard.
    inner = (
        f'<p class="copy">{_COPY}</p><div class="wide" role="region" tabindex="0" '
        f'aria-label="{escape(table.title)}"><table><thead><tr>{head}</tr></thead>\n<tbody>{rows}</tbody>'
        f"</table></div>{note}"
    )
    if not table.folded:
        return f'<div class="table"><h3>{escape(table.title)}</h3>{inner}</div>'
    rows_words = f"{len(table.rows)} row{'s' * (len(table.rows) != 1)}"
    summary = f"<summary>{escape(table.title)} ({rows_words})</summary>"
    return f'<details class="table">{summary}{inner}</details>'


def _cell(cell: Cell) -> str:
    text = escape(cell.text)
    if cell.under:
        text = f'<span class="main">{text}</span> <span class="under">({escape(cell.under)})</span>'
    if cell.exact is None:
        return f"<td>{text}</td>"
    kind = "number best" if cell.best else "number"
    return f'<td class="{kind}" title="{cell.exact!r}" data-exact="{cell.exact!r}">{text}</td>'


def _charts(charts: Sequence[Chart]) -> str:
    curves: dict[str, Series] = {}
    for chart in charts:
        curves |= {one.label: one for one in chart.series}
    legend = "".join(f"<li>{swatch(one)}{escape(label)}</li>" for label, one in curves.items())
    bars = any(p.low is not None for chart in charts for one in chart.series for p in one.points)
    note = '<p class="note">Bars are 95 % intervals.</p>' if bars else ""
    figures = "\n".join(
        f"<figure><figcaption>{escape(chart.title)}</figcaption>{draw(chart)}</figure>" for chart in charts
    )
    return f'<ul class="legend">{legend}</ul><div class="charts">{figures}</div>{note}'


def _texts(texts: Texts) -> str:
    columns = []
    for head, samples in texts.columns:
        shown = "".join(f'<p class="sample">{escape(text)}</p>' for text in samples)
        columns.append(f"<div><h4>{escape(head)}</h4>{shown}</div>")
    return (
        f"<details open><summary>{escape(texts.label)}</summary>"
        f'<div class="texts">{"".join(columns)}</div></details>'
    )


def _viewer(walks: Sequence[Walk]) -> str:
    first = next((k for k, walk in enumerate(walks) if len(walk.way.changes) > 4), 0)
    options = "".join(
        f"<option{' selected' if k == first else ''}>{escape(walk.label)}</option>"
        for k, walk in enumerate(walks)
    )
    return "".join(
        (
            '<noscript><p class="note">The step-through needs the script of this page.</p></noscript>',
            '<div class="viewer" id="viewer" tabindex="0" role="group" aria-label="A sample, step by step">',
            '<div class="steer"><div class="controls">',
            f'<select data-part="choice" aria-label="which sample">{options}</select>',
            *[
                f'<button type="button" data-part="{name}" aria-label="{label}">{sign}</button>'
                for name, sign, label in _BUTTONS
            ],
            '</div><input type="range" min="0" value="0" data-part="slider" aria-label="step">',
            '<div class="status" data-part="status" aria-live="polite"></div></div>',
            f'<div class="tokens" data-part="tokens"></div><div class="key">{_KEY}</div></div>',
        )
    )


def _payload(walks: Sequence[Walk]) -> str:
    """The recorded samples as JSON inside of a script element, where no character may begin a tag."""
    tables: list[dict[int, str]] = []
    entries: list[dict[str, Any]] = []
    for walk in walks:
        way = walk.way
        if way.pieces not in tables:
            tables.append(way.pieces)
        entries.append(
            {
                "mask": way.mask_id,
                "pieces": tables.index(way.pieces),
                "numSteps": way.num_steps,
                "start": way.start,
                "changes": way.changes,
            }
        )
    text = json.dumps({"pieces": tables, "walks": entries}, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _problems(problems: Sequence[str]) -> str:
    if not problems:
        return ""
    lines = "".join(f"<li>{escape(line)}</li>" for line in problems)
    return f'<section aria-labelledby="problems"><h2 id="problems">Not read</h2><ul>{lines}</ul></section>'
