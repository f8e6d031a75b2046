"""Generative perplexity at equal cost: network calls and wall time as axes, seeds pooled, dominated points
marked; one figure for a paper, and its numbers as csv and LaTeX.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils import atomic_open

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#1f5fa8", "#c4541a", "#2c7d43", "#7d3fa6", "#a82744", "#7a6200", "#00787a", "#555b66")
MARKERS = "os^Dv<>P"
GREY = "#b8bcc4"
# 97.5 % quantiles of Student's distribution by degrees of freedom.
_STUDENT = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
_HEAD = (
    "model", "sampler", "steps", "temperature", "evaluator", "runs", "calls", "seconds_per_text",
    "generative_ppl", "low", "high", "entropy", "dominated",
)  # fmt: skip


@dataclass(frozen=True)
class CostPoint:
    """Runs of one model, sampler, number of steps and temperature, pooled over their seeds.

    Attributes:
        calls: network calls of a text; seconds: wall time of a text, None where it is not recorded.
        ppl, low, high: the exponential of the mean log perplexity, and its 95 % interval: between runs where
            there are several (Student), else that of the run; None without.
        entropy: nats, mean.
        dominated: another point of the same evaluator is nowhere worse (calls, perplexity, entropy) and
            somewhere better.
    """

    model: str
    sampler: str
    steps: int | None
    temperature: float
    evaluator: str
    runs: int
    calls: float
    seconds: float | None
    ppl: float
    low: float | None
    high: float | None
    entropy: float
    dominated: bool = False


def cost_points(found: Iterable[tuple[str, dict[str, Any]]]) -> list[CostPoint]:
    """Pool runs that differ by their seed alone, and mark what is dominated.

    Args:
        found: label of the model, and an object of a result with ``generative_ppl``, ``entropy`` and ``nfe``;
            others are left out. Runs of one ``checkpoint`` are of one model, whatever their labels.
    """
    groups: dict[tuple[Any, ...], list[tuple[str, dict[str, Any]]]] = {}
    for label, run in found:
        if not all(run.get(name) for name in ("generative_ppl", "entropy", "nfe")):
            continue
        place = (
            run.get("checkpoint") or label,
            str(run.get("predictor") or ""),
            run.get("steps"),
            float(run.get("temperature") or 1.0),
            str(run.get("gen_ppl_scorer") or ""),
        )
        groups.setdefault(place, []).append((label, run))
    points = [_pooled(place, members) for place, members in groups.items()]
    return [
        CostPoint(**{**vars(one), "dominated": any(_dominates(other, one) for other in points)})
        for one in points
    ]


def _pooled(place: tuple[Any, ...], members: list[tuple[str, dict[str, Any]]]) -> CostPoint:
    label, runs = members[0][0], [run for _, run in members]
    logs = [math.log(run["generative_ppl"]) for run in runs]
    mean, ends = sum(logs) / len(logs), runs[0].get("generative_ppl_interval")
    if len(runs) > 1:
        spread = math.sqrt(sum((one - mean) ** 2 for one in logs) / (len(logs) - 1) / len(logs))
        room = _STUDENT.get(len(runs) - 1, 1.96) * spread
        ends = (math.exp(mean - room), math.exp(mean + room))
    times = [
        run["total_generation_times"] / run["num_samples"]
        for run in runs
        if run.get("total_generation_times") and run.get("num_samples")
    ]
    _, sampler, steps, temperature, evaluator = place
    return CostPoint(
        label, sampler, steps, temperature, evaluator, len(runs),
        sum(run["nfe"] for run in runs) / len(runs),
        sum(times) / len(times) if times else None,
        math.exp(mean) if len(runs) > 1 else runs[0]["generative_ppl"], *(ends or (None, None)),
        sum(run["entropy"] for run in runs) / len(runs),
    )  # fmt: skip


def _dominates(one: CostPoint, other: CostPoint) -> bool:
    if one.evaluator != other.evaluator:
        return False
    ours, theirs = ((p.calls, p.ppl, -p.entropy) for p in (one, other))
    return all(a <= b for a, b in zip(ours, theirs, strict=True)) and _differ(one, other)


def _differ(one: CostPoint, other: CostPoint) -> bool:
    """Whether two points differ in calls, perplexity or entropy."""
    return (one.calls, one.ppl, one.entropy) != (other.calls, other.ppl, other.entropy)


def write_equal_cost(points: Sequence[CostPoint], stem: Path) -> list[Path]:
    """Write ``stem``.csv, .tex, .pdf and .png; returns the paths."""
    paths = [stem.with_suffix(suffix) for suffix in (".csv", ".tex", ".pdf", ".png")]
    for path, text in zip(paths[:2], (as_csv(points), as_latex(points)), strict=True):
        with atomic_open(path) as file:
            file.write(text)
    _figure(points, paths[2:])
    return paths


def as_csv(points: Sequence[CostPoint]) -> str:
    """All digits of all points, with a head."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_HEAD)
    writer.writerows(["" if value is None else value for value in vars(one).values()] for one in points)
    return text.getvalue()


def as_latex(points: Sequence[CostPoint]) -> str:
    r"""A ``tabular`` (booktabs) of all points, dominated ones in grey."""
    lines = [
        r"% needs \usepackage{booktabs,xcolor}",
        r"\begin{tabular}{llrrrrr}",
        r"\toprule",
        r"model & sampler & calls & s/text & generative perplexity & entropy & runs \\",
        r"\midrule",
    ]
    for one in sorted(points, key=lambda one: (one.model, one.calls, one.temperature)):
        ends = "" if one.low is None else rf" \footnotesize ({one.low:.1f}--{one.high:.1f})"
        cells = [
            _plain(one.model),
            _plain(one.sampler),
            f"{one.calls:g}",
            "-" if one.seconds is None else f"{one.seconds:.3g}",
            f"{one.ppl:.1f}{ends}",
            f"{one.entropy:.2f}",
            str(one.runs),
        ]
        if one.dominated:
            cells = [rf"\textcolor{{gray}}{{{cell}}}" for cell in cells]
        lines.append(" & ".join(cells) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _plain(text: str) -> str:
    signs = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(signs.get(c, f"\\{c}" if c in "&%$#_{}" else c) for c in text)


def _figure(points: Sequence[CostPoint], paths: Sequence[Path]) -> None:
    """Perplexity against calls and, where they are recorded, seconds; the entropy stands at each point."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    axes = [("calls", "network calls of a text")]
    if any(one.seconds for one in points):
        axes.append(("seconds", "seconds of a text"))
    figure = Figure(figsize=(4.2 * len(axes), 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(axes), squeeze=False)[0]
    for panel, (name, label) in zip(panels, axes, strict=True):
        _panel(panel, points, name)
        panel.set_xlabel(label)
    panels[0].set_ylabel("generative perplexity")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False, fontsize=8)
    for path in paths:
        with atomic_open(path, "wb") as file:
            figure.savefig(file, format=path.suffix[1:], dpi=200)


def _panel(panel: Axes, points: Sequence[CostPoint], axis: str) -> None:
    from matplotlib.ticker import NullFormatter

    series: dict[tuple[str, str], list[CostPoint]] = {}
    for one in points:
        if getattr(one, axis):
            series.setdefault((one.model, one.sampler), []).append(one)
    samplers = {sampler for _, sampler in series}
    for number, ((model, sampler), members) in enumerate(series.items()):
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
        label = model if len(samplers) < 2 else f"{model}, {sampler}"
        kept = sorted((one for one in members if not one.dominated), key=lambda one: one.calls)
        panel.plot([], [], color=colour, marker=marker, label=label)
        for group, shade in ((kept, colour), ([one for one in members if one.dominated], GREY)):
            x = [getattr(one, axis) for one in group]
            line = "-" if group is kept else "none"
            panel.plot(
                x, [one.ppl for one in group], linestyle=line, color=shade, marker=marker, ms=4, lw=1.2
            )
            for at, one in zip(x, group, strict=True):
                if one.low is not None:
                    panel.vlines(at, one.low, one.high, color=shade, alpha=0.4, lw=2.5)
                note = f"{one.entropy:.2f}"
                panel.annotate(
                    note, (at, one.ppl), (3, 3), textcoords="offset points", fontsize=6, color=shade
                )
    panel.set_xscale("log", base=2 if axis == "calls" else 10)
    panel.set_yscale("log")
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    panel.yaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:g}"[0] in "25" else "")
    if axis == "calls":
        panel.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    panel.grid(alpha=0.25)
