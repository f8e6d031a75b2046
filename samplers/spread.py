"""Masked diffusion in a fixed order: what one call unmasks lies far apart (``sampling.order=spread``).

Tokens that are unmasked together are drawn independently of each other, so a call errs by the dependence
among its own positions. In text that dependence is strongest between neighbours.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from diffusion.noise import Schedule
from diffusion.parameterization import Denoiser
from errors import UserError
from samplers.base import Sampler, SamplerSettings, State
from samplers.draws import Draws
from samplers.registry import register_order


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
    def make(cls, is_masked: Tensor, num_calls: int) -> Plan:
        """The plan of rows whose masks at the start are ``is_masked`` (B, L) bool."""
        call = torch.full(is_masked.shape, -1, dtype=torch.int64, device=is_masked.device)
        num_masked = is_masked.sum(-1)
        for n in num_masked.unique().tolist():
            rows = is_masked & (num_masked == n).unsqueeze(-1)
            calls = torch.tensor(spread_calls(n, num_calls), dtype=torch.int64, device=is_masked.device)
            call[rows] = calls.repeat(int((num_masked == n).sum()))
        return cls(call)

    def select(self, rows: Tensor) -> Plan:
        return Plan(self.call[rows])

    def merge(self, rows: Tensor, part: Plan) -> Plan:
        return self  # made once, never changed


@register_order("spread", "ancestral", "ancestral_cache")
class Spread(Sampler):
    """``num_steps`` network calls, each of which unmasks its part of a fixed order (``spread_calls``).

    A row with fewer masks than ``num_steps`` takes one call a mask; with as many calls as masks any fixed
    order has the law of the model itself. Positions given at the start are left out of the order.

    The order takes the place of the coins that say which masks unmask, and of nothing else. Time is where the
    process would be with the masks that are left: from n masks at t to n' the time s has
    (1 - alpha_s) / (1 - alpha_t) = n' / n, the expectation of what stays masked. In that time a mask that
    stays keeps its noise with probability alpha_t / alpha_s and else gets a new one, as given that it stays
    in the process. The last call of a row ends at alpha_s = 1, greedily where ``noise_removal`` says so.

    Raises:
        ValueError: ``noise_removal`` none; no mask is left to stay.
    """

    def __init__(
        self, denoiser: Denoiser, schedule: Schedule, mask_id: int, settings: SamplerSettings
    ) -> None:
        if settings.noise_removal == "none":
            problem = "sampling.order=spread leaves no mask"
            raise UserError("sampling.noise_removal", "none", problem, "use ancestral or greedy")
        super().__init__(denoiser, schedule, mask_id, settings)

    def begin(self, state: State) -> State:
        return replace(state, memory=Plan.make(state.x == self.mask_id, self.settings.num_steps))

    def pending(self, step: int, state: State) -> Tensor:
        return (state.x == self.mask_id).any(-1)

    def step(self, step: int, state: State, draws: Draws) -> tuple[State, Tensor]:
        assert isinstance(state.memory, Plan)
        is_masked = state.x == self.mask_id
        due = is_masked & (state.memory.call == step)
        stays = is_masked & ~due
        is_last = ~stays.any(-1)
        greedy = is_last if self.settings.noise_removal == "greedy" else False
        written = self.unmask(step, state, due, self.predict(state), draws, greedy=greedy)

        share = stays.sum(-1) / is_masked.sum(-1).double()
        alpha_s = 1 - share * self.schedule.masked(state.t)
        keep = (self.schedule.alpha(state.t) / alpha_s).unsqueeze(-1)
        resets = stays & (draws.actions(step, stays.shape[1]) >= keep)
        s = torch.where(is_last, 0.0, self.schedule.inverse(alpha_s))
        state = self.refresh(step, replace(written, t=s), resets, draws)
        return state, torch.ones_like(is_last)
