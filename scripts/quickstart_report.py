"""The quickstart's summary (tables, one figure, sample texts): quickstart_report.py outputs/quickstart"""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import LogLocator, NullLocator

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from data.generated import pydoc_text  # noqa: E402
from metrics import word_share  # noqa: E402
from utils import atomic_open, printable, write_json  # noqa: E402

# folder -> (label, colour, line): one colour a stage, dashed for the classical twins.
Models = dict[str, tuple[str, str, str]]
MODELS: Models = {
    "mdlm": ("MDLM", "#555555", "-"),
    "imdm": ("IMDM", "#8c6bb1", "-"),
    "sdtt": ("SDTT", "#3b6fb6", "--"),
    "imsdtt": ("IM-SDTT", "#3b6fb6", "-"),
    "redi": ("SDTT + ReDi", "#d1662f", "--"),
    "imredi": ("IM-SDTT + IM-ReDi", "#d1662f", "-"),
}
# Panels of the figure: runs or spread, the measure, a title, the models (none named: all).
Panel = tuple[str, str, str, tuple[str, ...]]
PANELS: tuple[Panel, ...] = (
    ("runs", "generative_ppl", "generative perplexity, random order", ()),
    ("spread", "generative_ppl", "generative perplexity, spread order", ()),
    ("runs", "entropy", "sample entropy (nats), random order", ()),
)
SPECIAL = ("[CLS]", "[SEP]", "[BOS]", "[EOS]", "[MASK]", "[PAD]", "[RESERVED]", "[UNK]")
Run = dict[str, Any]


def plain(text: str) -> str:
    """A sample without its special tokens, which are separators here, not words."""
    for token in SPECIAL:
        text = text.replace(token, " ")
    return text


def read(folder: Path, model: str) -> dict[str, Any]:
    """``ppl``, ``runs`` and ``spread`` (by number of steps) of one model, with the share of known words."""
    known = set(pydoc_text("train").split()) | set(pydoc_text("validation").split())
    results = folder / model / "results"
    found: dict[str, Any] = {"ppl": json.loads((results / "ppl.json").read_text())}
    for key, name in (("runs", "samples.json"), ("spread", "spread.json")):
        if (results / name).exists():
            content = json.loads((results / name).read_text())
            found[key] = {run["steps"]: run for run in content.get("runs", [content])}
            for run in found[key].values():
                run["words_in_corpus"] = word_share(map(plain, run["generated_seqs"]), known)
    return found


def bits(model: dict[str, Any]) -> str:
    """Bits per character with their standard error."""
    return f"{model['ppl']['bpd']:.3f} ± {model['ppl']['bpd_stderr']:.3f}"


def table(
    models: dict[str, dict[str, Any]],
    cell: Callable[[Run], str],
    looks: Models,
    *,
    runs: str = "runs",
    first: bool = False,
) -> str:
    """A markdown table, one row a model and one column a number of steps; ``first`` adds the bits."""
    models = {name: model for name, model in models.items() if runs in model}
    steps = sorted({count for model in models.values() for count in model[runs]})
    head = ["steps", *(["bits per character"] if first else []), *map(str, steps)]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name, model in models.items():
        row = [looks[name][0]]
        if first:
            row.append(bits(model))
        row += [cell(model[runs][count]) for count in steps]
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def summary(models: dict[str, dict[str, Any]], judge: dict[str, Any], looks: Models = MODELS) -> str:
    """Three tables, and what the judge says of its own samples and of the text."""
    (own,) = judge["runs"].values()

    def judged(run: Run) -> str:
        return f"{run['generative_ppl']:.1f} ({run['entropy']:.2f})"

    return "\n".join(
        [
            "Generative perplexity of a character under the AR model, and entropy (nats) in brackets:",
            "",
            table(models, judged, looks, first=True),
            "",
            f"AR itself, {own['nfe']:.0f} calls: {judged(own)}; the validation text: "
            f"{judge['ppl']['perplexity']:.1f} ({bits(judge)} bits per character).",
            "",
            "The same models, unmasking positions that lie far apart (sampling.order=spread):",
            "",
            table(models, judged, looks, runs="spread"),
            "",
            "Share of the samples' words that occur in the corpus (random order):",
            "",
            table(models, lambda run: f"{run['words_in_corpus']:.0%}", looks),
        ]
    )


def figure(
    models: dict[str, dict[str, Any]],
    judge: dict[str, Any],
    path: Path,
    looks: Models = MODELS,
    panels: tuple[Panel, ...] = PANELS,
) -> None:
    """One panel a measure, against the steps; AR's samples as a line. Perplexities share their scale."""
    (own,) = judge["runs"].values()
    fig, axes = plt.subplots(1, len(panels), figsize=(4.2 * len(panels), 3.8), layout="constrained")
    scaled = None
    for axis, (runs, key, title, names) in zip(axes, panels, strict=True):
        shown = [name for name in names or models if runs in models.get(name, {})]
        for name in shown:
            label, colour, line = looks[name]
            steps = sorted(models[name][runs])
            values = [models[name][runs][count][key] for count in steps]
            axis.plot(steps, values, line, color=colour, marker="o", markersize=4, label=label)
        axis.axhline(own[key], color="black", linewidth=1, linestyle=":", label="AR's own samples")
        axis.set_xscale("log", base=2)
        axis.set_xticks(steps, [str(count) for count in steps])
        axis.set_xlabel("sampling steps")
        axis.set_title(title, fontsize=10)
        axis.grid(alpha=0.3)
        if names or axis is axes[0]:
            axis.legend(fontsize=8, frameon=False, loc="lower left", bbox_to_anchor=(0, 0.06))
        if key == "generative_ppl":
            axis.set_yscale("log")
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.yaxis.set_major_formatter("{x:g}")
            axis.yaxis.set_minor_locator(NullLocator())
            scaled = scaled or axis
            axis.sharey(scaled)
    path.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(path, dpi=150)


def sample_texts(models: dict[str, dict[str, Any]], looks: Models = MODELS, number: int = 2) -> str:
    """The first texts of every model and number of steps, under a heading each."""
    parts = []
    for name, model in models.items():
        for count, run in sorted(model["runs"].items()):
            texts = "\n".join(f"  {' '.join(plain(t).split())}" for t in run["generated_seqs"][:number])
            parts.append(f"{looks[name][0]}, steps {count}:\n{texts}")
    return "\n".join(parts) + "\n"


def without_texts(runs: dict[int, Run]) -> list[Run]:
    """Runs as they go into summary.json."""
    return [{key: value for key, value in run.items() if key != "generated_seqs"} for run in runs.values()]


def report(
    folder: Path, looks: Models = MODELS, panels: tuple[Panel, ...] = PANELS, name: str = "summary"
) -> None:
    """Write table.md, figure.png, samples.txt and summary.json into ``folder``/``name`` and print them."""
    models = {model: read(folder, model) for model in looks if (folder / model / "results").exists()}
    judge, out = read(folder, "ar"), folder / name
    texts = sample_texts(models, looks)
    shown = f"pydoc text of Python {platform.python_version()}\n\n{summary(models, judge, looks)}\n"
    with atomic_open(out / "table.md") as file:
        file.write(shown)
    with atomic_open(out / "samples.txt") as file:
        file.write(texts)
    numbers = {
        name: {key: part if key == "ppl" else without_texts(part) for key, part in model.items()}
        for name, model in {"ar": judge, **models}.items()
    }
    write_json(out / "summary.json", numbers)
    figure(models, judge, out / "figure.png", looks, panels)
    print(printable(f"{texts}\n{shown}"))
    print(f"table    {out / 'table.md'}\nfigure   {out / 'figure.png'}\nsamples  {out / 'samples.txt'}")
    for model in ("ar", *models):
        print(f"{model:8} {folder / model}/ (config.yaml, checkpoints/last.ckpt, results/*.json)")


if __name__ == "__main__":
    report(Path(sys.argv[1]))
