"""Result files of every kind, read and checked: what the rest of a report may rely on."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from errors import UserError

RUN = "RUN"  # what the command line calls a path
HINT = "give a result of an evaluation, a points.jsonl, a run folder, or a folder of them"
SAMPLES, LIKELIHOOD, ZERO_SHOT, MAUVE, POINTS = "samples", "likelihood", "zero-shot", "mauve", "points"

_NUMBERS = {
    SAMPLES: (
        "steps", "generative_ppl", "entropy", "entropy_stderr", "nfe", "num_samples", "temperature",
        "total_generation_times", "tc", "tc_stderr", "tc_limit",
    ),
    LIKELIHOOD: ("perplexity", "nll", "nll_stderr", "bpd", "bpd_stderr", "tokens"),
    MAUVE: ("steps", "mauve", "mauve_std", "mauve_ceiling", "num_generated", "temperature"),
    POINTS: ("steps", "temperature", "nfe", "entropy", "generative_ppl"),
}  # fmt: skip
_NUMBERS[ZERO_SHOT] = _NUMBERS[LIKELIHOOD]
_NEEDED = {MAUVE: ("mauve",), POINTS: ("steps", "temperature", "entropy"), LIKELIHOOD: ("perplexity",)}
_NEEDED[ZERO_SHOT] = _NEEDED[LIKELIHOOD]
_LARGEST = 1e305  # a perplexity is cut at e^700; beyond, axes overflow
Run = dict[str, Any]


@dataclass(frozen=True)
class Way:
    """One recorded sample (``tasks.trajectories``): the ids it began with and, in ``changes``, a list
    ``[step, t, positions, ids, reset]`` for each step that changed something.

    Attributes:
        number: which of the recorded samples of its run it is, from 1.
        num_steps: all steps made.
        pieces: the text of each id but the mask's.
    """

    number: int
    num_steps: int
    mask_id: int
    pieces: dict[int, str]
    start: list[int]
    changes: list[list[Any]]


def read_result(path: Path) -> tuple[str, list[Run]] | None:
    """The kind of a result file and its runs, each with checked numbers; None when it is no result at all.

    Raises:
        ValueError: it cannot be read as JSON, or is a result whose values are of wrong types.
    """
    if path.name == "points.jsonl":
        return POINTS, _checked(POINTS, [_parsed(line, path) for line in _lines(path)], path)
    content = _parsed(path.read_text(encoding="utf-8", errors="replace"), path)
    if not isinstance(content, dict):
        return None
    runs = content.get("runs", [content])
    if not isinstance(runs, list) or not all(isinstance(run, dict) for run in runs):
        return None
    if "failed" in content and "runs" in content:
        return ZERO_SHOT, _checked(ZERO_SHOT, runs, path)
    for kind, sign in ((SAMPLES, "generated_seqs"), (MAUVE, "mauve"), (LIKELIHOOD, "perplexity")):
        if runs and all(sign in run for run in runs):
            return kind, _checked(kind, runs, path)
    return None


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The lines of a metrics.csv, each with what was logged in it.

    Raises:
        ValueError: it is no such table.
    """
    rows: list[dict[str, float]] = []
    reader = csv.DictReader(_lines(path))
    try:
        for row in reader:
            rows.append({name: float(value) for name, value in row.items() if name and value})
            rows[-1]["step"] = int(rows[-1]["step"])
    except (KeyError, TypeError, ValueError, OverflowError, csv.Error) as error:
        problem = f"line {reader.line_num} of the file is no line of metrics"
        raise UserError(RUN, str(path), problem, "remove it, or leave the run out") from error
    return rows


def read_config(path: Path) -> dict[str, Any]:
    """A run's config.yaml; empty where there is none, or none that can be read."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def read_matched(points: Path) -> list[dict[str, Any]]:
    """The rows of the matched.json that mode=frontier writes at its end beside its points; none before."""
    try:
        rows = _parsed(points.with_name("matched.json").read_text(encoding="utf-8"), points)
    except (OSError, ValueError):
        return []
    return rows if isinstance(rows, list) and all(map(_is_matched, rows)) else []


def _is_matched(row: object) -> bool:
    names = ("steps", "series", "entropy", "generative_ppl", "generative_ppl_interval")
    if not isinstance(row, dict) or not row.keys() >= {*names}:
        return False
    steps, _, *numbers, interval = (row[name] for name in names)
    measured = all(value is None or is_number(value) for value in numbers)
    return is_number(steps) and measured and (interval is None or _is_interval(interval))


def read_ways(path: Path, run: Run) -> list[Way]:
    """The recorded samples of one run of the result that names ``path``.

    Raises:
        ValueError: no such file, or not of this form.
    """
    try:
        content = _parsed(path.read_text(encoding="utf-8"), path)
    except OSError as error:
        raise UserError(RUN, str(path), error.strerror or "cannot be read", "sample anew") from error
    try:
        pieces = {int(i): str(text) for i, text in content["pieces"].items()}
        ways = []
        for recorded in content["runs"]:
            if all(recorded[name] == run.get(name) for name in ("steps", "predictor")):
                for number, sample in enumerate(recorded["samples"], 1):
                    way = (content["mask_id"], pieces, sample["start"], sample["changes"])
                    ways.append(Way(number, recorded["num_steps"], *way))
        for way in ways:
            _check_way(way)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        problem = f"holds no recorded trajectories ({type(error).__name__}: {error})"
        raise UserError(RUN, str(path), problem, "sample anew") from error
    return ways


def point_problem(point: object) -> str | None:
    """Why a line of a points.jsonl is no point that curves can be made of; None when it is one."""
    if not isinstance(point, dict):
        return "it is no object"
    settings = point.get("settings")
    if not isinstance(settings, dict):
        return "settings is no object"
    for name in ("name", "predictor"):
        if not isinstance(settings.get(name), str):
            return f"settings.{name} is no text"
    for name in ("steps", "temperature", "entropy"):
        if not is_number(point.get(name)):
            return f"{name} is no number"
    ppl, interval = point.get("generative_ppl"), point.get("generative_ppl_interval")
    if not (ppl is None or (is_number(ppl) and ppl > 0)):
        return "generative_ppl is no number above 0"
    if not (interval is None or _is_interval(interval)):
        return "generative_ppl_interval is no pair of numbers above 0, the smaller first"
    return None


def is_number(value: object) -> bool:
    """Whether a JSON value is a finite number, of a size that can be drawn."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -_LARGEST < value < _LARGEST


def _check_way(way: Way) -> None:
    known = way.pieces.keys() | {way.mask_id}
    ids = [*way.start]
    for step, t, positions, written, reset in way.changes:
        ids += written
        if not (is_number(step) and is_number(t) and len(positions) == len(written)):
            raise ValueError(f"step {step}")
        for position in (*positions, *reset):
            way.start[position]  # IndexError, TypeError
            if position < 0:
                raise ValueError(f"position {position}")
    if not known.issuperset(ids):
        raise ValueError("ids without a text")


def _checked(kind: str, runs: list[Run], path: Path) -> list[Run]:
    for number, run in enumerate(runs, 1):
        if not isinstance(run, dict):
            raise UserError(RUN, str(path), f"line {number} is no object", "evaluate again")
        for name in _NUMBERS[kind]:
            value = run.get(name)
            # A number that is not finite (nothing was counted) is one that is not there.
            if isinstance(value, float) and not math.isfinite(value):
                run[name] = value = None
            if not (value is None or is_number(value)) or (name in _NEEDED.get(kind, ()) and value is None):
                raise _wrong(path, number, name, value, "is no number")
            if name == "steps" and value is not None and value <= 0:
                raise _wrong(path, number, name, value, "is no number of steps")
        interval = run.get("generative_ppl_interval")
        if interval is not None and not _is_interval(interval):
            problem = "is no pair of numbers above 0, the smaller first"
            raise _wrong(path, number, "generative_ppl_interval", interval, problem)
        if run.get("tc_groups") == 0:
            run["tc"] = None  # written as 0, as officially, where nothing was measured
        if kind == SAMPLES and not _are_texts(run["generated_seqs"]):
            raise _wrong(path, number, "generated_seqs", run["generated_seqs"], "is no list of texts")
        if kind == POINTS and (problem := point_problem(run)):
            raise UserError(RUN, str(path), f"line {number} is no point: {problem}", "evaluate again")
    return runs


def _wrong(path: Path, number: int, name: str, value: object, problem: str) -> ValueError:
    shown = repr(value)[:40]
    return UserError(RUN, str(path), f"run {number}: {name}={shown} {problem}", "evaluate anew")


def _is_interval(value: object) -> bool:
    is_pair = isinstance(value, list) and len(value) == 2 and all(map(is_number, value))
    return is_pair and 0 < value[0] <= value[1]


def _are_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _parsed(text: str, path: Path) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(RUN, str(path), f"is no JSON ({error})", HINT) from error


def _lines(path: Path) -> Iterable[str]:
    return path.read_text(encoding="utf-8", errors="replace").removesuffix("\n").split("\n")
