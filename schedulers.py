"""Learning-rate schedules as multipliers of ``optim.lr``: step number -> factor."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from errors import UserError


def lr_multiplier(settings: Mapping[str, Any], lr: float, max_steps: int) -> Callable[[int], float]:
    """The factor on ``lr`` at each optimizer step (counted from 0).

    Args:
        settings: the ``lr_scheduler`` group: ``name`` and that schedule's own numbers.
        lr: the peak learning rate, to turn absolute rates (start, floor) into factors.
        max_steps: length of the training, for the cosine.

    Raises:
        ValueError: for an unknown name.
    """
    name = settings["name"]
    if name == "constant_warmup":
        warmup = settings["num_warmup_steps"]
        return lambda step: min(1.0, (step + 1) / max(1, warmup))
    if name == "cosine_decay_warmup":
        return _cosine(settings["warmup_fraction"] * max_steps, settings["min_lr"] / lr, max_steps)
    if name == "step_scheduler":
        warmup, every, factor = (settings[k] for k in ("num_warmup_steps", "decay_every", "decay_factor"))
        return lambda step: min(1.0, (step + 1) / max(1, warmup)) * factor ** (step // every)
    raise UserError(
        "lr_scheduler.name",
        name,
        "no such schedule",
        "use constant_warmup, cosine_decay_warmup or step_scheduler",
    )


def _cosine(warmup: float, floor: float, max_steps: int) -> Callable[[int], float]:
    def multiplier(step: int) -> float:
        if step < warmup:
            return floor + (1 - floor) * step / warmup
        progress = min(1.0, (step - warmup) / max(1.0, max_steps - warmup))
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))

    return multiplier
