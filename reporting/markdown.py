"""A report's tables as markdown, for README files and issues."""

from __future__ import annotations

from collections.abc import Sequence

from reporting.blocks import Cell, Section, Table
from utils import printable


def markdown(title: str, sections: Sequence[Section], problems: Sequence[str]) -> str:
    """All tables under their headings; curves, texts and trajectories are for the page alone."""
    lines = [f"# {_plain(title)}", ""]
    for section in sections:
        tables = [block for block in section.blocks if isinstance(block, Table)]
        if tables:
            lines += [f"## {_plain(section.title)}", ""]
        for table in tables:
            lines += [f"{_plain(table.title)}:", "", _row(table.head), "|" + "---|" * len(table.head)]
            lines += [_row([_shown(cell) for cell in row]) for row in table.rows]
            lines += ["", *([_plain(table.note), ""] if table.note else [])]
    if problems:
        lines += ["Not read:", "", *[f"- {_plain(line)}" for line in problems], ""]
    return "\n".join(lines).rstrip() + "\n"


def _shown(cell: Cell) -> str:
    """A cell with what stands under it; bold is for the page alone."""
    return f"{cell.text} ({cell.under})" if cell.under else cell.text


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(_plain, cells))} |"


def _plain(text: str) -> str:
    """On one line, and without what a cell or HTML would be read from."""
    text = printable(" ".join(text.split())).replace("&", "&amp;").replace("<", "&lt;")
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("`", "\\`")
