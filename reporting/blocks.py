"""What a report is made of, before it becomes a page or a text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from reporting.read import Way


@dataclass(frozen=True)
class Cell:
    """A text, and all digits of the number that it rounds (None: it is no number).

    Attributes:
        under: what stands under it, in small letters.
        best: it is shown in bold.
    """

    text: str
    exact: float | None = None
    under: str = ""
    best: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of cells under a head; ``note`` says what the numbers are; a page shows ``folded`` ones closed."""

    title: str
    head: tuple[str, ...]
    rows: list[list[Cell]]
    note: str = ""
    folded: bool = False


@dataclass(frozen=True)
class Point:
    """A point of a curve, the ends of its interval where it has one, and what it says in words."""

    x: float
    y: float
    low: float | None
    high: float | None
    words: str


@dataclass(frozen=True)
class Series:
    """A curve; equal ``colour`` (a number from 0) means the same model on all charts."""

    label: str
    colour: int
    points: list[Point]


@dataclass(frozen=True)
class Chart:
    """Curves over one pair of axes.

    Attributes:
        ticks: of the x axis; empty: round numbers.
        log_x, log_y: logarithmic axes, on which all values are positive.
    """

    title: str
    x_label: str
    series: list[Series]
    log_x: bool = False
    log_y: bool = False
    ticks: tuple[float, ...] = ()
    markers: bool = True


@dataclass(frozen=True)
class Texts:
    """Samples side by side: in each column the first texts of one model at one number of steps."""

    label: str
    columns: list[tuple[str, list[str]]]


@dataclass(frozen=True)
class Walk:
    """A recorded sample and what it is called."""

    label: str
    way: Way


Block = Table | tuple[Chart, ...] | Texts | tuple[Walk, ...]


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it; ``name`` is its anchor."""

    name: str
    title: str
    blocks: list[Block] = field(default_factory=list)
    note: str = ""


def table(
    title: str, head: Sequence[str], rows: Sequence[Sequence[Cell]], note: str = "", *, folded: bool = False
) -> Table:
    """A table without the columns that are empty in every row."""
    used = [k for k in range(len(head)) if any(row[k].text for row in rows)]
    return Table(title, tuple(head[k] for k in used), [[row[k] for k in used] for row in rows], note, folded)


def steps_words(steps: float | None) -> str:
    """A number of steps in words; nothing for None."""
    return "" if steps is None else "1 step" if steps == 1 else f"{steps:g} steps"


def number(value: float | None, form: str = ".2f") -> Cell:
    """A number by its format; an empty cell for None."""
    return Cell("") if value is None else Cell(format(value, form), value)


def with_error(value: float | None, error: float | None, form: str) -> Cell:
    """``value ± error``, both by the same format."""
    if value is None or error is None:
        return number(value, form)
    return Cell(f"{value:{form}} ± {error:{form}}", value)


def with_interval(value: float | None, interval: Sequence[float] | None) -> Cell:
    """A perplexity, and the ends of its interval in brackets."""
    if value is None:
        return Cell("")
    form = ".2f" if value < 10_000 else ".3e"
    ends = f" ({interval[0]:{form}} to {interval[1]:{form}})" if interval else ""
    return Cell(f"{value:{form}}{ends}", value)
