"""First-hitting sampling of masked diffusion (Zheng et al., ICLR 2025, arXiv 2409.02908, section 4)."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from samplers.base import Sampler, State
from samplers.draws import Draws
from samplers.registry import register


def next_hit(is_masked: Tensor, masked_t: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Where and when the next mask unmasks.

    With n masks at t it happens at s with 1 - alpha_s = u**(1/n) (1 - alpha_t), uniform among them.

    Args:
        is_masked: (B, L) bool, the n masks of each row; rows without any are given back as they are.
        masked_t: (B,) float64, 1 - alpha_t.
        uniforms: (B, 2) float64 in [0, 1), for time and position.

    Returns:
        the hit, (B, L) bool with one position a row, and 1 - alpha_s, (B,).
    """
    u_time, u_position = uniforms.unbind(-1)
    num_masked = is_masked.sum(-1)
    chosen = (u_position * num_masked).long().unsqueeze(-1)
    hit = is_masked & (is_masked.cumsum(-1) - 1 == chosen)
    return hit, torch.where(num_masked > 0, u_time ** (1 / num_masked.clamp(min=1).double()), 1) * masked_t


@register(
    "first_hitting",
    claim="exact, a call a token",
    exact="exact",
    on_grid=False,
    removals=("ancestral",),
)
class FirstHitting(Sampler):
    """The reverse process in continuous time: one network call for each mask, at the time it unmasks.

    ``next_hit`` says which mask unmasks next and when. In between every mask keeps its noise with probability
    alpha_t / alpha_s. There is no grid (``num_steps`` and ``grid_eps`` play no part) and no discretisation
    error.
    """

    def pending(self, step: int, state: State) -> Tensor:
        return (state.x == self.mask_id).any(-1)

    def step(self, step: int, state: State, draws: Draws) -> tuple[State, Tensor]:
        is_masked = state.x == self.mask_id
        hit, masked_s = next_hit(is_masked, self.schedule.masked(state.t), draws.hits(step))
        alpha_t, alpha_s = self.schedule.alpha(state.t), 1 - masked_s

        resets = is_masked & (draws.actions(step, state.x.shape[1]) >= (alpha_t / alpha_s).unsqueeze(-1))
        state = self.refresh(step, replace(state, t=self.schedule.inverse(alpha_s)), resets, draws)
        state = self.unmask(step, state, hit, self.predict(state), draws)
        return state, torch.ones_like(state.t, dtype=torch.bool)
