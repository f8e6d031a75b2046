"""Files of generated or human texts, of whatever program: what is in them, by name."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data.decoding import decode
from errors import UserError
from reporting.runs import read_json, read_runs
from utils import well_formed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HINT = "give .json (a list of texts, or a result), .jsonl, .txt (one text a line) or .npy (ids)"
FIELDS = ("text", "generated_text", "sample", "generation", "completion", "output")  # of a line of .jsonl
KEPT = (
    "steps", "predictor", "nfe", "total_generation_times", "num_samples", "temperature", "checkpoint",
    "precision", "seed", "ema", "decoding", "length",
)  # fmt: skip


@dataclass(frozen=True)
class SampleSet:
    """Texts of one origin.

    Attributes:
        name: how tables call it.
        texts: as they stand in the file, names of special tokens included.
        about: what the file says of them (steps, nfe, seconds, ...), and where they are from.
    """

    name: str
    texts: list[str]
    about: dict[str, Any] = field(default_factory=dict)


def read_samples(
    path: str, name: str | None, *, key: str, tokenizer: Callable[[], PreTrainedTokenizerBase], decoding: str
) -> list[SampleSet]:
    """The sample sets of a file: one, or one for each run of a result with several.

    Args:
        name: of the set; None: the file's stem. Of several runs their numbers of steps are added.
        key: the setting that named the file, for errors.
        tokenizer: gives the tokenizer of ids; asked for .npy files alone.
        decoding: how ids become texts (``data.decoding``).

    Raises:
        UserError: no such file, another format, or no text in it.
    """
    place = Path(path).expanduser()
    readers = {".json": _of_json, ".jsonl": _of_jsonl, ".txt": _of_txt}
    label, about = name or place.stem, {"file": str(path)}
    if place.suffix == ".npy":
        found = [_of_npy(place, label, key, tokenizer(), decoding)]
    elif place.suffix in readers:
        found = readers[place.suffix](place, label, key)
    else:
        raise UserError(key, path, "is no file of samples", HINT)
    if not all(one.texts for one in found):
        raise UserError(key, path, "holds no text", HINT)
    return [SampleSet(one.name, [*map(well_formed, one.texts)], {**about, **one.about}) for one in found]


def _of_json(path: Path, label: str, key: str) -> list[SampleSet]:
    content = read_json(path, key=key, hint=HINT)
    if isinstance(content, list):
        return [SampleSet(label, [_text(one, str(path), key, at) for at, one in enumerate(content, 1)])]
    _, runs = read_runs(path, key=key, hint=HINT)
    return [
        of_run(run, label if len(runs) == 1 else f"{label}, {_steps(run, at)}")
        for at, run in enumerate(runs, 1)
    ]


def of_run(run: dict[str, Any], label: str) -> SampleSet:
    """The samples of an object of a result file."""
    return SampleSet(
        label, run["generated_seqs"], {name: run[name] for name in KEPT if run.get(name) is not None}
    )


def _steps(run: dict[str, Any], number: int) -> str:
    steps = run.get("steps")
    return f"run {number}" if steps is None else f"{steps} step{'s' * (steps != 1)}"


def _of_jsonl(path: Path, label: str, key: str) -> list[SampleSet]:
    texts = []
    for number, line in enumerate(_lines(path, key), 1):
        if line.strip():
            try:
                content = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(key, str(path), f"line {number} is no JSON ({error})", HINT) from error
            texts.append(_text(content, str(path), key, number))
    return [SampleSet(label, texts)]


def _of_txt(path: Path, label: str, key: str) -> list[SampleSet]:
    return [SampleSet(label, [line for line in _lines(path, key) if line.strip()])]


def _lines(path: Path, key: str) -> list[str]:
    try:
        return path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n").split("\n")
    except FileNotFoundError as error:
        raise UserError(key, str(path), "no such file", HINT) from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(key, str(path), f"cannot be read as text ({error})", HINT) from error


def _text(content: Any, path: str, key: str, number: int) -> str:
    """A text itself, or the first of ``FIELDS`` in an object."""
    if isinstance(content, dict):
        content = next((content[name] for name in FIELDS if name in content), None)
    if not isinstance(content, str):
        problem = f"entry {number} is no text, and no object with one of {', '.join(FIELDS)}"
        raise UserError(key, path, problem, HINT)
    return content


def _of_npy(path: Path, label: str, key: str, tokenizer: PreTrainedTokenizerBase, decoding: str) -> SampleSet:
    """Rows of ids (N, L) as texts, and the share of rows whose text is read as the same ids again."""
    try:
        ids = np.load(path, allow_pickle=False)
    except FileNotFoundError as error:
        raise UserError(key, str(path), "no such file", HINT) from error
    except (OSError, ValueError, EOFError) as error:
        raise UserError(key, str(path), f"is no array ({error})", HINT) from error
    if ids.ndim != 2 or ids.dtype.kind not in "iu":
        problem = f"is an array of {ids.dtype} {ids.shape}, not of ids (texts, positions)"
        raise UserError(key, str(path), problem, HINT)
    if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < len(tokenizer):
        problem = f"has ids from {ids.min()} to {ids.max()}, the tokenizer {len(tokenizer)}"
        raise UserError(key, str(path), problem, "set data.tokenizer_name_or_path to the one that wrote it")
    texts = decode(tokenizer, ids, decoding)
    again = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    same = sum(list(row) == list(read) for row, read in zip(ids.tolist(), again, strict=True))
    return SampleSet(label, texts, {"retokenised_alike": same / max(len(texts), 1)})


def equal_names(sets: Sequence[SampleSet]) -> str | None:
    """A name that two sets share, if there is one: a table could not tell them apart."""
    names = [one.name for one in sets]
    return next((name for name in names if names.count(name) > 1), None)
