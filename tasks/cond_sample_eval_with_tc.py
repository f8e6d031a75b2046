"""mode=cond_sample_eval_with_tc: continuations of validation texts, their measures and total correlation."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig

from dataloader import get_dataset
from tasks.prompts import Starts, num_samples, validation_prefixes
from tasks.sample_eval import sample_eval
from tasks.sample_eval_with_tc import group_measures
from trainer_base import TrainerBase


def cond_sample_eval_with_tc(cfg: DictConfig) -> dict[str, Any]:
    """As ``sample_eval_with_tc``, from the first ``cond_sampling.prefix_len`` tokens of validation blocks.

    Each of ``sampling.num_sample_batches`` batches is of prefixes, and each prefix is continued
    ``cond_sampling.num_cont_per_prefix`` times: the samples of prefix k are the k-th so many of
    ``generated_seqs``. (The official program repeats each batch of prefixes instead: there the samples of a
    prefix are ``loader.eval_batch_size`` texts apart.) With ``cond_sampling.official_workers`` the prefixes
    are the official ones. All ``model.length`` positions are written, the first ``cond_sampling.seq_len`` are
    kept and measured, prefix included. The members of a group share their prefix too.

    Each object also gets seq_len, prefix_len, num_cont_per_prefix, fix_seed, and the ``prefixes`` with their
    rows in the validation set.
    """
    return sample_eval(cfg, group_measures, _prefixes)


def _prefixes(module: TrainerBase, cfg: DictConfig, world_size: int) -> Starts:
    count = num_samples(cfg, world_size)
    workers = cfg.cond_sampling.official_workers
    dataset = get_dataset(cfg, module.tokenizer, "validation", official_workers=workers)
    return validation_prefixes(module, cfg, count, dataset)
