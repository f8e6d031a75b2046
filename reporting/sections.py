"""The sections of a report: which tables, curves and texts results become."""

from __future__ import annotations

import math
from collections.abc import Sequence

from reporting.blocks import (
    Cell,
    Chart,
    Point,
    Section,
    Series,
    Table,
    Texts,
    Walk,
    number,
    steps_words,
    table,
    with_error,
)
from reporting.find import Findings, Measured, Training
from reporting.read import Way
from reporting.sampled import SHORT, entropy_section, sampled

MOST_POINTS = 400  # of a training curve
MOST_CHARACTERS = 1_500  # of a sample's text


def sections(findings: Findings, *, texts: int, walks: int) -> list[Section]:
    """All sections that have something to say.

    Args:
        texts: samples shown of each model and number of steps.
        walks: recorded trajectories of the same.
    """
    labels = findings.labels()
    made = [
        sampled(findings, labels),
        _texts(findings.samples, texts),
        _likelihood(findings),
        *[entropy_section(frontier, k) for k, frontier in enumerate(findings.frontiers, 1)],
        _walks(findings.samples, walks),
        _training(findings.trainings, labels),
    ]
    return [section for section in made if section.blocks]


# Likelihood ----------------------------------------------------------------------------------------


def _likelihood(findings: Findings) -> Section:
    blocks = []
    if findings.likelihoods:
        head = ("model", "data", "perplexity", "bits per token", "nats per token", "tokens", "measured by")
        rows = [
            [
                Cell(one.label),
                Cell(str(one.run.get("data") or "")),
                number(one.run["perplexity"]),
                with_error(one.run.get("bpd"), one.run.get("bpd_stderr"), ".4f"),
                with_error(one.run.get("nll"), one.run.get("nll_stderr"), ".4f"),
                number(one.run.get("tokens"), ",.0f"),
                Cell(str(one.run.get("nelbo") or "")),
            ]
            for one in findings.likelihoods
        ]
        note = "± is one standard error; masked models give an upper bound."
        blocks.append(table("Perplexity of the validation set", head, rows, note))
    if findings.zero_shots:
        blocks.append(_zero_shot(findings.zero_shots))
    return Section("likelihood", "Likelihood", blocks)


def _zero_shot(found: Sequence[Measured]) -> Table:
    labels = list(dict.fromkeys(one.label for one in found))
    sets = list(dict.fromkeys(str(one.run.get("data")) for one in found))
    runs = {(one.label, str(one.run.get("data"))): one.run for one in found}
    rows = [
        [Cell(data), *[number(runs.get((label, data), {}).get("perplexity")) for label in labels]]
        for data in sets
    ]
    note = "Perplexity of the validation parts; a data set that could not be read is left out."
    return table("Other data sets", ("data", *labels), rows, note, folded=len(rows) > SHORT)


# Training ------------------------------------------------------------------------------------------


def _training(trainings: Sequence[Training], labels: list[str]) -> Section:
    trainings = [one for one in trainings if one.rows]
    if not trainings:
        return Section("training", "Training")
    rows = []
    for one in trainings:
        found = (one.config.get(name) for name in ("algo", "model"))
        algo, model = (section if isinstance(section, dict) else {} for section in found)
        rows.append(
            [
                Cell(one.label),
                Cell(str(algo.get("name") or "")),
                Cell(str(model.get("name") or "")),
                number(one.rows[-1]["step"] + 1, ".0f"),
                number(_last(one, "trainer/loss"), ".4f"),
                number(_last(one, "val/ppl")),
                number(_last(one, "val/bpd"), ".4f"),
                number(_last(one, "train/tokens_per_second"), ",.0f"),
            ]
        )
    head = (
        "model", "algorithm", "size", "steps", "loss", "validation perplexity", "validation bits per token",
        "tokens a second",
    )  # fmt: skip
    charts = tuple(
        chart
        for key, title in (("val/bpd", "validation bits per token"), ("trainer/loss", "training loss"))
        if (chart := _over_training(trainings, labels, key, title)).series
    )
    note = "The last logged values of each run. Losses of different algorithms do not compare."
    return Section("training", "Training", [table("Runs", head, rows, note), *([charts] if charts else [])])


def _last(training: Training, key: str) -> float | None:
    return next((row[key] for row in reversed(training.rows) if key in row), None)


def _over_training(trainings: Sequence[Training], labels: list[str], key: str, title: str) -> Chart:
    series = []
    for one in trainings:
        logged = [(row["step"] + 1, row[key]) for row in one.rows if math.isfinite(row.get(key, math.nan))]
        points = [Point(x, y, None, None, f"{one.label}, step {x:.0f}: {y:.4g}") for x, y in _thinned(logged)]
        if points:
            series.append(Series(one.label, labels.index(one.label), points))
    few = all(len(one.points) <= 30 for one in series)
    return Chart(title, "optimizer steps", series, markers=few)


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Every k-th point and the last one, at most MOST_POINTS + 1."""
    every = -(-len(points) // MOST_POINTS)
    return [*points[:-1:every], *points[-1:]] if every else []


# Texts ---------------------------------------------------------------------------------------------


def _texts(found: Sequence[Measured], count: int) -> Section:
    """A block a number of steps with the models side by side; of one model, its numbers of steps."""
    alone = len({one.label for one in found}) == 1
    blocks: dict[str, list[tuple[str, list[str]]]] = {}
    for one in sorted(found, key=lambda one: one.run.get("steps") or math.inf):
        texts = [shortened(text) for text in one.run["generated_seqs"][:count]]
        steps = steps_words(one.run.get("steps")) or "samples"
        block, column = (one.label, steps) if alone else (steps, one.label)
        if texts:
            blocks.setdefault(block, []).append((column, texts))
    note = "The first samples of each model and number of steps; they are not chosen."
    return Section("texts", "Sample texts", [Texts(*item) for item in blocks.items()], note)


def shortened(text: str) -> str:
    """The beginning of a long text, and how much is left out."""
    rest = len(text) - MOST_CHARACTERS
    return text if rest <= 0 else f"{text[:MOST_CHARACTERS]} … ({rest} more characters)"


def _walks(found: Sequence[Measured], count: int) -> Section:
    walks = [Walk(_walk_label(one, way), way) for one in found for way in one.ways[:count]]
    note = "How a sample came about: move the slider, or use the arrow keys, Home and End, and space to play."
    return Section("trajectories", "Step by step", [tuple(walks)] if walks else [], note)


def _walk_label(one: Measured, way: Way) -> str:
    words = (one.label, steps_words(one.run.get("steps")), f"sample {way.number}")
    return ", ".join(filter(None, words))
