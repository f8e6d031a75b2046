"""Models of the score: ratios of probabilities instead of probabilities (SEDD, Lou et al., arXiv 2310.16834).

At a masked position the score of token y is p_t(y) / p_t(mask); in truth that is q times the probability that
the position holds y, q = alpha_t / (1 - alpha_t) = 1 / (e^sigma - 1). The network gives u_y = e^logit_y /
(V - 1), and q u_y for the score. From the weighted score entropy all q but one factor cancel:

    -dalpha/alpha [sum_y q u_y - q log(q u_x0) + q (log q - 1)]
        = -dalpha/(1 - alpha) [sum_y u_y - 1 - log u_x0]

The weight is MDLM's. With U the sum of all u_y the bracket is -log(u_x0 / U) + (U - 1 - log U): MDLM's
cross-entropy of the normalised score, and what it costs that the score is not normalised.
Shapes: B batch, L length, D width, V vocabulary with the mask, N chosen positions, n rows of a chunk.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from diffusion.linear_nll import weighted_linear_nll
from diffusion.parameterization import TimedPrediction, flat


def score_entropy(rows: slice, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """sum_y u_y - 1 - log u_target, a ``RowLoss`` of logits (n, V) with NEG_INF in the mask's column."""
    targets, num_tokens = targets.unsqueeze(1), logits.shape[1] - 1
    log_u = logits.gather(1, targets).squeeze(1) - math.log(num_tokens)
    # Not shifted by the largest logit: where this overflows, the loss is out of all bounds in truth.
    exponentials = logits.exp_()
    loss = exponentials.sum(-1) / num_tokens - 1 - log_u
    divisor = exponentials.new_full((1, 1), num_tokens)
    return loss, exponentials.scatter_add_(1, targets, -divisor.expand_as(targets)), divisor


class Score(TimedPrediction):
    """What a network of the score says about x0 given xt.

    As a ``Prediction`` it is the normalised score, which estimates x_theta: every sampler of masked models
    can read it. Only its loss, and ``log_score``, are those of the score as it stands.
    """

    def log_score(self, rows: Tensor) -> Tensor:
        """log(p_t(y) / p_t(mask)) at masked positions, (N, V), differentiable; 0 for the mask itself.

        Args:
            rows: (N,) int64 indices into the flattened B*L positions.
        """
        log_score = self.logits(rows) - self.sigma(rows).expm1().log() - math.log(self.vocab_size - 1)
        mask = torch.tensor([self.mask_id], device=rows.device)
        return log_score.index_fill(1, mask, 0.0)

    def weighted_nll(self, rows: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """As ``Prediction.weighted_nll``, of the score entropy, which is -log x_theta[target] or more."""
        with self._full_precision():
            features, weights = self._features.index_select(0, flat(rows)), weights.to(self.dtype)
            return weighted_linear_nll(features, self._head, targets, weights, score_entropy)
