"""``sampling.schedule=auto``: the dependence of a model's tokens, measured on held-out text."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from dataloader import get_dataset
from diffusion.randomness import Stream, fold_in, row_keys
from errors import UserError
from samplers.draws import KeyedDraws
from samplers.schedules import Cosine, Dependence, Measured, Uniform, counts, measure
from trainer_base import TrainerBase
from utils import get_logger

log = get_logger("schedule")
_BATCH = 64  # rows: an own number, so that the batch size of samples does not move the schedule


def set_schedule(module: TrainerBase, cfg: DictConfig) -> None:
    """Measure what ``sampling.schedule=auto`` needs with the weights that samples are made with, and let
    ``module.generator`` use it; nothing for other schedules.

    Every process measures the same.

    Raises:
        UserError: the held-out text has no text of ``model.length`` tokens.
    """
    if cfg.sampling.schedule != "auto":
        return
    started, generator = time.perf_counter(), module.generator
    x0 = held_out(module, cfg)
    generator.call_schedule = Uniform()  # the sampler that is measured makes no calls of its own
    with module.ema_weights(), torch.no_grad():
        generator.call_schedule = Measured(dependence(module, x0))
    asked = cfg.frontier.steps if cfg.mode == "frontier" else cfg.sampling.steps
    log.info(
        "%d held-out texts measured in %.1f s; masks of a call: %s",
        len(x0),
        time.perf_counter() - started,
        "; ".join(_line(module, steps) for steps in asked if steps <= _MOST_SHOWN),
    )


_MOST_SHOWN = 16


def held_out(module: TrainerBase, cfg: DictConfig) -> Tensor:
    """At most ``sampling.schedule_rows`` ids (N, L) of validation texts without padding."""
    dataset, wanted = get_dataset(cfg, module.tokenizer, "validation"), cfg.sampling.schedule_rows
    found: list[Tensor] = []
    for start in range(0, len(dataset), wanted):
        batch = dataset.fetch(np.arange(start, min(start + wanted, len(dataset))))
        is_full = batch["attention_mask"].bool().all(-1)
        found.append(batch["input_ids"][is_full].long())
        if sum(map(len, found)) >= wanted:
            break
    rows = torch.cat(found)[:wanted]
    if not len(rows):
        problem = f"no held-out text has model.length={cfg.model.length} tokens"
        raise UserError("sampling.schedule", "auto", problem, "use cosine, or data.wrap=True")
    return rows


def dependence(module: TrainerBase, x0: Tensor) -> Dependence:
    """Mean cross-entropies by rank and number of known tokens, of ids (N, L)."""
    generator, total, known = module.generator, None, ()
    sampler = generator.make_sampler(1)
    generator.backbone.eval()
    for start in range(0, len(x0), _BATCH):
        part = x0[start : start + _BATCH].to(generator.device)
        rows = torch.arange(start, start + len(part), device=part.device)
        keys = row_keys(module.config.seed, Stream.SCHEDULE, 0, rows)
        seeds = module.objective.draw_seeds(fold_in(keys, int(Stream.SAMPLE_START)), part.shape[1])
        known, cost = measure(sampler, part, seeds, KeyedDraws(keys))
        total = cost if total is None else total + cost
    assert total is not None
    return Dependence(known, total / len(x0))


def schedule_report(module: TrainerBase, num_steps: int) -> dict[str, Any]:
    """What a result says of its schedule: masks of each call, from nothing but masks; of a measured one the
    cross-entropy of held-out text written in these calls, and in uniform ones, in nats a text."""
    schedule, length = module.generator.call_schedule, module.config.model.length
    if schedule is None or not isinstance(schedule, Measured | Cosine):
        return {}
    numbers = counts(schedule, length, length, num_steps)
    found: dict[str, Any] = {"schedule": module.config.sampling.schedule, "schedule_counts": list(numbers)}
    if isinstance(schedule, Measured) and num_steps <= _MOST_SHOWN:
        found["schedule_nll"] = schedule.dependence.of_counts(numbers)
        uniform = counts(Uniform(), length, length, num_steps)
        found["schedule_uniform_nll"] = schedule.dependence.of_counts(uniform)
    return found


def _line(module: TrainerBase, num_steps: int) -> str:
    found = schedule_report(module, num_steps)
    numbers = " ".join(map(str, found["schedule_counts"]))
    apart = found["schedule_uniform_nll"] - found["schedule_nll"]
    return f"{num_steps} steps {numbers} ({apart:.2f} nats a text better than uniform)"
