"""metrics.csv: one table of a run, however often it was stopped."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from utils import atomic_open, get_logger

log = get_logger("metrics")
Row = dict[str, Any]
FIRST = ("step", "epoch")


class MetricsFile(Logger):
    """A CSV log that goes on after a checkpoint as if there had been no interruption.

    One line for each step that is logged and one for each validation; ``step`` counts from 0, as in
    Lightning's other loggers: the line of the k-th optimizer step and of a validation after it has k - 1.
    Lines reach the file at once. It is rewritten, atomically, when a column is new and when a resumed run
    makes steps again that were logged already. Numbers are written so that reading gives the same bits.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self._steps_kept, self._without_validation = 0, False
        self._columns: list[str] = []
        self._file: IO[str] | None = None
        self._line: Row = {}

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def version(self) -> str:
        return ""

    @property
    def save_dir(self) -> str:
        return str(self.path.parent)

    def go_on_after(self, step: int, *, without_validation: bool) -> None:
        """Keep what the first ``step`` optimizer steps logged, perhaps without the last one's validation."""
        self._steps_kept, self._without_validation = step, without_validation

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """They are in config.yaml."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Tensor | float], step: int | None = None) -> None:
        values = {name: v.item() if isinstance(v, Tensor) else v for name, v in metrics.items()}
        if self._line and self._line["step"] != step:
            self.save()
        self._line |= values | {"step": step}

    @rank_zero_only
    def save(self) -> None:
        """Write the line that is pending; callbacks and the step itself may have added to it."""
        if not self._line:
            return
        if self._file is None:
            self._open()
        if not self._line.keys() <= set(self._columns):
            self._rewrite(_read(self.path), self._line)
        self._append(self._line)
        self._line = {}

    @rank_zero_only
    def finalize(self, status: str) -> None:
        self.save()
        if self._file is not None:
            self._file.close()
            self._file = None

    @rank_zero_only
    def last_values(self) -> dict[str, float]:
        """The last value of every metric in the file."""
        rows = _read(self.path)
        columns = _columns(rows)[len(FIRST) :]
        return {name: next(float(row[name]) for row in reversed(rows) if row.get(name)) for name in columns}

    def _open(self) -> None:
        """Leave out the lines of steps that are to come (again), and a last line that a crash cut off.

        What no training has written is put aside.
        """
        rows, damaged = _read_lines(self.path)
        if damaged:
            aside = self.path.with_name(f"{self.path.name}.bad")
            with aside.open("a", encoding="utf-8") as file:
                file.writelines(f"{line}\n" for line in damaged)
            log.warning("%s: %d damaged lines, which are in %s now", self.path, len(damaged), aside)
        kept = [row for row in rows if self._belongs(row)]
        self._rewrite(kept, {})

    def _belongs(self, row: Row) -> bool:
        step, last = int(row["step"]), self._steps_kept - 1
        is_validation = any(value for name, value in row.items() if name.startswith("val/"))
        return step < last or step == last and not (is_validation and self._without_validation)

    def _rewrite(self, rows: list[Row], extra: Row) -> None:
        self._columns = _columns([*rows, extra])
        if self._file is not None:
            self._file.close()
        with atomic_open(self.path) as file:
            writer = csv.DictWriter(file, self._columns, extrasaction="ignore", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        self._file = self.path.open("a", encoding="utf-8", newline="")

    def _append(self, row: Row) -> None:
        assert self._file is not None
        csv.DictWriter(self._file, self._columns, lineterminator="\n").writerow(row)
        try:
            self._file.flush()
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error


def _columns(rows: list[Row]) -> list[str]:
    """Those with a value, in an order that does not depend on when they came."""
    found = {name for row in rows for name, value in row.items() if value not in ("", None)}
    return [*FIRST, *sorted(found - set(FIRST))]


def _read(path: Path) -> list[Row]:
    """The whole lines of the file; none where there is no file."""
    return _read_lines(path)[0]


def _read_lines(path: Path) -> tuple[list[Row], list[str]]:
    """The whole lines as rows, and those that are damaged."""
    if not path.exists():
        return [], []
    text = path.read_text(encoding="utf-8", errors="replace")
    head, *lines = text[: text.rfind("\n") + 1].split("\n")[:-1] or [""]
    columns = _cells(head)
    if not set(FIRST) <= set(columns) or len(set(columns)) < len(columns):
        return [], [line for line in (head, *lines) if line]
    rows, damaged = [], []
    for line in lines:
        cells = _cells(line)
        if len(cells) == len(columns) and _are_numbers(row := dict(zip(columns, cells, strict=True))):
            rows.append(row)
        else:
            damaged.append(line)
    return rows, damaged


def _cells(line: str) -> list[str]:
    try:
        return next(csv.reader([line]), [])
    except csv.Error:
        return []


def _are_numbers(row: Row) -> bool:
    """Whether the step is a whole number and the others are numbers, where they are something."""
    try:
        return int(row["step"]) >= 0 and all(not value or float(value) is not None for value in row.values())
    except ValueError:
        return False
