"""Result files with generated texts, read to be measured again: what they hold is checked here, once."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from errors import UserError
from reporting.read import is_number

Run = dict[str, Any]
_COUNTS = ("steps", "length", "seq_len", "num_cont_per_prefix")


def read_runs(path: str | Path, *, key: str, hint: str) -> tuple[dict[str, Any], list[Run]]:
    """A result file of sample_eval, of an official one, or of a validation's samples.

    Args:
        key, hint: of the setting that named the file, for errors.

    Returns:
        Its content, and the objects in it that have ``generated_seqs`` (the content itself, or its ``runs``).
        Their sizes are whole numbers of 1 or more and their entropy is a finite number, where there are such.

    Raises:
        UserError: no such file, no JSON, no texts, or a value of another kind.
    """
    content = read_json(path, key=key, hint=hint)
    runs = content.get("runs", [content]) if isinstance(content, dict) else []
    there = isinstance(runs, list) and all(isinstance(run, dict) for run in runs)
    if not there or not runs or not all(_are_texts(run.get("generated_seqs")) for run in runs):
        raise UserError(key, str(path), "holds no list generated_seqs of texts", hint)
    for number, run in enumerate(runs, 1):
        if problem := _wrong_value(run):
            where = f"run {number}: " if len(runs) > 1 else ""
            raise UserError(key, str(path), f"{where}{problem}", "correct it in the file, or leave it out")
    return content, runs


def read_json(path: str | Path, *, key: str, hint: str) -> Any:
    """The content of a JSON file.

    Raises:
        UserError: no such file, or it is none.
    """
    try:
        return json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(key, str(path), "no such file", hint) from error
    except OSError as error:
        raise UserError(key, str(path), error.strerror or "cannot be read", hint) from error
    except (ValueError, RecursionError) as error:
        raise UserError(key, str(path), f"is no JSON ({error})", hint) from error


def _wrong_value(run: Run) -> str | None:
    for name in _COUNTS:
        value = run.get(name)
        if value is not None and not (isinstance(value, int) and not isinstance(value, bool) and value > 0):
            return f"{name}={_shown(value)} is no whole number of 1 or more"
    entropy = run.get("entropy")
    if isinstance(entropy, float) and not math.isfinite(entropy):
        run["entropy"] = entropy = None  # nothing was counted
    if entropy is not None and not is_number(entropy):
        return f"entropy={_shown(entropy)} is no number"
    if run.get("prefixes") is not None and not _are_texts(run["prefixes"]):
        return f"prefixes={_shown(run['prefixes'])} is no list of texts"
    return None


def _shown(value: object) -> str:
    return json.dumps(value)[:40]


def _are_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)
