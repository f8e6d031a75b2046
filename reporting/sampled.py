"""Sections about samples: their measures over the number of steps, and perplexity against entropy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from reporting.blocks import (
    Cell,
    Chart,
    Point,
    Section,
    Series,
    Table,
    number,
    steps_words,
    table,
    with_error,
    with_interval,
)
from reporting.entropy_curves import Curves, make_curves
from reporting.find import Findings, Frontier, Measured
from reporting.read import Run

SHORT = 8  # rows of a table that a page shows open
NORMAL_95 = 1.96  # standard errors on either side that hold 95 % of a normal distribution


# 97.5 % quantiles of Student's distribution by degrees of freedom, for few runs.
STUDENT = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


# Samples -------------------------------------------------------------------------------------------


def sampled(findings: Findings, labels: list[str]) -> Section:
    """What was measured of samples; ``labels`` are all models, in the order of their colours."""
    blocks: list[Table | tuple[Chart, ...]] = []
    if findings.samples:
        charts = (
            _over_steps(findings.samples, labels, "generative_ppl", "generative perplexity", log_y=True),
            _over_steps(findings.samples, labels, "entropy", "sample entropy (nats)"),
            _over_steps(findings.samples, labels, "tc", "total correlation (bits)"),
        )
        if drawn := tuple(chart for chart in charts if chart.series):
            blocks.append(drawn)
        blocks += pivoted(findings.samples)
        blocks.append(_sample_table(findings.samples))
    if findings.mauves:
        rows = [
            [
                Cell(one.label),
                number(one.run.get("steps"), ".0f"),
                with_error(one.run["mauve"], one.run.get("mauve_std"), ".4f"),
                number(one.run.get("mauve_ceiling"), ".4f"),
                number(one.run.get("num_generated"), ".0f"),
            ]
            for one in findings.mauves
        ]
        note = (
            "± is the standard deviation over the seeds of the k-means; "
            "the ceiling is what other human texts of the same number reach."
        )
        blocks.append(table("MAUVE", ("model", "steps", "MAUVE", "ceiling", "texts"), rows, note))
    return Section("samples", "Samples, measured", blocks)


def _sample_table(found: Sequence[Measured]) -> Table:
    judges = list(dict.fromkeys(_judge(one.run) for one in found if one.run.get("generative_ppl")))
    head = (
        "model", "sampler", "steps", "network calls", "generative perplexity", "entropy (nats)",
        "total correlation (bits)", "temperature", "judge", "samples", "seconds",
    )  # fmt: skip
    rows = []
    for one in found:
        run, temperature = one.run, one.run.get("temperature")
        rows.append(
            [
                Cell(one.label),
                Cell(str(run.get("predictor") or "")),
                number(run.get("steps"), ".0f"),
                number(run.get("nfe"), ".1f"),
                with_interval(run.get("generative_ppl"), run.get("generative_ppl_interval")),
                with_error(run.get("entropy"), run.get("entropy_stderr"), ".3f"),
                with_error(run.get("tc"), run.get("tc_stderr"), ".3f"),
                number(None if temperature == 1 else temperature, "g"),
                Cell(_judge(run) if len(judges) > 1 else ""),
                number(run.get("num_samples", len(run["generated_seqs"])), ".0f"),
                number(run.get("total_generation_times"), ".1f"),
            ]
        )
    judged = f"Generative perplexity by {judges[0]}. " if len(judges) == 1 and judges[0] else ""
    note = f"{judged}{'In brackets 95 % intervals; ' if judges else ''}± is one standard error."
    return table("All samples", head, rows, note, folded=len(rows) > SHORT)


def pivoted(found: Sequence[Measured]) -> list[Table]:
    """Generative perplexity, a table for each evaluator: models down, network calls across, the entropy under
    each value; in bold what no other value of its column is certainly better than.

    Runs that differ by their seed alone are pooled: the mean of log perplexity, and the mean entropy.
    """
    tables = []
    for judge in dict.fromkeys(_judge(one.run) for one in found if one.run.get("generative_ppl")):
        cells: dict[tuple[str, float], list[Run]] = {}
        for one in found:
            place = one.run.get("nfe") or one.run.get("steps")
            if one.run.get("generative_ppl") and place and _judge(one.run) == judge:
                cells.setdefault((_row_label(one, found), round(place, 1)), []).append(one.run)
        columns, rows = sorted({place for _, place in cells}), dict.fromkeys(label for label, _ in cells)
        if len(columns) * len(rows) < 2:
            continue
        pools = {at: _pool(runs) for at, runs in cells.items()}
        best = {c: min((p for (_, at), p in pools.items() if at == c), key=lambda p: p.ppl) for c in columns}
        made = [
            [Cell(label), *(_pooled_cell(pools.get((label, c)), best[c]) for c in columns)] for label in rows
        ]
        note = (
            "Under each value the sample entropy in nats: a low one flatters the perplexity. Bold: the best "
            "of its column, and all whose 95 % interval reaches its; without intervals the best alone."
        )
        title = f"Generative perplexity by network calls{f', by {judge}' if judge else ''}"
        tables.append(Table(title, ("model", *map(_calls_words, columns)), made, note))
    return tables


class _Pool(NamedTuple):
    """Runs of one model at one number of calls: their perplexity with both ends, and entropy."""

    ppl: float
    low: float
    high: float
    entropy: float | None
    number: int


def _pool(runs: Sequence[Run]) -> _Pool:
    logs = [math.log(run["generative_ppl"]) for run in runs]
    mean, entropies = (
        sum(logs) / len(logs),
        [run["entropy"] for run in runs if run.get("entropy") is not None],
    )
    if len(runs) > 1:
        spread = (sum((one - mean) ** 2 for one in logs) / (len(logs) - 1) / len(logs)) ** 0.5
        room = STUDENT.get(len(runs) - 1, NORMAL_95) * spread
        ends = (math.exp(mean - room), math.exp(mean + room))
    else:
        ends = tuple(runs[0].get("generative_ppl_interval") or (runs[0]["generative_ppl"],) * 2)
    entropy = sum(entropies) / len(entropies) if entropies else None
    return _Pool(math.exp(mean), *ends, entropy, len(runs))


def _pooled_cell(pool: _Pool | None, best: _Pool) -> Cell:
    if pool is None:
        return Cell("")
    form = ".2f" if pool.ppl < 10_000 else ".3e"
    seeds = f", {pool.number} runs" if pool.number > 1 else ""
    under = "" if pool.entropy is None else f"{pool.entropy:.3f}{seeds}"
    return Cell(f"{pool.ppl:{form}}", pool.ppl, under, best=pool.low <= best.high)


def _row_label(one: Measured, found: Sequence[Measured]) -> str:
    """The model, and its sampler and temperature where it has several."""
    words = [one.label]
    for key, form in (("predictor", "{}"), ("temperature", "temperature {}")):
        if len({other.run.get(key) for other in found if other.label == one.label}) > 1:
            words.append(form.format(one.run.get(key)))
    return ", ".join(words)


def _calls_words(calls: float) -> str:
    return "1 call" if calls == 1 else f"{calls:g} calls"


def _judge(run: Run) -> str:
    name = run.get("gen_ppl_scorer")
    if not isinstance(name, str):
        return ""
    place = Path(name)
    return place.parent.parent.name if place.parent.name == "checkpoints" else name


def _over_steps(
    found: Sequence[Measured], labels: list[str], key: str, title: str, *, log_y: bool = False
) -> Chart:
    """A measure against network calls where all runs record them, else steps, with 95 % intervals."""
    series: dict[str, list[Point]] = {}
    axis = "nfe" if all(one.run.get("nfe") for one in found) else "steps"
    for one in found:
        steps, value = one.run.get(axis), one.run.get(key)
        if not steps or value is None or (log_y and value <= 0):
            continue
        interval = _interval(one.run, key)
        shown = with_interval(value, interval).text if interval else f"{value:.3f}"
        words = f"{one.label}, {_calls_words(steps) if axis == 'nfe' else steps_words(steps)}: {shown}"
        series.setdefault(one.label, []).append(Point(steps, value, *(interval or (None, None)), words))
    curves = [
        Series(label, labels.index(label), sorted(points, key=lambda point: point.x))
        for label, points in series.items()
    ]
    ticks = tuple(sorted({point.x for curve in curves for point in curve.points}))
    return Chart(
        title, "network calls" if axis == "nfe" else "steps", curves, log_x=True, log_y=log_y, ticks=ticks
    )


def _interval(run: Run, key: str) -> tuple[float, float] | None:
    if ends := run.get(f"{key}_interval"):
        return ends[0], ends[1]
    error = run.get(f"{key}_stderr")
    if error is None or key == "generative_ppl":
        return None
    return run[key] - NORMAL_95 * error, run[key] + NORMAL_95 * error


# Frontier ------------------------------------------------------------------------------------------


def entropy_section(frontier: Frontier, index: int) -> Section:
    """Number ``index`` of the frontiers: its tables, and a chart a number of steps."""
    curves = make_curves(frontier.points)
    rows = [
        [
            Cell(label),
            number(steps, ".0f"),
            number(point["temperature"], "g"),
            number(point.get("nfe"), ".1f"),
            with_interval(point["generative_ppl"], point.get("generative_ppl_interval")),
            number(point["entropy"], ".3f"),
        ]
        for label, by_steps in curves.items()
        for steps, curve in by_steps.items()
        for point in curve
    ]
    head = ("model", "steps", "temperature", "network calls", "generative perplexity", "entropy (nats)")
    blocks: list[Table | tuple[Chart, ...]] = []
    if frontier.matched:
        blocks.append(_matched(frontier))
    if rows:
        blocks += [
            _entropy_charts(curves),
            table("All points", head, rows, "In brackets 95 % intervals.", folded=len(rows) > SHORT),
        ]
    title = f"Perplexity against entropy: {frontier.label}"
    return Section(f"frontier-{index}", title, blocks)


def _matched(frontier: Frontier) -> Table:
    labels = list(dict.fromkeys(str(row["series"]) for row in frontier.matched))
    by_steps: dict[float, dict[str, dict[str, Any]]] = {}
    for row in frontier.matched:
        by_steps.setdefault(row["steps"], {})[str(row["series"])] = row
    rows = []
    for steps, found in by_steps.items():
        entropy = next(iter(found.values()))["entropy"]
        cells = [found.get(label, {}) for label in labels]
        shown = [with_interval(c.get("generative_ppl"), c.get("generative_ppl_interval")) for c in cells]
        reached = Cell("none in common") if entropy is None else number(entropy, ".3f")
        rows.append([number(steps, ".0f"), reached, *[cell if cell.text else Cell("-") for cell in shown]])
    note = "A dash: the curve does not reach this entropy. In brackets 95 % intervals."
    head = ("steps", "entropy (nats)", *labels)
    return table("Generative perplexity at matched entropy", head, rows, note)


def _entropy_charts(curves: Curves) -> tuple[Chart, ...]:
    charts = []
    for steps in sorted({n for by_steps in curves.values() for n in by_steps}):
        series = []
        for index, (label, by_steps) in enumerate(curves.items()):
            points = [
                Point(
                    p["entropy"],
                    p["generative_ppl"],
                    *(p.get("generative_ppl_interval") or (None, None)),
                    f"{label}, temperature {p['temperature']:g}: {p['generative_ppl']:.2f}",
                )
                for p in by_steps.get(steps, [])
                if p["generative_ppl"] > 0
            ]
            if points:
                series.append(Series(label, index, points))
        title = f"{steps_words(steps)}: generative perplexity"
        charts.append(Chart(title, "sample entropy (nats)", series, log_y=True))
    return tuple(charts)
