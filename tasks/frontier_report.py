"""What the points of mode=frontier say: a table, a figure, the curves read at one entropy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reporting.entropy_curves import Curves, Matched, Point, make_curves, match
from utils import atomic_open, write_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SERIES_COLOURS = ("#1f5fa8", "#d1662f", "#3c8d53", "#8c4fb0", "#b0304a", "#7a6a45", "#2a9d9d", "#555555")


def write_report(points: Sequence[Point], folder: Path, entropy: float | None) -> list[dict[str, Any]]:
    """Write table.md, figure.png and matched.json into ``folder``; returns what matched.json holds."""
    curves = make_curves(points)
    matched = match(curves, entropy)
    rows = [
        {"steps": steps, "series": label, "entropy": at, "generative_ppl": value and value.ppl}
        | {"generative_ppl_interval": [value.low, value.high] if value and value.low else None}
        for steps, (at, values) in matched.items()
        for label, value in values.items()
    ]
    write_json(folder / "matched.json", rows)
    with atomic_open(folder / "table.md") as file:
        file.write(_tables(curves, matched))
    if any(curves.values()):
        _figure(curves, matched, folder / "figure.png")
    return rows


# The table -----------------------------------------------------------------------------------------


def _tables(curves: Curves, matched: dict[int, tuple[float | None, dict[str, Matched | None]]]) -> str:
    lines = ["Generative perplexity (95 % interval) at matched entropy, by number of steps:", ""]
    lines += _row("steps", "entropy (nats)", *curves) + _rule(2 + len(curves))
    for steps, (at, values) in matched.items():
        cells = [_matched_cell(values[label]) if label in values else "" for label in curves]
        lines += _row(steps, "none in common" if at is None else f"{at:.3f}", *cells)
    lines += ["", "A dash: the curve does not reach this entropy. All points:", ""]
    head = ("model", "steps", "temperature", "network calls", "generative perplexity", "entropy (nats)")
    lines += _row(*head) + _rule(len(head))
    for label, by_steps in curves.items():
        for steps, curve in by_steps.items():
            for p in curve:
                ppl = _with_interval(p["generative_ppl"], *(p["generative_ppl_interval"] or (None, None)))
                lines += _row(
                    label, steps, f"{p['temperature']:g}", f"{p['nfe']:.1f}", ppl, f"{p['entropy']:.3f}"
                )
    return "\n".join(lines) + "\n"


def _row(*cells: object) -> list[str]:
    return ["| " + " | ".join(map(str, cells)) + " |"]


def _rule(columns: int) -> list[str]:
    return ["|" + "---|" * columns]


def _matched_cell(value: Matched | None) -> str:
    return "-" if value is None else _with_interval(value.ppl, value.low, value.high)


def _with_interval(ppl: float, low: float | None, high: float | None) -> str:
    return f"{ppl:.2f}" if low is None else f"{ppl:.2f} ({low:.2f} to {high:.2f})"


# The figure ----------------------------------------------------------------------------------------


def _figure(
    curves: Curves, matched: dict[int, tuple[float | None, dict[str, Matched | None]]], path: Path
) -> None:
    """One series: a line a number of steps. Several: a panel a number of steps, a line a series."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    counts = list(matched)
    wanted = 1 if len(curves) == 1 else len(counts)
    rows = -(-wanted // 4)
    columns = -(-wanted // rows)
    figure = Figure(figsize=(max(6.4, 3.4 * columns), max(4.6, 3.2 * rows + 0.6)), facecolor="white")
    figure.set_layout_engine("constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    if len(curves) == 1:
        ((label, by_steps),) = curves.items()
        colours = colormaps["viridis"]([0.85 * k / max(len(counts) - 1, 1) for k in range(len(counts))])
        for colour, (steps, curve) in zip(colours, by_steps.items(), strict=True):
            _draw(panels[0], curve, colour, f"{steps} steps" if steps > 1 else "1 step")
        _decorate(panels[0], label, None)
    else:
        for panel, (steps, (at, _)) in zip(panels, matched.items(), strict=False):
            for k, (label, by_steps) in enumerate(curves.items()):
                _draw(panel, by_steps.get(steps, []), SERIES_COLOURS[k % len(SERIES_COLOURS)], label)
            _decorate(panel, f"{steps} steps" if steps > 1 else "1 step", at)
    for panel in panels[wanted:]:
        panel.set_visible(False)
    for panel in panels[max(wanted - columns, 0) : wanted]:
        panel.set_xlabel("sample entropy (nats)")
        panel.tick_params(labelbottom=True)  # also where the row below is not full
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(4, len(labels)), frameon=False)
    figure.supylabel("generative perplexity", fontsize=11)
    with atomic_open(path, "wb") as file:
        figure.savefig(file, format="png", dpi=150)


def _draw(panel: Axes, curve: Sequence[Point], colour: Any, label: str) -> None:
    """One curve with its intervals; the temperature stands at each point."""
    entropies, values = [p["entropy"] for p in curve], [p["generative_ppl"] for p in curve]
    panel.plot(entropies, values, "-o", color=colour, markersize=4, linewidth=1.6, label=label)
    for point in curve:
        if point["generative_ppl_interval"]:
            panel.vlines(point["entropy"], *point["generative_ppl_interval"], color=colour, alpha=0.35, lw=3)
        where = (point["entropy"], point["generative_ppl"])
        panel.annotate(
            f"{point['temperature']:g}",
            where,
            (4, -9),
            textcoords="offset points",
            fontsize=7,
            color=colour,
        )


def _decorate(panel: Axes, title: str, entropy: float | None) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator

    panel.set_title(title, fontsize=10)
    panel.set_yscale("log")
    panel.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.yaxis.set_minor_formatter(FuncFormatter(lambda *_: ""))
    panel.grid(alpha=0.25, which="major")
    if entropy is not None:
        panel.axvline(entropy, color="#999999", linestyle="--", linewidth=1, zorder=0)
