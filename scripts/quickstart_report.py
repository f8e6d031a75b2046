"""The quickstart's summary (one table, one figure, sample texts): quickstart_report.py outputs/quickstart"""

from __future__ import annotations

import json
import platform
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from matplotlib.ticker import PercentFormatter

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from data.generated import pydoc_text  # noqa: E402
from metrics import sample_entropy, word_share  # noqa: E402
from utils import atomic_open, write_json  # noqa: E402

MODELS = ("mdlm", "imdm")
SPECIAL = ("[CLS]", "[SEP]", "[BOS]", "[EOS]", "[MASK]", "[PAD]", "[RESERVED]", "[UNK]")


def plain(text: str) -> str:
    """A sample without its special tokens, which are separators here, not words."""
    for token in SPECIAL:
        text = text.replace(token, " ")
    return text


def collect(folder: Path) -> list[dict[str, Any]]:
    """One row per model and sampling run, with the share of words that occur in the corpus."""
    known = set(pydoc_text("train").split()) | set(pydoc_text("validation").split())
    rows = []
    for model in MODELS:
        results = folder / model / "results"
        bpc = json.loads((results / "ppl.json").read_text())
        for name in ("ancestral", "first_hitting"):
            content = json.loads((results / f"{name}.json").read_text())
            for run in content.get("runs", [content]):
                rows.append(
                    {
                        "model": model.upper(),
                        "bits_per_char": bpc["bpd"],
                        "bits_per_char_stderr": bpc["bpd_stderr"],
                        "sampler": run["predictor"],
                        "steps": run["steps"] if name == "ancestral" else None,
                        "nfe": run["nfe"],
                        "words_in_corpus": word_share(map(plain, run["generated_seqs"]), known),
                        "entropy": run["entropy"],
                        "seconds": run["total_generation_times"],
                        "samples": run["generated_seqs"],
                    }
                )
    return rows


def reference(length: int = 128) -> str:
    """The table's last row: the validation text itself, cut into blocks of the models' length."""
    text = pydoc_text("validation")
    inner = length - 2  # bos and eos are tokens as well
    blocks = [text[start : start + inner] for start in range(0, len(text) - inner + 1, inner)]
    tokens = torch.tensor([[0, *map(ord, block), 1] for block in blocks])
    return f"| the text itself | | | | | 100.0% | {float(sample_entropy(tokens).mean()):.3f} |"


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as a markdown table."""
    lines = [
        "| model | bits per character | sampler | steps | network calls | words in corpus | entropy (nats) |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        bpc = f"{row['bits_per_char']:.3f} ± {row['bits_per_char_stderr']:.3f}"
        steps = row["steps"] if row["steps"] is not None else "-"
        lines.append(
            f"| {row['model']} | {bpc} | {row['sampler']} | {steps} | {row['nfe']:.1f} | "
            f"{row['words_in_corpus']:.1%} | {row['entropy']:.3f} |"
        )
    return "\n".join([*lines, reference()])


def figure(rows: list[dict[str, Any]], path: Path) -> None:
    """Share of real words and entropy against the number of steps; first hitting as a horizontal line."""
    panels = (
        ("words_in_corpus", "share of words that occur in the corpus"),
        ("entropy", "sample entropy (nats)"),
    )
    fig, axes = plt.subplots(1, 2, figsize=(9.5, 3.6), layout="constrained")
    for axis, (key, label) in zip(axes, panels, strict=True):
        for model, colour in zip(MODELS, ("#3b6fb6", "#d1662f"), strict=True):
            own = [row for row in rows if row["model"] == model.upper()]
            stepped = [row for row in own if row["steps"] is not None]
            axis.plot(
                [row["steps"] for row in stepped],
                [row[key] for row in stepped],
                "o-",
                color=colour,
                label=f"{model.upper()}, ancestral",
            )
            for row in own:
                if row["steps"] is None:
                    axis.axhline(
                        row[key], color=colour, linestyle=":", label=f"{model.upper()}, first hitting"
                    )
        axis.set_xscale("log", base=2)
        ticks = sorted({row["steps"] for row in rows if row["steps"] is not None})
        axis.set_xticks(ticks, [str(tick) for tick in ticks])
        axis.set_xlabel("sampling steps")
        axis.set_title(label, fontsize=10)
        if key == "words_in_corpus":
            axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(path, dpi=150)


def sample_texts(rows: list[dict[str, Any]], number: int = 2) -> str:
    """The first texts of every run, under a heading each."""
    parts = []
    for row in rows:
        steps = f"steps {row['steps']}" if row["steps"] is not None else "first hitting"
        texts = "\n".join(f"  {' '.join(plain(text).split())}" for text in row["samples"][:number])
        parts.append(f"{row['model']}, {steps}:\n{texts}")
    return "\n".join(parts) + "\n"


def main(folder: Path) -> None:
    """Write table.md, figure.png, samples.txt and summary.json into ``folder``/summary and print them."""
    rows, out = collect(folder), folder / "summary"
    texts, shown = sample_texts(rows), table(rows)
    head = f"pydoc text of Python {platform.python_version()}\n\n"
    with atomic_open(out / "table.md") as file:
        file.write(head + shown + "\n")
    with atomic_open(out / "samples.txt") as file:
        file.write(texts)
    write_json(out / "summary.json", [{k: v for k, v in row.items() if k != "samples"} for row in rows])
    figure(rows, out / "figure.png")
    print(f"{texts}\n{head}{shown}\n")
    print(f"table    {out / 'table.md'}\nfigure   {out / 'figure.png'}\nsamples  {out / 'samples.txt'}")
    for model in MODELS:
        print(f"{model:8} {folder / model}/ (config.yaml, checkpoints/last.ckpt, csv/, results/*.json)")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
