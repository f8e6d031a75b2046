"""When a teacher is asked, and how its steps grow from round to round (Deschenaux and Gulcehre, SDTT).

Shapes: B rows, K teacher evaluations.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

TEACHER_TIMES = ("official", "exact")


@dataclass(frozen=True)
class GrowthPlan:
    """Rounds of distillation: in each the student learns to do ``factor`` steps of its teacher in one.

    Attributes:
        span: diffusion time from the earliest time of training to 1.
        first_steps: in how many steps the first teacher crosses it.
        factor: growth of a step's length from one round to the next.
        steps_per_round: optimizer steps.
        min_sampling_steps: training is over when the teacher would sample in fewer steps.
    """

    span: float
    first_steps: int
    factor: int
    steps_per_round: int
    min_sampling_steps: int

    def round_at(self, step: int) -> int:
        """The round that optimizer step ``step`` (from 0) belongs to."""
        return step // self.steps_per_round

    def dt(self, number: int) -> float:
        """Length of the teacher's steps in round ``number`` (from 0)."""
        return self.span / self.first_steps * self.factor**number

    def sampling_steps(self, number: int) -> int:
        """In how many such steps a sample is made; 0 when a step is longer than all the time there is."""
        return round(self.first_steps / self.factor**number)

    def is_over(self, step: int) -> bool:
        """Whether there is nothing left to learn after ``step`` optimizer steps."""
        return self.sampling_steps(self.round_at(step)) < self.min_sampling_steps


def teacher_times(t: Tensor, dt: float, num_steps: int, *, exact: bool, floor: float) -> Tensor:
    """The times at which a teacher is asked on its way from t through ``num_steps`` steps of length dt.

    ``exact``: t, t - dt, t - 2 dt, ..., where the steps begin (not below 0). Otherwise, as in the official
    implementation, K times linear from t to t - K dt, none below ``floor``: the last evaluation is then at
    the time that its step ends at.

    Args:
        t: (B,) start times.
        dt, num_steps: length and number K >= 1 of the steps.
        floor: smallest time of training, ``training.sampling_eps``.

    Returns:
        (K, B), in the dtype of t.
    """
    number = torch.arange(num_steps, dtype=t.dtype, device=t.device).unsqueeze(1)
    if exact:
        return (t - dt * number).clamp(min=0.0)
    return (t - dt * num_steps * number / max(num_steps - 1, 1)).clamp(min=floor)


def consistency_dt(number: int, first_steps: int) -> float:
    """The time step of discrete consistency distillation in round ``number`` (from 0): 2^n / T.

    Duo, Sahoo et al., arXiv 2506.10892, section 4.
    """
    return 2.0**number / first_steps
