"""mode=gen_ppl_eval: generative perplexity of samples that were written before."""

from __future__ import annotations

import json
from typing import Any

from omegaconf import DictConfig

from errors import UserError
from tasks.processes import launch
from tasks.scoring import GenerativePerplexity, gen_ppl_words
from tasks.setup import result_path
from utils import get_logger

log = get_logger("gen_ppl_eval")


def gen_ppl_eval(cfg: DictConfig) -> dict[str, Any]:
    """Judge the ``generated_seqs`` of ``eval.generated_samples_path`` and put the perplexity into that file.

    A run is cut at the ``length`` that the file notes for it, or else at ``model.length``. Everything else in
    the file stays.
    """
    path = str(result_path(cfg))
    result = _read(path)
    processes, measure = launch(cfg), GenerativePerplexity(cfg)
    for run in result.get("runs", [result]):
        run.setdefault("length", cfg.model.length)
        measure.judge(run, processes)
        processes.write_json(path, result)
        steps = f"steps {run['steps']}: " if "steps" in run else ""
        log.info("%s%s, %d texts -> %s", steps, gen_ppl_words(run), len(run["generated_seqs"]), path)
    return result


def _read(path: str) -> dict[str, Any]:
    """The content of a result file of sample_eval, of an official one, or of a validation's samples."""
    key, hint = "eval.generated_samples_path", "give a result file of mode=sample_eval"
    try:
        with open(path, encoding="utf-8") as file:
            result = json.load(file)
    except FileNotFoundError as error:
        raise UserError(key, path, "no such file", hint) from error
    except ValueError as error:
        raise UserError(key, path, f"is no JSON ({error})", hint) from error
    runs = result.get("runs", [result]) if isinstance(result, dict) else []
    texts = [run.get("generated_seqs") for run in runs if isinstance(run, dict)]
    if not texts or len(texts) < len(runs) or not all(_are_texts(text) for text in texts):
        raise UserError(key, path, "holds no list generated_seqs of texts", hint)
    return result


def _are_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)
