"""Ancestral sampling of the absorbing process on a time grid (MDLM and the infinite-mask posterior).

A step from t to s first decides for every mask whether it unmasks, keeps its noise, or gets new noise: three
numbers that do not depend on the network. Tokens are drawn afterwards, where something unmasks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from diffusion.parameterization import Prediction
from diffusion.process import reverse_probabilities
from samplers.base import Sampler, State, due
from samplers.draws import Draws
from samplers.registry import register


@dataclass(frozen=True)
class Decision:
    """What a step does to each mask: ``unmask`` and ``reset``, (B, L) bool, disjoint, False elsewhere."""

    unmask: Tensor
    reset: Tensor

    def select(self, rows: Tensor) -> Decision:
        """The decisions of the sub-batch ``rows`` (n,) int64."""
        return Decision(self.unmask[rows], self.reset[rows])


def decide(is_masked: Tensor, alpha_t: Tensor, alpha_s: Tensor, uniforms: Tensor) -> Decision:
    """Decide a step from alpha_t to alpha_s >= alpha_t, both (B,), with one uniform (B, L) per position."""
    unmask, keep, _ = (p.unsqueeze(-1) for p in reverse_probabilities(alpha_t, alpha_s))
    return Decision(is_masked & (uniforms < unmask), is_masked & (uniforms >= unmask + keep))


@register("ancestral", claim="the process, in steps", exact="limit", scheduled=True)
class Ancestral(Sampler):
    """``num_steps`` network calls of the whole batch, as in the official implementations of MDLM and IMDM.

    The grid has num_steps + 1 times, linear from 1 to ``grid_eps``, scaled by each row's start time. The last
    step goes to alpha_s = 1, unless ``noise_removal`` is none. With a tail it goes to ``grid_eps`` as the
    grid has it, and one call more, from there, to alpha_s = 1.
    """

    def pending(self, step: int, state: State) -> Tensor:
        return torch.full((len(state.x),), step <= self._last_step, device=state.x.device)

    def step(self, step: int, state: State, draws: Draws) -> tuple[State, Tensor]:
        is_masked = state.x == self.mask_id
        s, alpha_s, greedy = self.target(step, state.t, is_masked)
        uniforms = draws.actions(step, state.x.shape[1])
        decision = decide(is_masked, self.schedule.alpha(state.t), alpha_s, uniforms)

        called = self.calls(decision)
        busy = called.nonzero().squeeze(-1)
        # Where all are busy nobody need look for the idle ones: each look makes a GPU wait.
        idle = (~called).nonzero().squeeze(-1) if len(busy) < len(called) else busy[:0]
        if idle.numel():
            part = self.refresh(step, state.select(idle), decision.reset[idle], draws.select(idle))
            state = state.merge(idle, part)
        if busy.numel():
            part = state.select(busy)
            chosen, prediction = decision.select(busy), self.predict(part)
            part = self.reverse_step(step, part, chosen, prediction, draws.select(busy), greedy=greedy)
            state = state.merge(busy, part)
        return replace(state, t=s), called

    def target(self, step: int, t: Tensor, is_masked: Tensor | None = None) -> tuple[Tensor, Tensor, bool]:
        """Where step number ``step`` goes from ``t`` (B,): s and alpha_s (B,), and whether greedily.

        With a schedule, so far that as many of ``is_masked`` (B, L) bool as it says unmask on average.
        """
        removal = self.settings.noise_removal
        if step == self._last_step and removal != "none":
            return torch.zeros_like(t), torch.ones_like(t), removal.startswith("greedy")
        if self.settings.schedule is not None:
            assert is_masked is not None
            number = due(self.settings, step, self._last_step + 1, is_masked)
            share = 1 - number / is_masked.sum(-1).clamp(min=1).double()
            alpha_s = 1 - share * self.schedule.masked(t)
            return torch.where(share == 0, 0.0, self.schedule.inverse(alpha_s)), alpha_s, False
        s = t * (self._grid(step + 1) / self._grid(step))
        return s, self.schedule.alpha(s), False

    def reverse_step(
        self,
        step: int,
        state: State,
        decision: Decision,
        prediction: Prediction,
        draws: Draws,
        *,
        greedy: bool = False,
    ) -> State:
        """Apply a decision: tokens from ``prediction`` where it unmasks, new noise where it resets.

        It stands on its own, for teachers too; all rows of ``state`` have a prediction, and the time of the
        new state is the caller's to set.
        """
        state = self.unmask(step, state, decision.unmask, prediction, draws, greedy=greedy)
        return self.refresh(step, state, decision.reset, draws)

    def calls(self, decision: Decision) -> Tensor:
        """Rows (B,) bool that the network is asked about in this step: all of them."""
        return decision.unmask.new_ones(len(decision.unmask))

    @property
    def _last_step(self) -> int:
        return self.settings.num_steps - (not self.settings.noise_removal.endswith("tail"))

    def _grid(self, step: int) -> float:
        return 1 - step / self.settings.num_steps * (1 - self.settings.grid_eps)


@register("ancestral_cache", claim="the same, fewer calls", exact="limit", scheduled=True)
class AncestralCache(Ancestral):
    """The same draws and tokens as ``ancestral``, calling the network only for rows that unmask something.

    Decisions come before predictions, so this is exact, with resets and time conditioning too.
    """

    def calls(self, decision: Decision) -> Tensor:
        return decision.unmask.any(-1)
