"""What the points of mode=frontier say: curves of perplexity over entropy, a table, a figure.

Generative perplexity falls with the entropy of the samples (a low temperature flatters it), so models are
compared at one entropy: each curve runs over temperatures, and is read off where it has that entropy.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from utils import atomic_open, write_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Point = dict[str, Any]
Curves = dict[str, dict[int, list[Point]]]  # label -> number of steps -> points by rising entropy

ALONG_CURVES = ("steps", "temperature")
DIGESTS = ("weights", "network", "scorer_files")  # settings that say nothing to a reader
SERIES_COLOURS = ("#1f5fa8", "#d1662f", "#3c8d53", "#8c4fb0", "#b0304a", "#7a6a45", "#2a9d9d", "#555555")


class Matched(NamedTuple):
    """A curve at an entropy in nats: perplexity, and the ends of its interval where there are intervals."""

    entropy: float
    ppl: float
    low: float | None
    high: float | None


def at_entropy(curve: Sequence[Point], entropy: float) -> Matched | None:
    """Read a curve at an entropy: log perplexity is linear in entropy between neighbouring points.

    The ends of the intervals are interpolated in the same way, which is right where neighbours err together
    and too wide where they err apart; that the entropies err as well is left out.

    Args:
        curve: points with ``entropy`` and ``generative_ppl``, by rising entropy (``by_entropy``).

    Returns:
        None outside of the curve: nothing is extrapolated.
    """
    if not curve or not curve[0]["entropy"] <= entropy <= curve[-1]["entropy"]:
        return None
    above = next(k for k, point in enumerate(curve) if point["entropy"] >= entropy)
    right, left = curve[above], curve[max(above - 1, 0)]
    gap = right["entropy"] - left["entropy"]
    share = (entropy - left["entropy"]) / gap if gap > 0 else 1.0

    def between(a: float, b: float) -> float:
        return math.exp((1 - share) * math.log(a) + share * math.log(b))

    ends: list[float | None] = [None, None]
    intervals = [point.get("generative_ppl_interval") for point in (left, right)]
    if all(intervals):
        ends = [between(*pair) for pair in zip(*intervals, strict=True)]
    return Matched(entropy, between(left["generative_ppl"], right["generative_ppl"]), *ends)


def shared_entropy(curves: Iterable[Sequence[Point]]) -> float | None:
    """The middle of the entropies that all curves reach; None when they have none in common."""
    ranges = [(curve[0]["entropy"], curve[-1]["entropy"]) for curve in curves]
    if not ranges:
        return None
    low, high = max(r[0] for r in ranges), min(r[1] for r in ranges)
    return (low + high) / 2 if low <= high else None


def by_entropy(points: Iterable[Point]) -> list[Point]:
    """The points that have a perplexity, by rising entropy."""
    return sorted((p for p in points if p["generative_ppl"] is not None), key=lambda p: p["entropy"])


def make_curves(points: Sequence[Point]) -> Curves:
    """Curves over temperatures: all but the temperature is the same on one. A series of curves, which differ
    in the number of steps, is called by what sets it apart from the other series."""
    series: dict[str, list[Point]] = {}
    for point in points:
        rest = {name: v for name, v in point["settings"].items() if name not in ALONG_CURVES}
        series.setdefault(json.dumps(rest, sort_keys=True), []).append(point)
    flat = {identity: _flat(json.loads(identity)) for identity in series}
    differing = [
        name
        for name in dict.fromkeys(key for one in flat.values() for key in one)
        if len({json.dumps(one.get(name)) for one in flat.values()}) > 1
    ]
    labels, curves = _labels(flat, differing), {}
    for identity, members in series.items():
        counts = sorted({point["steps"] for point in members})
        chosen = {n: by_entropy(p for p in members if p["steps"] == n) for n in counts}
        curves[labels[identity]] = {n: curve for n, curve in chosen.items() if curve}
    return curves


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in settings.items():
        found.update(_flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value})
    return found


def _labels(flat: dict[str, dict[str, Any]], differing: Sequence[str]) -> dict[str, str]:
    """Identity of a series -> the name, the sampler where there are several, whatever else differs; digests
    only where two series would be called the same."""
    told = [name for name in differing if name not in ("name", "predictor", "algo", *DIGESTS)]
    labels = {}
    for identity, settings in flat.items():
        words = [settings["name"], *([settings["predictor"]] if "predictor" in differing else [])]
        words += [f"{name.rsplit('.', 1)[-1]}={settings.get(name)}" for name in told]
        labels[identity] = ", ".join(words)
    for name in DIGESTS:
        for label in {label for label in labels.values() if list(labels.values()).count(label) > 1}:
            same = [identity for identity in labels if labels[identity] == label]
            if len({flat[identity].get(name) for identity in same}) > 1:
                labels.update({i: f"{label}, {name} {str(flat[i].get(name))[:6]}" for i in same})
    return labels


def match(curves: Curves, entropy: float | None) -> dict[int, tuple[float | None, dict[str, Matched | None]]]:
    """For each number of steps the entropy of comparison, and every series there.

    Args:
        entropy: in nats; None takes what ``shared_entropy`` says of the curves of each number of steps.
    """
    found = {}
    for steps in sorted({n for by_steps in curves.values() for n in by_steps}):
        there = {label: by_steps[steps] for label, by_steps in curves.items() if steps in by_steps}
        at = shared_entropy(there.values()) if entropy is None else entropy
        read = {label: None if at is None else at_entropy(curve, at) for label, curve in there.items()}
        found[steps] = (at, read)
    return found


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
