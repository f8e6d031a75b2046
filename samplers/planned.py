"""Masked diffusion in an order that a sampler chooses: what all of them share.

Shapes: B rows, L positions.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace

import torch
from torch import Tensor

from diffusion.parameterization import Prediction
from samplers.base import Sampler, State, due
from samplers.draws import Draws


def sort_key(score: Tensor, step: int, draws: Draws) -> Tensor:
    """``score`` (B, L) to 16 binary digits, and what is equal then in the order of the row's draws.

    Where all is masked the positions of a network without absolute positions are alike: rounding would say
    which comes first, and rounding depends on the batch.
    """
    return (score * 2**16).round() + draws.order(step, score.shape[1]) / 2


class Planned(Sampler):
    """A network call, then the masks that ``choose`` names unmask, until none is left.

    The choice takes the place of the coins that say which masks unmask, and of nothing else. Time is where
    the process would be with the masks that are left: from n masks at t to n' the time s has
    (1 - alpha_s) / (1 - alpha_t) = n' / n, the expectation of what stays masked. In that time a mask that
    stays keeps its noise with probability alpha_t / alpha_s and else gets a new one, as given that it stays
    in the process. The last call of a row ends at alpha_s = 1, greedily where ``noise_removal`` says so.
    """

    @abstractmethod
    def choose(self, step: int, state: State, prediction: Prediction, draws: Draws) -> Tensor:
        """The masks (B, L) bool that unmask in this step, at least one a row."""

    def due(self, step: int, is_masked: Tensor) -> Tensor:
        """How many of ``is_masked`` (B, L) bool unmask in this step, by the schedule; (B,) int64."""
        return due(self.settings, step, self.settings.num_steps, is_masked)

    def pending(self, step: int, state: State) -> Tensor:
        return (state.x == self.mask_id).any(-1)

    def step(self, step: int, state: State, draws: Draws) -> tuple[State, Tensor]:
        is_masked, prediction = state.x == self.mask_id, self.predict(state)
        due = self.choose(step, state, prediction, draws)
        stays = is_masked & ~due
        is_last = ~stays.any(-1)
        greedy = is_last if self.settings.noise_removal == "greedy" else False
        written = self.unmask(step, state, due, prediction, draws, greedy=greedy)
        share = stays.sum(-1) / is_masked.sum(-1).double()
        state = self.age(step, state, written, stays, share, draws)
        return state, torch.ones_like(is_last)

    def age(
        self, step: int, before: State, after: State, stays: Tensor, share: Tensor, draws: Draws
    ) -> State:
        """``after`` at the time when ``share`` (B,) of the masks of ``before`` are left, the noise of the
        masks that ``stays`` (B, L) bool kept or renewed."""
        alpha_t = self.schedule.alpha(before.t)
        alpha_s = 1 - share * self.schedule.masked(before.t)
        resets = stays & (draws.actions(step, stays.shape[1]) >= (alpha_t / alpha_s).unsqueeze(-1))
        s = torch.where(share == 0, 0.0, self.schedule.inverse(alpha_s))
        return self.refresh(step, replace(after, t=s), resets, draws)
