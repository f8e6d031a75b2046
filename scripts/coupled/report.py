"""Students of coupled distillation against the baselines at matched entropy: a table and a figure.

    python scripts/coupled/report.py FOLDER    # the frontier that scripts/coupled/text.sh measured

Writes FOLDER/coupled.md and coupled.png. A baseline's curve over temperatures is read at the entropy of
each student's point, and never extrapolated; the best baseline there is what the ratio compares with.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from reporting.entropy_curves import Matched, at_entropy, by_entropy  # noqa: E402
from tasks.frontier import PointStore  # noqa: E402
from utils import atomic_open  # noqa: E402

BASELINES = ("mdlm", "sdtt", "imsdtt", "redi", "imredi")
Curve = list[dict[str, Any]]
Curves = dict[str, dict[int, Curve]]


def curves_of(folder: Path) -> Curves:
    """Name of a model -> number of calls -> its points by rising entropy."""
    found: dict[str, dict[int, Curve]] = {}
    for point in PointStore(folder).read():
        found.setdefault(point["settings"]["name"], {}).setdefault(point["steps"], []).append(point)
    return {name: {n: by_entropy(c) for n, c in sorted(steps.items())} for name, steps in found.items()}


def best_baseline(curves: Curves, calls: int, entropy: float) -> tuple[str, Matched] | None:
    """The baseline of lowest perplexity at this entropy; None where none reaches it."""
    known = {name: curves[name].get(calls, []) for name in BASELINES if name in curves}
    read = {name: at_entropy(curve, entropy) for name, curve in known.items()}
    there = [(name, value) for name, value in read.items() if value is not None]
    return min(there, key=lambda one: one[1].ppl) if there else None


def table(curves: Curves) -> str:
    """Markdown: a line for each point of a student."""
    lines = [
        "| student | calls | temperature | entropy | perplexity (95 %) | best baseline (95 %) | ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, by_calls in curves.items():
        if name in BASELINES:
            continue
        for calls, curve in by_calls.items():
            for point in reversed(curve):
                low, high = point["generative_ppl_interval"]
                ppl = point["generative_ppl"]
                cells = [name, calls, f"{point['temperature']:g}", f"{point['entropy']:.3f}"]
                cells.append(f"{ppl:.1f} ({low:.1f} to {high:.1f})")
                other = best_baseline(curves, calls, point["entropy"])
                if other is None:
                    cells += ["none reaches it", "-"]
                else:
                    model, value = other
                    cells.append(f"{model} {value.ppl:.1f} ({value.low:.1f} to {value.high:.1f})")
                    cells.append(f"{value.ppl / ppl:.2f}")
                lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def figure(curves: Curves, path: Path) -> None:
    """A panel for each number of calls: perplexity against entropy, students solid, baselines dashed."""
    counts = sorted({calls for by_calls in curves.values() for calls in by_calls})
    made, panels = plt.subplots(1, len(counts), figsize=(4.2 * len(counts), 3.6), squeeze=False)
    for panel, calls in zip(panels[0], counts, strict=True):
        for number, (name, by_calls) in enumerate(curves.items()):
            curve = by_calls.get(calls, [])
            entropies, values = ([p[key] for p in curve] for key in ("entropy", "generative_ppl"))
            ends = [[p["generative_ppl_interval"][side] for p in curve] for side in (0, 1)]
            errors = [
                [v - low for v, low in zip(values, ends[0], strict=True)],
                [high - v for v, high in zip(values, ends[1], strict=True)],
            ]
            style = "--" if name in BASELINES else "-"
            colour = plt.get_cmap("tab10")(number)
            panel.errorbar(entropies, values, errors, fmt=f"o{style}", ms=3, lw=1.2, label=name, color=colour)
        panel.set(yscale="log", xlabel="entropy (nats)", title=f"{calls} call{'s' if calls > 1 else ''}")
    panels[0][0].set_ylabel("generative perplexity (95 % interval)")
    panels[0][-1].legend(fontsize=7)
    made.tight_layout()
    made.savefig(path, dpi=130)
    plt.close(made)


def main(words: list[str]) -> int:
    if len(words) != 1 or words[0].startswith("-"):
        print((__doc__ or "").strip())
        return 0 if words == ["--help"] else 2
    folder = Path(words[0])
    curves = curves_of(folder)
    with atomic_open(folder / "coupled.md") as file:
        file.write(table(curves))
    figure(curves, folder / "coupled.png")
    print(table(curves))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
