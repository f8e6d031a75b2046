"""Analytic (Tweedie) sampling of the absorbing process by scores (SEDD, Lou et al., arXiv 2310.16834,
section 4), for models of the score and for models of x0.

At a masked position the score of token y is s_y = p_t(y) / p_t(mask), and 1 at the mask itself. With d =
sigma_t - sigma_s the step from t to s draws y in proportion to the staggered score, e^d s_y, to whose mask
entry (1 - e^d) times the sum of the scores is added, times the transposed transition, 1 - e^-d for tokens and
1 for the mask. With S, the sum of s_y over all tokens but the mask, this comes down to

    token y: (e^d - 1) s_y        mask: e^d + (1 - e^d) (1 + S) = 1 - (e^d - 1) S

which always sums to 1. So only S says whether a position unmasks, with probability (e^d - 1) S, and s / S
which token it gets. A model of x0 has s_y = k x_theta(y), k = alpha_t / (1 - alpha_t), hence S = k, and its
step is the ancestral one: (e^d - 1) k = (alpha_s - alpha_t) / (1 - alpha_t). The score of a network has an S
of its own.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from diffusion import NEG_INF
from diffusion.parameterization import Prediction
from samplers.ancestral import Ancestral, Decision
from samplers.base import State, chunks
from samplers.draws import Draws
from samplers.registry import register


@runtime_checkable
class ScorePrediction(Protocol):
    """What ``denoise`` of a model of the score returns."""

    @property
    def vocab_size(self) -> int:
        """V, the mask included."""
        ...

    def log_score(self, rows: Tensor) -> Tensor:
        """log s (N, V) at masked positions, indices (N,) int64 into the flattened B*L; the mask's column is
        not read."""
        ...


@register("analytic", claim="the process, by score", exact="limit", families=("absorbing", "score"))
class Analytic(Ancestral):
    """``num_steps`` network calls of the whole batch on the grid of ``ancestral``.

    The last step goes to t = 0 without a mask: it draws all that is left in proportion to the score (or takes
    the likeliest, where ``noise_removal`` is greedy; with none it is a step like the others). Where S of a
    network is so large that (e^d - 1) S exceeds 1, the position unmasks for certain. A mask that stays keeps
    its noise as in the ancestral step, with probability alpha_t / alpha_s.
    """

    def step(self, step: int, state: State, draws: Draws) -> tuple[State, Tensor]:
        is_masked = state.x == self.mask_id
        alpha_t = self.schedule.alpha(state.t)
        s, alpha_s, greedy = self.target(step, state.t)
        prediction = self.predict(state)
        # (e^d - 1) S in logarithms: at the last step of a long grid S is large and e^d - 1 small.
        log_rate = (alpha_s / alpha_t - 1).log().unsqueeze(-1)
        unmask = (log_rate + self.log_mass(state, prediction, is_masked)).exp().clamp(max=1)
        unmask = torch.where((alpha_s == 1).unsqueeze(-1), 1.0, unmask)
        keep = (1 - unmask) * (alpha_t / alpha_s).unsqueeze(-1)
        uniforms = draws.actions(step, state.x.shape[1])
        decision = Decision(is_masked & (uniforms < unmask), is_masked & (uniforms >= unmask + keep))
        if isinstance(prediction, ScorePrediction):
            prediction = TokensByScore(prediction, self.mask_id)
        state = self.reverse_step(step, state, decision, prediction, draws, greedy=greedy)
        return replace(state, t=s), self.calls(decision)

    def log_mass(self, state: State, prediction: Prediction | ScorePrediction, is_masked: Tensor) -> Tensor:
        """log S at every masked position, (B, L) float64; the head runs at these alone, chunk by chunk."""
        k = self.schedule.alpha(state.t) / self.schedule.masked(state.t)
        mass = k.log().unsqueeze(-1).expand(is_masked.shape)
        if isinstance(prediction, ScorePrediction):
            mass = mass.clone()
            for rows, columns in chunks(is_masked, prediction.vocab_size):
                flat = rows * is_masked.shape[1] + columns
                mass[rows, columns] = _token_scores(prediction, flat, self.mask_id).logsumexp(-1)
        return mass


class TokensByScore:
    """The distribution of tokens, s / S, as a prediction of x0 at masked positions."""

    def __init__(self, prediction: ScorePrediction, mask_id: int) -> None:
        self._prediction = prediction
        self._mask_id = mask_id

    @property
    def vocab_size(self) -> int:
        """V, the mask included."""
        return self._prediction.vocab_size

    def at(self, rows: Tensor) -> Tensor:
        """Log-probabilities (N, V) at masked positions, as ``Prediction.at``."""
        return _token_scores(self._prediction, rows, self._mask_id).log_softmax(-1)


def _token_scores(prediction: ScorePrediction, rows: Tensor, mask_id: int) -> Tensor:
    """log s (N, V) float64 of all tokens but the mask, which has none."""
    mask = torch.tensor([mask_id], device=rows.device)
    return prediction.log_score(rows).double().index_fill(1, mask, NEG_INF)
