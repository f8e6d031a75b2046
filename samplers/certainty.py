"""Masked diffusion with the most certain positions first: ``confidence``, ``margin``, ``entropy``.

How certain the network is of a position is the probability of its likeliest token (MaskGIT, Chang et al.,
arXiv 2202.04200; LLaDA, Nie et al., arXiv 2502.09992), the lead over the second (Kim et al., arXiv
2502.06768), or minus the entropy (Dream, Ye et al., arXiv 2508.15487). How many unmask in a call:

* by steps: of n masks with r calls to go the ceil(n / r) most certain, min(num_steps, n) calls in all;
* ``threshold``: also all of at least this certainty (Fast-dLLM, Wu et al., arXiv 2505.22618; theirs is 0.9);
* ``factor`` f: also the n most certain, as long as the n-th has probability 1 - f / (n + 1) (the same paper);
* ``budget`` g: also the most certain, as long as sum of entropies - their largest <= g, a bound of what they
  share (EB-Sampler, Ben-Hamu et al., arXiv 2505.24857).

The last three save calls; ``sampling.steps`` stays the most that are made. With an exact denoiser, one
position a call, and tokens drawn after the choice, any of these orders has the distribution of the data.
Shapes: B rows, L positions, N masks, V vocabulary.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.parameterization import Prediction
from errors import UserError
from samplers.base import Ranking, State, chunks, setting
from samplers.draws import Draws
from samplers.planned import Planned, sort_key
from samplers.registry import register


@dataclass(frozen=True)
class Settings:
    """``sampling.certainty.*``, of all three."""

    threshold: float | None = setting(
        None, "positions at least so certain join in (entropy: e^-entropy)", above=0, high=1, example=0.9
    )
    factor: float | None = setting(
        None, "the n most certain join in while the n-th has 1 - factor/(n+1)", above=0, example=1.0
    )
    budget: float | None = setting(
        None, "nats that positions of a call may share, by their entropies (EB-Sampler)", low=0, example=0.1
    )
    temperature: float = setting(0.0, "of the order (Dream's alg_temp); 0: strictly by certainty", low=0)
    drawn: bool = setting(False, "certainty is the probability of a drawn token (MaskGIT, LLaDA); sharpens")
    block_length: int | None = setting(
        None, "positions of a block; blocks are finished from the left", low=1, example=32
    )

    def __post_init__(self) -> None:
        chosen = [name for name in ("threshold", "factor", "budget") if getattr(self, name) is not None]
        if len(chosen) > 1:
            problem = f"sampling.certainty.{chosen[0]} says already what joins in"
            name = f"sampling.certainty.{chosen[1]}"
            raise UserError(name, getattr(self, chosen[1]), problem, "use one of them")


class Certainty(Planned):
    """The order and the number; subclasses say what certainty is."""

    own: Settings

    @abstractmethod
    def score(self, log_probs: Tensor) -> Tensor:
        """Certainty (N,) of positions with ``log_probs`` (N, V), float64."""

    def choose(self, step: int, state: State, prediction: Prediction, draws: Draws) -> Tensor:
        is_masked, length = state.x == self.mask_id, state.x.shape[1]
        score, entropy = self.survey(step, state, prediction, draws)
        block = torch.arange(length, device=score.device) // (self.own.block_length or length)
        block = torch.where(is_masked, block, length)
        wanted = sort_key(score, step, draws)
        if self.own.temperature > 0:
            gumbel = -(-draws.order(step, length).clamp(min=1e-300).log()).log()
            wanted = score / self.own.temperature + gumbel
        order = wanted.argsort(dim=-1, descending=True, stable=True)
        order = order.gather(1, block.gather(1, order).argsort(dim=-1, stable=True))
        num_due = self.due(step, is_masked).unsqueeze(-1)
        due = torch.arange(length, device=score.device) < num_due
        is_open = (block == block.amin(-1, keepdim=True)).gather(1, order)
        due = due | (is_open & self.joins(score.gather(1, order), entropy.gather(1, order)))
        return is_masked & torch.zeros_like(is_masked).scatter(1, order, due)

    def ranking(self, shape: torch.Size, draws: Draws) -> Ranking:
        return lambda state, prediction: sort_key(self.survey(0, state, prediction, draws)[0], 0, draws)

    def joins(self, score: Tensor, entropy: Tensor) -> Tensor:
        """Of positions in their order, (B, L), which unmask besides those that have to, (B, L) bool."""
        own, number = self.own, torch.arange(1, score.shape[1] + 1, device=score.device)
        if own.threshold is not None:
            return self.as_probability(score) >= own.threshold
        if own.factor is not None:
            enough = self.as_probability(score) >= 1 - own.factor / (number + 1)
            return enough.long().cumprod(-1) > 0
        if own.budget is not None:
            return entropy.cumsum(-1) - entropy.cummax(-1).values <= own.budget
        return torch.zeros_like(score, dtype=torch.bool)

    def as_probability(self, score: Tensor) -> Tensor:
        """Certainty on the scale of ``threshold``, in [0, 1]."""
        return score

    def survey(self, step: int, state: State, prediction: Prediction, draws: Draws) -> tuple[Tensor, Tensor]:
        """Certainty and entropy in nats (B, L) float64 of all masks, chunk by chunk; -inf and 0 elsewhere."""
        is_masked, length = state.x == self.mask_id, state.x.shape[1]
        score = torch.full(state.x.shape, -torch.inf, dtype=torch.float64, device=state.x.device)
        entropy = torch.zeros_like(score)
        for rows, columns in chunks(is_masked, prediction.vocab_size):
            log_probs = prediction.at(rows * length + columns).double()
            entropy[rows, columns] = _entropy(log_probs)
            if self.own.drawn:
                # Draws belong to step, row and position: what is chosen is written with this very token.
                tokens = draws.tokens(step, self.token_distribution(log_probs), rows, columns)
                score[rows, columns] = log_probs.gather(1, tokens[:, None]).squeeze(1).exp()
            else:
                score[rows, columns] = self.score(log_probs)
        return score, entropy


def _entropy(log_probs: Tensor) -> Tensor:
    return -(log_probs.exp() * log_probs).sum(-1)


@register(
    "confidence",
    claim="most probable token first",
    exact="limit",
    own_order=True,
    removals=("ancestral", "greedy"),
    asks_all=True,
    scheduled=True,
)
class Confidence(Certainty):
    """The probability of the likeliest token."""

    def score(self, log_probs: Tensor) -> Tensor:
        return log_probs.amax(-1).exp()


@register(
    "margin",
    claim="largest lead first",
    exact="limit",
    own_order=True,
    removals=("ancestral", "greedy"),
    asks_all=True,
    scheduled=True,
)
class Margin(Certainty):
    """The lead of the likeliest token over the second."""

    def score(self, log_probs: Tensor) -> Tensor:
        first, second = log_probs.topk(2, dim=-1).values.exp().unbind(-1)
        return first - second


@register(
    "entropy",
    claim="lowest entropy first",
    exact="limit",
    own_order=True,
    removals=("ancestral", "greedy"),
    asks_all=True,
    scheduled=True,
)
class Entropy(Certainty):
    """Minus the entropy."""

    def score(self, log_probs: Tensor) -> Tensor:
        return -_entropy(log_probs)

    def as_probability(self, score: Tensor) -> Tensor:
        return score.exp()
