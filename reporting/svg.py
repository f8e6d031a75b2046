"""Charts as SVG: lines, markers and intervals, coloured by the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

from reporting.blocks import Chart, Point, Series

WIDTH, HEIGHT = 420, 280
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 10, 44
COLOURS = 8  # of the style sheet; after them dashes
Scale = Callable[[float], float]


def draw(chart: Chart) -> str:
    """The chart as one <svg> element; every point tells its numbers in a <title>."""
    xs = [p.x for one in chart.series for p in one.points]
    ys = [y for one in chart.series for p in one.points for y in (p.low, p.y, p.high) if y is not None]
    if chart.log_y:
        ys = [y for y in ys if y > 0]
    x_ends, y_ends = _ends(xs, chart.log_x, bool(chart.ticks)), _ends(ys, chart.log_y, False)
    x = _scale(x_ends, (LEFT, WIDTH - RIGHT), chart.log_x)
    y = _scale(y_ends, (HEIGHT - BOTTOM, TOP), chart.log_y)
    x_ticks = chart.ticks or ticks(*x_ends, chart.log_x)
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(chart.title)} by '
        f'{escape(chart.x_label)}">',
        _axes(chart.x_label, x, y, _sparse(x_ticks, x), ticks(*y_ends, chart.log_y)),
        *[_curve(one, x, y, chart) for one in chart.series],
        "</svg>",
    ]
    return "".join(parts)


def ticks(low: float, high: float, log: bool) -> tuple[float, ...]:
    """Round numbers between two ends: 1, 2 and 5 times powers of ten, or even steps of such a size."""
    if log:
        exponents = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
        every = [m * 10.0**e for e in exponents for m in (1, 2, 5)]
        found = tuple(value for value in every if low * 0.999 <= value <= high * 1.001)
        if 2 <= len(found) <= 8:
            return found
        if len(found) > 8:
            return tuple(v for v in found if math.isclose(v, 10 ** round(math.log10(v))))
    rough = (high - low) / 5
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * m for m in (1, 2, 5, 10) if size * m >= rough * 0.999)
    return tuple(k * step for k in range(math.ceil(low / step), math.floor(high / step) + 1))


def swatch(series: Series) -> str:
    """A short line with the marker of a curve, for the legend."""
    colour = series.colour % COLOURS
    return (
        f'<svg class="swatch s{colour}" viewBox="0 0 34 12" aria-hidden="true">'
        f'<path d="M1 6H33"{_dash(series)}/>{_marker(series.colour, 17, 6, "")}</svg>'
    )


def _ends(values: Sequence[float], log: bool, tight: bool) -> tuple[float, float]:
    """The ends of an axis: those of the values and a little room, never equal."""
    low, high = min(values), max(values)
    if log:
        a, b = math.log(low), math.log(high)
        room = 0.05 * (b - a) or 0.35
        return math.exp(a - room), math.exp(min(b + room, 702.0))
    room = 0.06 * (high - low) or abs(high) * 0.1 or 1.0
    return (low, high) if tight and high > low else (low - room, high + room)


def _scale(ends: tuple[float, float], place: tuple[float, float], log: bool) -> Scale:
    def of(value: float) -> float:
        a, b, v = (math.log(n) if log else n for n in (*ends, value))
        return round(place[0] + (v - a) / (b - a) * (place[1] - place[0]), 1)

    return of


def _sparse(values: Sequence[float], x: Scale) -> list[float]:
    """Those ticks whose labels do not touch."""
    kept: list[float] = []
    for value in values:
        if not kept or x(value) - x(kept[-1]) > 8 + 4 * (len(_words(value)) + len(_words(kept[-1]))):
            kept.append(value)
    return kept


def _axes(label: str, x: Scale, y: Scale, x_ticks: Sequence[float], y_ticks: Sequence[float]) -> str:
    floor, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    lines = [f"M{LEFT} {y(v)}H{right}" for v in y_ticks] + [f"M{x(v)} {TOP}V{floor}" for v in x_ticks]
    parts = [
        f'<path class="grid" d="{"".join(lines)}"/>',
        f'<path class="axis" d="M{LEFT} {TOP}V{floor}H{right}"/>',
    ]
    parts += [f'<text x="{LEFT - 6}" y="{y(v) + 4}" text-anchor="end">{_words(v)}</text>' for v in y_ticks]
    parts += [f'<text x="{x(v)}" y="{floor + 17}" text-anchor="middle">{_words(v)}</text>' for v in x_ticks]
    middle = (LEFT + right) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escape(label)}</text>')
    return "".join(parts)


def _words(value: float) -> str:
    if value and not 1e-3 <= abs(value) < 1e6:
        return f"{value:.0e}".replace("e+0", "e").replace("e-0", "e-")
    return f"{round(value, 6):,.10g}"


def _curve(series: Series, x: Scale, y: Scale, chart: Chart) -> str:
    line = "L".join(f"{x(p.x)} {y(p.y)}" for p in series.points)
    parts = [f'<g class="s{series.colour % COLOURS}"><path d="M{line}"{_dash(series)}/>']
    for point in series.points:
        parts.append(_interval(point, x, y, chart.log_y))
        if chart.markers or len(series.points) == 1:
            parts.append(_marker(series.colour, x(point.x), y(point.y), point.words))
    return "".join([*parts, "</g>"])


def _interval(point: Point, x: Scale, y: Scale, log: bool) -> str:
    if point.low is None or point.high is None or (log and point.low <= 0):
        return ""
    a, b, c = x(point.x), y(point.low), y(point.high)
    return f'<path class="bar" d="M{a} {b}V{c}M{a - 4} {b}H{a + 4}M{a - 4} {c}H{a + 4}"/>'


def _marker(colour: int, x: float, y: float, words: str) -> str:
    """A shape of its own for each of four neighbouring colours: colours alone tell not everybody."""
    shapes = (
        f'<circle cx="{x}" cy="{y}" r="3.6">',
        f'<rect x="{x - 3.2:.1f}" y="{y - 3.2:.1f}" width="6.4" height="6.4">',
        f'<path class="mark" d="M{x} {y - 4.4:.1f}l4.2 7.4h-8.4z">',
        f'<path class="mark" d="M{x} {y - 4.6:.1f}l4.6 4.6l-4.6 4.6l-4.6 -4.6z">',
    )
    shape = shapes[colour % len(shapes)]
    title = f"<title>{escape(words)}</title>" if words else ""
    return f"{shape}{title}</{shape[1:].split()[0]}>"


def _dash(series: Series) -> str:
    return ' stroke-dasharray="5 4"' if series.colour >= COLOURS else ""
