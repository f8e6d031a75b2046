"""Tables and figures of the experiment on agreeing symbols: report.py outputs/synthetic"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from utils import atomic_open  # noqa: E402

# folder -> (label, colour, whether it is drawn over the steps)
MODELS = {
    "mdlm": ("MDLM", "#555555", True),
    "sdtt": ("SDTT", "#7fa6d9", True),
    "imsdtt": ("IM-SDTT", "#1f4e9c", True),
    "sdtt_bwd": ("SDTT, kl-bwd", "", False),
    "imsdtt_bwd": ("IM-SDTT, kl-bwd", "", False),
    "redi": ("ReDi", "#e8a36b", True),
    "imredi": ("IM-ReDi", "#c0392b", True),
    "imredi_any": ("IM-ReDi, pairs at any time", "#8e44ad", True),
}
MASKS = {"redi": "1", "imredi_2": "2", "imredi_8": "8", "imredi_64": "64", "imredi": "infinite"}
ENDINGS = {"ancestral": "sampled", "greedy": "greedy last step"}
Result = dict[str, Any]


def exact_agreement(length: int, num_symbols: int, num_steps: int) -> float:
    """Agreement of the exact single-mask model of the data (its marginals are uniform) in ancestral sampling.

    Every position is written in step j of the grid with chance w_j, independently. Those of the first step in
    which anything is written are independent and uniform; all later ones copy them. With W_j the chance to be
    written after step j, the sum over j and over the number of positions written first comes to

        sum_j V [(w_j / V + W_j)^L - W_j^L],      one step: (1 / V)^(L - 1).

    The schedule is the log-linear one: what stays masked is linear in time, and the grid ends at 1e-5.
    """
    masked = [1 - (1 - 1e-5) * step / num_steps for step in range(num_steps)] + [0.0]
    total = 0.0
    for before, after in zip(masked[:-1], masked[1:], strict=True):
        total += num_symbols * (((before - after) / num_symbols + after) ** length - after**length)
    return total


def bound_in_bits(length: int, num_symbols: int) -> float:
    """(L - 1) log2 V: total correlation of the data, the least factorisation error of one mask."""
    return (length - 1) * math.log2(num_symbols)


def cell(run: Result) -> str:
    """Agreement in percent with its standard error, and the symbol entropy in brackets."""
    return f"{100 * run['agreement']:.1f} ± {100 * run['agreement_stderr']:.1f} ({abs(run['entropy']):.3f})"


def _percent(run: Result, key: str) -> str:
    """With its standard error, where the start noise makes a difference beyond rounding."""
    value, error = 100 * run[key], 100 * run[f"{key}_stderr"]
    return f"{value:.3g} ± {error:.2g}" if error > 1e-9 * value else f"{value:.3g}"


def _masks(name: str) -> str:
    return f"{MASKS[name]} mask{'s' if name != 'redi' else ''}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def steps_table(results: dict[str, Result]) -> str:
    """Agreement and entropy at every number of steps, drawn and with a greedy last step."""
    steps = list(results["mdlm"]["ancestral"])
    rows = [
        [MODELS[name][0], shown, *(cell(results[name][ending][count]) for count in steps)]
        for name in MODELS
        if name in results
        for ending, shown in ENDINGS.items()
    ]
    length, symbols = results["mdlm"]["length"], results["mdlm"]["num_symbols"]
    exact = (f"{100 * exact_agreement(length, symbols, int(count)):.2g} (1)" for count in steps)
    rows.append(["one mask, exact", "sampled", *exact])
    head = ("1 step" if count == "1" else f"{count} steps" for count in steps)
    return table(["model", "last step", *head], rows)


def one_step_table(results: dict[str, Result]) -> str:
    """The distribution of one step, from the models' own probabilities."""
    names = [*(n for n in MODELS if n in results), *(n for n in MASKS if n in results and n not in MODELS)]
    rows = []
    for name in names:
        run = results[name]["one_step"]
        label = MODELS[name][0] if name in MODELS else f"IM-ReDi, {_masks(name)}"
        rows.append(
            [
                label,
                _percent(run, "agreement"),
                _percent(run, "pairs"),
                f"{abs(run['entropy']):.3f}",
                f"{run['factorisation_error']:.2f}",
                f"{run['bits_left_to_chance']:.2f}",
                f"{100 * results[name]['greedy']['1']['agreement']:.1f} "
                f"({abs(results[name]['greedy']['1']['entropy']):.3f})",
            ]
        )
    length, symbols = results["mdlm"]["length"], results["mdlm"]["num_symbols"]
    bound = bound_in_bits(length, symbols)
    rows.append(
        [
            "one mask, exact",
            f"{100 * symbols ** (1.0 - length):.2g}",
            f"{100 / symbols:.3g}",
            "1",
            f"{bound:.2f}",
            f"{math.log2(symbols):.2f}",
            "-",
        ]
    )
    head = ["model", "agreement %", "pairs %", "entropy", "factorisation error (bits)"]
    return table([*head, "bits a symbol left to chance", "greedy % (entropy)"], rows)


def _settings(results: dict[str, Result]) -> str:
    one = results["imredi"]
    noise, passes = one["noise"], one["updates"] * one["batch"] / one["pairs"]
    return (
        f"{one['num_symbols']} symbols, length {one['length']}, {one['num_samples']} fresh samples; "
        f"{one['pairs']} pairs, {one['updates']} updates of {one['batch']} ({passes:.0f} passes), "
        f"learning rate {one['lr']:g}; noise {noise['noise_type']}, dimension {noise['noise_dim']}, "
        f"scale {noise['noise_scale']:g}; {one['blocks']} blocks of width {one['width']}, "
        f"{one['parameters']:,} parameters."
    )


def _steps_axis(axis: Axes, steps: Sequence[int]) -> None:
    axis.set_xscale("log", base=2)
    axis.set_xticks(steps, [str(count) for count in steps])
    axis.set_xlabel("sampling steps")


def steps_figure(results: dict[str, Result], path: Path) -> None:
    """Agreement and entropy against the number of steps; solid: drawn, dashed: with a greedy last step."""
    fig, axes = plt.subplots(1, 2, figsize=(10.5, 4.2), layout="constrained")
    for axis, key in zip(axes, ("agreement", "entropy"), strict=True):
        for name, (label, colour, drawn) in MODELS.items():
            if not drawn or name not in results:
                continue
            for ending, line in (("ancestral", "-"), ("greedy", "--")):
                runs = results[name][ending]
                steps = [int(count) for count in runs]
                axis.plot(
                    steps, [runs[str(count)][key] for count in steps], line, color=colour,
                    marker="o" if ending == "ancestral" else "x", markersize=5,
                    label=label if ending == "ancestral" else None,
                )  # fmt: skip
        _steps_axis(axis, steps)
        axis.set_ylim(-0.03, 1.03)
        axis.grid(alpha=0.3)
    length, symbols = results["mdlm"]["length"], results["mdlm"]["num_symbols"]
    exact = [exact_agreement(length, symbols, count) for count in steps]
    axes[0].plot(steps, exact, ":", color="black", linewidth=2, label="one mask, exact")
    axes[0].set_title("share of sequences whose symbols all agree", fontsize=10)
    axes[1].set_title("entropy of the symbol, relative to uniform", fontsize=10)
    axes[1].plot([], [], "-", color="black", marker="o", markersize=5, label="sampled")
    axes[1].plot([], [], "--", color="black", marker="x", markersize=5, label="greedy last step")
    models, endings = (axis.get_legend_handles_labels() for axis in axes)
    fig.legend(*models, loc="outside lower center", ncols=len(models[1]), fontsize=8, frameon=False)
    axes[1].legend(*(part[-2:] for part in endings), fontsize=8, frameon=False, loc="center right")
    fig.savefig(path, dpi=150)


def masks_figure(results: dict[str, Result], path: Path) -> None:
    """One step: agreement and entropy against the number of masks, and agreement over the training."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(10.5, 4.2), layout="constrained")
    names = [name for name in MASKS if name in results]
    places = range(len(names))
    runs = {"sampled": ("one_step", "-", "o"), "greedy": ("greedy", "--", "x")}
    for shown, (kind, line, marker) in runs.items():
        found = [results[name]["greedy"]["1"] if kind == "greedy" else results[name][kind] for name in names]
        for key, colour in (("agreement", "#c0392b"), ("entropy", "#2e8b57")):
            errors = [run["agreement_stderr"] if key == "agreement" else 0 for run in found]
            values = [abs(run[key]) for run in found]
            label = f"{'agreement' if key == 'agreement' else 'symbol entropy'}, {shown}"
            left.errorbar(places, values, errors, fmt=line, color=colour, marker=marker, label=label)
    left.set_xticks(places, [MASKS[name] for name in names])
    left.set_xlabel("number of different masks (1: ReDi)")
    left.set_title("one step: agreement, and entropy relative to uniform", fontsize=10)
    for number, name in enumerate(names):
        points = results[name]["curve"]
        passes = [point["step"] * results[name]["batch"] / results[name]["pairs"] for point in points]
        colour = plt.colormaps["viridis"](number / max(1, len(names) - 1) * 0.9)
        values = [point["agreement"] for point in points]
        right.plot(passes, values, color=colour, marker="o", markersize=4, label=_masks(name))
    right.set_xlabel("passes over the pairs")
    right.set_title("one step: agreement on fresh noise", fontsize=10)
    for axis in (left, right):
        axis.set_ylim(-0.03, 1.03)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8, frameon=False)
    fig.savefig(path, dpi=150)


def curves_table(results: dict[str, Result]) -> str:
    """One-step agreement (and entropy) along the trainings."""
    names = [name for name in MASKS if name in results]
    curves = [{point["step"]: point for point in results[name]["curve"]} for name in names]
    rows = []
    for step in sorted(set.intersection(*map(set, curves))):
        points = [curve[step] for curve in curves]
        passes = step * results[names[0]]["batch"] / results[names[0]]["pairs"]
        shown = (f"{100 * point['agreement']:.1f} ({abs(point['entropy']):.3f})" for point in points)
        rows.append([str(step), f"{passes:.0f}", *shown])
    return table(["updates", "passes", *map(_masks, names)], rows)


def main(folder: Path) -> None:
    """Write table.md, steps.png and masks.png into ``folder``/summary and print the tables."""
    files = {name: folder / name / "results" / "agreement.json" for name in {**MODELS, **MASKS}}
    results = {name: json.loads(path.read_text()) for name, path in files.items() if path.exists()}
    out = folder / "summary"
    out.mkdir(parents=True, exist_ok=True)
    shown = "\n\n".join(
        [
            _settings(results),
            "Agreement in percent (entropy of the symbol, relative to uniform, in brackets):",
            steps_table(results),
            "One step, from the models' own probabilities; agreement of sequences and of pairs of positions:",
            one_step_table(results),
            "One step along the training, agreement in percent (entropy):",
            curves_table(results),
        ]
    )
    with atomic_open(out / "table.md") as file:
        file.write(shown + "\n")
    steps_figure(results, out / "steps.png")
    masks_figure(results, out / "masks.png")
    print(f"{shown}\n\ntable    {out / 'table.md'}\nfigures  {out / 'steps.png'} {out / 'masks.png'}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
