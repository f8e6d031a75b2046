"""One HTML page, and its tables as markdown, from results: report.py RUN... [--out report.html]"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from errors import UserError, of_system  # noqa: E402
from reporting.find import find  # noqa: E402
from reporting.markdown import markdown  # noqa: E402
from reporting.page import page  # noqa: E402
from reporting.sections import sections  # noqa: E402
from utils import atomic_open, printable, well_formed  # noqa: E402


def report(runs: Sequence[str], out: Path, *, title: str, texts: int, walks: int) -> list[str]:
    """Write ``out`` and, beside it, the same with .md; returns a line for each file that was not read.

    Raises:
        ValueError: what was given holds no results, or ``out`` is no name of a page.
    """
    if out.suffix not in (".html", ".htm"):
        raise UserError("--out", str(out), "is no page", "give a name that ends in .html")
    findings = find(runs)
    made = sections(findings, texts=texts, walks=walks)
    pages = {
        out: page(title, made, findings.problems),
        out.with_suffix(".md"): markdown(title, made, findings.problems),
    }
    for path, content in pages.items():
        with atomic_open(path) as file:
            file.write(well_formed(content))
    return findings.problems


def main(words: Sequence[str]) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="report.py",
        description="One HTML page that needs nothing beside it, and its tables as markdown, from results.",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a result (.json), a points.jsonl, a run "
                        "folder, or a folder of them such as outputs/quickstart")  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("report.html"), help="the page (report.html)")
    parser.add_argument("--title", help="its heading (the names of what is given)")
    parser.add_argument("--texts", type=int, default=3, help="samples shown of each run (3)")
    parser.add_argument("--trajectories", type=int, default=2, help="recorded trajectories of each run (2)")
    given = parser.parse_args(words)
    title = given.title or ", ".join(Path(run).absolute().name for run in given.runs)
    try:
        counts = {"texts": max(given.texts, 0), "walks": max(given.trajectories, 0)}
        problems = report(given.runs, given.out, title=title, **counts)
    except (UserError, OSError) as error:
        shown = error if isinstance(error, UserError) else of_system(error)
        if shown is None:
            raise
        print(printable(" ".join(str(shown).split())), file=sys.stderr)
        return 2
    for line in problems:
        print(f"not read: {printable(line)}", file=sys.stderr)
    print(f"page    {given.out}\ntables  {given.out.with_suffix('.md')}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
