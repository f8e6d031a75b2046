"""Ancestral sampling with one categorical draw a mask and step, as codes that sample the whole posterior do.

Shapes: B rows, L positions, V vocabulary, the mask included.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from diffusion import NEG_INF
from diffusion.parameterization import Prediction
from diffusion.process import reverse_probabilities
from samplers.ancestral import Ancestral
from samplers.base import State, chunks
from samplers.draws import Draws
from samplers.registry import register


@register(
    "ancestral_joint",
    claim="one draw, for study",
    exact="limit",
    asks_all=True,
)
class AncestralJoint(Ancestral):
    """Every mask draws from its tokens and from staying a mask at once, in every step.

    With exact draws this is the distribution of ``ancestral`` at more cost. It is here for draws that are
    not: a
    token's probability in one of N steps is about 1/N of what the network says, so that truncated draws lose
    the more tokens the more steps there are (Zheng et al., arXiv 2409.02908, section 4). ``ancestral`` does
    not show that: it draws times apart from tokens.
    """

    def step(self, step: int, state: State, draws: Draws) -> tuple[State, Tensor]:
        s, alpha_s, greedy = self.target(step, state.t)
        unmask, keep, _ = reverse_probabilities(self.schedule.alpha(state.t), alpha_s)
        prediction, is_masked = self.predict(state), state.x == self.mask_id
        if greedy:
            state = self.unmask(step, state, is_masked, prediction, draws, greedy=True)
        else:
            state = self._draw(step, state, is_masked, unmask, prediction, draws)
        # Given that a mask stays, its noise is kept with probability keep / (1 - unmask).
        height = draws.actions(step, state.x.shape[1]) * (1 - unmask).unsqueeze(-1)
        resets = (state.x == self.mask_id) & (height >= keep.unsqueeze(-1))
        state = self.refresh(step, state, resets, draws)
        return replace(state, t=s), torch.ones_like(s, dtype=torch.bool)

    def _draw(
        self,
        step: int,
        state: State,
        is_masked: Tensor,
        unmask: Tensor,
        prediction: Prediction,
        draws: Draws,
    ) -> State:
        """Draw the masks (B, L) bool, which unmask with the probabilities (B,)."""
        x, length = state.x.clone(), is_masked.shape[1]
        unmasked, stays = unmask.log(), torch.log1p(-unmask).clamp(min=NEG_INF)
        for rows, columns in chunks(is_masked, prediction.vocab_size):
            log_probs = self.token_distribution(prediction.at(rows * length + columns)) + unmasked[
                rows
            ].unsqueeze(-1)
            log_probs[:, self.mask_id] = stays[rows]
            x[rows, columns] = draws.tokens(step, log_probs, rows, columns)
        return replace(state, x=x)
