"""Learning-rate schedules as multipliers of ``optim.lr``: step number -> factor."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from errors import UserError


def lr_multiplier(settings: Mapping[str, Any], lr: float, max_steps: int) -> Callable[[int], float]:
    """The factor on ``lr`` at each optimizer step (counted from 0), as in the official implementation.

    A linear warm-up of W steps is step / W, so that the very first step has rate 0 and step W is the first at
    the full rate; ``step_scheduler`` counts the steps between two decays from the end of the warm-up.

    Args:
        settings: the ``lr_scheduler`` group: ``name`` and that schedule's own numbers.
        lr: the peak learning rate, to turn absolute rates (start, floor) into factors.
        max_steps: length of the training, for the cosine.

    Raises:
        ValueError: for an unknown name.
    """
    name = settings["name"]
    if name == "constant_warmup":
        return _warmup(settings["num_warmup_steps"])
    if name == "cosine_decay_warmup":
        return _cosine(settings, lr, max_steps)
    if name == "step_scheduler":
        warmup, every, factor = (settings[k] for k in ("num_warmup_steps", "decay_every", "decay_factor"))
        rising = _warmup(warmup)
        return lambda step: rising(step) * factor ** (max(0, step - warmup) // every)
    raise UserError(
        "lr_scheduler.name",
        name,
        "no such schedule",
        "use constant_warmup, cosine_decay_warmup or step_scheduler",
    )


def _warmup(num_steps: int) -> Callable[[int], float]:
    return lambda step: min(1.0, step / num_steps) if num_steps else 1.0


def _cosine(settings: Mapping[str, Any], lr: float, max_steps: int) -> Callable[[int], float]:
    warmup, steps, first = (settings.get(k) for k in ("num_warmup_steps", "decay_steps", "first_lr"))
    warmup = settings["warmup_fraction"] * max_steps if warmup is None else warmup
    steps = max(1.0, max_steps - warmup) if steps is None else steps
    floor = settings["min_lr"] / lr
    start = floor if first is None else first / lr

    def multiplier(step: int) -> float:
        if step < warmup:
            return start + (1 - start) * step / warmup
        progress = min(1.0, (step - warmup) / steps)
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))

    return multiplier
