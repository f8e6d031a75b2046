"""Models of the score: ratios of probabilities instead of probabilities (SEDD, Lou et al., arXiv 2310.16834).

At a masked position the score of token y is p_t(y) / p_t(mask), in truth q x0-posterior(y) with q =
alpha_t / (1 - alpha_t) = 1 / (e^sigma - 1). The network gives u_y = e^logit_y / (V - 1), and the score q u_y.
In the score entropy, weighted with -dalpha_t / alpha_t, the q cancels but for a factor:

    -dalpha/alpha [sum_y q u_y - q log(q u_x0) + q (log q - 1)] = -dalpha/(1 - alpha) [sum_y u_y - 1 - log u_x0]

That is MDLM's weight, and with U the sum of all u_y a loss of -log(u_x0 / U) + (U - 1 - log U): MDLM's
cross-entropy of the normalised score, and what its being not normalised costs.
Shapes: B batch, L length, V vocabulary with the mask, N chosen positions.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from diffusion.linear_nll import weighted_linear_nll
from diffusion.parameterization import Prediction, flat


def score_entropy(rows: slice, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """sum_y u_y - 1 - log u_target of each row: a ``RowLoss`` of logits whose mask column is NEG_INF."""
    targets, num_tokens = targets.unsqueeze(1), logits.shape[1] - 1
    log_ratio = logits.gather(1, targets).squeeze(1) - math.log(num_tokens)
    # Not shifted by the largest logit: an overflow is a loss that is infinite in truth.
    exponentials = logits.exp_()
    loss = exponentials.sum(-1) / num_tokens - 1 - log_ratio
    grad = exponentials.scatter_add_(1, targets, torch.full_like(targets, -num_tokens, dtype=logits.dtype))
    return loss, grad, logits.new_full((1, 1), num_tokens)


class Score(Prediction):
    """What a network of the score says about x0 given xt.

    As a ``Prediction`` it is the normalised score, which is the x_theta of the same network: all samplers of
    masked models work with it. Its losses alone are those of the score as it is.

    Args:
        sigma: (B,) total noise of each sequence.
        others: those of ``Prediction``.
    """

    def __init__(self, *others: Tensor | int | None, sigma: Tensor, dtype: torch.dtype) -> None:
        super().__init__(*others, dtype=dtype)
        self._sigma = sigma

    def log_score(self, rows: Tensor) -> Tensor:
        """log(p_t(y) / p_t(mask)) at masked positions, (N, V), differentiable; NEG_INF in the mask's column.

        Args:
            rows: (N,) int64 indices into the flattened B*L positions.
        """
        sigma = self._sigma.to(self.dtype)[rows // self.xt.shape[1]]
        shift = torch.expm1(sigma).log() + math.log(self.vocab_size - 1)
        return self.logits(rows) - shift.unsqueeze(1)

    def weighted_nll(self, rows: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """As ``Prediction.weighted_nll``, of the score entropy, which is -log x_theta[target] or more."""
        with self._full_precision():
            features = self._features.index_select(0, flat(rows))
            weights = weights.to(self.dtype)
            return weighted_linear_nll(features, self._head, targets, weights, score_entropy)
