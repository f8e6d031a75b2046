"""Perplexity at equal cost, of results of any runs: one figure for a paper, and its numbers.

    python scripts/equal_cost.py outputs/quickstart results/frontier --out figures/cost

Reads results of mode=sample_eval and points of mode=frontier, pools seeds, greys what another point dominates
(no more calls, no higher perplexity, no lower entropy); writes .csv, .tex, .pdf and .png.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from errors import UserError  # noqa: E402
from reporting.equal_cost import cost_points, write_equal_cost  # noqa: E402
from reporting.find import find  # noqa: E402
from utils import printable  # noqa: E402


def main(words: Sequence[str]) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="results, points.jsonl, or folders of them")
    parser.add_argument("--out", type=Path, default=Path("cost"), help="name without an ending (cost)")
    given = parser.parse_args(words)
    try:
        found = find(given.runs)
        runs = [(one.label, one.run) for one in found.samples]
        runs += [(str(point.get("name")), point) for one in found.frontiers for point in one.points]
        points = cost_points(runs)
        if not points:
            hint = "give results with generative_ppl, entropy and nfe"
            raise UserError("RUN", " ".join(given.runs), "nothing there has a cost and a perplexity", hint)
        paths = write_equal_cost(points, given.out)
    except (ValueError, OSError) as error:
        print(printable(" ".join(str(error).split())), file=sys.stderr)
        return 2
    dominated = sum(one.dominated for one in points)
    print(f"{len(points)} points, {dominated} of them dominated -> {', '.join(map(str, paths))}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
