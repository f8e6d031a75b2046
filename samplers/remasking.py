"""Steps of the absorbing process in which what was written may become a mask again: what remaskers share.

ReMDM (Wang et al., arXiv 2503.00307, section 3) remasks a token with probability sigma, at most
(1 - alpha_s) / alpha_t, and lets a mask stay with probability (1 - alpha_s - sigma alpha_t) / (1 - alpha_t),
which leaves the marginals as they are. Psi-samplers (Deschenaux et al., arXiv 2602.21185) write the same as a
mixture: with probability kappa the step of the process, else a draw at t = 0 that is noised again to s; for
masks sigma = (1 - kappa) (1 - alpha_s).
Shapes: B rows, L positions.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace

import torch
from torch import Tensor

from samplers.ancestral import Ancestral
from samplers.base import State
from samplers.draws import Draws


class Remasking(Ancestral):
    """``num_steps`` network calls of the whole batch. What is given at the start is never remasked.

    Without remasking, sigma = 0, draws and tokens are those of ``ancestral``. A mask that comes new, by
    remasking or by way of a draw at t = 0, has new noise.
    """

    @abstractmethod
    def remask(self, step: int, state: State, alpha_t: Tensor, alpha_s: Tensor) -> Tensor:
        """sigma, (B, 1) or (B, L); alpha_t and alpha_s are (B, 1). What is above its limit counts as that."""

    def begin(self, state: State) -> State:
        return state if state.fixed is not None else replace(state, fixed=state.x != self.mask_id)

    def step(self, step: int, state: State, draws: Draws) -> tuple[State, Tensor]:
        assert state.fixed is not None
        is_masked = state.x == self.mask_id
        s, alpha_s, greedy = self.target(step, state.t)
        alpha_t, alpha_s = (alpha.unsqueeze(-1) for alpha in (self.schedule.alpha(state.t), alpha_s))
        sigma = self.remask(step, state, alpha_t, alpha_s)
        sigma = torch.minimum(sigma, ((1 - alpha_s) / alpha_t).clamp(max=1))
        # At alpha_s = 1 nothing stays masked, whatever alpha_t; the loop has steps with alpha_s = alpha_t.
        stay = torch.where(alpha_s < 1, (1 - alpha_s - sigma * alpha_t) / (1 - alpha_t), 0.0)
        kappa = torch.where(alpha_s < 1, 1 - sigma / (1 - alpha_s), 1.0)
        keep = kappa * alpha_t / alpha_s * torch.where(alpha_s < 1, (1 - alpha_s) / (1 - alpha_t), 0.0)
        uniforms = draws.actions(step, state.x.shape[1])
        unmask = is_masked & (uniforms < 1 - stay)
        resets = is_masked & (uniforms >= 1 - stay + keep)
        remasked = ~is_masked & ~state.fixed & (uniforms >= 1 - sigma)

        noted = torch.zeros(state.x.shape, dtype=torch.float64, device=state.x.device)
        after = self.unmask(step, state, unmask, self.predict(state), draws, greedy=greedy, noted=noted)
        after = replace(after, x=after.x.masked_fill(remasked, self.mask_id))
        after = self.refresh(step, after, resets | remasked, draws)
        after = self.note(after, unmask, noted)
        return replace(after, t=s), torch.ones_like(s, dtype=torch.bool)

    def note(self, state: State, written: Tensor, log_probs: Tensor) -> State:
        """Remember the log-probabilities (B, L) of what was ``written`` (B, L) bool, where they are used."""
        return state
