"""Uniform-state diffusion: tokens turn into random ones, and any token may change again (Duo, Sahoo et al.,
arXiv 2506.10892; the posterior is that of D3PM, Austin et al., arXiv 2107.03006, the mean put in for x0).

With r = V alpha/(1 - alpha), q = 1 + r onehot(x0) and y = 1 + r x_theta (each sums to V + r), z = q_xt/y_xt,
the Rao-Blackwellised NELBO of a token (Duo, equation 5) is a sum of two terms that are never negative:

    -dalpha/(V alpha q_xt) [ (V + r) (z - 1 - log z) + sum_j q_j log(q_j / y_j) ]
    sum_j q_j log(q_j / y_j) = (1 + r) log(1 + r) - r log y_x0 - sum_j log y_j

so that of x_theta it needs the entries at x0 and xt, and one sum. The best x_theta of a position is the
distribution of its token given all *other* positions of xt: its own enters by the posterior.
Shapes: B batch, L length, D width, V vocabulary (there is no mask), N chosen positions, n rows of a chunk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from diffusion.linear_nll import linear_nll, weighted_linear_nll
from diffusion.objectives import LossOutput
from diffusion.parameterization import Prediction, flat


@dataclass(frozen=True)
class Uniform:
    """Forward process in which a token is replaced by one drawn uniformly from ``vocab_size`` ids."""

    vocab_size: int

    def corrupt(self, x0: Tensor, alpha_t: Tensor, uniforms: Tensor, keep: Tensor | None = None) -> Tensor:
        """Replace every position independently with probability 1 - alpha_t; it may come out as it was.

        Args:
            x0: (B, L) int64 clean ids.
            alpha_t: (B,) float64.
            uniforms: (B, L) float64 in [0, 1): each says whether, and what is left of it by what.
            keep: (B, L) bool, positions that are never replaced.

        Returns:
            (B, L) int64, the noised ids.
        """
        alpha_t = alpha_t.to(torch.float64).unsqueeze(-1)
        replaced = uniforms >= alpha_t
        if keep is not None:
            replaced = replaced & ~keep
        rest = torch.where(replaced, (uniforms - alpha_t) / (1 - alpha_t), 0.0)
        return torch.where(replaced, self.prior(rest), x0)

    def prior(self, uniforms: Tensor) -> Tensor:
        """The state at t = 1, ids of equal probability: int64, one for each float64 number in [0, 1)."""
        return (uniforms * self.vocab_size).long().clamp(max=self.vocab_size - 1)


class UniformReverse(NamedTuple):
    """A reverse step of one position: keep the token, draw any id, or draw from x_theta; they sum to 1."""

    keep: Tensor
    noise: Tensor
    draw: Tensor


def uniform_reverse(
    alpha_t: Tensor, alpha_s: Tensor, p_xt: Tensor | float, vocab_size: int
) -> UniformReverse:
    """The posterior from t to s < t as a mixture of three distributions.

    With alpha_ts = alpha_t/alpha_s and p = x_theta[xt] the posterior of a token is
    [(alpha_t V p + alpha_ts - alpha_t) onehot(xt) + (1 - alpha_ts)(1 - alpha_s)/V + (alpha_s - alpha_t)
    x_theta] / (alpha_t V p + 1 - alpha_t). ``keep`` grows with p: at p = 0 it is the least that any network
    gives.

    Args:
        alpha_t, alpha_s: float64, broadcastable with ``p_xt``, 0 < alpha_t <= alpha_s <= 1, alpha_t < 1.
        p_xt: float64 in [0, 1].
    """
    alpha_ts, pull = alpha_t / alpha_s, alpha_t * vocab_size * p_xt
    total = pull + 1 - alpha_t
    noise = (1 - alpha_ts) * (1 - alpha_s) / total
    return UniformReverse((pull + alpha_ts - alpha_t) / total, noise, (alpha_s - alpha_t) / total)


class UniformPrediction(Prediction):
    """What the network says about x0 given xt: a distribution over all ids at every position, none carried
    over.

    Args:
        features, weight, bias, xt, dtype, chunk_elements: see ``Prediction``.
    """

    def __init__(
        self,
        features: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        xt: Tensor,
        dtype: torch.dtype = torch.float32,
        chunk_elements: int | None = None,
    ) -> None:
        super().__init__(features, weight, bias, xt, None, dtype, chunk_elements)

    def at(self, rows: Tensor) -> Tensor:
        """Log-probabilities (N, V) at chosen positions, differentiable; ``rows`` as in ``Prediction.at``."""
        return self.logits(flat(rows)).log_softmax(-1)

    def nll(self, rows: Tensor, targets: Tensor) -> Tensor:
        """-log x_theta[target] at chosen positions, (N,), detached; see ``Prediction.nll``."""
        with torch.no_grad(), self._full_precision():
            return linear_nll(self._features[flat(rows)], self._head, targets)

    def weighted_bound(
        self, rows: Tensor, targets: Tensor, weights: Tensor, ratio: Tensor
    ) -> tuple[Tensor, Tensor]:
        """As ``weighted_nll``, of the bracket of the NELBO over q_xt (see the module's text).

        Args:
            rows: (N,) int64 indices into the flattened B*L positions.
            targets: (N,) int64 ids of x0.
            weights: (N,), treated as constants.
            ratio: (N,) r, positive.
        """
        bracket = RaoBlackwellTerm(self.xt.flatten()[rows], ratio.to(self.dtype))
        with self._full_precision():
            features, weights = self._features.index_select(0, rows), weights.to(self.dtype)
            return weighted_linear_nll(features, self._head, targets, weights, bracket)


class RaoBlackwellTerm:
    """[(V + r)(z - 1 - log z) + sum_j q_j log(q_j/y_j)] / q_xt at N positions, a ``RowLoss``."""

    def __init__(self, xt: Tensor, ratio: Tensor) -> None:
        self._xt, self._ratio = xt.unsqueeze(1), ratio.unsqueeze(1)

    def __call__(self, rows: slice, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        xt, x0, r = self._xt[rows], targets.unsqueeze(1), self._ratio[rows]
        size = logits.shape[1] + r
        exponentials = logits.sub_(logits.amax(-1, keepdim=True)).exp_()
        probs = exponentials.div_(exponentials.sum(-1, keepdim=True))
        scaled = probs * r
        y_t, y_0 = 1 + scaled.gather(1, xt), 1 + scaled.gather(1, x0)
        is_clean = (xt == x0).to(r.dtype)
        q = 1 + r * is_clean
        # z - 1 without cancellation, for times near 1, where everything is close to 1.
        z, gap = q / y_t, (r * is_clean - scaled.gather(1, xt)) / y_t
        spread = torch.where(gap > -0.5, gap - gap.log1p(), gap - z.log())
        divergence = (1 + r) * r.log1p() - r * y_0.log() - scaled.log1p().sum(-1, keepdim=True)
        loss = (size * spread + divergence) / q
        # x_theta_j times the derivative by it: -share_j everywhere, and at_t and at_0 besides.
        share = scaled.div_(scaled + 1)
        at_t = -share.gather(1, xt) * size * gap
        at_0 = -r * share.gather(1, x0)
        mean = at_t + at_0 - share.sum(-1, keepdim=True)
        grad = probs.mul_(-mean).sub_(share)
        return loss.squeeze(1), grad.scatter_add_(1, xt, at_t).scatter_add_(1, x0, at_0), q


def uniform_nelbo(
    prediction: UniformPrediction,
    x0: Tensor,
    weight: Tensor,
    sigma: Tensor,
    loss_mask: Tensor,
    num_tokens: Tensor | int,
) -> LossOutput:
    """The NELBO of uniform-state diffusion at one time of each sequence (Duo, equation 5), at every position.

    Args:
        prediction: the network's answer at xt.
        x0: (B, L) int64 clean ids.
        weight: (B,) -dalpha/(1 - alpha), ``Schedule.weight(t)``.
        sigma: (B,) -log alpha, float64.
        loss_mask: (B, L) bool, False at padding.
        num_tokens: what the sum is divided by.
    """
    rows = flat(loss_mask)
    sequence = rows // x0.shape[1]
    ratio = prediction.vocab_size / sigma.double().expm1()
    weight = weight.double() / ratio  # -dalpha / (V alpha)
    loss, bracket = prediction.weighted_bound(
        rows, x0.flatten()[rows], (weight / num_tokens)[sequence], ratio[sequence]
    )
    token_nll = torch.zeros(x0.numel(), dtype=bracket.dtype, device=bracket.device)
    token_nll[rows] = weight.to(bracket.dtype)[sequence] * bracket
    return LossOutput(loss, token_nll.view_as(x0), loss_mask)
