"""Paths among the settings: ``~`` means the same in each of them."""

from __future__ import annotations

import os

from omegaconf import DictConfig, OmegaConf

from errors import UserError

# Names of a hub and of built-in things are allowed for some; they do not begin with ~.
PATHS = (
    "algo.integral_cache_path",
    "callbacks.checkpoint_every_n_steps.dirpath",
    "callbacks.checkpoint_monitor.dirpath",
    "checkpointing.resume_ckpt_path",
    "checkpointing.save_dir",
    "data.cache_dir",
    "data.source.path",
    "data.source_root",
    "data.tokenizer_name_or_path",
    "data.train",
    "data.valid",
    "data.valid_source.path",
    "eval.checkpoint_path",
    "eval.gen_ppl_eval_model_name_or_path",
    "eval.generated_samples_path",
    "export.path",
    "frontier.path",
    "model.path",
    "plan.path",
    "reflow.save_path",
    "sampling.prompt_file",
    "training.finetune_path",
)


def expand_home(cfg: DictConfig) -> None:
    """Put the home folder in the place of ``~`` and ``~user`` at the front of paths; ``cfg`` is resolved.

    Shells do so where a word begins with it, and leave ``key=~/x`` alone. Lists of paths (``name:path``) are
    expanded where they are taken apart.

    Raises:
        UserError: there is no such user.
    """
    for name in PATHS:
        value = OmegaConf.select(cfg, name)
        if isinstance(value, str) and value.startswith("~"):
            expanded = os.path.expanduser(value)
            if expanded.startswith("~"):
                problem = "no such user, whose home folder it would begin with"
                raise UserError(name, value, problem, "write the whole path, or ./~... for a name like that")
            OmegaConf.update(cfg, name, expanded)
