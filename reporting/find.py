"""Which results lie at the paths that a user gives, and what they are called."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from errors import UserError
from reporting.entropy_curves import Point
from reporting.read import (
    HINT,
    LIKELIHOOD,
    MAUVE,
    POINTS,
    RUN,
    SAMPLES,
    ZERO_SHOT,
    Run,
    Way,
    read_config,
    read_matched,
    read_metrics,
    read_result,
    read_ways,
)
from utils import well_formed

_VALIDATION = re.compile(r"step(\d+)-T\d+\.json")
_TRAINING = "training"


@dataclass(frozen=True)
class Training:
    """A run folder: the lines of its metrics.csv, and what config.yaml says."""

    label: str
    rows: list[dict[str, float]]
    config: dict[str, Any]


@dataclass(frozen=True)
class Measured:
    """One object of a result file, and its recorded samples."""

    label: str
    run: Run
    ways: list[Way] = field(default_factory=list)


@dataclass(frozen=True)
class Frontier:
    """A points.jsonl, and the rows of the matched.json beside it."""

    label: str
    points: list[Point]
    matched: list[dict[str, Any]]


@dataclass
class Findings:
    """All results, by kind; ``problems``: one line for each file in a folder that could not be read."""

    trainings: list[Training] = field(default_factory=list)
    likelihoods: list[Measured] = field(default_factory=list)
    zero_shots: list[Measured] = field(default_factory=list)
    samples: list[Measured] = field(default_factory=list)
    mauves: list[Measured] = field(default_factory=list)
    frontiers: list[Frontier] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def labels(self) -> list[str]:
        """Every model once, in the order in which they were found."""
        every = [*self.trainings, *self.likelihoods, *self.samples, *self.zero_shots, *self.mauves]
        return list(dict.fromkeys(one.label for one in every))


@dataclass(frozen=True)
class _File:
    path: Path
    kind: str
    runs: list[Any]
    owner: tuple[str, ...]  # the parts of a path whose end is the model's name


def find(paths: Sequence[str]) -> Findings:
    """Read everything at ``paths``: result files, run folders, folders of either.

    Models are called by the end of their run folder's path that tells them apart.

    Raises:
        ValueError: no such path, a file that is no result, a folder without any.
    """
    files: dict[Path, _File] = {}
    findings = Findings()
    for text in paths:
        path = Path(text).expanduser()
        if path.is_dir():
            found = {file.path.resolve(): file for file in _of_folder(path, findings.problems)}
        elif path.is_file():
            file = _file(path)
            if file is None:
                raise UserError(RUN, text, "is no result that a report shows", HINT)
            found = {path.resolve(): file}
        else:
            raise UserError(RUN, text, "no such file or folder", HINT)
        if not found:
            more = f" ({findings.problems[-1]})" if findings.problems else ""
            raise UserError(RUN, text, f"holds no results{more}", HINT)
        files |= found
    owners = list(dict.fromkeys(file.owner for file in files.values()))  # in the order in which they come
    _add(findings, sorted(files.values(), key=lambda file: (owners.index(file.owner), file.path)))
    return findings


def _of_folder(folder: Path, problems: list[str]) -> Iterator[_File]:
    for path in _candidates(folder):
        try:
            file = _file(path)
        except (ValueError, OSError) as error:
            problems.append(" ".join(str(error).split()))
            continue
        if file is not None:
            yield file


def _candidates(folder: Path) -> Iterator[Path]:
    """Files that may be results; of the samples of a training's validations the last, where nothing else
    was sampled."""
    for place, folders, names in os.walk(folder):
        here = Path(place)
        folders[:] = sorted(n for n in folders if not n.startswith(".") and n != "checkpoints")
        if "points.jsonl" in names and "samples" in folders:
            folders.remove("samples")  # the points say all but the texts
        if "metrics.csv" in names and "samples" in folders and (here / "results").is_dir():
            folders.remove("samples")
        steps = {name: int(m[1]) for name in names if (m := _VALIDATION.fullmatch(name))}
        last = max(steps.values(), default=0)
        for name in sorted(names):
            is_json = name.endswith(".json") and not name.endswith(".trajectories.json")
            if name in ("points.jsonl", "metrics.csv") or (is_json and steps.get(name, last) == last):
                yield here / name


def _file(path: Path) -> _File | None:
    if path.name == "metrics.csv":
        return _File(path, _TRAINING, read_metrics(path), _parts(path.parent))
    result = read_result(path)
    if result is None:
        return None
    kind, runs = result
    return _File(path, kind, runs, _owner(path, kind, runs))


def _owner(path: Path, kind: str, runs: list[Run]) -> tuple[str, ...]:
    """Whose result it is: the run folder around it, or that of its checkpoint, or nobody's but its own."""
    for folder in list(path.absolute().parents)[:3]:
        if (folder / "config.yaml").is_file():
            return _parts(folder)
    checkpoint = runs[0].get("checkpoint") if runs else None
    if kind == POINTS:
        return _parts(path.parent)
    if isinstance(checkpoint, str) and checkpoint:
        place = Path(checkpoint)
        return _parts(place.parent.parent if place.parent.name == "checkpoints" else place.with_suffix(""))
    return _parts(path.with_suffix(""))


def _parts(path: Path) -> tuple[str, ...]:
    return path.absolute().parts


def _labels(files: Sequence[_File]) -> dict[Path, str]:
    """What each file's model is called: its owner, and the file where one owner has several of a kind."""
    owners = {file.owner for file in files}
    labels = {}
    for file in files:
        label = _shortest_end(file.owner, owners)
        same = [other for other in files if (other.owner, other.kind) == (file.owner, file.kind)]
        if len(same) > 1 and not _VALIDATION.fullmatch(file.path.name):
            names = {_parts(other.path.with_suffix("")) for other in same}
            label += f", {_shortest_end(_parts(file.path.with_suffix('')), names)}"
        labels[file.path] = label
    return labels


def _shortest_end(parts: tuple[str, ...], others: Iterable[tuple[str, ...]]) -> str:
    """The end of a path that no other one of ``others`` has."""
    length = 1
    while length < len(parts) and sum(other[-length:] == parts[-length:] for other in others) > 1:
        length += 1
    return "/".join(parts[-length:])


def _add(findings: Findings, files: Sequence[_File]) -> None:
    """Sort files into ``findings``."""
    labels = _labels(files)
    places = {
        LIKELIHOOD: findings.likelihoods,
        ZERO_SHOT: findings.zero_shots,
        MAUVE: findings.mauves,
    }
    for file in files:
        label = labels[file.path]
        if file.kind == _TRAINING:
            config = read_config(file.path.with_name("config.yaml"))
            findings.trainings.append(Training(label, file.runs, config))
        elif file.kind == POINTS:
            findings.frontiers.append(Frontier(label, file.runs, read_matched(file.path)))
        elif file.kind == SAMPLES:
            findings.samples += [_sampled(label, run, file.path, findings.problems) for run in file.runs]
        else:
            places[file.kind] += [Measured(label, run) for run in file.runs]
    order = findings.labels()
    findings.samples.sort(key=lambda one: (order.index(one.label), one.run.get("steps") or 0))


def _sampled(label: str, run: Run, path: Path, problems: list[str]) -> Measured:
    if made := _VALIDATION.fullmatch(path.name):
        run = {"predictor": f"validation, step {made[1]}"} | run
    name = run.get("trajectories")
    name = well_formed(Path(name).name).replace("\0", "") if isinstance(name, str) else ""
    if not name:
        return Measured(label, run)
    try:
        return Measured(label, run, read_ways(path.with_name(name), run))
    except UserError as error:
        problems.append(str(error))
        return Measured(label, run)
