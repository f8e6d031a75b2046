"""What mode=judge found, as tables, a chart and sample texts: report.html and table.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from evaluation.scores import HUMAN, LOWER, METRICS, verdict
from reporting.blocks import Cell, Chart, Point, Section, Series, Table, Texts, number, table
from reporting.markdown import markdown
from reporting.page import page
from utils import atomic_open, well_formed

Row = dict[str, Any]
SHOWN = 600  # characters of a sample text
TITLE = "Samples under one protocol"
_DASH = Cell("-")


def write_pages(result: dict[str, Any], folder: Path) -> None:
    """report.html, which needs nothing beside it, and table.md in ``folder``."""
    made = sections(result)
    for name, content in (("report.html", page(TITLE, made, [])), ("table.md", markdown(TITLE, made, []))):
        with atomic_open(folder / name) as file:
            file.write(well_formed(content))


def sections(result: dict[str, Any]) -> list[Section]:
    """The sections of the page: figure and scores, which metric catches which control, texts, protocol."""
    rows, protocol = result["rows"], result["protocol"]
    own = [row for row in rows if row["kind"] != "control"]
    controls = [row for row in rows if row["kind"] == "control"]
    shown = [name for name in METRICS if any(row["metrics"].get(name) for row in rows)]
    scores = Section("scores", "Scores", [*_figure(own), _scores("Samples", own, shown), _beside(own)])
    parts = [scores]
    if controls:
        note = "A sampler that a metric does not tell from these can have its value without writing text."
        blocks = [_catches(rows, shown), *_figure(rows), _scores("Controls", controls, shown)]
        parts.append(Section("controls", "Texts that are bad by construction", blocks, note))
    columns = [(row["name"], [_short(text) for text in row["texts"][:2]]) for row in rows]
    parts.append(Section("texts", "Sample texts", [Texts("The first texts of each set", columns)]))
    settings = [[Cell(name), Cell(_words(value))] for name, value in protocol.items()]
    parts.append(
        Section(
            "protocol", "Protocol", [table("Settings and versions", ("setting", "value"), settings)], NOTE
        )
    )
    return parts


NOTE = (
    "docs/protocol.md says how each number is made, what it can tell and what it cannot. All sets have equal "
    "numbers of texts. Values of another protocol version, evaluator, length or number do not compare."
)


def _scores(title: str, rows: list[Row], shown: list[str]) -> Table:
    head = ("set", *(METRICS[name].title for name in shown), "p of MMD")
    cells = [
        [Cell(row["name"]), *(_estimate(row, name) for name in shown), number(row["mmd_p_value"], ".3f")]
        for row in rows
    ]
    note = "In brackets 95 % intervals."
    if "mauve" in shown:
        human = next((row for row in rows if row["kind"] == "human"), None)
        ends = human and (min(human["mauve_ceilings"]), max(human["mauve_ceilings"]))
        note += " MAUVE ± deviation over the seeds of its k-means"
        note += (
            f"; human against human texts of these numbers: {ends[0]:.3f} to {ends[1]:.3f}." if ends else "."
        )
    return table(title, head, cells, note)


def _estimate(row: Row, name: str) -> Cell:
    found, form = row["metrics"].get(name), METRICS[name].form
    if found is None:
        return _DASH
    text = f"{found['value']:{form}}"
    if found["low"] is not None:
        text += f" ({found['low']:{form}} to {found['high']:{form}})"
    elif found["stderr"] is not None:
        text += f" ± {found['stderr']:{form}}"
    return Cell(text, found["value"])


def _beside(rows: list[Row]) -> Table:
    """What stands beside every score: numbers, lengths, special tokens, calls, seconds."""
    head = (
        "set", "texts", "units a text", "shortest", "longest", "special tokens a text", "empty",
        "equal texts", "tokens scored", "network calls", "seconds", "texts a second",
    )  # fmt: skip
    cells = []
    for row in rows:
        lengths, about = row["lengths"], row["about"]
        seconds, made = about.get("total_generation_times"), about.get("num_samples")
        special = lengths["special_tokens_per_text"].items()
        cells.append(
            [
                Cell(row["name"]),
                number(row["num_texts"], ".0f"),
                number(lengths["mean_units"], ".1f"),
                number(lengths["min_units"], ".0f"),
                number(lengths["max_units"], ".0f"),
                Cell(", ".join(f"{name} {count:.2f}" for name, count in special)),
                number(lengths["empty"], ".0f"),
                number(lengths["duplicates"], ".0f"),
                number(row.get("evaluator_tokens"), ".0f"),
                number(about.get("nfe"), ".1f"),
                number(seconds, ".1f"),
                number(made / seconds if made and seconds else None, ".3g"),
            ]
        )
    return table("Lengths and costs", head, cells, "Calls and seconds where a file records them.")


def _catches(rows: list[Row], shown: list[str]) -> Table:
    """Controls down, metrics across: caught, blind or fooled."""
    human = next(row for row in rows if row["kind"] == "human")
    cells = [
        [Cell(row["name"]), *(Cell(verdict(name, row, human) or "-") for name in shown)]
        for row in rows
        if row["kind"] == "control"
    ]
    good = {LOWER: "lower is better", HUMAN: "as human texts have it"}
    rule = "; ".join(
        f"{words}: {', '.join(METRICS[name].title for name in shown if METRICS[name].good == kind)}"
        for kind, words in good.items()
    )
    note = (
        "caught: differs from other human texts at 95 %; blind: does not; fooled: better than human texts. "
        f"MMD by p < 0.05, MAUVE by the lowest of its human values. {rule}."
    )
    return table(
        "Which metric catches which control", ("control", *(METRICS[n].title for n in shown)), cells, note
    )


def _figure(rows: list[Row]) -> list[tuple[Chart, ...]]:
    """Generative (or n-gram) perplexity against entropy, and against network calls where they are known."""
    measured = "generative_ppl" if any(row["metrics"].get("generative_ppl") for row in rows) else "ngram_nll"
    title, log = METRICS[measured].title, measured == "generative_ppl"
    entropy, calls = [], []
    for colour, row in enumerate(rows):
        found = row["metrics"].get(measured)
        if not found:
            continue
        ends, x = (found["low"], found["high"]), row["metrics"]["entropy"]["value"]
        words = f"{row['name']}: {found['value']:.2f} at entropy {x:.3f}"
        entropy.append(Series(row["name"], colour, [Point(x, found["value"], *ends, words)]))
        if nfe := row["about"].get("nfe"):
            words = f"{row['name']}: {found['value']:.2f} at {nfe:g} calls"
            calls.append(Series(row["name"], colour, [Point(nfe, found["value"], *ends, words)]))
    charts = [Chart(f"{title} against entropy", "entropy (nats)", entropy, log_y=log)] if entropy else []
    charts += (
        [Chart(f"{title} against calls", "network calls", calls, log_x=True, log_y=log)] if calls else []
    )
    return [tuple(charts)] if charts else []


def _short(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[:SHOWN]} …"


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {one}" for name, one in value.items())
    return "-" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
