"""What Gumbel-max in float32 does to samples: under a distribution that can be enumerated, and on a
checkpoint.

    python scripts/precision/study.py
    python scripts/precision/study.py --checkpoint outputs/quickstart/mdlm/checkpoints/last.ckpt \
        --judge outputs/quickstart/ar/checkpoints/last.ckpt --steps 64,1024,4096

The distribution is Zipf's over 50,257 tokens. Every mask draws from its tokens and from staying a mask at
once
(sampling.predictor=ancestral_joint), as codes do that sample the whole posterior. Three draws from the same
random numbers: exact (Gumbel-max with 53 bits), float32 (uniforms on a grid of 2^-24), truncated32 (only the
largest uniforms are missing: the formula of Zheng et al., arXiv 2409.02908). Writes table.md, figure.png and
study.json into --out.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import torch
from torch import Tensor

matplotlib.use("Agg")
import matplotlib.pyplot as plt

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from scripts.precision.checkpoint import study_checkpoint  # noqa: E402
from scripts.precision.distribution import DRAWS, enumerate_distribution, zipf_in_stairs  # noqa: E402
from utils import atomic_open, write_json  # noqa: E402

STEPS = (1, 16, 64, 256, 1024, 2048, 4096, 10_000)
COLOURS = {"exact": "black", "float32": "#3b6fb6", "truncated32": "#d1662f"}
Row = dict[str, Any]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A markdown table."""
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, *rows)]
    return "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]])


def distribution_table(rows: Sequence[Row]) -> str:
    """One row a number of steps: what is written under each draw."""
    shown = []
    for steps in sorted({row["steps"] for row in rows}):
        found = {row["draws"]: row for row in rows if row["steps"] == steps}
        cells = [f"{steps:,}", f"{found['exact']['entropy']:.3f}"]
        for name in DRAWS[1:]:
            one = found[name]
            cells += [f"{one['entropy']:.3f}", f"{100 * one['total_variation']:.2f}"]
            cells.append(f"{100 * one['rare']:.2f} of {100 * found['exact']['rare']:.2f}")
        shown.append([*cells, f"{found['float32']['left_to_last_step'] * steps:.2f}"])
    each = [f"{what}, {name}" for name in DRAWS[1:] for what in ("entropy", "distance %", "rare tokens %")]
    return table(["steps", "entropy, exact", *each, "masks left to the last step, float32 / exact"], shown)


def checkpoint_table(rows: Sequence[Row]) -> str:
    """One row a number of steps and draw, 95 % intervals in brackets."""

    def between(row: Row, name: str, digits: int) -> str:
        interval = row[f"{name}_interval"]
        words = "" if interval is None else f" ({interval[0]:.{digits}f} to {interval[1]:.{digits}f})"
        return f"{row[name]:.{digits}f}{words}"

    head = ("steps", "draws", "generative perplexity", "entropy (nats)", "perplexity / exact")
    shown = []
    for row in rows:
        cells = [f"{row['steps']:,}", row["draws"], between(row, "generative_ppl", 3)]
        cells.append(between(row, "entropy", 4))
        if row["draws"] == "exact":
            cells += ["", "", ""]
        else:
            cells += [between(row, "ppl_factor", 4), between(row, "entropy_shift", 4)]
            cells.append(f"{100 * row['samples_that_differ']:.0f}%")
        shown.append(cells)
    return table([*head, "entropy - exact", "samples that differ"], shown)


def figure(rows: Sequence[Row], probs: Tensor, path: Path) -> None:
    """Left: what is written of a token, relative to its probability. Right: entropy against steps."""
    steps = sorted({row["steps"] for row in rows})
    drawn = [count for count in (1, 64, 1024, 10_000) if count in steps] or steps[-1:]
    shades = plt.colormaps["viridis"]([0.85 * k / max(1, len(drawn) - 1) for k in range(len(drawn))])
    lines = {"truncated32": "-", "float32": "--"}
    fig, (left, right) = plt.subplots(1, 2, figsize=(10.5, 4.2), layout="constrained")
    for row in rows:
        if row["steps"] in drawn and row["draws"] in lines:
            colour, label = shades[drawn.index(row["steps"])], None
            if row["draws"] == "truncated32":
                label = f"{row['steps']:,} step" + "s" * (row["steps"] > 1)
            left.plot(probs, row["ratio"], lines[row["draws"]], color=colour, label=label)
    left.axhline(1, color="black", linewidth=0.8)
    left.set_xscale("log")
    left.set_xlabel("probability of a token")
    left.set_title("frequency in samples, relative to it (dashed: float32, else the formula)", fontsize=9)
    for name, colour in COLOURS.items():
        entropies = [row["entropy"] for row in rows if row["draws"] == name]
        right.plot(steps, entropies, "o-", color=colour, markersize=4, label=name)
    right.set_xscale("log")
    right.set_xlabel("sampling steps")
    right.set_title("entropy of the token that is written (nats)", fontsize=9)
    for axis in (left, right):
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8, frameon=False)
    with atomic_open(path, "wb") as file:
        fig.savefig(file, format="png", dpi=150)
    plt.close(fig)


@torch.no_grad()
def main(words: Sequence[str] | None = None) -> None:
    """Run the study; the distribution alone without ``--checkpoint``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("outputs/precision"))
    parser.add_argument("--vocab", type=int, default=50_257, help="tokens of the distribution")
    parser.add_argument("--distribution-steps", default=",".join(map(str, STEPS)))
    parser.add_argument("--checkpoint", help="an MDLM or IMDM")
    parser.add_argument("--judge", help="of its samples: an AR checkpoint, a folder, or a hub name")
    parser.add_argument("--steps", default="64,1024,4096", help="of the checkpoint's samples")
    parser.add_argument("--samples", type=int, default=64, help="of each kind")
    parser.add_argument("--batch", type=int, default=64)
    args = parser.parse_args(words)
    if bool(args.checkpoint) != bool(args.judge):
        parser.error("--checkpoint and --judge go together")
    probs, counts = zipf_in_stairs(args.vocab)
    distribution = enumerate_distribution(
        probs, counts, [int(count) for count in args.distribution_steps.split(",")]
    )
    parts = [
        f"One mask under Zipf's distribution over {args.vocab:,} tokens (rare: less likely than 1e-5), "
        "enumerated:",
        distribution_table(distribution),
    ]
    found: dict[str, Any] = {"distribution": distribution}
    figure(distribution, probs, args.out / "figure.png")
    if args.checkpoint:
        counts_of_steps = [int(count) for count in args.steps.split(",")]
        found["checkpoint"] = study_checkpoint(
            args.checkpoint, args.judge, counts_of_steps, args.samples, args.batch, print
        )
        parts += [
            f"{args.checkpoint}, {args.samples} samples of each:",
            checkpoint_table(found["checkpoint"]),
        ]
    write_json(args.out / "study.json", found)
    with atomic_open(args.out / "table.md") as file:
        file.write("\n\n".join(parts) + "\n")
    print("\n\n".join(parts), f"\ntable and figure -> {args.out}", sep="\n")


if __name__ == "__main__":
    main()
