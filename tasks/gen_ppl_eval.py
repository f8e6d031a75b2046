"""mode=gen_ppl_eval: generative perplexity of samples that were written before."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig

from reporting.runs import read_runs
from tasks.processes import launch
from tasks.scoring import GenerativePerplexity, gen_ppl_words
from tasks.setup import result_path
from utils import get_logger

log = get_logger("gen_ppl_eval")


def gen_ppl_eval(cfg: DictConfig) -> dict[str, Any]:
    """Judge the ``generated_seqs`` of ``eval.generated_samples_path`` and put the perplexity into that file.

    A run is cut at the ``length`` that the file notes for it, or else at ``model.length``. Everything else in
    the file stays.

    Raises:
        UserError: no such file, or not of this form (``reporting.runs.read_runs``).
    """
    path = str(result_path(cfg))
    key, hint = "eval.generated_samples_path", "give a result file of mode=sample_eval"
    result, runs = read_runs(path, key=key, hint=hint)
    processes, measure = launch(cfg), GenerativePerplexity(cfg)
    for run in runs:
        if run.get("length") is None:
            run["length"] = cfg.model.length
        run.setdefault("decoding", None)  # the file does not say
        measure.judge(run, processes)
        processes.write_json(path, result)
        steps = f"steps {run['steps']}: " if run.get("steps") else ""
        log.info("%s%s, %d texts -> %s", steps, gen_ppl_words(run), len(run["generated_seqs"]), path)
    return result
