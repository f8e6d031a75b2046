"""Masked diffusion in a fixed order: what one call unmasks lies far apart (``sampling.order=spread``).

Tokens that are unmasked together are drawn independently of each other, so a call errs by the dependence
among its own positions. In text that dependence is strongest between neighbours.
"""

from __future__ import annotations

import functools
from bisect import bisect_right
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor

from diffusion.parameterization import Prediction
from samplers.base import CallSchedule, Ranking, State
from samplers.draws import Draws
from samplers.planned import Planned
from samplers.registry import register
from samplers.schedules import counts


@functools.lru_cache(maxsize=4096)
def spread_calls(num_masked: int, num_calls: int) -> tuple[int, ...]:
    """The call (0, 1, ...) in which each of ``num_masked`` masks, counted from the left, is unmasked.

    Every second mask waits until all others are written, and both halves are split in the same way as long as
    there are calls for it: the order is the bit reversal of the mask's number, for any number of masks. A
    call takes masks that are at least 2**floor(log2 num_calls) apart: num_masked / num_calls of them where
    num_calls is a power of two; else the early calls take half as many as the late ones, which know more of
    the text. With at least as many calls as masks each call takes one, and ``num_masked`` calls are made.
    """
    calls = [0] * num_masked

    def split(start: int, stride: int, first: int, count: int) -> None:
        if count == 1:
            for rank in range(start, num_masked, stride):
                calls[rank] = first
            return
        early = (count + 1) // 2
        split(start, 2 * stride, first, early)
        split(start + stride, 2 * stride, first + early, count - early)

    if num_masked:
        split(0, 1, 0, min(num_calls, num_masked))
    return tuple(calls)


@dataclass(frozen=True)
class Plan:
    """The call (B, L) int64 in which each position is unmasked; -1 where there was no mask."""

    call: Tensor

    @classmethod
    def make(cls, is_masked: Tensor, num_calls: int, schedule: CallSchedule | None = None) -> Plan:
        """The plan of rows whose masks at the start are ``is_masked`` (B, L) bool."""
        call = torch.full(is_masked.shape, -1, dtype=torch.int64, device=is_masked.device)
        num_masked = is_masked.sum(-1)
        for n in num_masked.unique().tolist():
            rows = is_masked & (num_masked == n).unsqueeze(-1)
            made = (
                spread_calls(n, num_calls)
                if schedule is None
                else _scheduled(n, call.shape[1], num_calls, schedule)
            )
            calls = torch.tensor(made, dtype=torch.int64, device=is_masked.device)
            call[rows] = calls.repeat(int((num_masked == n).sum()))
        return cls(call)

    def select(self, rows: Tensor) -> Plan:
        return Plan(self.call[rows])

    def merge(self, rows: Tensor, part: Plan) -> Plan:
        return self  # made once, never changed


def _scheduled(num_masked: int, length: int, num_calls: int, schedule: CallSchedule) -> list[int]:
    """As ``spread_calls``, each call with as many masks as the schedule says."""
    ends = list(accumulate(counts(schedule, num_masked, length, num_calls)))
    return [bisect_right(ends, rank) for rank in spread_calls(num_masked, num_masked)]


@register(
    "ancestral",
    "ancestral_cache",
    order="spread",
    claim="calls far apart",
    exact="limit",
    own_order=True,
    removals=("ancestral", "greedy"),
    scheduled=True,
)
class Spread(Planned):
    """``num_steps`` network calls, each of which unmasks its part of a fixed order (``spread_calls``).

    A row with fewer masks than ``num_steps`` takes one call a mask; with as many calls as masks any fixed
    order has the distribution of the model itself. Positions given at the start are left out of the order.
    """

    def begin(self, state: State) -> State:
        return replace(
            state, memory=Plan.make(state.x == self.mask_id, self.settings.num_steps, self.settings.schedule)
        )

    def ranking(self, shape: torch.Size, draws: Draws) -> Ranking:
        calls = torch.tensor(spread_calls(shape[1], shape[1]))
        return lambda state, prediction: -calls.to(state.x.device).expand(state.x.shape)

    def choose(self, step: int, state: State, prediction: Prediction, draws: Draws) -> Tensor:
        assert isinstance(state.memory, Plan)
        return (state.x == self.mask_id) & (state.memory.call == step)
