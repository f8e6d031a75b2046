"""Ancestral sampling of the uniform process on a time grid (Duo, Sahoo et al., arXiv 2506.10892).

The posterior of a position is a mixture: keep the token, draw any id, or draw from x_theta. How likely it
keeps the token depends on x_theta at that token, but is never below what x_theta = 0 would give. One uniform
per position decides, so where it lies below that bound the token stays whatever the network would say, and
nobody asks: over 1000 steps of the log-linear schedule a position is asked about some 14 times.
Shapes: B rows, L positions, N positions that are asked about.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from diffusion.parameterization import Prediction
from diffusion.uniform import Uniform, UniformReverse, uniform_reverse
from samplers.ancestral import Ancestral
from samplers.base import State, chunks
from samplers.draws import Draws
from samplers.registry import register


@register(
    "ancestral",
    claim="the process, in steps",
    exact="limit",
    families=("uniform",),
    rewrites=True,
)
class UniformAncestral(Ancestral):
    """``num_steps`` network calls of the whole batch, on the grid of masked models.

    The last step goes to t = 0: drawn from the posterior, or (``noise_removal`` greedy) the likeliest token
    of x_theta at every position; with none it is a step like the others, and a little noise stays. Duo's own
    programs end with one call more, at ``grid_eps``: tail, and greedy_tail for their greedy tail. Temperature
    and nucleus act on x_theta, before the posterior. Positions that are fixed keep their token in every step.
    """

    def step(self, step: int, state: State, draws: Draws) -> tuple[State, Tensor]:
        s, alpha_s, greedy = self.target(step, state.t)
        alphas = torch.stack([self.schedule.alpha(state.t), alpha_s])
        uniforms = draws.actions(step, state.x.shape[1])
        least = self.mixture(step, alphas, 0.0, 1).keep.unsqueeze(-1)
        where = torch.ones_like(state.x, dtype=torch.bool) if greedy else uniforms >= least
        if state.fixed is not None:
            where &= ~state.fixed
        called = self.calls_for(where)
        busy = called.nonzero().squeeze(-1)
        if busy.numel():
            part, chosen = state.select(busy), where[busy]
            prediction = self.predict(part)
            if greedy:
                part = self.unmask(step, part, chosen, prediction, draws.select(busy), greedy=True)
            else:
                part = self.rewrite(
                    step, part, chosen, prediction, alphas[:, busy], uniforms[busy], draws.select(busy)
                )
            state = state.merge(busy, part)
        return replace(state, t=s), called

    def rewrite(
        self,
        step: int,
        state: State,
        where: Tensor,
        prediction: Prediction,
        alphas: Tensor,
        uniforms: Tensor,
        draws: Draws,
    ) -> State:
        """Draw the positions ``where`` (B, L) bool from the posterior.

        Args:
            alphas: (2, B), alpha_t and alpha_s.
            uniforms: (B, L), which of the three distributions it is, and any id of the second.
        """
        x, length, size = state.x.clone(), where.shape[1], prediction.vocab_size
        for rows, columns in chunks(where, size):
            distribution = self.token_distribution(prediction.at(rows * length + columns))
            old, u = x[rows, columns], uniforms[rows, columns]
            p_xt = distribution.gather(1, old.unsqueeze(1)).squeeze(1).exp()
            keep, noise, _ = self.mixture(step, alphas[:, rows], p_xt, size)
            # What is left of the uniform is one again; where there is no noise no u gets here.
            random = Uniform(size).prior(((u - keep) / noise).clamp(0, 1))
            tokens = torch.where(u < keep, old, random)
            drawn = (u >= keep + noise).nonzero().squeeze(1)
            tokens[drawn] = draws.tokens(step, distribution[drawn], rows[drawn], columns[drawn])
            x[rows, columns] = tokens
        return replace(state, x=x)

    def mixture(self, step: int, alphas: Tensor, p_xt: Tensor | float, vocab_size: int) -> UniformReverse:
        """What step number ``step`` draws a position from, with ``alphas`` (2, N); see ``uniform_reverse``.
        ``keep`` grows with ``p_xt``."""
        return uniform_reverse(alphas[0], alphas[1], p_xt, vocab_size)

    def calls_for(self, where: Tensor) -> Tensor:
        """Rows (B,) bool that the network is asked about in this step: all of them."""
        return where.new_ones(len(where))


@register(
    "ancestral_cache",
    claim="the same, fewer calls",
    exact="limit",
    families=("uniform",),
    rewrites=True,
)
class UniformAncestralCache(UniformAncestral):
    """The same draws and tokens as ``ancestral``, calling the network only for rows where one is open."""

    def calls_for(self, where: Tensor) -> Tensor:
        return where.any(-1)
