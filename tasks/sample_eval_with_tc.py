"""mode=sample_eval_with_tc: samples and their measures, and their total correlation at fixed start noise."""

from __future__ import annotations

import math
from typing import Any

import torch
from omegaconf import DictConfig

from dataloader import batch_sizes
from metrics import mean_interval, total_correlation
from tasks.processes import ALONE, Processes
from tasks.prompts import Starts, num_samples
from tasks.sample_eval import sample_eval
from trainer_base import TrainerBase
from utils import get_logger

log = get_logger("sample_eval")


def sample_eval_with_tc(cfg: DictConfig) -> dict[str, Any]:
    """As ``sample_eval``, and beside those samples groups of ``sampling.duplicate`` that share their start.

    What is left of dependence among the tokens of a group is the work of the sampler's draws; what the start
    noise of the masks decides is the same in all members. Each object gets the keys of ``group_measures``.
    """
    return sample_eval(cfg, group_measures)


def group_measures(
    module: TrainerBase,
    cfg: DictConfig,
    num_steps: int,
    starts: Starts | None = None,
    processes: Processes = ALONE,
) -> dict[str, Any]:
    """The total correlation of groups of samples with one start noise, whose draws are their own.

    Each of ``sampling.num_duplicate_batch`` batches of a device holds as many whole groups as
    ``loader.eval_batch_size`` has room for, at least one. ``starts`` take turns group by group.

    Returns:
        tc in bits, the mean over groups, with its standard error and 95 % interval; tc_joint_entropy, the
        mean of H(x), and its limit log2(tc_group_size); tc_saturated: in some group all samples differ, so
        that its H(x) is at the limit whatever the truth is. With ``sampling.duplicate=1`` tc is 0.0, as
        officially, and all others but the sizes are None: one sample has no correlation.
    """
    size = cfg.sampling.duplicate
    batch = batch_sizes(cfg, processes.world_size, evaluation=True)[0]
    mine = max(1, batch // size) * cfg.sampling.num_duplicate_batch if size > 1 else 0
    groups, first = mine * processes.world_size, mine * processes.rank * size
    names = ("tc", "tc_stderr", "tc_interval", "tc_joint_entropy", "tc_limit", "tc_saturated")
    measured: dict[str, Any] = {**dict.fromkeys(names), "tc": 0.0}
    measured.update(tc_group_size=size, tc_groups=groups)
    if not groups:
        log.info("no total correlation: sampling.duplicate=1; give the size of a group, like 256")
        return measured
    numbers = starts.numbers(0, groups * size, size) if starts else []
    with module.ema_weights():
        samples = module.generator.sample(
            mine * size,
            num_steps,
            # Other rows than those of the samples that are measured one by one.
            first_row=num_samples(cfg, processes.world_size) * (starts.repeat if starts else 1) + first,
            batch_size=batch,
            group_size=size,
            **(starts.of(numbers[first : first + mine * size]) if starts else {}),
        )
    tokens = torch.cat(processes.gathered(samples.tokens.cpu()))
    kept = starts.kept(tokens, numbers) if starts else list(tokens)
    members = [torch.stack(kept[k : k + size])[None] for k in range(0, len(kept), size)]
    tc, joint = map(torch.cat, zip(*map(total_correlation, members), strict=True))
    limit = math.log2(size)
    saturated = bool((joint > limit - 1e-9).any())
    stderr = float(tc.std() / groups**0.5) if groups > 1 else None
    values = (float(tc.mean()), stderr, mean_interval(tc, cfg.seed), float(joint.mean()), limit, saturated)
    measured.update(zip(names, values, strict=True))
    log.info(
        "steps %d: total correlation %.3f bits in %d groups of %d%s",
        num_steps,
        measured["tc"],
        groups,
        size,
        ", saturated: all samples of a group differ, and larger groups give another number"
        if saturated
        else "",
    )
    return measured
