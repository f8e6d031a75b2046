"""Path planning (P2) with the model itself as planner (Peng et al., arXiv 2502.03540): ``p2``.

Each call draws a token for every mask and ranks all positions: masks by the log-probability of the token
drawn, written ones by ``eta`` times what the network gives their token where it sees it. Of n positions the
n (1 - k/N) lowest are masks after call k of N, the others are written or stay. With eta = 0 no token is taken
back, above 1 more are.

For written tokens the planner is the head at positions that the network sees. Losses of masked models teach
it nothing there, though networks that start from BERT's or LLaDA's kind of training say something useful.
Shapes: B rows, L positions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from diffusion.parameterization import Prediction
from samplers.base import State, chunks, setting
from samplers.draws import Draws
from samplers.planned import Planned, sort_key
from samplers.registry import register


@dataclass(frozen=True)
class Settings:
    """``sampling.p2.*``."""

    eta: float = setting(1.0, "weight of written tokens' log-probabilities; 0: none is taken back", low=0)


@register(
    "p2",
    claim="plans, takes back",
    exact="sharpens",
    own_order=True,
    removals=("ancestral", "greedy"),
    rewrites=True,
    asks_all=True,
)
class P2(Planned):
    """At most ``num_steps`` calls, fewer where a row has fewer positions to write."""

    own: Settings

    def begin(self, state: State) -> State:
        return replace(state, fixed=state.x != self.mask_id)

    def choose(self, step: int, state: State, prediction: Prediction, draws: Draws) -> Tensor:
        return (state.x == self.mask_id) & ~self.plan(step, state, prediction, draws)

    def step(self, step: int, state: State, draws: Draws) -> tuple[State, Tensor]:
        is_masked, prediction = state.x == self.mask_id, self.predict(state)
        masks = self.plan(step, state, prediction, draws)
        is_last = ~masks.any(-1)
        greedy = is_last if self.settings.noise_removal == "greedy" else False
        after = self.unmask(step, state, is_masked & ~masks, prediction, draws, greedy=greedy)
        taken_back = masks & ~is_masked
        after = replace(after, x=after.x.masked_fill(taken_back, self.mask_id))
        share = masks.sum(-1) / is_masked.sum(-1).double()
        after = self.age(step, state, after, masks & is_masked, share, draws)
        return self.refresh(step, after, taken_back, draws), torch.ones_like(is_last)

    def plan(self, step: int, state: State, prediction: Prediction, draws: Draws) -> Tensor:
        """The positions (B, L) bool that are masks after this step."""
        assert state.fixed is not None
        free, done = ~state.fixed, (step + 1) / self.settings.num_steps
        score = self.survey(step, state, prediction, draws).masked_fill(state.fixed, torch.inf)
        # Rounded, so that 10 (1 - 9/10) is 1.
        num_masks = (free.sum(-1, keepdim=True).double() * (1 - done) + 1e-9).floor()
        rank = sort_key(score, step, draws).argsort(dim=-1, stable=True).argsort(dim=-1)
        return rank < num_masks

    def survey(self, step: int, state: State, prediction: Prediction, draws: Draws) -> Tensor:
        """Scores (B, L) float64 of all positions that are not fixed, chunk by chunk."""
        assert state.fixed is not None
        score = torch.zeros(state.x.shape, dtype=torch.float64, device=state.x.device)
        is_masked, length = state.x == self.mask_id, state.x.shape[1]
        nothing_carried = torch.full_like(state.x, self.mask_id)
        seen = prediction.with_features(prediction.features, nothing_carried)
        for rows, columns in chunks(is_masked, prediction.vocab_size):
            log_probs = prediction.at(rows * length + columns).double()
            # Draws belong to step, row and position: ``unmask`` writes this very token.
            tokens = draws.tokens(step, self.token_distribution(log_probs), rows, columns)
            score[rows, columns] = log_probs.gather(1, tokens[:, None]).squeeze(1)
        for rows, columns in chunks(~is_masked & ~state.fixed, prediction.vocab_size):
            log_probs = seen.at(rows * length + columns).double()
            own = log_probs.gather(1, state.x[rows, columns][:, None]).squeeze(1)
            score[rows, columns] = self.own.eta * own
        return score
