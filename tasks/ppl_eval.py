"""mode=ppl_eval: the NELBO of the validation set, as perplexity and bits per token."""

from __future__ import annotations

import math
from typing import Any

import lightning as L
from omegaconf import DictConfig

from dataloader import get_valid_dataloader
from tasks.processes import Processes, launch
from tasks.setup import build_evaluated, build_trainer, result_path
from trainer_base import TrainerBase
from utils import get_logger, write_json

log = get_logger("ppl_eval")

_DEVIATIONS = 1.959964  # of a normal distribution, on both sides of 95 %


def ppl_eval(cfg: DictConfig) -> dict[str, Any]:
    """Evaluate ``eval.checkpoint_path`` on the whole validation set.

    Returns (and writes to ``eval.generated_samples_path``): perplexity, nll and its standard error in nats
    per token, bpd in bits per token, the perplexity's 95 % interval, the number of tokens, and how they were
    measured.
    """
    path, processes = result_path(cfg), launch(cfg)
    module = build_evaluated(cfg)
    trainer = evaluating_trainer(cfg, processes)
    result = measure_ppl(cfg, module, trainer)
    if trainer.is_global_zero:
        write_json(path, result)
        log.info("written to %s", path)
    return result


def evaluating_trainer(cfg: DictConfig, processes: Processes) -> L.Trainer:
    """What ``measure_ppl`` needs, on these processes."""
    size = processes.world_size
    return build_trainer(cfg, callbacks=[], logger=False, enable_checkpointing=False, world_size=size)


def measure_ppl(cfg: DictConfig, module: TrainerBase, trainer: L.Trainer) -> dict[str, Any]:
    """The result of ``ppl_eval`` for the validation set of ``cfg.data``, with ``module``'s own tokenizer."""
    loader = get_valid_dataloader(
        cfg, module.tokenizer, rank=trainer.global_rank, world_size=trainer.world_size
    )
    trainer.validate(module, loader, verbose=False)
    measured = module.valid_nelbo.compute()
    result = {
        "perplexity": measured["ppl"],
        "perplexity_interval": _interval(measured["nll"], measured["nll_stderr"]),
        **{name: measured[name] for name in ("nll", "nll_stderr", "bpd", "bpd_stderr", "tokens")},
        "nelbo": "exact" if module.objective.settings.exact_likelihood else cfg.eval.nelbo,
        "ema": module.uses_ema,
        "precision": str(module.backbone.precision),
        "data": cfg.data.name,
        "checkpoint": cfg.eval.checkpoint_path,
        "seed": cfg.seed,
    }
    if trainer.is_global_zero:
        log.info(
            "%s: perplexity %.3f, %.4f bits per token (nll %.4f +- %.4f nats, %d tokens)",
            result["data"],
            result["perplexity"],
            result["bpd"],
            result["nll"],
            result["nll_stderr"],
            result["tokens"],
        )
    return result


def _interval(nll: float, stderr: float) -> list[float] | None:
    """Both ends of the 95 % interval of exp(nll), whose logarithm is normal for many sequences; None where
    one sequence gives no error."""
    ends = [nll - _DEVIATIONS * stderr, nll + _DEVIATIONS * stderr]
    return None if math.isnan(stderr) else [math.exp(min(end, 700.0)) for end in ends]
