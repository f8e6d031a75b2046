"""Table and figure of scripts/pretrained/run.sh.

python scripts/pretrained/report.py FOLDER
"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

STARTS = {"pretrained": "from the encoder", "scratch": "from fresh weights"}
STUDENTS = {"mdlm": "MDLM", "imsdtt": "IM-SDTT", "imredi": "IM-ReDi"}


def values(path: Path, name: str) -> dict[int, float]:
    """A column of metrics.csv by the number of updates behind it."""
    with path.open(encoding="utf-8") as file:
        return {int(row["step"]) + 1: float(row[name]) for row in csv.DictReader(file) if row.get(name)}


def figure(folder: Path) -> None:
    """Bits per token over updates."""
    _, axes = plt.subplots(figsize=(5, 3.2))
    for start, words in STARTS.items():
        bits = values(folder / f"mdlm_{start}" / "metrics.csv", "val/bpd")
        axes.plot(list(bits), list(bits.values()), marker="o", label=f"MDLM {words}")
    axes.set(xlabel="updates of 16 x 64 tokens", ylabel="bits per token (upper bound)")
    axes.legend()
    plt.tight_layout()
    plt.savefig(folder / "pretrained.png", dpi=120)


def table(folder: Path) -> str:
    """Bits per token over updates, then entropies of samples, as Markdown."""
    columns = {start: values(folder / f"mdlm_{start}" / "metrics.csv", "val/bpd") for start in STARTS}
    steps = sorted(set.intersection(*(set(found) for found in columns.values())))
    lines = [f"| updates | {' | '.join(map(str, steps))} |", "|---" * (len(steps) + 1) + "|"]
    for start, words in STARTS.items():
        numbers = " | ".join(f"{columns[start][step]:.2f}" for step in steps)
        lines.append(f"| MDLM {words} | {numbers} |")
    lines += ["", "| model | bits per token | 1 step | 2 | 4 | 8 |", "|---|---|---|---|---|---|"]
    for name, words in STUDENTS.items():
        trained = folder / ("mdlm_pretrained" if name == "mdlm" else name)
        bits = list(values(trained / "metrics.csv", "val/bpd").values())[-1]
        entropies = [run["entropy"] for run in json.loads((folder / f"{name}.json").read_text())["runs"]]
        lines.append(f"| {words} | {bits:.2f} | {' | '.join(f'{one:.2f}' for one in entropies)} |")
    return "\n".join(lines)


def main(folder: Path) -> None:
    """Write ``folder``/pretrained.png and .md."""
    figure(folder)
    (folder / "pretrained.md").write_text(table(folder) + "\n", encoding="utf-8")
    print(table(folder))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
